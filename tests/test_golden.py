"""Tokens, metrics and settings of every way to generate are those that golden.jsonl keeps."""

import json
import math
from typing import Any

import golden
import pytest

KEPT = {entry["case"]: entry["rows"] for entry in map(json.loads, golden.FILE.read_text().splitlines())}
TOLERANCE = 1e-6  # of a float, absolute and relative: other processors add up in another order


@pytest.mark.parametrize("name", golden.CASES)
def test_what_is_generated_stays_what_it_was(name: str) -> None:
    found = golden.plain(golden.CASES[name]())
    assert differences(in_logits(KEPT[name]), in_logits(found), name) == []


def in_logits(rows: list[golden.Row]) -> list[golden.Row]:
    """The rows with numbers that magnify the last bits of logits, in which processors differ, brought back to logits:
    log-probabilities of draws times their temperature, where that is below 1 (at 0.3 they move 3.3 times as far), and
    varentropies, which are squares, as their roots (they move twice as far)."""

    def scaled(row: golden.Row) -> golden.Row:
        pairs = zip(row.get("draw_logprob", ()), row.get("temperature", ()), strict=True)
        draws = [draw if draw is None or t is None else draw * min(1.0, t) for draw, t in pairs]
        deviations = [v if v is None else math.sqrt(v) for v in row.get("logits_varentropy", ())]
        return {**row, "draw_logprob": draws, "logits_varentropy": deviations}

    return list(map(scaled, rows))


def differences(kept: Any, found: Any, where: str) -> list[str]:
    """Where two JSON values differ: floats by more than the tolerance, all else at all."""
    if isinstance(kept, float) and isinstance(found, float):
        close = abs(kept - found) <= TOLERANCE * max(1, abs(kept))
        return [] if close else [f"{where}: {kept} became {found}"]
    if isinstance(kept, dict) and isinstance(found, dict) and kept.keys() == found.keys():
        return [line for name in kept for line in differences(kept[name], found[name], f"{where}, {name}")]
    if isinstance(kept, list) and isinstance(found, list) and len(kept) == len(found):
        pairs = enumerate(zip(kept, found, strict=True))
        return [line for i, pair in pairs for line in differences(*pair, f"{where}, {i}")]
    return [] if kept == found and type(kept) is type(found) else [f"{where}: {kept} became {found}"]
