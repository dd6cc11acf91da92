"""The cache of a batch's texts: their keys and values on the device and, on the host, the tokens that these are of."""

from collections.abc import Sequence

import numpy as np

from entropix.checkpoint.loading import Model
from entropix.decoding import loop
from entropix.decoding.loop import RECENT_SLOTS
from entropix.model.kv_cache import KVCache, RecentKV
from entropix.model.rope import rope_lengths
from entropix.sharding import to_device

PREFILL_WIDTHS = (8, 64, 128, 512)  # tokens in one prefill call; each compiles once for each capacity
MIN_CAPACITY = 256  # slots; `capacity_for` has the sizes to which they grow with the text
_STEPS = ((1024, 2), (2048, 4))  # (slots, steps): from so many slots on, a doubling is worth so many steps
# Tokens that a new text has in common with a row: if so many or all, they are copied and not computed.
COPIED_TOKENS = 64


class PrefixCache:
    """What each row of a batch holds.

    `prefill` brings it to given texts and computes only what is new in them; `append` adds what a decode loop has
    computed; `cut` keeps the beginnings of texts, `take` some of the rows. `beside` reads texts without touching the
    rows, and `put` makes them rows.

    A text is what a row holds and one token more, which the next step reads. Where a model's rotary frequencies depend
    on how long the text is (`ModelConfig.rope_length`), keys of a text of another length are of no use.
    """

    def __init__(self, model: Model, batch: int) -> None:
        self._model = model
        self._kv: KVCache | None = None
        self.tokens: list[list[int]] = [[] for _ in range(batch)]  # by row
        self._rope_lengths = [0] * batch  # that its keys were computed for

    @property
    def kv(self) -> KVCache:
        """The keys and values; there are some after the first `prefill`."""
        assert self._kv is not None
        return self._kv

    def prefill(self, rows: Sequence[list[int]]) -> None:
        """Makes every row hold exactly these tokens, computing only those that it does not hold yet, and of many equal
        rows only one."""
        different = list(dict.fromkeys(map(tuple, rows)))
        if self._kv is None and 4 * len(different) <= len(rows):
            once = PrefixCache(self._model, len(different))
            once.prefill([*map(list, different)])
            index = [different.index(tuple(row)) for row in rows]
            self._kv = loop.gather_rows(once.kv, to_device(index))
            self.tokens = [[*row] for row in rows]
            self._rope_lengths = [once._rope_lengths[i] for i in index]
            return
        self._rewind([self._common(*pair) for pair in enumerate(rows)])
        self._rope_lengths = [*map(self._rope_length, rows)]
        common = [len(held) for held in self.tokens]
        widths = _prefill_widths(max(len(row) - n for row, n in zip(rows, common, strict=True)))
        if widths or self._kv is None:
            wanted = [len(row) - n for row, n in zip(rows, self._shared(), strict=True)]
            self._reserve(_slots_needed(self._own(), wanted, widths))
        rope_length_B = rope_lengths([len(row) + 1 for row in rows], self._model.config)
        for width in widths:
            kv, held = self._release()
            new = [row[len(tokens) : len(tokens) + width] for row, tokens in zip(rows, held, strict=True)]
            tokens_BT = np.zeros((len(rows), width), np.int32)
            for row, tokens in enumerate(new):
                tokens_BT[row] = rows[row][0] if rows[row] else 0  # padding: a token that the row has anyway
                tokens_BT[row, : len(tokens)] = tokens
            self._kv = loop.prefill(
                self._model.weights,
                to_device(tokens_BT),
                to_device([len(tokens) for tokens in new]),
                kv,
                self._model.config,
                from_empty=not any(held),
                rope_length_B=rope_length_B,
            )
            self.tokens = [before + tokens for before, tokens in zip(held, new, strict=True)]

    def append(self, recent: RecentKV, new: Sequence[Sequence[int]]) -> None:
        """Adds the first of the recent tokens, which are these, to the rows."""
        assert self._kv is not None
        self._reserve(max(self._own()) + recent.size)
        kv, held = self._release()
        self._kv = loop.commit(kv, recent, to_device([len(tokens) for tokens in new]))
        self.tokens = [[*before, *tokens] for before, tokens in zip(held, new, strict=True)]

    def cut(self, length_B: Sequence[int]) -> None:
        """Keeps the first tokens of each row."""
        if list(length_B) != [len(held) for held in self.tokens]:
            kv, held = self._release()
            self._kv = loop.truncate(kv, to_device(length_B))
            self.tokens = [tokens[:n] for tokens, n in zip(held, length_B, strict=True)]

    def take(self, rows: Sequence[int | None]) -> None:
        """Row i becomes a copy of row `rows[i]`, or empty for None."""
        held = self.tokens
        if self._kv is not None:
            kv, held = self._release()
            self._kv = loop.gather_rows(kv, to_device([row or 0 for row in rows]))
        self.tokens = [[] if row is None else [*held[row]] for row in rows]
        self._rope_lengths = [self._rope_lengths[row or 0] for row in rows]

    def share(self, n_rows: int) -> None:
        """The only row, which shares nothing yet, becomes so many, which hold together what it holds."""
        held = self.tokens
        if n_rows > 1 and self._kv is not None:
            kv, held = self._release()
            self._kv = loop.share_row(kv, to_device(0), n_rows)
        self.tokens = [[*held[0]] for _ in range(n_rows)]
        self._rope_lengths = self._rope_lengths * n_rows

    def donor(self, text: Sequence[int]) -> tuple[int, int]:
        """(row, n): the row that has most of this text's beginning, n tokens of it."""
        common = [self._common(row, text) for row in range(len(self.tokens))]
        row = int(np.argmax(common))
        return row, common[row]

    def beside(self, texts: Sequence[list[int]]) -> "PrefixCache":
        """A cache of these texts. What they have in common with rows is copied, if it is much of all of them."""
        other = PrefixCache(self._model, len(texts))
        donors = [self.donor(text) for text in texts]
        if all(n >= min(COPIED_TOKENS, len(text)) for (_, n), text in zip(donors, texts, strict=True)):
            rows = [row for row, _ in donors]
            other._kv = loop.gather_rows(self.kv, to_device(rows))
            other.tokens = [[*self.tokens[row]] for row in rows]
            other._rope_lengths = [self._rope_lengths[row] for row in rows]
        elif self.kv.prefix:
            other._kv = loop.empty_on_prefix(self.kv, len(texts))
            shared = self._shared()
            row = int(np.argmax(shared))
            other.tokens = [self.tokens[row][: shared[row]] for _ in texts]
            other._rope_lengths = [self._rope_lengths[row] for _ in texts]
        other.prefill(texts)
        return other

    def put(self, rows: Sequence[int], other: "PrefixCache") -> None:
        """These rows become those of another cache. One may come several times, with the same in it."""
        self._reserve(other.kv.capacity)
        kv, held = self._release()
        self._kv = loop.put_rows(kv, other.kv, to_device(rows))
        self.tokens = held
        for row, tokens, length in zip(rows, other.tokens, other._rope_lengths, strict=True):
            self.tokens[row], self._rope_lengths[row] = tokens, length

    def shorten(self) -> None:
        """Gives up the slots that a long text has left behind."""
        capacity = capacity_for(max(self._own()) + 2 * RECENT_SLOTS)
        if capacity < self.kv.capacity:
            self._kv = loop.narrow(self.kv, capacity)

    def _common(self, row: int, text: Sequence[int]) -> int:
        """How many tokens of this text a row holds."""
        is_alike = self._rope_lengths[row] == self._rope_length(text)
        return common_prefix(self.tokens[row], text) if is_alike else 0

    def _rope_length(self, held: Sequence[int]) -> int:
        """Of a row that holds this."""
        return self._model.config.rope_length(len(held) + 1)

    def _rewind(self, length_B: Sequence[int]) -> None:
        """Keeps the first tokens of each row, or nothing at all if a text that went wrong has left NaN among them."""
        if not any(length_B):
            self._forget()
        else:
            kv, held = self._release()
            kv = loop.truncate(kv, to_device(length_B))
            if bool(loop.is_finite(kv)):
                self._kv = kv
                self.tokens = [tokens[:n] for tokens, n in zip(held, length_B, strict=True)]

    def _release(self) -> tuple[KVCache, list[list[int]]]:
        """Keys, values and tokens, to be donated. Should an exception come before they are put back, nothing is held,
        rather than what is gone."""
        kv, held = self.kv, self.tokens
        self._forget()
        return kv, held

    def _forget(self) -> None:
        self._kv, self.tokens = None, [[] for _ in self.tokens]

    def _shared(self) -> list[int]:
        """How many tokens of each row are in the prefix of them all."""
        if self._kv is None or not self._kv.prefix:
            return [0] * len(self.tokens)
        return [int(n) for n in np.asarray(self._kv.prefix.length_B)]

    def _own(self) -> list[int]:
        """How many are in slots of the row's own."""
        return [len(held) - n for held, n in zip(self.tokens, self._shared(), strict=True)]

    def _reserve(self, slots: int) -> None:
        """Makes room for so many own tokens in every row."""
        capacity = capacity_for(slots)
        if self._kv is None:
            self._kv = loop.empty_cache(self._model.config, len(self.tokens), capacity, self._model.dtype)
        elif capacity > self._kv.capacity:
            self._kv = loop.grow(self._kv, capacity)


def capacity_for(slots: int) -> int:
    """The size of a cache with so many slots: doublings of `MIN_CAPACITY`, in two steps from 1,024 on, in four from
    2,048 on (1,024, 1,536, 2,048, 2,560, ...). Every size is a program, and a step computes empty slots as well as
    filled ones.
    """
    capacity = MIN_CAPACITY
    while 2 * capacity < slots:
        capacity *= 2
    if slots <= capacity:
        return capacity
    step = capacity // max((n for start, n in _STEPS if capacity >= start), default=1)
    return capacity + step * -(-(slots - capacity) // step)


def _prefill_widths(pending: int) -> list[int]:
    """Widths that take so many tokens: the narrowest that takes all that is left, or, where that would be mostly
    padding, the widest that is filled. The first width is for a few tokens more, as after a fork, and not repeated."""
    widths = []
    while pending > 0:
        enough = next((width for width in PREFILL_WIDTHS if width >= pending), PREFILL_WIDTHS[-1])
        filled = max((width for width in PREFILL_WIDTHS[1:] if width <= pending), default=enough)
        widths.append(enough if 2 * pending > enough else filled)
        pending -= widths[-1]
    return widths


def _slots_needed(held: Sequence[int], wanted: Sequence[int], widths: Sequence[int]) -> int:
    """Slots a row so that no write of a whole width, nor of all recent slots afterwards, reaches past the end.

    held: tokens in the cache, by row; wanted: tokens that shall be in it.
    """
    slots = max(wanted) + RECENT_SLOTS
    for width in widths:
        slots = max(slots, max(held) + width)
        held = [min(n + width, end) for n, end in zip(held, wanted, strict=True)]
    return slots


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two rows begin with in common."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
