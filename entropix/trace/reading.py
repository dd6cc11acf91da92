"""Reading a trace. Every field is checked against `trace.schema`."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import entropix
from entropix import config, samplers
from entropix.checkpoint.values import is_text
from entropix.config import BacktrackConfig, BranchConfig, GenerateConfig
from entropix.files import read_text
from entropix.metrics import Metrics
from entropix.results import FinishReason, Result
from entropix.trace.schema import (
    ADAPTER,
    ALTERNATIVE,
    BATCH,
    BRANCH,
    END,
    FORMAT,
    HEADER,
    METRIC,
    MODEL,
    PATH,
    PLACE,
    PROMPT,
    RECORD,
    SAMPLER_SOURCE,
    SELECTION,
    TURNS,
    TYPES,
    VERSION,
    check,
    check_choice,
)


class Trace(NamedTuple):
    """A trace that was read. `results` are those that were written: `entropix.generate` gives the same type.

    The same tokens again, given the same weights and backend:

        from entropix import trace

        read = trace.read("trace.jsonl")
        entropix.generate(model, read.prompts, **read.options)
    """

    header: dict[str, Any]
    results: list[Result]

    @property
    def prompts(self) -> list[list[int]]:
        """Token ids of the prompts."""
        return [result.prompt_ids for result in self.results]

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of `entropix.generate` that repeat the generation.

        Raises a ValueError for a rule whose file is gone or has changed.
        """
        head = self.header
        sampler = samplers.recorded(head["sampler"], head["sampler_config"], head.get("sampler_source"))
        generation = config.from_mapping(GenerateConfig, self.header["generation"], "generation")
        return {
            "sampler": sampler.name if sampler.source is None else sampler,
            "sampler_config": sampler.numbers,
            **{field.name: getattr(generation, field.name) for field in dataclasses.fields(generation)},
        }


def read(path: str | Path) -> Trace:
    """The trace in a file. Raises a ValueError that names the line and field when it is not a whole trace."""
    path = Path(path)
    text = read_text(path)
    if not text.strip():
        raise ValueError(f"{path}: this file is empty; a trace has at least its header")
    lines = text.removesuffix("\n").split("\n")
    head = _object(lines[0], f"{path}: line 1")
    _check_header(head, f"{path}: line 1")
    results = [Result(prompt["token_ids"]) for prompt in head["prompts"]]
    for number, line in enumerate(lines[1:], start=2):
        where = f"{path}: line {number}"
        _add_line(results, _object(line, where), head, where)
    if open_rows := [row for row, result in enumerate(results) if result.finish == FinishReason.RUNNING]:
        raise ValueError(f"{path}: truncated; the end of row {open_rows[0]} is missing")
    return Trace(head, results)


def _check_header(head: dict[str, Any], where: str) -> None:
    if head.get("format") != FORMAT:
        raise ValueError(f'{where}: not a trace; its first line should have "format": "{FORMAT}"')
    version: Any = head.get("version")
    if not TYPES["integer"](version) or version < 1:
        raise ValueError(f"{where}: field 'version' must be a positive integer, got {version!r}")
    if version > VERSION:
        raise ValueError(
            f"{where}: a trace of version {version}, written by entropix {head.get('entropix')}, but entropix "
            f"{entropix.__version__} reads version {VERSION}; use a later entropix"
        )
    check(head, HEADER, where)
    check(head["model"], MODEL, where, "model.")
    if "adapter" in head["model"]:
        check(head["model"], {"adapter": "object"}, where, "model.")
        check(head["model"]["adapter"], ADAPTER, where, "model.adapter.")
    head.setdefault("template_args", {})
    head.setdefault("preset", head["sampler"])
    if head.setdefault("sampler_source", None) is not None:
        check(head["sampler_source"], SAMPLER_SOURCE, where, "sampler_source.")
    for i, prompt in enumerate(head["prompts"]):
        check(prompt, PROMPT, where, f"prompts[{i}].")
    check_choice(head.setdefault("rows", BATCH), (BATCH, TURNS), "rows", where)
    if head.setdefault("selection", {}):
        check(head["selection"], SELECTION, where, "selection.")
    if head.setdefault("paths", []) and len(head["paths"]) != len(head["prompts"]):
        raise ValueError(f"{where}: {len(head['paths'])} paths for {len(head['prompts'])} prompts")
    for i, metric in enumerate(head.setdefault("metrics", [])):
        check(metric, METRIC, where, f"metrics[{i}].")
        if metric["name"] in PLACE | RECORD:
            raise ValueError(f"{where}: metrics[{i}] has the name of another field, {metric['name']!r}")
    for i, path in enumerate(head["paths"]):
        check(path, PATH, where, f"paths[{i}].")
        check(path["scores"], dict.fromkeys(path["scores"], "number or null"), where, f"paths[{i}].scores.")
    _check_numbers(head, where)


def _check_numbers(head: dict[str, Any], where: str) -> None:
    """Raises a ValueError for a number of the rule, of the generation or of the model that could not be one; what
    other releases have besides is passed over."""
    size = head["model"]["config"]
    check(size, {"vocab_size": "integer"} if "vocab_size" in size else {}, where, "model.config.")
    generation = _known(GenerateConfig, head["generation"])
    for name, part in (("branching", BranchConfig), ("backtracking", BacktrackConfig)):
        if isinstance(generation.get(name), dict):
            generation[name] = _known(part, generation[name])
    config.from_mapping(GenerateConfig, generation, f"{where}: generation")
    if rule := samplers.SAMPLERS.get(head["sampler"]):
        numbers = _known(rule.config, head["sampler_config"])
        config.from_mapping(rule.config, numbers, f"{where}: sampler_config")


def _known(cls: type, numbers: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(cls)}
    return {name: value for name, value in numbers.items() if name in names}


def _add_line(results: list[Result], line: dict[str, Any], head: Mapping[str, Any], where: str) -> None:
    """Adds a token or a row's end to its result."""
    is_end = "finish" in line
    own = {metric["name"]: "number or null" for metric in head["metrics"] if metric["name"] in line}
    check(line, END if is_end else PLACE | RECORD | own, where)
    row = line.pop("row")
    if not 0 <= row < len(results):
        raise ValueError(f"{where}: row {row}, but the header has {len(results)} prompts")
    result = results[row]
    if result.finish != FinishReason.RUNNING:
        raise ValueError(f"{where}: row {row} has already ended")
    if is_end:
        if line["new_tokens"] != len(result.records):
            raise ValueError(
                f"{where}: row {row} has {len(result.records)} tokens, but ends after {line['new_tokens']}"
            )
        check_choice(
            line["finish"],
            [f.name.lower() for f in FinishReason if f != FinishReason.RUNNING],
            "finish",
            where,
        )
        result.finish, result.text = FinishReason[line["finish"].upper()], line["text"]
        return
    if line.pop("step") != len(result.records):
        raise ValueError(f"{where}: expected step {len(result.records)} of row {row}")
    check_choice(line["strategy"], head["strategies"], "strategy", where)
    _check_heads(line, result, where)
    for i, alternative in enumerate(line.get("alternatives", [])):
        check(alternative, ALTERNATIVE, where, f"alternatives[{i}].")
    for i, branch in enumerate(line.get("branches", [])):
        check(branch, BRANCH, where, f"branches[{i}].")
    for name in Metrics._fields:
        line.setdefault(name, None)
    result.token_ids.append(line["id"])
    result.records.append(line)


def _check_heads(record: Mapping[str, Any], result: Result, where: str) -> None:
    """Raises a ValueError unless a token has as many layers and heads as the one before it."""
    sizes = [*map(len, record.get("head_entropies", ()))]
    before = [*map(len, result.records[-1].get("head_entropies", ()))] if result.records else []
    if len(set(sizes)) > 1 or (sizes and before and sizes != before):
        raise ValueError(
            f"{where}: field 'head_entropies' must have as many numbers in every layer, and as many layers, as at the "
            f"token before ({before or 'none'}), got {sizes}"
        )


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits, or nested too deep
        raise ValueError(f"{where}: not JSON ({error}); the file is no trace, or cut short") from None
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected a JSON object, got a {type(value).__name__}")
    if "\\u" in line and not is_text(names := json.dumps(_names(value), ensure_ascii=False)):
        raise ValueError(
            f"{where}: expected whole characters in names of fields, got half of one in {names!r:.80}"
        )
    return value


def _names(value: Any) -> Any:
    """The names of all fields in a JSON value."""
    if isinstance(value, dict):
        return [*value, *map(_names, value.values())]
    return [*map(_names, value)] if isinstance(value, list) else None
