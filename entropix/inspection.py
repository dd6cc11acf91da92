"""One forward pass over a text, in the user's hands: logits, raw attention scores, who sees whom, and all metrics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from entropix import own_metrics, sharding
from entropix.checkpoint.loading import Model, check_model
from entropix.decoding import loop
from entropix.decoding.request import check_texts
from entropix.metrics import Metrics
from entropix.model.rope import rope_lengths
from entropix.numerics import power_of_two
from entropix.prompts import check_flag
from entropix.showing import shown

MAX_BYTES = 2**32  # of scores and logits together, unless told otherwise
_SHORTEST = 8  # positions; a text is padded to a power of two, so that few lengths compile


@dataclass(frozen=True)
class Forward:
    """What a model makes of one text: T positions, V tokens in the vocabulary, L layers, N query heads.

    All arrays are numpy's, in float32 but for those of who sees whom. Keys are the same T positions as queries.
    """

    token_ids: list[int]
    tokens: list[str]
    logits_TV: np.ndarray
    """Of the token after each position: temperature 1, nothing filtered."""
    scores_LNTT: np.ndarray
    """Raw attention scores q·k/√H of each layer and head, by query and key; before masking and softmax, as
    `metrics.AttentionScores` has them."""
    visible_TT: np.ndarray
    """bool, by query and key: whether the query sees the key, which then is not after it, in any layer."""
    visible_LTT: np.ndarray
    """bool: in each layer. Layers differ in models with a window in some of them alone."""
    metrics: Metrics
    """Each `[T]`: of the distribution after each position, and of the attention from there."""
    own: Mapping[str, np.ndarray]
    """Metrics of one's own by name, each `[T]`; see `own_metrics`."""

    def __repr__(self) -> str:
        """Its sizes."""
        layers, heads, n, _ = self.scores_LNTT.shape
        vocabulary = self.logits_TV.shape[-1]
        return f"Forward of {n} tokens: logits over {vocabulary}, scores of {layers} layers of {heads} heads, metrics"

    def attention(self) -> np.ndarray:
        """[L, N, T, T]: the softmax of the scores over the visible keys; 0 where a key is not visible."""
        masked = np.where(self.visible_LTT[:, None], self.scores_LNTT, -np.inf)
        exp = np.exp(masked - masked.max(axis=-1, keepdims=True))
        return exp / exp.sum(axis=-1, keepdims=True)


def forward(
    model: Model, text: str | Sequence[int], *, allow_special: bool = False, max_bytes: int = MAX_BYTES
) -> Forward:
    """Everything that one forward pass over a text finds.

    text: plain text, which gets the model's beginning-of-text tokens if it has such, or token ids, used as they are.
    allow_special: names of special tokens in a text become these tokens. max_bytes: of scores and logits together,
    which grow with the square of the length.

    Raises a ValueError for a text that is empty, longer than the model's context, would take more than `max_bytes`, or
    has tokens that the model does not know. For the metrics of long texts alone there is `scoring.score`.
    """
    check_model(model)
    check_flag("allow_special", allow_special)
    if isinstance(max_bytes, bool) or not isinstance(max_bytes, int | float) or not max_bytes > 0:
        raise ValueError(f"max_bytes must be a number above 0, got {shown(max_bytes)}")
    ids, cfg = model.tokenizer.encode_text(text, allow_special), model.config
    check_texts([ids], cfg)
    n, width = len(ids), power_of_two(len(ids), _SHORTEST)
    needed = 4 * width * (cfg.n_layers * cfg.n_heads * width + cfg.vocab_size)
    if needed > max_bytes:
        raise ValueError(
            f"scores and logits of {n} tokens take {needed / 1e9:.1f} GB, more than max_bytes "
            f"({max_bytes / 1e9:.1f} GB); allow more, shorten the text, or take scoring.score for metrics alone"
        )
    tokens_BT = np.full((1, width), ids[-1], np.int32)
    tokens_BT[0, :n] = ids
    with sharding.on(model.mesh):
        found = loop.forward(
            model.weights,
            jnp.asarray(tokens_BT),
            cfg,
            own_metrics.registered(),
            rope_lengths([n], cfg),
        )
    seen, attention = jax.device_get(found)
    visible_TT, of_layers = attention.visible_BTS[0, :n, :n], attention.visible_LBTS
    alike_LTT = np.broadcast_to(visible_TT, (cfg.n_layers, n, n))
    return Forward(
        token_ids=ids,
        tokens=[model.tokenizer.decode([token]) for token in ids],
        logits_TV=seen.logits_BV[0, :n],
        scores_LNTT=attention.scores_LBNTS[:, 0, :, :n, :n],
        visible_TT=visible_TT,
        visible_LTT=alike_LTT if of_layers is None else of_layers[:, 0, :n, :n],
        metrics=jax.tree.map(lambda leaf_BT: leaf_BT[0, :n], seen.metrics),
        own={name: leaf_BT[0, :n] for name, leaf_BT in (seen.own or {}).items()},
    )
