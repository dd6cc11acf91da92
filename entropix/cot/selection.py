"""Which of several paths to take: selectors, which score paths that are finished and name a winner.

A path is one text that a prompt was continued with, together with what the model thought of its tokens. Every selector
is a pure function of the paths. Paths without an answer never win against one that has an answer; only where none has
one are they compared with each other, by the score itself if it needs no answer and otherwise by mean log-probability.
Paths that the model ended count before those that their limit cut off, whose last number may be of a step and not of
the answer: where a path that ended has an answer, others neither win nor vote. Of what is equal in every respect the
earlier path wins.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from entropix.showing import suggestion

TAIL_WINDOW = 2048  # tokens at a path's end whose confidence counts: that of Fu et al. 2025
BORDA_POWER = 0.5
FALLBACK = "mean-logprob"  # the selector that has the say where no path has a score of the other


@dataclass(frozen=True)
class Path:
    """A path that goes on no more. The arrays have one number a token, the stop token included; none is NaN."""

    answer: str | None  # normalised; None where nothing was found
    span: tuple[int, int]  # first token of the answer, and the one after its last; equal without an answer
    logprob_T: Sequence[float]  # nats, of the token under the model
    margin_T: Sequence[float]  # largest probability minus the second largest
    self_certainty_T: Sequence[float]  # nats; see `metrics.Metrics`
    confidence_T: Sequence[float]  # nats: minus the mean log-probability of the likeliest tokens
    ended: bool = True  # by the model or a stop string, and not cut off by a limit


class Choice(NamedTuple):
    """What a selector found."""

    winner: int
    scores: tuple[float | None, ...]  # of each path, more is better; None where the path has none


Select = Callable[[Sequence[Path]], Choice]


class Selector(NamedTuple):
    """A named way to choose."""

    summary: str
    select: Select


# ----- what a path is worth alone -----------------------------------------------------------------------------


def mean_logprob(path: Path) -> float | None:
    """Mean log-probability of all tokens under the model, in nats, at most 0."""
    return _mean(path.logprob_T)


def answer_margin(path: Path) -> float | None:
    """Δ: mean over the answer's tokens of the largest probability minus the second largest, 0 to 1.

    Wang & Zhou 2024, "Chain-of-Thought Reasoning Without Prompting", arXiv:2402.10200.
    """
    return None if path.answer is None else _mean(path.margin_T[slice(*path.span)])


def mean_self_certainty(path: Path) -> float | None:
    """Mean self-certainty of all tokens, in nats, at least 0 (Kang et al. 2025, arXiv:2502.18581)."""
    return _mean(path.self_certainty_T)


def tail_confidence(path: Path, window: int = TAIL_WINDOW) -> float | None:
    """Mean confidence of the last `window` tokens, of all if there are fewer, in nats.

    Fu et al. 2025, "Deep Think with Confidence", arXiv:2508.15260: a token's confidence is minus the mean
    log-probability of the 20 likeliest tokens, which is large where one of them takes all.
    """
    return _mean(path.confidence_T[-window:])


# ----- selectors ------------------------------------------------------------------------------------------------


def by_mean_logprob(paths: Sequence[Path]) -> Choice:
    """The path with the largest `mean_logprob`."""
    return _best(paths, [mean_logprob(path) for path in paths])


def by_answer_margin(paths: Sequence[Path]) -> Choice:
    """The path with the largest `answer_margin`."""
    return _best(paths, [answer_margin(path) for path in paths])


def by_self_certainty(paths: Sequence[Path]) -> Choice:
    """The path with the largest `mean_self_certainty`."""
    return _best(paths, [mean_self_certainty(path) for path in paths])


def by_tail_confidence(paths: Sequence[Path]) -> Choice:
    """The path with the largest `tail_confidence`."""
    return _best(paths, [tail_confidence(path) for path in paths])


def by_margin_sum(paths: Sequence[Path]) -> Choice:
    """The answer with the largest sum of Δ over its paths, which is every such path's score (Wang & Zhou 2024).

    Of equal sums the one with the largest single Δ; of the answer's paths the one with the largest Δ.
    """
    margins = [answer_margin(path) for path in paths]
    return _vote(paths, [margin or 0.0 for margin in margins], margins)


def by_borda(paths: Sequence[Path], power: float = BORDA_POWER) -> Choice:
    """The answer with the most votes, where of the N paths with an answer that of rank r has (N - r + 1)^power.

    Ranked is by `mean_self_certainty`, of equal ones the earlier path first. Power 0 is a majority vote, a large power
    is `by_self_certainty`; Kang et al. 2025 (arXiv:2502.18581) let it grow with N. Of equally many votes the answer
    with the path of the best rank wins; of the answer's paths it is that one.
    """
    certainty = [mean_self_certainty(path) for path in paths]
    order = sorted(_answered(paths), key=lambda i: -_number(certainty[i]))
    votes = [0.0] * len(paths)
    for rank, i in enumerate(order):
        votes[i] = (len(order) - rank) ** power
    return _vote(paths, votes, certainty)


def by_majority(paths: Sequence[Path]) -> Choice:
    """The answer that most paths have; a path's score is how many have its answer (Wang et al. 2022,
    "Self-Consistency Improves Chain of Thought Reasoning in Language Models", arXiv:2203.11171).

    Of equally many the answer whose mean log-probabilities have the larger sum, then the one that came earlier. The
    winner is the earliest path with the answer.
    """
    groups = _by_answer(paths)
    if not groups:
        return by_mean_logprob(paths)._replace(scores=(None,) * len(paths))
    sums = {answer: _sum(_number(mean_logprob(paths[i])) for i in group) for answer, group in groups.items()}
    chosen = max(groups, key=lambda answer: (len(groups[answer]), sums[answer], -groups[answer][0]))
    scores = tuple(
        _of_answer(path, {answer: float(len(group)) for answer, group in groups.items()}) for path in paths
    )
    return Choice(groups[chosen][0], scores)


SELECTORS = {
    "answer-margin": Selector("the largest answer margin Δ", by_answer_margin),
    "margin-sum": Selector("the answer with the largest sum of Δ", by_margin_sum),
    "mean-logprob": Selector("the largest mean log-probability", by_mean_logprob),
    "self-certainty": Selector("the largest mean self-certainty", by_self_certainty),
    "borda": Selector("a vote over answers, weighted by the rank in self-certainty", by_borda),
    "tail-confidence": Selector("the largest confidence of the last tokens", by_tail_confidence),
    "majority": Selector("the answer that most paths have", by_majority),
}


def selector(name: str) -> Select:
    """The selector of a name; a ValueError if there is none."""
    if name not in SELECTORS:
        raise ValueError(f"no selector {name!r}{suggestion(name, SELECTORS)}")
    return SELECTORS[name].select


def is_decided(answers: Sequence[str | None], unfinished: Collection[int]) -> bool:
    """Whether no answers of the unfinished paths can change the winner of `by_majority`, path included.

    answers: of all paths; those of unfinished ones are not looked at.

    The rule: let A be the answer with the most votes a among the finished paths, x the most votes of any other answer,
    u the number of unfinished paths. The vote is decided if a > x + u and no unfinished path comes before A's earliest.

    Proof. Whatever the unfinished paths answer, A ends with at least a votes, and every other answer with at most
    x + u, also one that nobody has given yet (0 + u <= x + u). As a > x + u, A alone has the most votes: there is no
    tie, so log-probabilities, which may still change, have no say. The winner is the earliest path with answer A.
    Unfinished paths can only add paths to A's, and all of them come later than the earliest it has. ∎

    Where a = x + u another answer could draw level, and what breaks the tie is not known before all have ended; this
    rule then goes on.
    """
    votes: dict[str, list[int]] = {}
    for i, answer in enumerate(answers):
        if answer is not None and i not in unfinished:
            votes.setdefault(answer, []).append(i)
    if not votes or not unfinished:
        return not unfinished
    first, *rest = sorted(votes.values(), key=len, reverse=True)
    most_of_others = max(map(len, rest), default=0)
    return len(first) > most_of_others + len(unfinished) and first[0] < min(unfinished)


# ----- what they share ------------------------------------------------------------------------------------------


def _best(paths: Sequence[Path], scores: Sequence[float | None]) -> Choice:
    """The largest score of a path with an answer."""
    ended = [i for i, path in enumerate(paths) if path.ended]
    candidates = _answered(paths) or ended or range(len(paths))
    if all(scores[i] is None for i in candidates):
        return Choice(max(candidates, key=lambda i: (_number(mean_logprob(paths[i])), -i)), tuple(scores))
    return Choice(max(candidates, key=lambda i: (_number(scores[i]), -i)), tuple(scores))


def _vote(paths: Sequence[Path], votes: Sequence[float], merit: Sequence[float | None]) -> Choice:
    """The answer with the largest sum of votes, then the largest merit of a path; of its paths that path."""
    groups = _by_answer(paths)
    if not groups:
        return _best(paths, [None] * len(paths))
    sums = {answer: _sum(votes[i] for i in group) for answer, group in groups.items()}
    best = {answer: max(group, key=lambda i: (_number(merit[i]), -i)) for answer, group in groups.items()}
    chosen = max(groups, key=lambda answer: (sums[answer], _number(merit[best[answer]]), -best[answer]))
    return Choice(best[chosen], tuple(_of_answer(path, sums) for path in paths))


def _answered(paths: Sequence[Path]) -> list[int]:
    """The paths that count: those with an answer that have ended or, where there are none, all with an answer."""
    answered = [i for i, path in enumerate(paths) if path.answer is not None]
    return [i for i in answered if paths[i].ended] or answered


def _by_answer(paths: Sequence[Path]) -> dict[str, list[int]]:
    """Of the paths that count those of each answer, in order."""
    groups: dict[str, list[int]] = {}
    for i in _answered(paths):
        answer = paths[i].answer
        assert answer is not None
        groups.setdefault(answer, []).append(i)
    return groups


def _of_answer(path: Path, numbers: Mapping[str, float]) -> float | None:
    """The number of a path's answer; None where it has none that counts."""
    return None if path.answer is None else numbers.get(path.answer)


def _mean(values: Sequence[float]) -> float | None:
    return _sum(values) / len(values) if len(values) else None


def _sum(values: Iterable[float]) -> float:
    """Rounded once, so that the order of paths cannot break a tie; infinite numbers stay what they are."""
    listed = list(values)
    return math.fsum(listed) if all(map(math.isfinite, listed)) else sum(listed)


def _number(score: float | None) -> float:
    """For comparing: no score is less than any."""
    return -math.inf if score is None else score
