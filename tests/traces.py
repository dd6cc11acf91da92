"""Traces of generations that never took place, with numbers that tell the tokens apart."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from entropix import trace
from entropix.metrics import Metrics
from entropix.samplers.entropix import STRATEGIES, SamplerConfig
from entropix.trace import schema

PROMPT = {"token_ids": [1, 2, 3], "text": "Why?"}


def token(step: int, text: str, **fields: Any) -> dict[str, Any]:
    """A record without alternatives and heads. Its metrics are step + 1/8, step + 2/8 and so on."""
    record = {
        "id": 100 + step,
        "text": text,
        "bytes": list(text.encode()),
        "strategy": STRATEGIES[step % len(STRATEGIES)],
        "temperature": 0.5 + step / 16,
        "top_p": 0.9,
        "top_k": 27 + step,
        "min_p": 0.03,
        "kept": 1 + step,
        "logprob": -step / 32,
        "draw_logprob": -step / 64,
        "score": None,
        "injected": False,
        **{name: step + (i + 1) / 8 for i, name in enumerate(Metrics._fields)},
    }
    return {**record, **fields}


def alternatives(step: int, text: str) -> list[dict[str, Any]]:
    """The token of that step, another that was kept and one that was not."""
    same = token(step, text)
    return [
        {name: same[name] for name in schema.ALTERNATIVE},
        {"id": 7, "text": " b", "bytes": [32, 98], "logprob": -3.0, "draw_logprob": -2.5},
        {"id": 8, "text": "c", "bytes": [99], "logprob": -4.0, "draw_logprob": None},
    ]


def heads(step: int, layers: int = 3, n: int = 2) -> list[list[float]]:
    """A different number for every head of every layer at every step, at most 8."""
    return [[(step % 8) + layer / 4 + head / 16 for head in range(n)] for layer in range(layers)]


def tokens(texts: Sequence[str], **fields: Any) -> list[dict[str, Any]]:
    """A row with everything that can be recorded."""
    return [
        token(step, text, alternatives=alternatives(step, text), head_entropies=heads(step), **fields)
        for step, text in enumerate(texts)
    ]


def branch(
    text: str, score: float | None, chosen: bool = False, ids: Sequence[int] = (0, 1, 2)
) -> dict[str, Any]:
    """A path of a fork."""
    return {
        "ids": list(ids),
        "text": text,
        "logprobs": [-0.25] * len(ids),
        "score": score,
        "chosen": chosen,
    }


def forked(texts: Sequence[str]) -> list[dict[str, Any]]:
    """A row of at least six tokens that forked at its second into three paths of three tokens each, of which the second
    won, at its fifth into two, of which the first won by a tie, and was returned to at its sixth, twice: two tokens
    were taken back, then one, whose text the trace does not tell."""
    row = tokens(texts)
    row[1]["branches"] = [
        branch(" sea is wide", -1.5),
        branch("".join(texts[1:4]), -0.75, True, [101, 102, 103]),
        branch(" <b>sun</b>\n", None),
    ]
    row[4]["branches"] = [branch(texts[4], -2.0, True, [104]), branch("!", -2.0, ids=[33])]
    row[5]["taken_back"] = [[7, 8], [999]]
    return row


def path(
    answer: str | None,
    scores: Mapping[str, float | None],
    parent: int | None = None,
    position: int = 0,
    chosen: bool = False,
) -> dict[str, Any]:
    """One of several paths from a prompt."""
    return {
        "parent": parent,
        "position": position,
        "given": 0 if parent is None else position + 1,
        "answer": answer,
        "scores": dict(scores),
        "forward_passes": 7,
        "chosen": chosen,
    }


def selection(select: str, **fields: Any) -> dict[str, Any]:
    """How one of several paths was chosen."""
    return {"fork": "explore", "select": select, "extract": "number", "decided_early": False, **fields}


def write(
    path: Path,
    *rows: Sequence[dict[str, Any]],
    sampler: str = "entropix",
    finish: str = "length",
    **header: Any,
) -> str:
    """Writes a trace of these rows and returns its path. A sampler that is not entropix's has one strategy."""
    strategies = list(STRATEGIES) if sampler.startswith("entropix") else [sampler]
    head = {
        "format": schema.FORMAT,
        "version": schema.VERSION,
        "entropix": "0",
        "jax": "0",
        "backend": "cpu",
        "device": "cpu",
        "mesh": None,
        "model": {"name": "toy", "config": {"vocab_size": 256}, "dtype": "float32", "fingerprint": ""},
        "sampler": sampler,
        "strategies": strategies,
        "sampler_config": dataclasses.asdict(SamplerConfig()),
        "generation": {"seed": 0},
        "rows": schema.BATCH,
        "prompts": [PROMPT] * len(rows),
        **header,
    }
    lines: list[dict[str, Any]] = [head]
    for row, records in enumerate(rows):
        for step, record in enumerate(records):
            strategy = record["strategy"] if record["strategy"] in strategies else strategies[0]
            lines.append({"row": row, "step": step, **record, "strategy": strategy})
        text = "".join(record["text"] for record in records)
        end = {"finish": finish, "reason": "", "new_tokens": len(records), "text": text}
        lines.append({"row": row, **end})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    trace.read(path)  # it is one
    return str(path)


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def rewrite(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
