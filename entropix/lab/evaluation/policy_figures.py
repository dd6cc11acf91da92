"""What the answers of a protocol's arms say: shares of right ones, differences, variety, loops and costs.

Everything is over items: an arm has a number for each, the mean of all its answers there, since answers to one item are
not independent. The declared contrasts are over the items of all tasks with right answers together.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from entropix.lab.evaluation.protocol import Arm, Asked, Protocol
from entropix.lab.experiments.summary import content
from entropix.lab.statistics import (
    Contrast,
    Interval,
    Variance,
    cluster_mean,
    contrast,
    holm,
    mean_interval,
    share_interval,
    variance,
)
from entropix.lab.tasks import Item, openings

Row = dict[str, Any]
OPEN = ("length", "ended", "loops", "repetition", "distinct_2", "self_bleu")  # of `openings.measured`


class Declared(NamedTuple):
    """A contrast of the protocol."""

    arm: str
    minus: str
    found: Contrast | None
    p_corrected: float | None  # Holm, over all that the protocol declares


class Votes(NamedTuple):
    """What so many votes bring and cost."""

    n: int
    passes: float  # forward passes of an answer
    right: Interval


class ArmFigures(NamedTuple):
    """One arm. None where its answers have no such number."""

    name: str
    right: Interval | None  # over the items of all tasks with right answers
    by_task: dict[str, Interval]  # the same for each of them
    coverage: Interval | None  # of valid sets, over items
    open: dict[str, Interval | None]  # of open texts, over items
    spread: Variance | None  # of scores, between and within items
    passes: float  # forward passes of an answer
    computed: float  # tokens computed for an answer
    strategies: dict[str, float]  # shares of the tokens
    # Of an arm that puts answers to the vote: of the first one alone, of the first two, ...
    votes: list[Votes]


class Figures(NamedTuple):
    """A whole part."""

    arms: list[ArmFigures]
    declared: list[Declared]
    by_task: dict[str, list[Declared]]  # the same contrasts for each task alone; exploratory, not corrected
    n_items: int  # with right answers


def figures(protocol: Protocol, rows: Sequence[Row]) -> Figures:
    """All of it, of the rows of `policy.run`."""
    of_arm: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        of_arm[row["arm"]].append(row)
    closed = [asked.label for asked in protocol.tasks if asked.task.is_closed]
    scores = {arm.name: _scores(of_arm[arm.name], closed) for arm in protocol.arms}
    return Figures(
        arms=[_of_arm(protocol, arm, of_arm[arm.name], scores[arm.name]) for arm in protocol.arms],
        declared=_contrasts(protocol.contrasts, scores),
        by_task={
            label: [
                each._replace(p_corrected=None)
                for each in _contrasts(
                    protocol.contrasts, {name: _of_task(found, label) for name, found in scores.items()}
                )
            ]
            for label in closed
        },
        n_items=sum(len(asked.items) for asked in protocol.tasks if asked.task.is_closed),
    )


Place = tuple[str, str]  # task and item
Scores = dict[Place, list[float]]


def _scores(rows: Sequence[Row], closed: Sequence[str]) -> Scores:
    found: Scores = defaultdict(list)
    for row in rows:
        if row["task"] in closed and row["score"] is not None:
            found[row["task"], row["item"]].append(float(row["score"]))
    return dict(found)


def _of_task(scores: Scores, label: str) -> Scores:
    return {place: values for place, values in scores.items() if place[0] == label}


def _contrasts(pairs: Sequence[tuple[str, str]], scores: Mapping[str, Scores]) -> list[Declared]:
    """Each pair by items that both arms have answered."""
    found = []
    for arm, minus in pairs:
        places = list(scores[arm])
        values, before = (
            [_mean(scores[name][place]) if place in scores[name] else None for place in places]
            for name in (arm, minus)
        )
        found.append(contrast(values, before) if places else None)
    corrected = holm([each and each.p for each in found])
    return [Declared(*pair, each, p) for pair, each, p in zip(pairs, found, corrected, strict=True)]


def _of_arm(protocol: Protocol, arm: Arm, rows: Sequence[Row], scores: Scores) -> ArmFigures:
    counts: dict[str, int] = defaultdict(int)
    for row in rows:
        for name, n in row["strategies"].items():
            counts[name] += n
    # Votes are asked for right answers alone: costs are of these tasks in every arm, or no two could be compared.
    closed = [row for row in rows if row["score"] is not None] or rows
    return ArmFigures(
        name=arm.name,
        right=_share(scores),
        by_task={
            label: found
            for label in dict.fromkeys(place[0] for place in scores)
            if (found := _share(_of_task(scores, label))) is not None
        },
        coverage=_coverage(protocol, arm, rows),
        open=_open(protocol, arm, rows),
        spread=_spread(scores),
        passes=_mean([row["forward_passes"] for row in closed]) if rows else 0.0,
        computed=_mean([row["computed_tokens"] for row in closed]) if rows else 0.0,
        strategies={name: n / sum(counts.values()) for name, n in counts.items()},
        votes=_votes([row for row in rows if "scores_by_votes" in row]),
    )


def _votes(rows: Sequence[Row]) -> list[Votes]:
    """Shares of right answers by the number of votes, over the items of all tasks together."""
    found = []
    for i in range(max((len(row["scores_by_votes"]) for row in rows), default=0)):
        scores: Scores = defaultdict(list)
        for row in rows:
            if len(row["scores_by_votes"]) > i and row["scores_by_votes"][i] is not None:
                scores[row["task"], row["item"]].append(float(row["scores_by_votes"][i]))
        right = _share(dict(scores))
        if right is not None:
            passes = [row["passes_by_votes"][i] for row in rows if len(row["passes_by_votes"]) > i]
            found.append(Votes(i + 1, _mean(passes), right))
    return found


def _share(scores: Scores) -> Interval | None:
    """The mean score. Where items have one number that is 0 or 1, the interval is Wilson's, else that over clusters."""
    if not scores:
        return None
    means = [_mean(values) for values in scores.values()]
    if {*means} <= {0.0, 1.0}:
        return share_interval(int(sum(means)), len(means))
    items = [(value, place) for place, values in scores.items() for value in values]
    return cluster_mean([value for value, _ in items], [place for _, place in items])


def _spread(scores: Scores) -> Variance | None:
    rows = list(scores.values())
    return variance(rows) if len(rows) > 1 and any(len(row) > 1 for row in rows) else None


def _by_item(asked: Asked, protocol: Protocol, arm: Arm, rows: Sequence[Row]) -> list[tuple[Item, list[Row]]]:
    """The answers to each item of a task; those of an arm that draws nothing stand for all seeds."""
    times = 1 if arm.draws else len(protocol.seeds)
    mine: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row["task"] == asked.label:
            mine[row["item"]].append(row)
    return [(item, mine[item.id] * times) for item in asked.items if mine[item.id]]


def _coverage(protocol: Protocol, arm: Arm, rows: Sequence[Row]) -> Interval | None:
    """Different right members that the seeds found, as a share of what could be found; None for a single seed."""
    if len(protocol.seeds) < 2:
        return None
    found = []
    for asked in protocol.tasks:
        cover = getattr(asked.task, "coverage", None)
        if cover is not None:
            found += [
                cover(item, [row["text"] for row in mine])
                for item, mine in _by_item(asked, protocol, arm, rows)
            ]
    return mean_interval(found)


def _open(protocol: Protocol, arm: Arm, rows: Sequence[Row]) -> dict[str, Interval | None]:
    measured = [
        openings.measured(
            [tuple(content(row)) for row in mine], [row["finish"] == "stop_token" for row in mine]
        )
        for asked in protocol.tasks
        if not asked.task.is_closed
        for _, mine in _by_item(asked, protocol, arm, rows)
    ]
    return {name: mean_interval([each[name] for each in measured]) for name in OPEN} if measured else {}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
