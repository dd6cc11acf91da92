"""The text of a row as its tokens come: whole characters, stop strings, tokens that may still be taken back."""

from collections.abc import Iterator, Sequence

from entropix.decoding.request import GenerationRequest
from entropix.results import FinishReason, TokenRecord


class StopStrings:
    """Finds stop strings in text that comes in pieces; holds back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """(text that is safe to show, whether a stop string was found just after it)."""
        text = self._held + piece
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        hold = next((n for n in range(min(longest, len(text)), 0, -1) if self._begins_stop(text[-n:])), 0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold], False

    def flush(self) -> str:
        """What was held back, when nothing more comes."""
        text, self._held = self._held, ""
        return text

    def _begins_stop(self, text: str) -> bool:
        return any(stop.startswith(text) for stop in self._stops)


class RowText:
    """The text of one row as its tokens come, and the tokens that may still be taken back."""

    def __init__(self, request: GenerationRequest) -> None:
        self._decoder = request.model.tokenizer.stream_decoder()
        self._stops = StopStrings(request.config.stop)
        self._n_back = request.config.backtracking.tokens if request.config.backtracking.is_on else 0
        self._held: list[TokenRecord] = []
        self._taken_back: list[list[int]] = []
        self.ended = False

    def settle(
        self, record: TokenRecord | None, finish: FinishReason
    ) -> Iterator[tuple[TokenRecord | None, FinishReason]]:
        """The records that are final after one more step, the last of a row with its end."""
        if finish == FinishReason.BACKTRACKING:
            self._held, taken = self._held[: -self._n_back], self._held[-self._n_back :]
            self._taken_back += [ids for record in taken for ids in record.get("taken_back", [])]
            self._taken_back.append([record["id"] for record in taken])
            return
        if record is not None:
            if self._taken_back:
                record["taken_back"], self._taken_back = self._taken_back, []
            self._held.append(record)
        ended = finish != FinishReason.RUNNING
        while self._held and (ended or len(self._held) > self._n_back):
            settled = self._held.pop(0)
            yield settled, finish if record is not None and not self._held else FinishReason.RUNNING
        if ended and record is None:
            yield None, finish

    def push(self, token: int) -> tuple[str, bool]:
        return self._stops.push(self._decoder.push(token))

    def flush(self) -> tuple[str, bool]:
        text, found = self._stops.push(self._decoder.flush())
        return (text, True) if found else (text + self._stops.flush(), False)
