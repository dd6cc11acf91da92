"""What is asked of several paths from one prompt, checked; `cot` does it."""

from dataclasses import dataclass

from entropix.cot import answers, selection

START, EXPLORE, NONE = "start", "explore", "none"  # what `fork` may be
VOTE = "majority"  # the selector that may be decided before all paths have ended
MAX_PATHS = 1024  # of one batch: a row each, with logits and scores


@dataclass(frozen=True)
class Plan:
    """How many paths, where they part, and how one is chosen. Raises a ValueError for what cannot be done."""

    paths: int
    fork: str = START
    select: str = "answer-margin"  # a name in `selection.SELECTORS`
    extract: str = "number"  # as `answers.extractor` reads it
    entropy: float = 2.0  # bits above which `explore` forks, for samplers that have no strategy of that name
    stop_early: bool = True  # end paths that can no longer change a majority vote; see `selection.is_decided`

    def __post_init__(self) -> None:
        if not 1 <= self.paths <= MAX_PATHS:
            raise ValueError(f"the number of paths must be between 1 and {MAX_PATHS}, got {self.paths}")
        if self.fork not in (START, EXPLORE, NONE):
            raise ValueError(f"paths fork at {START}, {EXPLORE} or {NONE}, got {self.fork!r}")
        if not self.entropy >= 0:
            raise ValueError(f"the entropy to fork above must be at least 0 bits, got {self.entropy}")
        selection.selector(self.select)
        answers.extractor(self.extract)
