"""What a generation yields: tokens with their records, ends with their reasons, whole results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, NamedTuple


class FinishReason(IntEnum):
    """Why a row ended."""

    RUNNING = 0
    STOP_TOKEN = 1
    LENGTH = 2
    CONTEXT = 3
    NAN = 4
    STOP_STRING = 5
    INTERRUPTED = 6
    BACKTRACKING = 7

    @property
    def sentence(self) -> str:
        """For the user."""
        return {
            FinishReason.RUNNING: "still running",
            FinishReason.STOP_TOKEN: "the model ended its answer",
            FinishReason.LENGTH: "max_new_tokens was reached",
            FinishReason.CONTEXT: "the model's context is full",
            FinishReason.NAN: "the model's logits were not finite, so this row was stopped",
            FinishReason.STOP_STRING: "a stop string appeared",
            FinishReason.INTERRUPTED: "it was interrupted",
            FinishReason.BACKTRACKING: "its newest tokens are being taken back",
        }[self]


TokenRecord = dict[str, Any]
_SHOWN = 60  # characters of a text in `repr`
CUT_OFF = (FinishReason.LENGTH, FinishReason.CONTEXT)  # ends that no answer chooses


class TokenEvent(NamedTuple):
    """A row's next token, or, where `record` is None, an end that came without one or the text of given tokens."""

    row: int
    text: str  # what is now safe to print; empty while a character or a possible stop string is incomplete
    record: TokenRecord | None
    finish: FinishReason  # RUNNING until the row's last event


@dataclass
class Result:
    """What became of one prompt.

    `text` leaves out the stop token and the stop string. `token_ids` and `records` have one entry a generated token,
    the stop token included. A record is a dict: `id`, `text`, `bytes`, `strategy`, `temperature`, `top_p`, `top_k`,
    `min_p`, `kept`, `logprob`, `draw_logprob`, `score`, `injected`, every field of `metrics.Metrics`, every registered
    metric of one's own and, where asked for, `alternatives` and `head_entropies`; where the row forked `branches`, and
    where tokens were taken back `taken_back`. docs/trace.md says what each is.
    """

    prompt_ids: list[int]
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    records: list[TokenRecord] = field(default_factory=list)
    finish: FinishReason = FinishReason.RUNNING

    def __repr__(self) -> str:
        """How long it is, how it ended, and its beginning."""
        text = self.text if len(self.text) <= _SHOWN else f"{self.text[:_SHOWN]}..."
        return f"Result of {len(self.token_ids)} tokens, {self.finish.name.lower()}: {text!r}"

    @property
    def stopped(self) -> str:
        """That it was stopped, how far it was and why, for the user."""
        n = len(self.token_ids)
        return f"stopped after {n} token{'s' * (n != 1)}: {self.finish.sentence}"

    def columns(self) -> dict[str, list[Any]]:
        """The records as columns, one entry a token, None where a record lacks the field: what
        `pandas.DataFrame` and `polars.DataFrame` take."""
        names = list(dict.fromkeys(name for record in self.records for name in record))
        return {name: [record.get(name) for record in self.records] for name in names}

    def to_dataframe(self) -> Any:
        """A pandas data frame with a row a token and a column a field. Raises a ValueError where there is no pandas."""
        try:
            import pandas
        except ImportError:
            raise ValueError(
                "to_dataframe needs pandas: pip install pandas; polars takes polars.DataFrame(result.columns())"
            ) from None
        return pandas.DataFrame(self.columns())


def cut_off(results: Sequence[Result]) -> int:
    """How many answers did not end by themselves, so that their lengths are not known."""
    return sum(result.finish in CUT_OFF for result in results)


def add(results: Sequence[Result] | Mapping[int, Result], event: TokenEvent) -> None:
    """Appends one event to its row's result."""
    result = results[event.row]
    result.text += event.text
    result.finish = event.finish
    if event.record is not None:
        result.token_ids.append(event.record["id"])
        result.records.append(event.record)
