"""What numbers are worth: right answers, how many different ones seeds find where several are right, and whether open
texts come to an end.

A candidate answers every item with every seed. Items, seeds and with them the random numbers are the same for all
candidates, so that they are compared item by item.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from entropix.checkpoint.loading import Model
from entropix.decoding.batching import ContinuousBatch
from entropix.generation import prepare
from entropix.lab.statistics import Contrast, contrast
from entropix.lab.tasks import Item, Task, openings
from entropix.results import CUT_OFF, FinishReason, Result, add
from entropix.samplers import ResolvedSampler

Advance = Callable[[int, int], None]

# Of `Figures`, by what numbers are chosen, and what they are called.
MEASURES = {
    "right": "share of right answers",
    "coverage": "coverage",
    "finished": "share of finished texts",
}
PENALTY = 4.0  # of a share of right answers that is lost, in shares of what else is measured
_REFUSED = 10.0  # taken from the score of numbers that use a strategy more often than is allowed: more than any score


class Asked(NamedTuple):
    """An item, and the task that it is of."""

    task: Task
    item: Item


class Answer(NamedTuple):
    """What an item was answered with one seed."""

    text: str
    finish: FinishReason
    strategies: Mapping[str, int] = {}  # how many of the tokens came by each
    computed: int = 0  # tokens, those among them that are not in the text
    passes: int = 0  # forward passes
    token_ids: Sequence[int] = ()  # the stop token among them

    @property
    def new_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def is_finished(self) -> bool:
        """Whether the model ended it itself, and it is long enough to tell that it is in no loop."""
        text = self.token_ids[:-1]
        return self.finish == FinishReason.STOP_TOKEN and openings.is_in_loop(text) is False


@dataclass(frozen=True)
class Figures:
    """Of one candidate. Lists have an entry an item."""

    right: list[float]  # shares of right answers; where no item has just one, those of `valid`
    valid: list[float]  # of items with several right answers (sets), shares of valid ones
    coverage: list[float]  # of the same items, different right answers as a share of what could be at most
    cut_off: float  # share of the answers
    tokens: float  # of an answer, on average
    strategies: Mapping[str, float] = field(default_factory=dict)  # shares of the tokens that came by each
    computed: float = 0.0  # tokens of an answer, discarded ones among them, on average
    passes: int = 0  # forward passes of all answers
    finished: list[float] = field(default_factory=list)  # of open items, shares of finished texts

    @property
    def share_right(self) -> float:
        return _mean(self.right)

    @property
    def share_valid(self) -> float:
        return _mean(self.valid)

    @property
    def mean_coverage(self) -> float:
        return _mean(self.coverage)

    @property
    def share_finished(self) -> float:
        return _mean(self.finished)

    @property
    def measures(self) -> dict[str, float]:
        """Means over the items, of what these have."""
        return {what: _mean(shares) for what in MEASURES if (shares := getattr(self, what))}

    @property
    def gain(self) -> list[float]:
        """What is sought without loss of right answers, an entry an item: coverage of sets, `finished` of open ones."""
        return [*self.coverage, *self.finished]

    @property
    def mean_gain(self) -> float:
        return _mean(self.gain)

    def score(self, least_right: float, limits: Mapping[str, float] | None = None) -> float:
        """As much gain as can be had without fewer right answers than so many; right answers alone where all items have
        one. limits: the largest shares of strategies; numbers that exceed one come behind all that do not."""
        over = sum(max(0.0, self.strategies.get(name, 0.0) - most) for name, most in (limits or {}).items())
        refused = _REFUSED + over if over > 0 else 0.0
        if not self.gain:
            return self.share_right - refused
        return self.mean_gain - PENALTY * max(0.0, least_right - self.share_right) - refused


def _mean(shares: Sequence[float]) -> float:
    """NaN of none."""
    return float(np.mean(shares)) if shares else float("nan")


def differences(one: Figures, other: Figures) -> dict[str, Contrast | None]:
    """Of one less the other, item by item, by measure; None for what no item has."""
    return {what: contrast(getattr(one, what), getattr(other, what)) for what in MEASURES}


def nothing_told(n_answers: int, n_passes: int) -> None:
    """For those who do not want to know."""


def answer(
    model: Model,
    candidates: Sequence[ResolvedSampler],
    asked: Sequence[Asked],
    seeds: Sequence[int],
    batch: int,
    advance: Advance = nothing_told,
) -> list[list[list[Answer]]]:
    """The answers by candidate, item and seed: candidates that share a program, all of them where they differ in
    numbers that compile nothing, side by side in one batch of so many rows.

    advance: is told how many more answers have ended, and how many forward passes these took.
    """
    together: dict[Hashable, list[int]] = {}
    for place, candidate in enumerate(candidates):
        together.setdefault(candidate.fixed, []).append(place)
    found: list[Any] = [None] * len(candidates)
    for places in together.values():
        several = [candidates[place] for place in places]
        for place, given in zip(
            places, _side_by_side(model, several, asked, seeds, batch, advance), strict=True
        ):
            found[place] = given
    return found


def _side_by_side(
    model: Model,
    candidates: Sequence[ResolvedSampler],
    asked: Sequence[Asked],
    seeds: Sequence[int],
    batch: int,
    advance: Advance,
) -> list[list[list[Answer]]]:
    """The answers of candidates that share a program."""
    cells = [(c, i, s) for i in range(len(asked)) for s in range(len(seeds)) for c in range(len(candidates))]
    numbers = [candidate.numbers for candidate in candidates]
    request = prepare(
        model,
        [asked[i].item.prompt for _, i, _ in cells],
        sampler=candidates[0],
        sampler_config=numbers[0] if len(numbers) == 1 else [numbers[c] for c, _, _ in cells],
        seeds=[seeds[s] for _, _, s in cells],
        occurrences=[0] * len(cells),
        max_new_tokens=max(one.task.max_new_tokens for one in asked),
    )
    request = request.with_each(most_tokens=[asked[i].task.max_new_tokens for _, i, _ in cells])
    found: list[Any] = [[[None] * len(seeds) for _ in asked] for _ in candidates]
    running: dict[int, Result] = {}
    rows = ContinuousBatch(request, batch)
    for event in rows.run():
        running.setdefault(event.row, Result([]))
        add(running, event)
        if event.finish != FinishReason.RUNNING:
            c, i, s = cells[event.row]
            given, cost = running.pop(event.row), rows.cost(event.row)
            strategies = Counter(record["strategy"] for record in given.records)
            found[c][i][s] = Answer(
                given.text, given.finish, strategies, cost.computed, cost.passes, given.token_ids
            )
            advance(1, cost.passes)
    return found


def figures(asked: Sequence[Asked], answers: Sequence[Sequence[Answer]]) -> Figures:
    """Of one candidate's answers, by item and seed."""
    right: list[float] = []
    valid: list[float] = []
    coverage: list[float] = []
    finished: list[float] = []
    for (task, item), given in zip(asked, answers, strict=True):
        if not task.is_closed:
            finished.append(float(np.mean([one.is_finished for one in given])))
            continue
        scores = [task.score(item, one.text) for one in given]
        covered = getattr(task, "coverage", None)
        shares = right if covered is None else valid
        shares.append(float(np.mean([0.0 if score is None else score for score in scores])))
        if covered is not None:
            coverage.append(covered(item, [one.text for one in given]))
    each = [one for given in answers for one in given]
    counts = sum((Counter(one.strategies) for one in each), Counter[str]())
    return Figures(
        right=right or valid,
        valid=valid,
        coverage=coverage,
        finished=finished,
        cut_off=float(np.mean([one.finish in CUT_OFF for one in each])),
        tokens=float(np.mean([one.new_tokens for one in each])),
        computed=float(np.mean([one.computed for one in each])),
        passes=sum(one.passes for one in each),
        strategies={name: n / counts.total() for name, n in counts.items()},
    )


def items(tasks: Sequence[Task], n_items: int, seed: int, split: str) -> list[Asked]:
    """So many items of each task, which take turns."""
    each = [[Asked(task, item) for item in task.items(seed, n_items, split)] for task in tasks]
    turns = max(map(len, each))
    return [of_task[turn] for turn in range(turns) for of_task in each if turn < len(of_task)]
