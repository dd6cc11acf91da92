"""Where answers to the same prompt part."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple


class Alignment(NamedTuple):
    """How several sequences compare."""

    shared: int
    """Tokens from the start that all of them have in common."""
    differences: list[int | None]
    """For each, where it first differs from the first sequence: its length where it ends earlier. None if nowhere,
    as for the first itself."""


def align(sequences: Sequence[Sequence[Hashable]]) -> Alignment:
    """Compares sequences, of which there is at least one, from their start."""
    first = sequences[0]
    differences = [first_difference(first, other) for other in sequences]
    return Alignment(min((d for d in differences if d is not None), default=len(first)), differences)


def first_difference(a: Sequence[Hashable], b: Sequence[Hashable]) -> int | None:
    """The first place where two sequences differ, or where one has ended and the other has not; None if equal."""
    for place, (left, right) in enumerate(zip(a, b, strict=False)):
        if left != right:
            return place
    return None if len(a) == len(b) else min(len(a), len(b))
