"""A step in parts for scripts/bench_decode.py: forward pass, products with weights, metrics and sampler, one by one."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from bench_timing import Case
from jax import Array

from entropix import metrics, samplers
from entropix.checkpoint.loading import Model
from entropix.decoding.inputs import device_numbers
from entropix.decoding.loop import RECENT_SLOTS
from entropix.decoding.prefix_cache import capacity_for
from entropix.model import kv_cache, transformer
from entropix.model.weights import Weights

STEPS = RECENT_SLOTS - 2  # of one timed chunk: it must not fill the recent slots
CALLS = 20  # of the metrics or the sampler alone: one is too short to time


def part_cases(name: str, loaded: Model, batch: int, context: int) -> Iterator[Case]:
    """As many steps of nothing but the forward pass and an argmax, then of nothing but its products with weights; then
    metrics and sampler, each on its own."""
    cache = kv_cache.empty_cache(loaded.config, batch, capacity(context), loaded.dtype)
    cache = cache._replace(length_B=jnp.full(batch, context, jnp.int32))
    recent = kv_cache.empty_recent(loaded.config, batch, RECENT_SLOTS, loaded.dtype)
    forward = jax.jit(partial(transformer.forward, cfg=loaded.config))
    token_B = jnp.ones(batch, jnp.int32)

    @jax.jit
    def bare(weights: Any, cache: Any, recent: Any, token_B: Array) -> Array:
        def step(_: Array, carry: tuple[Array, Any]) -> tuple[Array, Any]:
            logits_BTV, recent, _attention = forward(weights, carry[0][:, None], cache, carry[1])
            return jnp.argmax(logits_BTV[:, 0], axis=-1).astype(jnp.int32), recent

        return jax.lax.fori_loop(0, STEPS, step, (token_B, recent))[0]

    run = partial(bare, loaded.weights, cache, recent, token_B)
    read_bytes = STEPS * tree_bytes(loaded.weights)
    yield Case(f"{name}: greedy without metrics", STEPS * batch, run, read_bytes=read_bytes)

    products = partial(all_products, loaded.weights, jnp.ones((batch, 1, loaded.config.dim), loaded.dtype))
    ratio = (f"{name}: entropix", f"{name}: products with weights")
    yield Case(ratio[1], STEPS * batch, products, read_bytes=read_bytes, ratio=ratio)

    logits_BTV, _, attention = forward(loaded.weights, token_B[:, None], cache, recent)
    measure, rule = jax.jit(metrics.measure), samplers.get("entropix")
    measured = jax.tree.map(lambda metric_BT: metric_BT[:, 0], measure(logits_BTV, attention))
    seen, state = (
        samplers.SamplerInputs(logits_BTV[:, 0], measured),
        rule.init(rule.config(), [[]] * batch, loaded.tokenizer.encode),
    )
    key_B = jax.random.split(jax.random.key(0), batch)
    draw = partial(jax.jit(rule.step), key_B, state, seen, device_numbers(rule.config()))
    yield Case(f"{name}: metrics alone", 0, partial(call, partial(measure, logits_BTV, attention)))
    yield Case(f"{name}: sampler alone", 0, partial(call, draw))


@jax.jit
def all_products(weights: Weights, x_BTD: Array) -> Array:
    """x after `STEPS` times all products of a step with weights, and little else: what they make stays within ±1.

    Every number that a product makes is used, or the compiler would leave it out.
    """

    def step(_: Array, x_BTD: Array) -> Array:
        for layer in weights.layers:
            heads_BTO = product(x_BTD, layer.qkv)
            width = layer.attn_out.shape[1] * layer.attn_out.shape[2]
            rest_BT1 = jnp.max(heads_BTO[..., width:], axis=-1, keepdims=True)
            x_BTD = product(heads_BTO[..., :width] + rest_BT1, layer.attn_out)
            gate_BTF, up_BTF = jnp.split(product(x_BTD, layer.gate_up), 2, axis=-1)
            x_BTD = product(gate_BTF * up_BTF, layer.down)
        table_VD = weights.embed_VD if weights.unembed_VD is None else weights.unembed_VD
        return x_BTD + jnp.max(product(x_BTD, table_VD), axis=-1, keepdims=True)

    return jax.lax.fori_loop(0, STEPS, step, x_BTD)


def product(x_BTI: Array, weight: Any) -> Array:
    return jnp.clip(transformer.linear(x_BTI, weight), -1, 1)


def call(function: Callable[[], Any]) -> None:
    """Many times, one after another."""
    for _ in range(CALLS):
        jax.block_until_ready(function())


def capacity(context: int) -> int:
    """Slots that a session's cache has in the middle of a text of so many tokens."""
    return capacity_for(context + RECENT_SLOTS)


def tree_bytes(tree: Any) -> int:
    """Size of all arrays in a tree, or of arrays of such shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
