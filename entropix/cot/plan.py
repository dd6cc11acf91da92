"""What is asked of several paths from a prompt, checked; `parallel` does it."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from entropix import config
from entropix.config import MAX_INT32
from entropix.cot import answers, selection
from entropix.showing import shown

START, EXPLORE, NONE = "start", "explore", "none"  # what `fork` may be
VOTE = "majority"  # the selector that may be decided before all paths have ended
MAX_PATHS = 1024  # of one batch: a row each, with logits and scores
# What may be said of several paths, in flags, grids and comparisons, and how it is written.
KINDS: dict[str, type] = {
    "cot": int,
    "cot_at": str,
    "cot_entropy": float,
    "best_of": int,
    "self_consistency": int,
    "sample_above": float,
    "select": str,
    "extract": str,
}
_COUNTS = {
    "cot": START,
    "best_of": NONE,
    "self_consistency": NONE,
}  # what says how many paths, and where they part


@dataclass(frozen=True)
class Plan:
    """How many paths, where they part, and how one is chosen. Raises a ValueError for what cannot be done."""

    paths: int
    fork: str = START
    select: str = "answer-margin"  # a name in `selection.SELECTORS`
    extract: str = "number"  # as `answers.extractor` reads it
    entropy: float = 2.0  # bits above which `explore` forks, for samplers that have no strategy of that name
    above: float = 0.0  # bits; independent samples: more than one only where a token of the first had more
    stop_early: bool = True  # end paths that can no longer change a majority vote; see `selection.is_decided`

    def __post_init__(self) -> None:
        config.check(self)
        if not 1 <= self.paths <= MAX_PATHS:
            raise ValueError(f"the number of paths must be between 1 and {MAX_PATHS}, got {self.paths}")
        if self.fork not in (START, EXPLORE, NONE):
            raise ValueError(f"paths fork at {START}, {EXPLORE} or {NONE}, got {self.fork!r}")
        if not self.entropy >= 0:
            raise ValueError(f"the entropy to fork above must be at least 0 bits, got {self.entropy}")
        if not self.above >= 0:
            raise ValueError(f"the entropy to sample more above must be at least 0 bits, got {self.above}")
        selection.selector(self.select)
        answers.extractor(self.extract)

    @property
    def grows(self) -> bool:
        """Whether what the first path was like decides which others there are."""
        return self.fork == EXPLORE or (self.fork == NONE and self.above > 0)


def read(asked: Mapping[str, Any], spelled: Callable[[str], str] = str) -> Plan | None:
    """The plan that settings by the names in `KINDS` amount to; None for a single answer.

    spelled: how a setting is called where it was given. Raises a ValueError for contradictions.
    """
    given = [name for name in _COUNTS if name in asked]
    if not given:
        if asked:
            several = ", ".join(spelled(name) for name in list(_COUNTS)[:-1])
            raise ValueError(
                f"{spelled(next(iter(asked)))} is about several paths; give {several} or "
                f"{spelled('self_consistency')} too"
            )
        return None
    if len(given) > 1:
        raise ValueError(
            f"{spelled(given[0])} and {spelled(given[1])} contradict each other; drop one of them"
        )
    for name, value in asked.items():
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        number = KINDS[name] is float and is_whole and abs(value) <= MAX_INT32
        if type(value) is not KINDS[name] and not number:
            raise ValueError(f"{spelled(name)} must be of type {KINDS[name].__name__}, got {shown(value)}")
    [name] = given
    fork, entropy = asked.get("cot_at", _COUNTS[name]), asked.get("cot_entropy", Plan.entropy)
    if name != "cot" and "cot_at" in asked:
        raise ValueError(
            f"{spelled('cot_at')} says where the paths of {spelled('cot')} part; those of {spelled(name)} are "
            "independent"
        )
    if "cot_at" in asked and fork not in (START, EXPLORE):
        raise ValueError(f"{spelled('cot_at')} must be {START} or {EXPLORE}, got {fork!r}")
    if "cot_entropy" in asked and fork != EXPLORE:
        raise ValueError(f"{spelled('cot_entropy')} is for {spelled('cot_at')} {EXPLORE}; give that too")
    if name == "cot" and "sample_above" in asked:
        raise ValueError(
            f"{spelled('sample_above')} is for independent samples; give {spelled('best_of')} or "
            f"{spelled('self_consistency')} instead of {spelled(name)}"
        )
    if name == "self_consistency" and asked.get("select", VOTE) != VOTE:
        raise ValueError(
            f"{spelled(name)} is a majority vote; {spelled('select')} {asked['select']} goes with "
            f"{spelled('best_of')}"
        )
    if not 1 <= asked[name] <= MAX_PATHS:
        raise ValueError(f"{spelled(name)} must be between 1 and {MAX_PATHS}, got {asked[name]}")
    above = asked.get("sample_above", Plan.above)
    for key, bits in (("cot_entropy", entropy), ("sample_above", above)):
        if not 0 <= bits < math.inf:
            raise ValueError(f"{spelled(key)} must be at least 0, got {bits}")
    default = {"cot": Plan.select, "best_of": "borda", "self_consistency": VOTE}[name]
    return Plan(
        paths=asked[name],
        fork=fork,
        select=asked.get("select", default),
        extract=asked.get("extract", Plan.extract),
        entropy=float(entropy),
        above=float(above),
    )
