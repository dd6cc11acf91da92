"""Where chat templates run: jinja's sandbox, in which a template can ask for no more than a little room and time.

jinja's own sandbox keeps templates away from Python, but not from the machine: `'a'.center(10**9)` is one call, and a
text doubles in a loop. Here every step of a template (an operation, a call, a filter, a turn of a loop, an output)
costs something, and so does every character and every element that it makes. What would make much from little
(multiplication, powers, widths, joining, replacing) is priced before it happens. Whoever runs out is stopped, and so
is, as a last resort, who takes longer than `SECONDS`. The bounds grow with the conversation; templates in use need a
small part of them. Methods that no template needs are not there.

Nothing here knows a checkpoint: a template and what it may use come in, a text comes out.
"""

import contextvars
import functools
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
from jinja2 import nodes
from jinja2.compiler import CodeGenerator
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError

LONGEST_TEMPLATE = 100_000  # characters; the longest in use have some 30,000
SECONDS = 10.0  # that rendering may take
_LEAST = 4_000_000  # characters that any template may make
_FACTOR = 200  # as many for each character of the conversation
_STEP = 16  # what a step costs besides, and an element of a list or object
_LARGEST = 1_000_000  # whole number that a text's method or a filter may be given
_BITS = 4096  # of a product or power of whole numbers

# What is left of a whole number of characters, and until when: of the rendering under way.
_PURSE: contextvars.ContextVar["_Purse"] = contextvars.ContextVar("_PURSE")


class TooMuch(SecurityError):
    """A template asks for more room or time than it may have."""


class _Purse:
    def __init__(self, n_input: int) -> None:
        self.left = _LEAST + _FACTOR * n_input
        self.until = time.monotonic() + SECONDS

    def pay(self, price: int) -> None:
        self.left -= price + _STEP
        if self.left < 0:
            raise TooMuch("it would make too long a text, or take too many steps")
        if time.monotonic() > self.until:
            raise TooMuch(f"it takes more than {SECONDS:g} seconds")

    def can_pay(self, price: int) -> None:
        """Raises where something is too dear, before it is made."""
        if price > self.left:
            raise TooMuch(_TOO_LONG)


def render(template: jinja2.Template, values: Mapping[str, Any], n_input: int) -> str:
    """The text of a template that `compiled` returned; n_input: characters of what is rendered.

    Raises TooMuch, and whatever else a template may fail with.
    """
    token = _PURSE.set(_Purse(n_input))
    try:
        return "".join(template.generate(**values))  # its pieces have been paid for
    finally:
        _PURSE.reset(token)


def compiled(
    source: str, extensions: Collection[type], more: Mapping[str, Callable[..., Any]]
) -> jinja2.Template:
    """The program that a template is. more: functions it may call, of which `tojson` is a filter.

    Raises jinja2.TemplateSyntaxError for a broken template, TooMuch for one that is too long.
    """
    return _environment(source, extensions, more).from_string(source)


def asked_for(
    source: str, extensions: Collection[type], more: Mapping[str, Callable[..., Any]]
) -> tuple[set[str], set[str]]:
    """(names that a template reads and does not make itself, names that every template has here).

    The arguments and errors are those of `compiled`.
    """
    environment = _environment(source, extensions, more)
    return jinja2.meta.find_undeclared_variables(environment.parse(source)), {*environment.globals}


def _environment(
    source: str, extensions: Collection[type], more: Mapping[str, Callable[..., Any]]
) -> "_Environment":
    """Where this template runs."""
    if len(source) > LONGEST_TEMPLATE:
        raise TooMuch(f"it has {len(source)} characters; at most {LONGEST_TEMPLATE} are accepted")
    # Without the optimizer nothing is computed before rendering.
    environment = _Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[*extensions, jinja2.ext.loopcontrols],
        optimized=False,
        finalize=_output,
    )
    environment.source_length = len(source)
    environment.globals |= {name: value for name, value in more.items() if name != "tojson"}
    del environment.globals["lipsum"]
    named = environment.filters | {"tojson": more["tojson"]}
    environment.filters = {
        name: _priced_filter(name, function) for name, function in named.items() if name not in _NO_FILTERS
    }
    return environment


# ----- what is paid for ---------------------------------------------------------------------------------------


class _CodeGenerator(CodeGenerator):
    """Writes programs that pay for texts that are put together, slices, and lists and objects that are spelt out."""

    def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:
        self.write("environment.joined((")
        for child in node.nodes:
            self.visit(child, frame)
            self.write(", ")
        self.write("))")

    def visit_Getitem(self, node: nodes.Getitem, frame: Any) -> None:
        self._paying(super().visit_Getitem, node, frame, isinstance(node.arg, nodes.Slice))

    def visit_List(self, node: nodes.List, frame: Any) -> None:
        self._paying(super().visit_List, node, frame)

    def visit_Tuple(self, node: nodes.Tuple, frame: Any) -> None:
        self._paying(super().visit_Tuple, node, frame, node.ctx == "load")

    def visit_Dict(self, node: nodes.Dict, frame: Any) -> None:
        self._paying(super().visit_Dict, node, frame)

    def _paying(self, visit: Callable[..., None], node: nodes.Node, frame: Any, paying: bool = True) -> None:
        self.write("environment.paid(" if paying else "")
        visit(node, frame)
        self.write(")" if paying else "")


class _Environment(ImmutableSandboxedEnvironment):
    code_generator_class = _CodeGenerator
    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "%", "**"))
    source_length = 0

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            # By each turn, at most.
            written = sum(len(data.data) for data in loop.find_all(nodes.TemplateData))
            steps = nodes.EnvironmentAttribute("steps", lineno=loop.lineno)
            arguments = [loop.iter, nodes.Const(written, lineno=loop.lineno)]
            loop.iter = nodes.Call(steps, arguments, [], None, None, lineno=loop.lineno)
        tree.set_environment(self)
        return tree

    def steps(self, items: Iterable[Any], price: int) -> Iterator[Any]:
        """The items, each for a step and `price`."""
        for item in items:
            _PURSE.get().pay(price)
            yield item

    def paid(self, value: Any) -> Any:
        """The value itself, at the price of its size."""
        _PURSE.get().pay(_measure(value)[0])
        return value

    def joined(self, parts: tuple[Any, ...]) -> str:
        """The parts as one text."""
        _PURSE.get().can_pay(sum(map(_text_price, parts)))
        return self.paid("".join(map(str, parts)))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "%" and isinstance(left, str):
            _PURSE.get().can_pay(_format_price(left, "%", right))
        elif operator in ("*", "**"):
            _check_product(operator, left, right)
        return self.paid(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        text, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(__obj, LoopContext):  # a loop over what is within its items
            args = (__self.steps(args[0], __self.source_length), *args[1:]) if args else ()
        elif isinstance(text, str):
            if name == "join" and args:
                args = (list(args[0]), *args[1:])
            _check_numbers(args)
            price = _METHOD_PRICES.get(name)
            _PURSE.get().can_pay(price(text, *args) if price else len(text))
        return __self.paid(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        bare = super().wrap_str_format(value)
        if bare is None:
            return None

        @functools.wraps(bare)
        def bounded(*args: Any, **named: Any) -> str:
            _PURSE.get().can_pay(_format_price(value.__self__, "{", [args, named]))
            return bare(*args, **named)

        return bounded

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        for kind, names in _METHODS.items():
            if isinstance(obj, kind) and attr not in names:
                return False
        return super().is_safe_attribute(obj, attr, value)


@jinja2.pass_context
def _output(context: Any, value: Any) -> str:
    """What `{{ ... }}` writes."""
    purse = _PURSE.get()
    purse.can_pay(_text_price(value))
    text = str(value)
    purse.pay(len(text))
    return text


_ITEM_BY_ITEM = ("select", "reject", "selectattr", "rejectattr", "map")  # each item may take its time


def _stepwise(items: Iterable[Any]) -> Iterator[Any]:
    """The items, each for a step, before which the clock is looked at."""
    for item in items:
        _PURSE.get().pay(1)
        yield item


def _priced_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter, which pays for what it makes, and before it does so if that may be much."""
    n_context = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def paying(*args: Any, **named: Any) -> Any:
        before, (value, *rest) = args[:n_context], args[n_context:]
        if name not in ("default", "d"):
            _check_numbers([*rest, *named.values()])
        if name == "join":
            value = list(value)
        if name in _ITEM_BY_ITEM and isinstance(value, Iterable):
            value = _stepwise(value)
        if price := _FILTER_PRICES.get(name):
            _PURSE.get().can_pay(price(value, *rest, **named))
        made = function(*before, value, *rest, **named)
        _PURSE.get().pay(_measure(made)[0])
        return made

    return paying


# ----- prices -------------------------------------------------------------------------------------------------


def _measure(value: Any) -> tuple[int, int]:
    """(characters in a value all the way down, elements counted as several, how deep that is).

    Stops where nobody could pay.
    """
    most, total, depth, waiting = _PURSE.get().left, 0, 0, [(value, 0)]
    while waiting and total <= most:
        item, level = waiting.pop()
        total, depth = total + (_STEP if level else 1), max(depth, level)
        if isinstance(item, str | bytes):
            total += len(item)
        elif isinstance(item, Mapping):
            waiting += [(part, level + 1) for pair in item.items() for part in pair]
        elif isinstance(item, list | tuple | set | frozenset):
            waiting += [(part, level + 1) for part in item]
        elif isinstance(item, int):
            total += item.bit_length() // 3
    return total, depth


def _text_price(value: Any) -> int:
    """At least the length of the value as a text."""
    return len(value) if isinstance(value, str) else 2 * _measure(value)[0] + 30


def _check_numbers(arguments: Iterable[Any]) -> None:
    for value in arguments:
        if isinstance(value, int) and abs(value) > _LARGEST:
            raise TooMuch(
                f"it asks for something of the size {value:.0e}" if abs(value) < 1e300 else _TOO_LONG
            )


def _check_product(operator: str, left: Any, right: Any) -> None:
    """Raises where a product, power or repetition would be too large."""
    if isinstance(left, int) and isinstance(right, int):
        bits = (
            left.bit_length() * max(right, 0) if operator == "**" else left.bit_length() + right.bit_length()
        )
        if bits > _BITS:
            raise TooMuch(f"it computes a number of more than {_BITS} bits")
    elif operator == "*":
        times = [value for value in (left, right) if isinstance(value, int)]
        many = [value for value in (left, right) if isinstance(value, str | list | tuple)]
        if times and many:
            _PURSE.get().can_pay(_measure(many[0])[0] * max(times[0], 0))


def _format_price(text: str, placeholder: str, arguments: Any) -> int:
    """At least the length of a formatted text; `placeholder` is what a place in it for an argument begins with."""
    if re.search(r"%[^a-zA-Z%]*\*|\{[^{}]*\{|\d{7}", text):
        raise TooMuch("it formats a text with a width that is too large, or computed")
    widths = sum(map(int, re.findall(r"\d+", text)))
    return len(text) + widths + text.count(placeholder) * (12 * _measure(arguments)[0] + 400)


def _replace_price(text: Any, old: Any = "", new: Any = "", *_: Any, **__: Any) -> int:
    text, old, new = str(text), str(old), str(new)
    return len(text) + (text.count(old) if old else len(text) + 1) * len(new)


def _join_price(separator: Any, values: Any, *_: Any) -> int:
    return 2 * _measure(values)[0] + len(values) * len(str(separator))


def _width_price(text: Any, width: Any = 80, *_: Any) -> int:
    text = str(text)
    return len(text) + (text.count("\t") + 1) * (width if isinstance(width, int) else 0)


def _indent_price(text: Any, width: Any = 4, *_: Any, **__: Any) -> int:
    text = str(text)
    return len(text) + (len(text.splitlines()) + 1) * (width if isinstance(width, int) else len(str(width)))


def _json_price(value: Any, *options: Any, **named: Any) -> int:
    """With a line an element, indented by its depth; without, separators are as dear."""
    widest = max(
        (len(str(o)) + (o if isinstance(o, int) else 0) for o in (*options, *named.values())), default=0
    )
    size, depth = _measure(value)
    return size * (12 + widest * (depth + 1))


def _sum_price(values: Any, attribute: Any = None, start: Any = 0) -> int:
    if not isinstance(start, int | float):
        raise TooMuch("it adds up what are no numbers")
    return 0


_TOO_LONG = "it would make too long a text"

_METHOD_PRICES: dict[str, Callable[..., int]] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill", "expandtabs"), _width_price),
    "replace": _replace_price,
    "join": _join_price,
}
_FILTER_PRICES: dict[str, Callable[..., int]] = {
    "center": lambda text, width=80: _width_price(text, width),
    "format": lambda text, *args, **named: _format_price(str(text), "%", [args, named]),
    "indent": _indent_price,
    "join": lambda values, d="", *_, **__: _join_price(d, values),
    "replace": _replace_price,
    "sum": _sum_price,
    "tojson": _json_price,
}
_NO_FILTERS = ("pprint", "striptags", "urlize", "wordwrap", "xmlattr")

# The attributes that values of these kinds have; all else that jinja's own sandbox allows is there.
_METHODS: dict[Any, Collection[str]] = {
    str: {name for name in dir(str) if not name.startswith("_")}
    - {"encode", "format_map", "maketrans", "translate"},
    (list, tuple): {"copy", "count", "index"},
    dict: {"copy", "get", "items", "keys", "values"},
    (int, float, bytes, range, type): (),
}
