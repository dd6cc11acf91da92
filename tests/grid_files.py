"""Files of small grids, and the answers in their folders."""

import json
from pathlib import Path
from typing import Any

# Three prompts, two seeds, three variants: 18 answers.
HEAD = """
prompts = ["Why?", "How so?", "When was it?"]
seeds = [3, 5]
max_new_tokens = 10
"""
TAIL = """
[[samplers]]
sampler = "temperature"
temp = [0.5, 1.5]

[[samplers]]
sampler = "greedy"
"""
SAMPLED = TAIL.partition("\n\n")[0]  # two variants, which share their programs


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return list(map(json.loads, (folder / "results.jsonl").read_text().splitlines()))


def tokens_of(folder: Path) -> dict[tuple[str, int, int], list[int]]:
    """The tokens of every answer, by what it answers."""
    return {(line["variant"], line["prompt"], line["seed"]): line["token_ids"] for line in lines_of(folder)}
