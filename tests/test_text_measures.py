"""Closed forms of every measure."""

import math

import pytest

from entropix.lab.experiments.measures import bleu, distinct, ngrams, repetition, self_bleu

# (candidate, references, BLEU) by sacrebleu 2.6.0: BLEU(tokenize="none", smooth_method="floor", smooth_value=0.1,
# effective_order=True).sentence_score, divided by 100.
SACREBLEU = [
    ([0, 1, 2, 3, 4, 5, 6], [[0, 1, 2, 9, 4, 5, 6]], 0.27494162035211284),
    ([1, 2, 3, 1, 2, 4], [[1, 2, 3, 4, 5, 6, 7, 8], [2, 4, 1, 2]], 0.2540663740773073),
    ([5, 6, 7], [[7, 6, 5]], 0.17099759466766973),
]


def test_ngrams_are_all_runs_in_order() -> None:
    assert ngrams("abcd", 2) == [("a", "b"), ("b", "c"), ("c", "d")]
    assert ngrams("abcd", 4) == [("a", "b", "c", "d")]
    assert ngrams("abcd", 5) == []


def test_distinct_is_the_share_of_different_ngrams_of_all_texts_together() -> None:
    assert distinct(["abab"], 1) == 2 / 4
    assert distinct(["abab"], 2) == 2 / 3
    assert distinct(["abab", "abab"], 2) == 2 / 6  # and none across the boundary
    assert distinct(["ab", "cd"], 2) == 1
    assert distinct(["aaaaa"], 3) == 1 / 3


def test_repetition_is_the_share_of_ngrams_that_stood_before() -> None:
    assert repetition("abcdefgh", 4) == 0
    assert repetition("a" * 13, 4) == 9 / 10
    assert repetition("abcabcabc", 4) == 1 - 3 / 6
    assert repetition("abab", 1) == 1 / 2


def test_texts_too_short_for_an_ngram_have_no_number() -> None:
    assert distinct([], 1) is None
    assert distinct(["", "a"], 2) is None
    assert repetition("abc", 4) is None


def test_bleu_of_a_copy_is_1_and_of_something_else_0() -> None:
    assert bleu("abcdef", ["xyz", "abcdef"]) == 1
    assert bleu("abcdef", ["uvwxyz"]) == 0
    assert bleu("", ["abc"]) == 0
    assert bleu("abc", [""]) == 0


def test_bleu_is_the_geometric_mean_of_four_precisions() -> None:
    """abcdX against abcdY: 4/5, 3/4, 2/3 and 1/2."""
    assert bleu("abcdX", ["abcdY"]) == pytest.approx((4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)


def test_bleu_counts_no_ngram_more_often_than_one_reference_has_it() -> None:
    """the the the the: two of "the" in one reference, one in each of two others, and never "the the"."""
    candidate = ["the"] * 4
    references = [["the", "cat", "the", "mat"], ["the", "dog", "is", "in"], ["a", "the", "b", "c"]]
    assert bleu(candidate, references) == pytest.approx((2 / 4 * 0.1 / 3 * 0.1 / 2 * 0.1 / 1) ** 0.25)


def test_bleu_penalises_what_is_shorter_than_the_nearest_reference() -> None:
    assert bleu("abcd", ["abcdefgh"]) == pytest.approx(math.exp(1 - 8 / 4))
    assert bleu("abcd", ["abcdefgh", "xyzuv"]) == pytest.approx(math.exp(1 - 5 / 4))
    assert bleu("abcd", ["abc", "abcde"]) == pytest.approx(1)  # of two as near, the shorter
    assert bleu("abcdefgh", ["abcd"]) == pytest.approx((4 / 8 * 3 / 7 * 2 / 6 * 1 / 5) ** 0.25)


@pytest.mark.parametrize(("candidate", "references", "expected"), SACREBLEU)
def test_bleu_is_that_of_sacrebleu(
    candidate: list[int], references: list[list[int]], expected: float
) -> None:
    assert bleu(candidate, references) == pytest.approx(expected, abs=1e-12)


def test_self_bleu_is_the_mean_of_each_against_the_others() -> None:
    assert self_bleu(["abcde"] * 3) == 1
    assert self_bleu(["abcd", "efgh", "ijkl"]) == 0
    assert self_bleu(["abcd", "abcd", "xyzu"]) == pytest.approx(2 / 3)
    assert self_bleu(["abcd", "abcdefgh"]) == pytest.approx(
        (bleu("abcd", ["abcdefgh"]) + bleu("abcdefgh", ["abcd"])) / 2
    )
    assert self_bleu(["abcd"]) is None
