"""Whether tiktoken's way of merging bytes comes to the same as a list of merges.

A byte-level BPE vocabulary cuts a piece of text into bytes and joins neighbours until nothing applies.
tiktoken joins the two whose concatenation is the token of lowest id, leftmost first, and never takes a piece
apart that is a token as a whole. Other libraries join only what is on a list of merges, in the list's order.
"""

import itertools
import sys
from collections.abc import Mapping, Sequence

# Steps, of which a token takes as many as the square of its length or fewer. Vocabularies in use need a hundredth;
# tokens of thousands of bytes, of which a file may list as many as it likes, would take hours.
MOST_WORK = 300_000_000


def unreachable_tokens(ranks: Mapping[bytes, int], merges: Sequence[tuple[bytes, bytes]]) -> set[bytes]:
    """The tokens of several bytes that merging never makes, once both ways of merging are found equal.

    What happens between two borders that no merge crosses happens as if that stretch stood alone. Wherever
    tiktoken makes a token, it hence makes it of the two parts that merging leaves of the token's own bytes.
    If those parts are a listed merge, for every token, and the list is in the order of the ids, then at each
    step the merge that tiktoken picks is the first on the list that applies: both go the same way to the end.

    Args:
        ranks: token -> id, for every token that tiktoken is given.
        merges: the listed pairs, in order; the single bytes in them and their concatenations are in `ranks`.

    Raises:
        ValueError: the two orders differ, tiktoken would join a pair that is not listed, or finding out whether it
            would takes more than `MOST_WORK`.
    """
    listed: dict[bytes, list[tuple[bytes, bytes]]] = {}
    latest = -1
    for left, right in merges:
        token = left + right
        if ranks[token] < latest:
            raise ValueError(f"its merges are not in the order of the ids (see the merge into {token!r})")
        latest = ranks[token]
        listed.setdefault(token, []).append((left, right))

    made_at = {token: rank if len(token) > 1 else -1 for token, rank in ranks.items()}
    unreachable: set[bytes] = set()
    split: dict[bytes, tuple[bytes, bytes]] = {}  # the two parts of each token settled so far
    work = 0
    for token in sorted((token for token in ranks if len(token) > 1), key=ranks.__getitem__):
        work += len(token) ** 2 * (1 + len(listed.get(token, ())))
        if work > MOST_WORK:
            raise ValueError(f"its tokens are too long to be checked (see the one of {len(token)} bytes)")
        for left, right in listed.get(token, ()):
            settled = (len(left) == 1 or left in split) and (len(right) == 1 or right in split)
            if settled and not _merges_across(left, right, made_at, split):
                split[token] = (left, right)
                break
        else:
            parts = _merge(token, ranks)
            if len(parts) > 2:
                unreachable.add(token)
            elif tuple(parts) not in listed.get(token, ()):
                raise ValueError(
                    f"tiktoken would join {parts[0]!r} and {parts[1]!r}, which is no listed merge"
                )
    return unreachable


def _merges_across(
    left: bytes,
    right: bytes,
    made_at: Mapping[bytes, int],
    split: Mapping[bytes, tuple[bytes, bytes]],
) -> bool:
    """Whether, in `left + right` alone, a merge joins bytes of both before `left` and `right` are complete.

    The tokens in `split` are made of tokens with lower ids, so their merges happen in the order of the ids
    (`made_at`: token -> id; bytes are there from the start, at -1). This undoes the merges next to the
    border, latest first. The two neighbours that undoing one uncovers lay side by side until it happened, and
    were joined if that makes a token of lower id, or the same token further left.
    """
    while len(left) > 1 or len(right) > 1:
        if made_at[left] > made_at[right]:
            until = made_at[left]
            left = split[left][1]
        else:
            until = made_at[right] + 1
            right = split[right][0]
        if made_at.get(left + right, until) < until:
            return True
    return False


def _merge(token: bytes, ranks: Mapping[bytes, int]) -> list[bytes]:
    """The two or more parts of `token` that tiktoken's rule arrives at without `token` itself."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        pairs = [left + right for left, right in itertools.pairwise(parts)]
        lowest = min(pairs, key=lambda pair: ranks.get(pair, sys.maxsize))
        if lowest not in ranks:
            break
        i = pairs.index(lowest)
        parts[i : i + 2] = [lowest]
    return parts
