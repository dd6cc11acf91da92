"""Sums and softmaxes in full float32, for what is measured. What is only drawn from goes through `jax.nn.softmax`."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


class SoftmaxParts(NamedTuple):
    """softmax(x) = exp / total and log softmax(x) = shift - log total, over the last axis, not yet put together."""

    shift: Array  # x - max x, in nats, at most 0; 0 where exp is 0
    exp: Array  # e^shift; 0 for what is not visible
    total: Array  # sum of exp, without the last axis


def softmax_parts(x: Array, visible: Array | None = None) -> SoftmaxParts:
    """The softmax of x in parts, over the visible entries if told which."""
    masked = x if visible is None else jnp.where(visible, x, -jnp.inf)
    shift, exp = shifted(masked, jnp.max(masked, axis=-1))
    return SoftmaxParts(shift, exp, total(exp))


def shifted(x: Array, largest: Array) -> tuple[Array, Array]:
    """`SoftmaxParts.shift` and `exp` of all of x or of a part of it; largest: of all of it, without the last axis."""
    shift = x - largest[..., None]
    exp = jnp.exp(shift)
    return jnp.where(exp == 0, 0, shift), exp


def softmax(x: Array) -> Array:
    """Probabilities over the last axis."""
    parts = softmax_parts(x)
    return parts.exp / parts.total[..., None]


def log_softmax(x: Array) -> Array:
    """Log-probabilities over the last axis, in nats; -inf of -inf."""
    return x - jnp.max(x, axis=-1, keepdims=True) - jnp.log(softmax_parts(x).total)[..., None]


def mean_shift(parts: SoftmaxParts) -> Array:
    """Σ p·shift, at most 0."""
    return contract(parts.exp, parts.shift) / parts.total


def entropy_bits(parts: SoftmaxParts) -> Array:
    """-Σ p log2 p over the last axis, in bits; 0·log 0 = 0. Neither term is below 0, so nothing cancels."""
    return (jnp.log(parts.total) - mean_shift(parts)) / math.log(2)


def second_shift(x: Array) -> Array:
    """The second largest entry less the largest; 0 if it ties. Two passes, where sorting takes many.

    Entries are compared as they are: a fusion that computes x anew may join its last operation with a subtraction, to
    another last bit, and the largest shift is then not quite 0.
    """
    largest = jnp.max(x, axis=-1)
    below = jnp.max(jnp.where(x < largest[..., None], x, -jnp.inf), axis=-1)
    ties = total(jnp.where(x == largest[..., None], 1.0, 0.0))
    return jnp.where(ties > 1, 0, below - largest)


def contract(a: Array, b: Array) -> Array:
    """Σ a·b over the last axis in full float32.

    Written as a product of vectors because XLA's CPU backend adds up a plain `sum` one number after the other: over a
    vocabulary the product is five times as fast.
    """
    return jnp.einsum("...i,...i->...", a, b, precision=jax.lax.Precision.HIGHEST)


def scaled(x: Array, factor: float) -> Array:
    """x times a number that is known beforehand; where that is 1, x itself."""
    return x if factor == 1 else x * factor


def softcap(x: Array, cap: float) -> Array:
    """cap·tanh(x/cap): nearly x where it is small, and never beyond ±cap (Bello et al. 2016, arXiv:1611.09940)."""
    return jnp.tanh(x / cap) * cap


def total(a: Array) -> Array:
    """Σ a over the last axis."""
    return contract(a, jnp.ones_like(a))


def power_of_two(n: int, least: int = 1) -> int:
    """The next one that is not below n: for sizes, of which each is a program."""
    return max(least, 1 << max(n - 1, 0).bit_length())
