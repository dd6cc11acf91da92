"""The check is compared with what it stands for: both ways of merging, carried out on every short text."""

import itertools
import random

import pytest

from entropix.checkpoint.vocabulary.bpe import unreachable_tokens


def by_lowest_id(text: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    parts = [text[i : i + 1] for i in range(len(text))]
    while found := [
        (ranks[a + b], i) for i, (a, b) in enumerate(itertools.pairwise(parts)) if a + b in ranks
    ]:
        _, i = min(found)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def by_list(text: bytes, merges: list[tuple[bytes, bytes]]) -> list[bytes]:
    parts = [text[i : i + 1] for i in range(len(text))]
    while found := [
        (merges.index(pair), i) for i, pair in enumerate(itertools.pairwise(parts)) if pair in merges
    ]:
        _, i = min(found)
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def random_vocabulary(rng: random.Random) -> tuple[dict[bytes, int], list[tuple[bytes, bytes]]]:
    """Tokens over two letters, grown as in training or arbitrary, with all, most or some of their splits."""
    grown = {b"a", b"b"}
    tokens: list[bytes] = []
    for _ in range(rng.randint(1, 8)):
        token = rng.choice(sorted(grown)) + rng.choice(sorted(grown))
        if rng.random() < 0.4:
            token = bytes(rng.choices(b"ab", k=rng.randint(2, 5)))
        if len(token) <= 6 and token not in grown:
            grown.add(token)
            tokens.append(token)
    if rng.random() < 0.2:
        rng.shuffle(tokens)
    ranks = {
        token: rank for rank, token in enumerate(rng.choice([[b"a", b"b", *tokens], [*tokens, b"a", b"b"]]))
    }
    splits = [(t[:i], t[i:]) for t in tokens for i in range(1, len(t)) if t[:i] in ranks and t[i:] in ranks]
    kept = rng.choice([1.0, 0.9, 0.5])
    return ranks, [split for split in splits if rng.random() < kept]


def test_a_vocabulary_passes_exactly_when_both_ways_of_merging_agree_on_every_text() -> None:
    rng = random.Random(1)
    texts = [bytes(letters) for n in range(1, 8) for letters in itertools.product(b"ab", repeat=n)]
    passed = refused = 0
    for _ in range(600):
        ranks, merges = random_vocabulary(rng)
        same = all(by_lowest_id(text, ranks) == by_list(text, merges) for text in texts)
        try:
            unreachable = unreachable_tokens(ranks, merges)
        except ValueError as error:
            assert not same, (ranks, merges, error)
            refused += 1
        else:
            assert same, (ranks, merges)
            assert unreachable == {t for t in ranks if by_lowest_id(t, ranks) != [t]}
            passed += 1
    assert passed > 200
    assert refused > 100


def test_a_token_whose_parts_are_merged_away_is_unreachable() -> None:
    # In "abcd", "bc" is joined first, which leaves neither "ab" nor "cd".
    ranks = {b"a": 0, b"b": 1, b"c": 2, b"d": 3, b"bc": 4, b"ab": 5, b"cd": 6, b"abcd": 7}
    merges = [(b"b", b"c"), (b"a", b"b"), (b"c", b"d"), (b"ab", b"cd")]
    assert unreachable_tokens(ranks, merges) == {b"abcd"}
    assert unreachable_tokens(ranks | {b"bc": 8, b"abcd": 9}, [*merges[1:3], merges[0], merges[3]]) == set()


def test_a_token_with_a_lower_id_than_its_part_is_seen_to_come_first() -> None:
    # "abab": the first "ab" is joined and takes the next "a" along, as "aba" has a lower id than "ab".
    ranks = {b"a": 0, b"b": 1, b"aba": 2, b"ab": 3, b"abab": 4}
    assert unreachable_tokens(ranks, [(b"ab", b"a"), (b"a", b"b"), (b"aba", b"b")]) == set()
    with pytest.raises(ValueError, match="tiktoken would join b'aba' and b'b'"):
        unreachable_tokens(ranks, [(b"ab", b"a"), (b"a", b"b"), (b"ab", b"ab")])


def test_merges_out_of_the_order_of_ids_are_refused() -> None:
    ranks = {b"a": 0, b"b": 1, b"ab": 2, b"ba": 3}
    with pytest.raises(ValueError, match=r"not in the order of the ids \(see the merge into b'ab'\)"):
        unreachable_tokens(ranks, [(b"b", b"a"), (b"a", b"b")])


def test_a_pair_that_only_tiktoken_would_join_is_refused_by_name() -> None:
    ranks = {b"a": 0, b"b": 1, b"c": 2, b"ab": 3, b"abc": 4}
    with pytest.raises(ValueError, match="tiktoken would join b'ab' and b'c', which is no listed merge"):
        unreachable_tokens(ranks, [(b"a", b"b")])


def test_tokens_that_would_take_hours_to_check_are_refused() -> None:
    tokens = [b"a", *(b"b" + b"a" * n for n in range(1200))]
    merges = [(token, b"a") for token in tokens[1:-1]]
    with pytest.raises(
        ValueError, match=r"its tokens are too long to be checked \(see the one of 7\d\d bytes\)"
    ):
        unreachable_tokens({token: i for i, token in enumerate(tokens)}, merges)
