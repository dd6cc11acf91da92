"""The schema of traces: which fields there are, of which types. docs/trace.md explains each.

`VERSION` rises when a field goes or changes its meaning. Fields may be added without that: readers ignore fields they
do not know, and the fields in `ADDED` may be missing from traces of earlier releases.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from entropix.checkpoint.values import as_json, is_text
from entropix.metrics import Metrics
from entropix.samplers.rule_files import RuleFile

FORMAT, VERSION = "entropix-trace", 1
_MOST = 2**53 - 1  # what every reader of JSON holds exactly
_LARGEST = 3.4028235e38  # what float32 holds


# The types of the fields.
HEADER = {
    "format": "string",
    "version": "integer",
    "entropix": "string",
    "jax": "string",
    "backend": "string",
    "device": "string",
    "mesh": "string or null",
    "matmul_precision": "string or null",
    "model": "object",
    "template_args": "object",
    "sampler": "string",
    "preset": "string",
    "strategies": "list of strings",
    "sampler_config": "object",
    "sampler_source": "object or null",
    "generation": "object",
    "rows": "string",
    "prompts": "list of objects",
    "selection": "object",
    "paths": "list of objects",
    "metrics": "list of objects",
}


METRIC = {"name": "string", "title": "string", "unit": "string", "meaning": "string"}


ADAPTER = {"name": "string", "fingerprint": "string"}  # of a model, if it has one
MODEL = {"name": "string", "config": "object", "dtype": "string", "fingerprint": "string"}


PROMPT = {"token_ids": "list of integers", "text": "string"}


SAMPLER_SOURCE = dict.fromkeys(RuleFile._fields, "string")


SELECTION = {"fork": "string", "select": "string", "extract": "string", "decided_early": "boolean"}


PATH = {
    "prompt": "integer",
    "parent": "integer or null",
    "position": "integer",
    "given": "integer",
    "answer": "string or null",
    "scores": "object",
    "forward_passes": "integer",
    "chosen": "boolean",
}


PLACE = {"row": "integer", "step": "integer"}


RECORD = {
    "id": "integer",
    "text": "string",
    "bytes": "list of integers",
    "strategy": "string",
    "temperature": "number or null",
    "top_p": "number or null",
    "top_k": "integer",
    "min_p": "number or null",
    "kept": "integer",
    "logprob": "number or null",
    "draw_logprob": "number or null",
    "score": "number or null",
    "injected": "boolean",
    **dict.fromkeys(Metrics._fields, "number or null"),
    "alternatives": "list of objects",
    "head_entropies": "list of lists of numbers",
    "branches": "list of objects",
    "taken_back": "list of lists of integers",
}


ALTERNATIVE = {name: RECORD[name] for name in ("id", "text", "bytes", "logprob", "draw_logprob")}


BRANCH = {
    "ids": "list of integers",
    "text": "string",
    "logprobs": "list of numbers",
    "score": "number or null",
    "chosen": "boolean",
}


END = {
    "row": "integer",
    "finish": "string",
    "reason": "string",
    "new_tokens": "integer",
    "text": "string",
}


ADDED = frozenset(
    {
        "preset",
        "sampler_source",
        "mesh",
        "matmul_precision",
        "template_args",
        "rows",
        "selection",
        "paths",
        "prompt",
        "metrics",
        "bytes",
        "alternatives",
        "head_entropies",
        "branches",
        "taken_back",
        *Metrics._fields,
    }
)


BATCH, TURNS = "batch", "turns"  # what `rows` may be


def check(value: dict[str, Any], fields: Mapping[str, str], where: str, inside: str = "") -> None:
    """Raises a ValueError for the first field that is missing, of another type or out of range."""
    for name, kind in fields.items():
        if name not in value:
            if name not in ADDED:
                raise ValueError(f"{where}: field '{inside}{name}' is missing")
        elif not TYPES[kind](value[name]):
            shown = as_json(value[name])
            raise ValueError(f"{where}: field '{inside}{name}' must be of type {kind}, got {shown[:80]}")
        elif name != "row" and (limit := _missed(value[name], kind, 255 if name == "bytes" else _MOST)):
            shown = as_json(value[name])
            raise ValueError(f"{where}: field '{inside}{name}' must {limit}, got {shown[:80]}")


def _missed(value: Any, kind: str, most: int) -> str | None:
    """What a value of the right type must be and is not; None where it is. most: the largest integer."""
    if isinstance(value, list) and "list" in kind and "objects" not in kind:
        return next((limit for item in value if (limit := _missed(item, kind, most))), None)
    if isinstance(value, str) and not is_text(value):
        return "be whole characters (this has half of one)"
    if "integer" in kind and value is not None and not 0 <= value <= most:
        return f"be from 0 to {most}"
    if "number" in kind and value is not None and not abs(value) <= _LARGEST:
        return "be null or a finite number, as float32 holds them"
    return None


def check_choice(value: str, known: Sequence[str], name: str, where: str) -> None:
    if value not in known:
        raise ValueError(f"{where}: field '{name}' must be one of {', '.join(known)}; got {value!r:.80}")


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return value is None or _is_integer(value) or isinstance(value, float)


def _list_of(is_item: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(is_item, value))


TYPES: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "integer": _is_integer,
    "boolean": lambda value: isinstance(value, bool),
    "integer or null": lambda value: value is None or _is_integer(value),
    "string or null": lambda value: value is None or isinstance(value, str),
    "number": lambda value: value is not None and _is_number(value),
    "number or null": _is_number,
    "object": lambda value: isinstance(value, dict),
    "object or null": lambda value: value is None or isinstance(value, dict),
    "list of strings": _list_of(lambda value: isinstance(value, str)),
    "list of integers": _list_of(_is_integer),
    "list of numbers": _list_of(_is_number),
    "list of objects": _list_of(lambda value: isinstance(value, dict)),
    "list of lists of numbers": _list_of(_list_of(_is_number)),
    "list of lists of integers": _list_of(_list_of(_is_integer)),
    "list of lists of strings or nulls": _list_of(_list_of(lambda value: isinstance(value, str | None))),
}
