"""Filters that shape a distribution before a token is drawn, and the draw itself.

A filter maps logits to logits: removed tokens become -inf, the others keep their value. It works on the last axis,
in any token order, with parameters that are numbers or per-row arrays `[B]`, traced or not. The most likely token
always survives. The order of the chain is fixed: temperature, min-p, top-k, top-p.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class Settings(NamedTuple):
    """Parameters of one pass through the chain, one number a row; None leaves a filter out altogether."""

    temperature_B: Array | None = None
    top_p_B: Array | None = None
    top_k_B: Array | None = None
    min_p_B: Array | None = None


class Draw(NamedTuple):
    """One drawn token a row."""

    token_B: Array  # int32
    logprob_B: Array  # nats, under the distribution it was drawn from


def chain(logits_BV: Array, settings: Settings) -> Array:
    """Temperature, min-p, top-k, top-p, in this order; each later filter sees what the earlier ones left."""
    in_order = (
        (temperature, settings.temperature_B),
        (min_p, settings.min_p_B),
        (top_k, settings.top_k_B),
        (top_p, settings.top_p_B),
    )
    for apply, parameter_B in in_order:
        if parameter_B is not None:
            logits_BV = apply(logits_BV, parameter_B)
    return logits_BV


def temperature(logits_BV: Array, temperature_B: Array | float) -> Array:
    """logits / T, for T > 0."""
    return logits_BV / _column(temperature_B)


def min_p(logits_BV: Array, ratio_B: Array | float) -> Array:
    """Keeps tokens with p >= ratio · max p, ratio in [0, 1] (Nguyen 2024, arXiv:2407.01082)."""
    relative_BV = jnp.exp(logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True))
    return jnp.where(relative_BV >= _column(ratio_B), logits_BV, -jnp.inf)


def top_k(logits_BV: Array, k_B: Array | int) -> Array:
    """Keeps the k most likely tokens, k >= 1 (Fan 2018, arXiv:1805.04833); among equals the lower index."""
    sorted_BV, index_BV = descending(logits_BV)
    return _keep_first(logits_BV, k_B, sorted_BV, index_BV)


def top_p(logits_BV: Array, mass_B: Array | float) -> Array:
    """Keeps the shortest prefix, most likely first, whose mass reaches `mass` (Holtzman 2019, arXiv:1904.09751).

    Mass is a share of what earlier filters left. At 1 everything stays, whatever the rounding of the sum.
    """
    sorted_BV, index_BV = descending(logits_BV)
    p_BV = jax.nn.softmax(sorted_BV, axis=-1)
    before_BV = jnp.cumsum(p_BV, axis=-1) - p_BV
    mass_B1 = _column(mass_B)
    count_B = jnp.sum((before_BV < mass_B1) | (mass_B1 >= 1), axis=-1)
    return _keep_first(logits_BV, jnp.maximum(count_B, 1), sorted_BV, index_BV)


def kept(logits_BV: Array) -> Array:
    """How many tokens of each row a chain left, int32 `[B]`."""
    return jnp.sum(logits_BV > -jnp.inf, axis=-1, dtype=jnp.int32)


def draw(key_B: Array, logits_BV: Array) -> Draw:
    """One categorical draw a row, by the Gumbel-max trick; each row uses its own key and nothing of its neighbours."""
    token_B = jax.vmap(jax.random.categorical)(key_B, logits_BV).astype(jnp.int32)
    return Draw(token_B, at(jax.nn.log_softmax(logits_BV, axis=-1), token_B))


def at(values_BV: Array, index_B: Array) -> Array:
    """values_BV[b, index_B[b]] for every row b."""
    return jnp.take_along_axis(values_BV, index_B[:, None], axis=-1)[:, 0]


def descending(logits_BV: Array) -> tuple[Array, Array]:
    """(sorted_BV, index_BV int32): most likely first; equals stay in index order."""
    index_BV = jax.lax.broadcasted_iota(jnp.int32, logits_BV.shape, logits_BV.ndim - 1)
    negative_BV, index_BV = jax.lax.sort((-logits_BV, index_BV), dimension=-1, num_keys=1, is_stable=True)
    return -negative_BV, index_BV


def _keep_first(logits_BV: Array, count_B: Array | int, sorted_BV: Array, index_BV: Array) -> Array:
    """Keeps the first `count` tokens of the descending order: all that do not come after the last one kept."""
    last_B1 = _column(jnp.clip(jnp.asarray(count_B, jnp.int32), 1, logits_BV.shape[-1])) - 1
    last_B1 = jnp.broadcast_to(last_B1, (*logits_BV.shape[:-1], 1))
    logit_B1 = jnp.take_along_axis(sorted_BV, last_B1, axis=-1)
    index_B1 = jnp.take_along_axis(index_BV, last_B1, axis=-1)
    token_BV = jax.lax.broadcasted_iota(jnp.int32, logits_BV.shape, logits_BV.ndim - 1)
    keep_BV = (logits_BV > logit_B1) | ((logits_BV == logit_B1) & (token_BV <= index_B1))
    return jnp.where(keep_BV, logits_BV, -jnp.inf)


def _column(value_B: Array | float) -> Array:
    """A per-row parameter as a column; a plain number serves every row as it is."""
    value_B = jnp.asarray(value_B)
    return value_B[..., None] if value_B.ndim else value_B
