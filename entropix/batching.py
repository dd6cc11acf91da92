"""Any number of prompts, a batch at a time: memory is that of one batch, tokens are those of a single one."""

import dataclasses
import math
from collections.abc import Iterator

from entropix import generation
from entropix.config import BATCH_ROWS
from entropix.decoding import inputs
from entropix.decoding.request import GenerationRequest
from entropix.decoding.session import Session
from entropix.results import TokenEvent
from entropix.sharding import DATA


class Batches:
    """The batches of a request, in the order of its prompts.

    `run` gives the events of `generation.run` for the whole request. All batches have the same number of rows, so that
    they share a program, and all groups of devices with rows of their own (`sharding.DATA`) have as many. Those that
    are lacking repeat the last row, and nobody sees them.
    """

    def __init__(
        self, request: GenerationRequest, most_rows: int = BATCH_ROWS, session: Session | None = None
    ) -> None:
        """most_rows: of a batch, at least 1. session: for requests of a single batch, one whose cache is to be used."""
        if most_rows < 1:
            raise ValueError(f"a batch needs at least one row, got {most_rows}")
        n_prompts = len(request.prompt_ids)
        counted = tuple(inputs.occurrences(request.prompt_ids, request.config))
        self._request = dataclasses.replace(
            request, config=dataclasses.replace(request.config, occurrences=counted)
        )
        groups = 1 if request.model.mesh is None else request.model.mesh.shape[DATA]
        even = math.ceil(n_prompts / math.ceil(n_prompts / most_rows))
        self._size = even if session else groups * math.ceil(even / groups)
        self._session = session or Session(request.model, self._size)
        self._n_rows = 0  # of the newest batch, without those that repeat its last
        self._passes = -self._session.costs.n_passes
        self._computed = 0

    @property
    def n_passes(self) -> int:
        """Forward passes of decoding so far."""
        return self._passes + self._session.costs.n_passes

    @property
    def n_computed(self) -> int:
        """Tokens computed so far; see `decoding.batch.Costs`."""
        return self._computed + int(self._session.costs.computed_B[: self._n_rows].sum())

    def run(self) -> Iterator[TokenEvent]:
        """All events."""
        n_prompts = len(self._request.prompt_ids)
        for start in range(0, n_prompts, self._size):
            if start:
                self._passes, self._computed = self.n_passes, self.n_computed
                self._session = Session(self._request.model, self._size)
            self._n_rows = min(self._size, n_prompts - start)
            rows = [start + min(i, self._n_rows - 1) for i in range(self._size)]
            for event in generation.run(self._request.of_rows(rows), self._session):
                if event.row < self._n_rows:
                    yield event._replace(row=start + event.row)
