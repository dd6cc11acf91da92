"""Selectors on paths made by hand, ties included, and the rule that ends a vote early."""

import itertools
import math
import random

import pytest

from entropix.cot import selection
from entropix.cot.selection import SELECTORS, Path, is_decided


def path(
    answer: str | None = None,
    logprob: float = -1.0,
    margin: float = 0.5,
    certainty: float = 1.0,
    confidence: float = 1.0,
    n: int = 4,
    ended: bool = True,
) -> Path:
    """n tokens all alike, the last two of which are the answer."""
    return Path(
        answer=answer,
        span=(n - 2, n) if answer is not None else (0, 0),
        logprob_T=[logprob] * n,
        margin_T=[margin] * n,
        self_certainty_T=[certainty] * n,
        confidence_T=[confidence] * n,
        ended=ended,
    )


# ----- scores of one path -----------------------------------------------------------------------------------


def test_scores_of_a_path_by_hand() -> None:
    one = Path(
        answer="7",
        span=(1, 3),
        logprob_T=[-1.0, -0.5, -0.25, -0.25],
        margin_T=[0.1, 0.8, 0.6, 0.9],
        self_certainty_T=[4.0, 6.0, 8.0, 10.0],
        confidence_T=[9.0, 1.0, 2.0, 6.0],
    )
    assert selection.mean_logprob(one) == -0.5
    assert selection.answer_margin(one) == pytest.approx(0.7)  # of the answer's tokens alone
    assert selection.mean_self_certainty(one) == 7.0
    assert selection.tail_confidence(one) == 4.5
    assert selection.tail_confidence(one, window=2) == 4.0


def test_a_path_without_answer_has_no_margin_and_one_without_tokens_no_score() -> None:
    assert selection.answer_margin(path(None)) is None
    empty = Path(None, (0, 0), [], [], [], [])
    for score in (selection.mean_logprob, selection.mean_self_certainty, selection.tail_confidence):
        assert score(empty) is None
    for name, kind in SELECTORS.items():
        assert kind.select([empty]) == (0, (None,)), name
        assert kind.select([empty, path(None, logprob=-9.0)]).winner == 1, name


# ----- the largest score ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("answer-margin", "margin"),
        ("mean-logprob", "logprob"),
        ("self-certainty", "certainty"),
        ("tail-confidence", "confidence"),
    ],
)
def test_the_path_with_the_largest_score_wins_and_the_earlier_of_equal_ones(name: str, field: str) -> None:
    paths = [path(str(i), **{field: value}) for i, value in enumerate((-0.5, -0.25, -0.25, -0.75))]
    assert SELECTORS[name].select(paths) == (1, (-0.5, -0.25, -0.25, -0.75))


@pytest.mark.parametrize("name", SELECTORS)
def test_a_path_without_an_answer_never_wins_against_one_with(name: str) -> None:
    great = path(None, logprob=-0.01, margin=0.99, certainty=99.0, confidence=99.0)
    poor = path("7", logprob=-9.0, margin=0.0, certainty=0.0, confidence=0.0)
    assert SELECTORS[name].select([great, great, poor]).winner == 2


@pytest.mark.parametrize("name", ["answer-margin", "margin-sum", "mean-logprob", "borda", "majority"])
def test_where_nothing_is_answered_the_mean_logprob_decides(name: str) -> None:
    paths = [path(None, logprob=-3.0), path(None, logprob=-1.0), path(None, logprob=-1.0)]
    assert SELECTORS[name].select(paths).winner == 1


def test_infinite_scores_are_scores() -> None:
    """A token that the model itself rules out makes self-certainty infinite."""
    paths = [path("1", certainty=3.0), path("2", certainty=math.inf), path("3", certainty=math.inf)]
    assert SELECTORS["self-certainty"].select(paths).winner == 1
    assert SELECTORS["borda"].select(paths).winner == 1


# ----- votes ------------------------------------------------------------------------------------------------


def test_margins_of_equal_answers_add_up() -> None:
    """0.9 for one answer, 0.5 + 0.6 for the other, whose better path is the last."""
    paths = [path("1", margin=0.9), path("2", margin=0.5), path(None), path("2", margin=0.6)]
    winner, scores = SELECTORS["margin-sum"].select(paths)
    assert winner == 3
    assert scores == (pytest.approx(0.9), pytest.approx(1.1), None, pytest.approx(1.1))
    assert SELECTORS["answer-margin"].select(paths).winner == 0


def test_equal_sums_of_margins_go_to_the_largest_single_one() -> None:
    paths = [path("1", margin=0.25), path("1", margin=0.5), path("2", margin=0.75)]
    assert SELECTORS["margin-sum"].select(paths).winner == 2
    paths = [path("1", margin=0.5), path("2", margin=0.5)]
    assert SELECTORS["margin-sum"].select(paths).winner == 0


def test_borda_votes_by_hand() -> None:
    """Ranks 1 to 4 are paths 2, 0, 3, 1: 4, 3, 2 and 1 votes at power 1. "7" has 3 + 1, "8" has 4 + 2."""
    paths = [path("7", certainty=5), path("7", certainty=2), path("8", certainty=9), path("8", certainty=3)]
    assert selection.by_borda(paths, power=1) == (2, (4, 4, 6, 6))


def test_borda_is_a_majority_vote_at_power_0_and_the_surest_path_at_a_large_one() -> None:
    paths = [path("7", certainty=5), path("7", certainty=4), path("8", certainty=9), path(None, certainty=99)]
    assert selection.by_borda(paths, power=0) == (0, (2, 2, 1, None))
    assert selection.by_borda(paths, power=9).winner == 2
    votes = (2**0.5 + 1, 2**0.5 + 1, 3**0.5, None)
    assert selection.by_borda(paths) == (0, tuple(v and pytest.approx(v) for v in votes))


def test_equal_borda_votes_go_to_the_answer_of_the_best_rank() -> None:
    """Ranks 1, 2, 3 have 3, 2 and 1 votes: "8" has 3, and "7" has 2 + 1."""
    paths = [path("7", certainty=5), path("7", certainty=4), path("8", certainty=9)]
    assert selection.by_borda(paths, power=1) == (2, (3, 3, 3))


def test_equal_certainties_are_ranked_in_order() -> None:
    paths = [path("7"), path("8"), path("9")]
    assert selection.by_borda(paths, power=1) == (0, (3, 2, 1))


def test_the_answer_of_most_paths_wins_with_its_earliest_path() -> None:
    paths = [path("1", logprob=-0.1), path("2"), path(None), path("2", logprob=-0.5), path("3")]
    assert SELECTORS["majority"].select(paths) == (1, (1, 2, None, 2, 1))


def test_equal_votes_go_to_the_larger_sum_of_mean_logprobs_then_to_the_earlier_path() -> None:
    paths = [path("1", -1.0), path("2", -0.5), path("1", -1.0), path("2", -1.25)]
    assert SELECTORS["majority"].select(paths).winner == 1  # -1.75 against -2
    paths = [path("1", -0.5), path("2", -0.25), path("2", -1.0), path("1", -0.75)]
    assert SELECTORS["majority"].select(paths).winner == 0  # -1.25 both


def test_rounding_does_not_break_a_tie() -> None:
    """0.1 + 0.2 + 0.3 is another float than 0.3 + 0.2 + 0.1."""
    first = [path("1", -x) for x in (0.1, 0.2, 0.3)]
    second = [path("2", -x) for x in (0.3, 0.2, 0.1)]
    for paths in (first + second, second + first):
        assert SELECTORS["majority"].select(paths).winner == 0


def test_every_selector_scores_every_path_and_has_a_summary() -> None:
    rng = random.Random(2)
    for _ in range(200):
        paths = [
            path(rng.choice(["1", "2", None]), -rng.random(), rng.random(), rng.random(), rng.random())
            for _ in range(rng.randint(1, 6))
        ]
        for name, kind in SELECTORS.items():
            winner, scores = kind.select(paths)
            assert kind.summary and len(scores) == len(paths)
            answered = [i for i, one in enumerate(paths) if one.answer is not None]
            assert winner in (answered or range(len(paths))), name
            if answered:
                assert scores[winner] == max(scores[i] for i in answered), name


def test_an_unknown_selector_is_an_error() -> None:
    with pytest.raises(ValueError, match="no selector 'best'; there are answer-margin, margin-sum"):
        selection.selector("best")


# ----- ending early -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "unfinished", "decided"),
    [
        (["1", "1", "1", None, None], {3, 4}, True),
        (["1", "1", None, None], {2, 3}, False),  # both may say "2", and the log-probabilities decide
        (["1", "1", "2", None], {3}, False),
        (["1", "1", "1", "2", None], {4}, True),
        ([None, "1", "1", "1"], {0}, False),  # the winner will be path 0 if it says "1" too
        ([None, "1", "1", "1"], {3}, True),  # one path found no answer; the earliest "1" stays the earliest
        (["1", "1", "1", "1"], {1, 2, 3}, False),  # what unfinished paths say so far counts for nothing
        ([None, None], {1}, False),
        (["1", "2"], set(), True),
        ([None], set(), True),
    ],
)
def test_when_a_vote_is_decided(answers: list[str | None], unfinished: set[int], decided: bool) -> None:
    assert is_decided(answers, unfinished) == decided


def test_no_answers_of_the_unfinished_paths_change_a_decided_winner() -> None:
    """Every way for up to two of five paths to end, whatever the others said, with log-probabilities at random."""
    rng = random.Random(3)
    options = ["1", "2", None]
    n_decided = 0
    for unfinished in [(i,) for i in range(5)] + list(itertools.combinations(range(5), 2)):
        for said in itertools.product(options, repeat=5 - len(unfinished)):
            voices = iter(said)
            answers = [None if i in unfinished else next(voices) for i in range(5)]
            if not is_decided(answers, set(unfinished)):
                continue
            n_decided += 1
            winner = SELECTORS["majority"].select([path(answer) for answer in answers]).winner
            for end in itertools.product(options, repeat=len(unfinished)):
                for i, answer in zip(unfinished, end, strict=True):
                    answers[i] = answer
                final = [path(answer, -rng.random()) for answer in answers]
                assert SELECTORS["majority"].select(final).winner == winner, answers
    assert n_decided > 50


def test_ending_early_never_changes_the_winner_of_random_votes() -> None:
    rng = random.Random(4)
    n_early = 0
    for _ in range(3000):
        n = rng.randint(1, 9)
        final = [path(rng.choice(["1", "1", "1", "2", None]), -rng.randint(1, 3) / 4) for _ in range(n)]
        winner = SELECTORS["majority"].select(final).winner
        unfinished = set(range(n))
        for i in rng.sample(range(n), n):
            unfinished.discard(i)
            if is_decided([one.answer for one in final], unfinished):
                n_early += bool(unfinished)
                seen = [path(None) if j in unfinished else one for j, one in enumerate(final)]
                assert SELECTORS["majority"].select(seen).winner == winner
                break
    assert n_early > 300


@pytest.mark.parametrize("name", SELECTORS)
def test_a_path_that_was_cut_off_neither_wins_nor_votes_where_one_that_ended_has_an_answer(name: str) -> None:
    """The "2" of "Step 2:", of which the model was sure."""
    cut = [path("2", -0.01, 0.9999, 90.0, 90.0, ended=False)] * 3
    ended = [path("7"), path("8", -2.0, 0.1, 0.5, 0.5)]
    choice = SELECTORS[name].select([*cut, *ended])
    assert choice.winner == 3
    assert SELECTORS[name].select(cut).winner == 0  # where all were cut off they are all there is
    assert SELECTORS[name].select([*cut, path(None)]).winner == 0  # and an answer is better than none
