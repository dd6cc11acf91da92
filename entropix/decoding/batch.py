"""The host's account of a batch: which rows are still in it, which tokens they have, and what they have cost.

A row has a number in the whole batch, and a place among the rows that are still there.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from entropix.decoding.state import Before, BranchPlan, StepRecord
from entropix.results import FinishReason


class ActiveRows:
    """Which rows are still in the batch, and how the departed ones ended."""

    def __init__(self, batch: int) -> None:
        self.rows = list(range(batch))  # by place
        self._finish_B = np.full(batch, FinishReason.RUNNING, np.int32)  # of rows that have left

    @property
    def all_here(self) -> bool:
        return len(self.rows) == len(self._finish_B)

    def places(self, rows: Iterable[int]) -> list[int]:
        """Where those of these rows are that are still there."""
        place_of = {row: place for place, row in enumerate(self.rows)}
        return [place_of[row] for row in rows if row in place_of]

    def places_of_all(self) -> list[int | None]:
        """For every row its place; None for those that have left."""
        place_of = {row: place for place, row in enumerate(self.rows)}
        return [place_of.get(row) for row in range(len(self._finish_B))]

    def keep(self, places: Sequence[int], finish_B: np.ndarray) -> None:
        """The rows elsewhere leave. finish_B: how all that were there have ended."""
        self._finish_B[self.rows] = finish_B
        self.rows = [self.rows[place] for place in places]

    def spread(self, records: StepRecord) -> StepRecord:
        """Records with a column for every row, also for those that have left, which have ended."""
        if self.all_here:
            return records
        batch = len(self._finish_B)

        def spread(leaf: np.ndarray) -> np.ndarray:
            whole = np.zeros((len(leaf), batch, *leaf.shape[2:]), leaf.dtype)
            whole[:, self.rows] = leaf
            return whole

        whole = jax.tree.map(spread, records)
        left_B = ~np.isin(np.arange(batch), self.rows)
        whole.finish_B[:, left_B] = self._finish_B[left_B]
        return whole


class RowTokens:
    """The newest tokens of each row, by place, which its cache does not hold yet."""

    def __init__(self, newest: Sequence[int]) -> None:
        self.newest = [*newest]  # its key and value come with the next step
        self.recent: list[list[int]] = [[] for _ in newest]  # whose keys and values are in the recent slots
        # What was before each of the last tokens, where some may be taken back.
        self._before: list[list[Before]] = [[] for _ in newest]

    def of(self, places: Sequence[int]) -> "RowTokens":
        """Those of these places."""
        some = RowTokens([self.newest[place] for place in places])
        some.recent = [self.recent[place] for place in places]
        some._before = [self._before[place] for place in places]
        return some

    def put(self, places: Sequence[int], other: "RowTokens") -> None:
        """These places become those of others."""
        for i, place in enumerate(places):
            self.newest[place], self.recent[place] = other.newest[i], other.recent[i]
            self._before[place] = other._before[i]

    def follow(self, records: StepRecord, n_back: int) -> None:
        """Adds what a chunk has drawn, records `[tokens, B, ...]`. n_back: how many may be taken back at once."""
        for i, (token_B, live_B) in enumerate(zip(records.token_B, records.live_B, strict=True)):
            for place in np.flatnonzero(live_B):
                self.recent[place].append(self.newest[place])
                self.newest[place] = int(token_B[place])
                if n_back:
                    before = jax.tree.map(lambda leaf, at=(i, place): leaf[at], records.before)
                    self._before[place] = [*self._before[place], before][-n_back:]

    def take_back(self, place: int, cached: Sequence[int], n: int) -> tuple[int, int, Before]:
        """(how many of the cached tokens stay, the first token that was taken back, what was before it) after the
        newest n tokens of a row are taken back."""
        text = [*cached, *self.recent[place], self.newest[place]]
        *kept, self.newest[place] = text[:-n]
        n_cached = min(len(cached), len(kept))
        self.recent[place] = kept[n_cached:]
        before, self._before[place] = self._before[place][0], []
        return n_cached, text[-n], before


class Costs:
    """What the rows have cost since they began."""

    def __init__(self, batch: int) -> None:
        # Of all runs of a session: forward passes of decoding, and the rows of the batch in each of its steps.
        self.n_passes = self.n_row_steps = 0
        self.begin(batch)

    def begin(self, batch: int) -> None:
        """A new run, of so many rows."""
        # By row: the forward passes that it took part in, and the tokens that were computed for it, those rolled
        # forward on discarded paths and those that were taken back among them.
        self.row_passes_B, self.computed_B = np.zeros((2, batch), np.int64)

    def begin_rows(self, rows: Sequence[int]) -> None:
        """These rows begin anew."""
        self.row_passes_B[[*rows]] = self.computed_B[[*rows]] = 0

    def add(self, records: StepRecord, rows: Sequence[int], plan: BranchPlan | None) -> None:
        """Adds a chunk of these rows; records `[steps, lookahead + 1, B, ...]`."""
        self.n_passes += len(records.live_B)
        self.n_row_steps += len(records.live_B) * len(rows)
        self.row_passes_B[rows] += records.live_B.any(axis=1).sum(axis=0)
        self.computed_B[rows] += records.live_B.sum(axis=(0, 1))
        if plan is None:
            return
        # The paths of a step are in its first record.
        paths: Any = jax.tree.map(lambda leaf: leaf[:, 0], records.paths)
        self.n_passes += plan.depth * int(paths.forked_B.any(axis=1).sum())
        self.row_passes_B[rows] += plan.depth * paths.forked_B.sum(axis=0)
        rolled_SBC = paths.live_BCD[..., 1:].sum(axis=-1)
        if plan.whole:  # the best path's are among the live tokens
            np.put_along_axis(rolled_SBC, paths.best_B[..., None], 0, axis=-1)
        self.computed_B[rows] += (rolled_SBC.sum(axis=-1) * paths.forked_B).sum(axis=0)
