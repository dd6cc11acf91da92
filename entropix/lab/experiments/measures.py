"""How varied and how repetitive answers are, measured on sequences of token ids (or of words, or of anything).

Token ids need no rule for what a word is, and so serve every language and code alike; the numbers depend on the
tokenizer, and compare samplers of one model, not models.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence

Sequences = Sequence[Sequence[Hashable]]
REPEATED = 4  # length of the n-grams whose repetition is counted
BLEU_ORDER = 4  # longest n-gram of BLEU
BLEU_FLOOR = 0.1  # what counts instead of no match at all


def ngrams(sequence: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    """All runs of n items, in order."""
    return [tuple(sequence[i : i + n]) for i in range(len(sequence) - n + 1)]


def distinct(sequences: Sequences, n: int) -> float | None:
    """Different n-grams as a share of all n-grams, over all sequences together; None where there is no n-gram.

    Li et al. 2016, arXiv:1510.03055, who divide by the number of tokens; the number of n-grams, which is as usual,
    makes 1 the largest value for every n. More text has a smaller share: compare equal amounts.
    """
    found = [gram for sequence in sequences for gram in ngrams(sequence, n)]
    return len(set(found)) / len(found) if found else None


def repetition(sequence: Sequence[Hashable], n: int) -> float | None:
    """Share of n-grams that stood earlier in the same sequence; None where there is no n-gram.

    seq-rep-n of Welleck et al. 2020, arXiv:1908.04319: 1 - different n-grams / all n-grams.
    """
    share = distinct([sequence], n)
    return None if share is None else 1 - share


def self_bleu(sequences: Sequences) -> float | None:
    """How alike sequences are, 0 to 1: the mean BLEU of each with all others as references; None for fewer than two.

    Zhu et al. 2018 (Texygen), arXiv:1802.01886.
    """
    if len(sequences) < 2:
        return None
    scores = (bleu(sequence, [*sequences[:i], *sequences[i + 1 :]]) for i, sequence in enumerate(sequences))
    return math.fsum(scores) / len(sequences)


def bleu(candidate: Sequence[Hashable], references: Sequences) -> float:
    """BLEU of one sentence, 0 to 1 (Papineni et al. 2002, doi:10.3115/1073083.1073135).

    The geometric mean of the shares of its 1- to 4-grams that stand in a reference (no n-gram more often than in the
    reference that has it most often), times e^(1 - r/c) where its length c is less than r, the length of the reference
    nearest in length, the shorter of two. Smoothing 1 of Chen & Cherry 2014 (doi:10.3115/v1/W14-3346): an order without
    a match counts as 0.1 matches. Orders longer than the sentence are left out. Without any match it is 0.
    """
    logs = []
    for n in range(1, min(BLEU_ORDER, len(candidate)) + 1):
        counts = Counter(ngrams(candidate, n))
        largest: Counter[tuple[Hashable, ...]] = Counter()
        for reference in references:
            largest |= Counter(ngrams(reference, n))
        matches = (counts & largest).total()
        if n == 1 and matches == 0:
            return 0.0
        logs.append(math.log((matches or BLEU_FLOOR) / counts.total()))
    if not logs:
        return 0.0
    length = len(candidate)
    nearest = min(map(len, references), key=lambda other: (abs(other - length), other))
    return math.exp(min(0.0, 1 - nearest / length) + math.fsum(logs) / len(logs))
