"""Fields of configurations: their documentation, their ranges, and how values of TOML and flags are checked."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, TypeVar, cast, dataclass_transform, get_args, get_type_hints

import jax
import numpy as np

from entropix.showing import shown, suggestion

Config = TypeVar("Config")

_LARGEST = 3.4028234e38  # what float32 holds
MAX_INT32 = 2**31 - 1  # the device counts in int32
NO_TOKEN = -1  # among token ids: none, where an array has more places than there are tokens
TRACED, STATIC, HOST = "traced", "static", "host"  # kinds of a rule's numbers
NO_NAMES: Mapping[str, str] = {}
# The types of fields that are lists: of what, and its name in a sentence.
_LISTS: dict[Any, tuple[type, str]] = {
    tuple[str, ...]: (str, "a list of strings"),
    tuple[int, ...]: (int, "a list of integers"),
    tuple[float, ...]: (float, "a list of numbers"),
}


def parameter(
    default: Any,
    help: str,
    low: float = -math.inf,
    high: float = math.inf,
    unit: str = "",
    source: str = "",
    kind: str = TRACED,
) -> Any:
    """A dataclass field with its documentation and its inclusive range.

    source: what others set it to, and where that is written. kind, in the numbers of a sampling rule: `TRACED` numbers
    are data of the compiled program, so that another value compiles nothing; `STATIC` ones fix a shape and are compiled
    in; `HOST` ones, like texts, are read before anything is compiled.
    """
    documentation = {"help": help, "low": low, "high": high, "unit": unit, "source": source, "kind": kind}
    return dataclasses.field(default=default, metadata=documentation)


def choice(default: str, help: str, *known: str) -> Any:
    """A dataclass field that is one of these words."""
    documented = parameter(default, help)
    return dataclasses.field(default=default, metadata={**documented.metadata, "choices": known})


@dataclass_transform(frozen_default=True, kw_only_default=True)
def rule_config(cls: type[Config]) -> type[Config]:
    """Makes a class the frozen dataclass of a sampling rule's numbers, which `jit` takes apart as `parameter` says."""
    made: Any = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    hints = get_type_hints(made)
    for field in dataclasses.fields(made):
        if "kind" not in field.metadata:
            raise ValueError(
                f"{cls.__name__}.{field.name}: write its default as parameter(default, help, ...)"
            )
        if field.metadata["kind"] == TRACED and hints[field.name] not in (float, int, bool):
            raise ValueError(f"{cls.__name__}.{field.name}: a traced number is a float, an int or a bool")
    jax.tree_util.register_dataclass(
        made, fields_of_kind(made, TRACED), fields_of_kind(made, STATIC), fields_of_kind(made, HOST)
    )
    return cast(type[Config], made)


def fields_of_kind(cls: type, kind: str) -> list[str]:
    """The names of a rule's numbers that are traced, static or the host's."""
    return [field.name for field in dataclasses.fields(cls) if field.metadata["kind"] == kind]


# ----- checking and reading ------------------------------------------------------------------------------------


# What to do instead of a number out of its range.
_INSTEAD = {"temp": "the sampler greedy always takes the likeliest token"}


def _label(source: str, name: str) -> str:
    """A field as its user has written it."""
    if source == "flags":
        return f"--{name.replace('_', '-')}"
    return f"{source}: {name}" if source else name


def check(cfg: Any, source: str = "", typed: Mapping[str, str] = NO_NAMES) -> None:
    """Raises a ValueError that names the first field of the wrong type or out of its range.

    A config whose fields depend on each other has a method `problem`: a sentence, or None where all is well.
    source: what the error begins with; "flags" names fields as they are typed. typed: those flags that are not named
    after their field.
    """
    where = f"{source}: " if source else ""
    hints = get_type_hints(type(cfg))
    for field in dataclasses.fields(cfg):
        value, expected = getattr(cfg, field.name), hints[field.name]
        if dataclasses.is_dataclass(value):
            check(value, f"{where}{field.name}")
        label = _label(source, typed.get(field.name, field.name))
        if not _is_of_type(value, expected):
            type_name = getattr(expected, "__name__", str(expected))
            kind = _LISTS[expected][1] if expected in _LISTS else f"of type {type_name}"
            raise ValueError(f"{label} must be {kind}, got {shown(value)}")
        choices = field.metadata.get("choices", ())
        if choices and value not in choices:
            raise ValueError(f"{label} must be {' or '.join(choices)}, got {shown(value)}")
        low, high = field.metadata.get("low", -math.inf), field.metadata.get("high", math.inf)
        for item in value if isinstance(value, tuple) else (value,):
            is_number = isinstance(item, int | float) and not isinstance(item, bool)
            if is_number and (not low <= item <= high or abs(item) > _LARGEST):
                instead = f"; {_INSTEAD[field.name]}" if field.name in _INSTEAD else ""
                raise ValueError(f"{label} must be {_range_text(low, high)}, got {shown(item)}{instead}")
    problem = getattr(cfg, "problem", lambda: None)()
    if problem is not None and source == "flags":
        names = "|".join(field.name for field in dataclasses.fields(cfg))
        raise ValueError(re.sub(rf"\b({names})\b", lambda name: _label(source, name[0]), problem))
    if problem is not None:
        raise ValueError(f"{where}{problem}")


def from_mapping(
    cls: type[Config], values: Mapping[str, Any], source: str, typed: Mapping[str, str] = NO_NAMES
) -> Config:
    """Builds a checked config from parsed TOML or flags; an unknown or missing name is an error with the nearest known
    one. source, typed: as for `check`."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{source}: expected names with values, got {shown(values)}")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            hint = suggestion(name, fields, f"known: {', '.join(sorted(fields))}")
            raise ValueError(f"{source}: unknown field {shown(name)}{hint}")
    missing = [n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in values]
    if missing:
        raise ValueError(f"{source}: missing field{'s'[: len(missing) - 1]} {', '.join(missing)}")
    hints = get_type_hints(cls)
    converted = {name: _converted(value, hints[name]) for name, value in values.items()}
    for name, value in converted.items():
        inner = [kind for kind in (hints[name], *get_args(hints[name])) if dataclasses.is_dataclass(kind)]
        if inner and isinstance(value, Mapping):
            converted[name] = from_mapping(cast(type, inner[0]), value, f"{source}: {name}")
    try:
        cfg = cls(**converted)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    check(cfg, source, typed)
    return cfg


def _converted(value: Any, expected: Any) -> Any:
    """TOML writes tuples as arrays, and whole numbers without a point, which would compile another program; what is
    computed comes as numbers and arrays of numpy or JAX."""
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        value = value.tolist()
    if isinstance(value, list | range | tuple):
        return tuple(item.item() if isinstance(item, np.generic) else item for item in value)
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if expected is float and is_whole and abs(value) <= _LARGEST else value


def _is_of_type(value: Any, expected: Any) -> bool:
    if expected is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if expected in _LISTS:
        return isinstance(value, tuple) and all(_is_of_type(item, _LISTS[expected][0]) for item in value)
    return isinstance(value, expected)


def _range_text(low: float, high: float) -> str:
    if math.isinf(high):
        return f"a finite number of at least {low}" if not math.isinf(low) else "a finite number"
    return f"between {low} and {high}"
