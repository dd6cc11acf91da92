"""Filters that shape a distribution before a token is drawn, and the draw itself.

A filter maps logits to logits: temperature, the first in the chain, scales them; the others set those of removed tokens
to -inf. It works on the last axis, in any token order, with parameters that are numbers or per-row arrays `[B]`, traced
or not. The most likely token always survives. The order of the chain is fixed: temperature, min-p, top-k, top-p.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from entropix.numerics import total
from entropix.sharding import cumsum


class SamplingParams(NamedTuple):
    """Parameters of one pass through the chain, one number a row; None leaves a filter out altogether."""

    temperature_B: Array | None = None
    top_p_B: Array | None = None
    top_k_B: Array | None = None
    min_p_B: Array | None = None


class Draw(NamedTuple):
    """One drawn token a row."""

    token_B: Array  # int32
    logprob_B: Array  # nats, under the distribution it was drawn from


def chain(logits_BV: Array, settings: SamplingParams) -> Array:
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
    """logits / T, for T > 0; the largest float where that would be infinite, since infinite logits have no softmax."""
    return jnp.minimum(logits_BV / _column(temperature_B), jnp.finfo(jnp.float32).max)


def min_p(logits_BV: Array, ratio_B: Array | float) -> Array:
    """Keeps tokens with p >= ratio · max p, ratio in [0, 1] (Nguyen 2024, arXiv:2407.01082)."""
    relative_BV = jnp.exp(logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True))
    return jnp.where(relative_BV >= _column(ratio_B), logits_BV, -jnp.inf)


def top_k(logits_BV: Array, k_B: Array | int) -> Array:
    """Keeps the k most likely tokens, k >= 1 (Fan 2018, arXiv:1805.04833); among equals the lower index."""
    k_B = jnp.clip(jnp.asarray(k_B, jnp.int32), 1, logits_BV.shape[-1]).astype(jnp.float32)
    return mask_logits(logits_BV, top_mass(logits_BV, jnp.ones_like(logits_BV), k_B))


def top_p(logits_BV: Array, mass_B: Array | float) -> Array:
    """Keeps the shortest prefix, most likely first, whose mass reaches `mass` (Holtzman 2019, arXiv:1904.09751).

    Mass is a share of what earlier filters left. At 1 everything stays, whatever the rounding of the sum.
    """
    prob_BV = jax.nn.softmax(logits_BV, axis=-1)
    return mask_logits(logits_BV, top_mass(logits_BV, prob_BV, reachable(mass_B)))


def reachable(mass_B: Array | float) -> Array:
    """A mass as `top_mass` wants it: above 0, so that one token stays, and never reached at 1, so that all do."""
    mass_B = jnp.asarray(mass_B, jnp.float32)
    return jnp.where(mass_B >= 1, jnp.inf, jnp.maximum(mass_B, jnp.finfo(jnp.float32).tiny))


def mask_logits(logits_BV: Array, kept_BV: Array) -> Array:
    """The logits of the tokens that are kept; -inf for the others."""
    return jnp.where(kept_BV, logits_BV, -jnp.inf)


def count_kept(logits_BV: Array) -> Array:
    """How many tokens of each row a chain left, int32 `[B]`."""
    return jnp.sum(logits_BV > -jnp.inf, axis=-1, dtype=jnp.int32)


def draw(key_B: Array, logits_BV: Array) -> Draw:
    """One categorical draw a row, by the Gumbel-max trick; each row uses its own key and nothing of its neighbours.

    In JAX's high-range mode: the usual one has no Gumbel number above 16, so that of a vocabulary's long tail tokens
    below 1e-7 would hardly ever be drawn, however many there are.
    """
    categorical = jax.vmap(partial(jax.random.categorical, mode="high"))
    token_B = categorical(key_B, logits_BV).astype(jnp.int32)
    return Draw(token_B, gather(jax.nn.log_softmax(logits_BV, axis=-1), token_B))


def gather(values_BV: Array, index_B: Array) -> Array:
    """values_BV[b, index_B[b]] for every row b."""
    return jnp.take_along_axis(values_BV, index_B[:, None], axis=-1)[:, 0]


def top_mass(value_BV: Array, weight_BV: Array, wanted_B: Array) -> Array:
    """Marks the largest values, up to the one with which their weights sum to `wanted` > 0; all, if they never do.

    Of equal values, which must have equal weights, the one with the lower index comes first. No sort: a binary search
    for the bits of the smallest value that is kept, 32 sums, takes a thirtieth of the time over a vocabulary.
    """
    bits_BV = _in_order(value_BV)
    wanted_B = jnp.broadcast_to(wanted_B, value_BV.shape[:-1])
    lowest = jnp.iinfo(jnp.int32).min

    def weight_from(bound_B: Array) -> Array:
        return total(jnp.where(bits_BV >= bound_B[..., None], weight_BV, 0))

    def narrow(step: Array, bound_B: Array) -> Array:
        # From the lowest integer, 2³¹ wraps to 0.
        higher_B = bound_B + jax.lax.shift_left(jnp.int32(1), 31 - step)
        return jnp.where(weight_from(higher_B) >= wanted_B, higher_B, bound_B)

    bound_B1 = jax.lax.fori_loop(0, 32, narrow, jnp.full(wanted_B.shape, lowest))[..., None]
    above_BV, equal_BV = bits_BV > bound_B1, bits_BV == bound_B1
    missing_B = wanted_B - total(jnp.where(above_BV, weight_BV, 0))
    each_B = jnp.max(jnp.where(equal_BV, weight_BV, 0), axis=-1)
    count_B1 = jnp.maximum(jnp.ceil(missing_B / each_B), 1)[..., None]
    rank_BV = cumsum(equal_BV.astype(jnp.float32))
    return above_BV | (equal_BV & (rank_BV <= count_B1))


def _in_order(x: Array) -> Array:
    """Integers in the same order as these float32 numbers, 0 and -0 alike (IEEE 754: bits order like magnitudes)."""
    bits = jax.lax.bitcast_convert_type(jnp.where(x == 0, 0, x), jnp.int32)
    return jnp.where(bits < 0, bits ^ jnp.iinfo(jnp.int32).max, bits)


def _column(value_B: Array | float) -> Array:
    """A per-row parameter as a column; a plain number serves every row as it is."""
    value_B = jnp.asarray(value_B)
    return value_B[..., None] if value_B.ndim else value_B
