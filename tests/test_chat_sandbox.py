"""What a chat template may not ask of the machine, and how much less than the bounds real ones need."""

import datetime
import resource
import time
from pathlib import Path

import pytest

from entropix.checkpoint import chat_sandbox
from entropix.checkpoint.chat import ChatTemplate, load_chat_template
from entropix.paths import weights_folder
from entropix.prompts import Message

TURNS = [Message(role="user", content="hi")]


def in_a_loop(start: str, step: str) -> str:
    """A template that changes `ns.x` a hundred times and writes it."""
    return (
        f"{{% set ns = namespace(x={start}) %}}{{% for i in range(100) %}}{{% set ns.x = {step} %}}{{% endfor %}}"
        "{{ ns.x }}"
    )


def loops(body: str, n: int = 3) -> str:
    """Loops in loops, each of 99,999 turns."""
    return "{% for a in range(99999) %}" * n + body + "{% endfor %}" * n


GREEDY = {
    "a centred text": "{{ 'a'.center(10**9) }}",
    "the filter": "{{ 'a' | center(10**9) }}",
    "a method from a filter": "{{ ('a' | attr('center'))(10**9) }}",
    "within a map": "{{ range(9999) | map('center', 100000) | list }}",
    "zeros in front": "{{ '1'.zfill(10**9) }}",
    "space behind": "{{ '1'.ljust(10**9) }}",
    "space before": "{{ '1'.rjust(10**9) }}",
    "tabs": "{{ ('\t' * 9999).expandtabs(99999) }}",
    "a printf width": "{{ '%999999999d' % 1 }}",
    "a printf width in a filter": "{{ '%999999999d' | format(1) }}",
    "a printf width that is computed": "{{ '%*d' % (999999999, 1) }}",
    "many printf places": "{{ ('%(a)s' * 9999) % {'a': 'b' * 99999} }}",
    "a format width": "{{ '{:999999999}'.format(1) }}",
    "a format width that is computed": "{{ '{:{}}'.format(1, '999999999') }}",
    "many format places": "{{ ('{0}' * 9999).format('a' * 99999) }}",
    "a text times": "{{ 'a' * 10**9 }}",
    "times a text": "{{ 10**9 * 'a' }}",
    "a list times": "{{ [0] * 10**9 }}",
    "a power": "{{ 9 ** (9 ** 9) }}",
    "squares": in_a_loop("3", "ns.x * ns.x"),
    "doubling by +": in_a_loop("'a'", "ns.x + ns.x"),
    "doubling by ~": in_a_loop("'a'", "ns.x ~ ns.x"),
    "doubling by join": in_a_loop("'a'", "[ns.x, ns.x] | join"),
    "doubling by replace": in_a_loop("'a'", "ns.x.replace('a', 'aa')"),
    "doubling by format": in_a_loop("'a'", "'%s%s' % (ns.x, ns.x)"),
    "doubling a list": in_a_loop("[1]", "ns.x + ns.x"),
    "a list of itself, twice": in_a_loop("[1]", "[ns.x, ns.x]"),
    "an object of itself, twice": in_a_loop("{}", "{'a': ns.x, 'b': ns.x}"),
    "calls of dict": in_a_loop("{}", "dict(a=ns.x, b=ns.x)"),
    "a macro that doubles": "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}" + in_a_loop("'a'", "f(ns.x)"),
    "a macro of itself": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "replacing nothing": "{{ ('a' * 9999) | replace('', 'b' * 99999) }}",
    "a long separator": "{{ ('b' * 99999).join('a' * 9999) }}",
    "a wide indent": "{{ ('\n' * 9999) | indent(99999) }}",
    "an indent of text": "{{ ('\n' * 9999) | indent('a' * 99999) }}",
    "indented JSON": "{{ ([1] * 9999) | tojson(indent=99999) }}",
    "JSON with long separators": "{{ ([1] * 9999) | tojson(separators=('a' * 99999, 'b')) }}",
    "a sum of lists": "{{ [[1] * 99] * 99 | sum(start=[]) }}",
    "groups of many": "{% for x in [1] | batch(10**9, 1) %}{% endfor %}",
    "many groups": "{% for x in [1] | slice(10**9) %}{% endfor %}",
    "nested loops": loops(""),
    "nested loops that write": loops("a text of some length, again and again"),
    "nested loops within a set": "{% set x %}" + loops("a") + "{% endset %}",
    "dates without end": loops("{{ strftime_now('%c') }}"),
    "a date of any width": "{{ strftime_now('%999999999Y') }}",
    "a date of any length": "{{ strftime_now('%c' * 9999) }}",
    "a template that is too long": "a" * 200_000,
}


@pytest.mark.parametrize("source", GREEDY.values(), ids=GREEDY)
def test_a_template_that_asks_for_the_machine_is_stopped(source: str) -> None:
    """Each of these would take gigabytes or minutes."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with pytest.raises(ValueError, match="the chat template asks for too much: it"):
        ChatTemplate(source).render(TURNS)
    assert time.perf_counter() - start < 3 * chat_sandbox.SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("{{ lipsum(n=10) }}", "'lipsum' is undefined"),
        ("{{ 'a' | wordwrap(1) }}", "No filter named 'wordwrap'"),
        ("{{ (5).to_bytes(10**9, 'big') }}", "access to attribute 'to_bytes' of 'int'"),
        ("{{ 'a'.translate({97: 'b'}) }}", "access to attribute 'translate' of 'str'"),
        ("{{ dict.fromkeys('ab') }}", "access to attribute 'fromkeys' of 'type'"),
        ("{% import 'a' as b %}", "no loader for this environment"),
        ("{{ " + "(" * 40_000 + ")" * 40_000 + " }}", "maximum recursion depth exceeded"),
        ("{{ " + "9" * 9999 + " }}", "Exceeds the limit"),
        ("{% block a %}{{ self.a() }}{% endblock %}", "maximum recursion depth exceeded"),
    ],
)
def test_what_no_template_needs_is_not_there(source: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        ChatTemplate(source).render(TURNS)


def test_the_time_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_sandbox, "SECONDS", 0.0)
    with pytest.raises(ValueError, match="asks for too much: it takes more than 0 seconds"):
        ChatTemplate("{% for i in range(9) %}{% endfor %}").render(TURNS)


def test_a_message_too_long_to_show_is_cut() -> None:
    with pytest.raises(ValueError, match=r"^.{1000}$"):
        ChatTemplate("{{ raise_exception('a' * 99999) }}").render(TURNS)


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ 'a'.center(5) }}|{{ 'a' | center(3) }}", "  a  | a "),
        ("{{ '%03d' % 7 }}|{{ '%s-%s' | format(1, 2) }}|{{ '{:>3}{}'.format(1, 2) }}", "007|1-2|  12"),
        ("{{ 2 ** 10 }}|{{ 'ab' * 2 }}|{{ 3 * [0] }}", "1024|abab|[0, 0, 0]"),
        ("{{ 'a' ~ 1 ~ [2] }}|{{ 'abc'[1:] }}|{{ messages[0:1] | length }}", "a1[2]|bc|1"),
        (
            "{% for a, b in [(1, 2), (3, 4)] %}{{ a + b }}{{ loop.length }}{{ loop.last }}{% endfor %}",
            "32False72True",
        ),
        ("{% for x in [[1], [2]] recursive %}{{ loop(x) if x is iterable else x }}{% endfor %}", "12"),
        ("{% set d = {'a': 1} %}{{ d.items() | list }}{{ d.get('b', 2) }}", "[('a', 1)]2"),
        ("{{ 'a,b'.split(',') | map('upper') | join('-') }}", "A-B"),
        ("{{ ['b', 'a'] | sort | tojson(indent=1) }}", '[\n "a",\n "b"\n]'),
        ("{% macro f(x) %}<{{ x }}{{ caller() }}>{% endmacro %}{% call f(2) %}!{% endcall %}", "<2!>"),
        ("{{ 'a\nb' | indent(2) }}|{{ [1, 2] | sum }}|{{ '  x ' | trim }}", "a\n  b|3|x"),
        ("{% for i in range(5) if i % 2 %}{{ i }}{% else %}none{% endfor %}", "13"),
    ],
)
def test_what_templates_need_is_as_ever(source: str, text: str) -> None:
    assert ChatTemplate(source).render(TURNS) == text


@pytest.mark.parametrize("name", ["llama3"])
def test_a_conversation_of_a_million_characters_is_far_from_the_bounds(name: str) -> None:
    source = Path(__file__).parent.parent / "configs" / "chat" / f"{name}.jinja"
    turns = [Message(role=("user", "assistant")[i % 2], content="word " * 500) for i in range(401)]
    assert len(ChatTemplate(source.read_text(encoding="utf-8")).render(turns)) > 1_000_000


@pytest.mark.real
def test_the_default_models_template_needs_a_thousandth(monkeypatch: pytest.MonkeyPatch) -> None:
    template = load_chat_template(weights_folder("smollm2-135m-instruct"))
    assert template is not None
    monkeypatch.setattr(chat_sandbox, "_LEAST", 4000)
    monkeypatch.setattr(chat_sandbox, "_FACTOR", 0)
    assert template.render(TURNS).endswith("<|im_start|>assistant\n")


def test_the_date_can_be_fixed() -> None:
    template = ChatTemplate("{{ strftime_now('%d %B %Y') }}", now=datetime.datetime(2024, 7, 26))
    assert template.has_date
    assert template.render(TURNS) == "26 July 2024"
    assert not ChatTemplate("{{ messages }}").has_date
