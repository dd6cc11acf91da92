"""How far an answer goes, by which random numbers, and what is optional on the way."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from entropix.config.fields import MAX_INT32, choice, from_mapping, parameter

BATCH_ROWS = 32  # prompts that are answered together, unless told otherwise


@dataclasses.dataclass(frozen=True)
class BranchConfig:
    """Where a generation branches, and which path it keeps. With one path or none rolled forward it does not."""

    paths: int = parameter(1, "tokens tried where the generation branches; 1 is no branching", 1, 16, "paths")
    depth: int = parameter(4, "tokens that each path is rolled forward; 0 is no branching", 0, 15, "tokens")
    strategies: tuple[str, ...] = parameter(("explore",), "strategies of the sampler that branch")
    entropy: float = parameter(0.0, "branch above this entropy too; 0 is off", 0, 100, "bits")
    margin: float = parameter(0.0, "branch too where the two likeliest tokens are closer; 0 is off", 0, 1)
    budget: int = parameter(64, "most forks in one answer", 0, MAX_INT32)
    distance: int = parameter(1, "tokens from one fork to the next, at least", 1, MAX_INT32, "tokens")
    growth: float = parameter(
        0.0, "two paths, and one more for every so much entropy; 0 is all", 0, 100, "bits"
    )
    score: str = choice(
        "logprob",
        "mean over a path: logprob, margin, certainty or entropy",
        *("logprob", "margin", "certainty", "entropy"),
    )
    penalty: float = parameter(0.1, "score entropy: taken off the log-probability", 0, 100, "nats per bit")
    keep: str = choice("path", "of the best path: path, or its first token", "path", "token")
    among: str = choice("kept", "tokens to try: kept by the sampler's filters, or all", "kept", "all")

    @property
    def is_on(self) -> bool:
        """Whether it ever tries several tokens."""
        return self.paths > 1 and self.depth > 0


@dataclasses.dataclass(frozen=True)
class BacktrackConfig:
    """When tokens are taken back, and how many."""

    tokens: int = parameter(0, "newest tokens to take back; 0 is no backtracking", 0, 16, "tokens")
    strategies: tuple[str, ...] = parameter(("resample",), "strategies of the sampler that ask for it")
    budget: int = parameter(8, "how often in one answer", 0, MAX_INT32)

    @property
    def is_on(self) -> bool:
        """Whether anything is ever taken back."""
        return self.tokens > 0 and self.budget > 0


# How a generation looks ahead and back, by the field of `GenerateConfig`.
LOOKING: dict[str, type] = {"branching": BranchConfig, "backtracking": BacktrackConfig}


def read_looking(tables: Mapping[str, Any], source: str = "") -> dict[str, Any]:
    """The configurations in tables of these names. Raises a ValueError that begins with the source and the table's name
    for what is wrong."""
    where = f"{source}: " if source else ""
    return {name: from_mapping(LOOKING[name], table, f"{where}{name}") for name, table in tables.items()}


@dataclasses.dataclass(frozen=True)
class GenerateConfig:
    """How long to go on, and from which seed."""

    max_new_tokens: int = parameter(512, "most tokens to generate for one prompt", 1, MAX_INT32, "tokens")
    seed: int = parameter(0, "seed of every draw", 0, 2**32 - 1)
    seeds: tuple[int, ...] = parameter((), "a seed for each prompt, instead of one for all", 0, 2**32 - 1)
    occurrences: tuple[int, ...] = parameter(
        (), "how often each prompt came earlier with its seed, instead of counting", 0, 2**32 - 1
    )
    stop: tuple[str, ...] = parameter((), "text that ends a row; it is not part of the result")
    ignore_stop_tokens: bool = parameter(False, "go on past the checkpoint's stop tokens")
    chunk_length: int = parameter(
        16, "most steps on the device before the host looks; 32 at once are the most", 1, MAX_INT32, "steps"
    )
    speculate: int = parameter(
        0,
        "tokens drafted from the text itself and checked in one pass; changes the speed alone",
        0,
        15,
        "tokens",
    )
    alternatives: int = parameter(0, "likeliest tokens to record at every step", 0, 20, "tokens")
    head_entropies: bool = parameter(False, "record the attention entropy of every head at every step")
    branching: BranchConfig = parameter(BranchConfig(), "where to try several tokens; see BranchConfig")
    backtracking: BacktrackConfig = parameter(
        BacktrackConfig(), "when to take tokens back; see BacktrackConfig"
    )
