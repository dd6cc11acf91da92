"""A given text as the model sees it: at every position all metrics and the log-probability of what comes next.

The text is read, not generated ("teacher-forced"): in pieces, each with the cache of everything before it, so that
a position's numbers are those that decoding would have found there.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from entropix import sharding
from entropix.checkpoint.loading import Model
from entropix.config import ModelConfig
from entropix.decoding import loop
from entropix.decoding.request import check_texts
from entropix.metrics import Metrics

Record = dict[str, Any]

MIN_CAPACITY = 256  # slots; doubled until the text fits, so that texts of about one length share a program
WIDTHS = (128, 64, 32, 16, 8)  # positions in one pass
MAX_ROWS = 8  # texts in one pass
PASS_BYTES = 2**28  # size of the largest array of a pass, attention scores or logits, if one text allows


@dataclass(frozen=True)
class Scored:
    """What the model made of one text.

    records: one flat dict a position: `position` (from 0), `id` and `text` of the token there, `next_id` and
        `next_text` of the one after it, `logprob` (nats, of the next token under the model) and every field of
        `metrics.Metrics` for the distribution of the next token. At the last position nothing is known to come next, so
        these three are None, as are numbers that are not finite.
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
    several = [texts] if isinstance(texts, str) else texts
    rows = [model.tokenizer.encode_text(text, allow_special) for text in several]
    check_texts(rows, model.config)
    scored: list[Scored | None] = [None] * len(rows)
    by_length = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    with sharding.on(model.mesh):
        for batch in _batches(by_length, [_capacity(len(row)) for row in rows], model.config):
            for row, one in zip(batch, _read(model, [rows[row] for row in batch]), strict=True):
                scored[row] = one
    return [one for one in scored if one is not None]


def _capacity(length: int) -> int:
    """Slots for a text: a power of two, hence whole pieces of any width."""
    return max(MIN_CAPACITY, 1 << (length - 1).bit_length())


def _position_bytes(cfg: ModelConfig, capacity: int) -> int:
    """Of the largest array that one position of one text needs."""
    return 4 * max(cfg.n_layers * cfg.n_heads * (capacity + WIDTHS[0]), cfg.vocab_size)


def _batches(order: Sequence[int], capacity: Sequence[int], cfg: ModelConfig) -> Iterator[list[int]]:
    """The rows in this order, cut where the capacity changes or a pass would become too large."""
    batch: list[int] = []
    for row in order:
        most = PASS_BYTES // (WIDTHS[0] * _position_bytes(cfg, capacity[row]))
        if batch and (capacity[row] != capacity[batch[0]] or len(batch) >= min(max(most, 1), MAX_ROWS)):
            yield batch
            batch = []
        batch.append(row)
    yield batch


def _read(model: Model, rows: Sequence[list[int]]) -> list[Scored]:
    """These texts in one batch. Rows that it lacks to a power of two, and positions past a text's end, are padding."""
    cfg, longest = model.config, max(map(len, rows))
    batch, capacity = 1 << (len(rows) - 1).bit_length(), _capacity(longest)
    room = PASS_BYTES // (batch * _position_bytes(cfg, capacity))
    width = next((width for width in WIDTHS if width <= room), WIDTHS[-1])
    text_BS = np.zeros((batch, capacity + 1), np.int32)
    length_B = np.zeros(batch, np.int32)
    for row, tokens in enumerate(rows):
        text_BS[row, : len(tokens)] = tokens
        length_B[row] = len(tokens)
    cache = loop.empty_cache(cfg, batch, capacity, model.dtype)
    pieces = []
    for start in range(0, longest, width):
        cache, *piece = loop.score_tokens(
            model.weights,
            jnp.asarray(text_BS[:, start : start + width]),
            jnp.asarray(text_BS[:, start + 1 : start + 1 + width]),
            jnp.asarray(np.clip(length_B - start, 0, width)),
            cache,
            cfg,
        )
        pieces.append(jax.device_get(piece))
    logprob_BS, metrics_BS = jax.tree.map(lambda *parts: np.concatenate(parts, axis=1), *pieces)
    return [
        _scored(
            model, tokens, logprob_BS[row], jax.tree.map(lambda leaf_BS, row=row: leaf_BS[row], metrics_BS)
        )
        for row, tokens in enumerate(rows)
    ]


def _scored(model: Model, tokens: list[int], logprob_S: np.ndarray, metrics_S: Metrics) -> Scored:
    """Arrays, which may be longer than the text, as records."""
    texts = [model.tokenizer.decode([token]) for token in tokens]
    followers = [*zip(tokens[1:], texts[1:], map(_plain, logprob_S), strict=False), (None, None, None)]
    columns = {name: [_plain(x) for x in values] for name, values in metrics_S._asdict().items()}
    records = [
        {
            "position": i,
            "id": token,
            "text": text,
            "next_id": next_id,
            "next_text": next_text,
            "logprob": logprob,
        }
        | {name: values[i] for name, values in columns.items()}
        for i, (token, text, (next_id, next_text, logprob)) in enumerate(
            zip(tokens, texts, followers, strict=True)
        )
    ]
    return Scored(list(tokens), records)


def _plain(value: np.floating) -> float | None:
    return float(value) if np.isfinite(value) else None
