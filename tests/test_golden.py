"""Tokens, metrics and settings of every way to generate are those that golden.jsonl keeps."""

import json
from typing import Any

import apart
import golden
import pytest

pytestmark = pytest.mark.slow

KEPT = {entry["case"]: entry["rows"] for entry in map(json.loads, golden.FILE.read_text().splitlines())}
TOLERANCE = 1e-6  # of a float, absolute and relative


@pytest.fixture(scope="module")
def found() -> dict[str, list[golden.Row]]:
    """In a process of its own, whose sums do not depend on the processor."""
    return apart.compute(golden.everything)


@pytest.mark.parametrize("name", golden.CASES)
def test_what_is_generated_stays_what_it_was(name: str, found: dict[str, list[golden.Row]]) -> None:
    assert differences(KEPT[name], found[name], name) == []


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
