"""A given text as the model sees it: at every position all metrics and the log-probability of what comes next.

The text is read, not generated ("teacher-forced"): in pieces, each with the cache of everything before it, so that
a position's numbers are those that decoding would have found there.
"""

import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from entropix import metric_labels, own_metrics, sharding
from entropix.checkpoint.loading import Model, check_model
from entropix.config import ModelConfig
from entropix.decoding import loop
from entropix.decoding.prefix_cache import MIN_CAPACITY
from entropix.decoding.records import plain_number
from entropix.decoding.request import check_texts
from entropix.model.rope import rope_lengths
from entropix.numerics import power_of_two
from entropix.prompts import check_flag, listed
from entropix.showing import shown

Record = dict[str, Any]

WIDTHS = (512, 128, 64, 32, 16, 8)  # positions in one pass
MAX_ROWS = 8  # texts in one pass
PASS_BYTES = 2**28  # size of the largest array of a pass, attention scores or logits, if one text allows


@dataclass(frozen=True)
class Scored:
    """What the model made of one text.

    records: one flat dict a position: `position` (from 0), `id` and `text` of the token there, `next_id` and
        `next_text` of the one after it, `logprob` (nats, of the next token under the model), `rank` (1 where it is the
        likeliest), and every field of `metrics.Metrics` and every metric of one's own for the distribution of the next
        token. At the last position nothing is known to come next, so these four are None, as are numbers that are not
        finite.
    """

    token_ids: list[int]
    records: list[Record]

    @property
    def mean_logprob(self) -> float | None:
        """Nats a token, over all but the first token, which nothing predicts; None if there is no other."""
        return mean([record["logprob"] for record in self.records[:-1]])

    @property
    def perplexity(self) -> float | None:
        """e to the minus `mean_logprob`; None where that is None."""
        return None if self.mean_logprob is None else float(np.exp(min(-self.mean_logprob, 700.0)))


def mean(numbers: Sequence[float | None]) -> float | None:
    """Their mean; None if there are none, or one of them is None."""
    known = [number for number in numbers if number is not None]
    return math.fsum(known) / len(known) if known and len(known) == len(numbers) else None


def score(
    model: Model, texts: str | Sequence[str | Sequence[int]], *, allow_special: bool = False
) -> list[Scored]:
    """One `Scored` a text. A text is plain text, or token ids to be used as they are.

    Plain text gets the model's beginning-of-text tokens, if it has such. Names of special tokens in it become these
    tokens only with `allow_special`. Raises a ValueError for a text that is empty or longer than the model's context,
    before any work is done.
    """
    rows = encode(model, texts, allow_special)
    records: list[list[Record]] = [[] for _ in rows]
    for piece in read(model, rows):
        records[piece.text] += piece.records
    return [Scored(row, found) for row, found in zip(rows, records, strict=True)]


def encode(
    model: Model, texts: str | Sequence[str | Sequence[int]], allow_special: bool = False
) -> list[list[int]]:
    """The token ids of texts, as `score` takes them. Raises its ValueErrors."""
    check_model(model)
    check_flag("allow_special", allow_special)
    several = [texts] if isinstance(texts, str) else _several(texts)
    rows = [model.tokenizer.encode_text(text, allow_special) for text in several]
    check_texts(rows, model.config)
    return rows


def _several(texts: Any) -> list[Any]:
    """Several texts. Raises a ValueError for what is none of that, such as the ids of one text."""
    items = listed(texts)
    if items is None or any(map(_is_number, items)):
        raise ValueError(
            f"texts must be a text, or a list of texts or of lists of token ids, [ids] for one; got {shown(texts)}"
        )
    return items


def _is_number(text: Any) -> bool:
    """Whether this is one token, in whatever type."""
    try:
        return operator.index(text) is not None
    except TypeError:
        return False


class Piece(NamedTuple):
    """Some positions of a text that follow those before."""

    text: int  # its number, from 0
    records: list[Record]


def read(model: Model, rows: Sequence[list[int]]) -> Iterator[Piece]:
    """The records of these texts, as soon as they are computed: those of a text in its order, texts of about one length
    side by side, the shortest first. rows: of `encode`."""
    by_length = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    for batch in _batches(by_length, list(map(len, rows)), model.config):
        for row, records in _read(model, [rows[row] for row in batch]):
            yield Piece(batch[row], records)


def slots(length: int) -> int:
    """Slots for a text: a power of two, so whole pieces of any width; texts of about one length share a program."""
    return power_of_two(length, MIN_CAPACITY)


def width(longest: int) -> int:
    """Positions in one pass, where there is room: the widest is for texts that fill it."""
    return WIDTHS[longest <= WIDTHS[0]]


def _position_bytes(cfg: ModelConfig, capacity: int) -> int:
    """Of the largest array that one position of one text needs; metrics of one's own may ask for all scores."""
    scores = cfg.n_layers * cfg.n_heads * (capacity + WIDTHS[0]) if own_metrics.registered() else 0
    return 4 * max(scores, cfg.vocab_size)


def _batches(order: Sequence[int], lengths: Sequence[int], cfg: ModelConfig) -> Iterator[list[int]]:
    """The rows in this order, cut where the capacity changes or a pass would become too large."""
    batch: list[int] = []
    for row in order:
        capacity = slots(lengths[row])
        most = PASS_BYTES // (WIDTHS[1] * _position_bytes(cfg, capacity))
        if batch and (capacity != slots(lengths[batch[0]]) or len(batch) >= min(max(most, 1), MAX_ROWS)):
            yield batch
            batch = []
        batch.append(row)
    yield batch


def _read(model: Model, rows: Sequence[list[int]]) -> Iterator[tuple[int, list[Record]]]:
    """(row, records of the next positions) of these texts in one batch, until all are read.

    Rows that the batch lacks to a power of two, and positions past a text's end, are padding.
    """
    cfg, longest = model.config, max(map(len, rows))
    batch, capacity = power_of_two(len(rows)), slots(longest)
    room = min(PASS_BYTES // (batch * _position_bytes(cfg, capacity)), width(longest))
    n = next((n for n in WIDTHS if n <= room), WIDTHS[-1])
    text_BS = np.zeros((batch, capacity + 1), np.int32)
    length_B = np.zeros(batch, np.int32)
    for row, tokens in enumerate(rows):
        text_BS[row, : len(tokens)] = tokens
        length_B[row] = len(tokens)
    with sharding.on(model.mesh):
        cache = loop.empty_cache(cfg, batch, capacity, model.dtype)
    for start in range(0, longest, n):
        with sharding.on(model.mesh):  # and not while somebody else has what is yielded
            cache, logprob_BT, metrics_BT = loop.score_tokens(
                model.weights,
                jnp.asarray(text_BS[:, start : start + n + 1]),
                jnp.asarray(np.clip(length_B - start, 0, n)),
                cache,
                cfg,
                own_metrics.registered(),
                rope_lengths(length_B.tolist(), cfg),
            )
        columns_BT = jax.device_get({"logprob": logprob_BT, **metrics_BT})
        for row, tokens in enumerate(rows):
            if len(tokens) > start:
                columns = {
                    name: columns_BT[name][row] for name in ("logprob", "rank", *metric_labels.known())
                }
                yield row, _records(model, tokens, start, columns)


def _records(model: Model, tokens: list[int], start: int, columns: Mapping[str, np.ndarray]) -> list[Record]:
    """The records of the positions from `start` on, of columns that may be longer than what is left of the text."""
    n = len(columns["logprob"])
    here = tokens[start : start + n + 1]
    texts = [model.tokenizer.decode([token]) for token in here]
    numbers = {name: [plain_number(x) for x in values] for name, values in columns.items()}
    records = [
        {
            "position": start + i,
            "id": token,
            "text": texts[i],
            "next_id": here[i + 1] if i + 1 < len(here) else None,
            "next_text": texts[i + 1] if i + 1 < len(here) else None,
            **{name: values[i] for name, values in numbers.items()},
        }
        for i, token in enumerate(here[:n])
    ]
    if len(here) <= n:  # nothing is known to come next
        records[-1]["logprob"] = records[-1]["rank"] = None
    return records
