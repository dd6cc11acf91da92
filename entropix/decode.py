"""The compiled half of generation: prefill, one decode step, and the loop that runs many steps without the host.

A step is a pure function of its inputs. Rows share a batch and nothing else: each has its own key, strategy, limit
and end. How many steps run before the host looks is a traced number, so chunk length changes neither the program
nor a single token.
"""

from enum import IntEnum
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import Array

from entropix import model
from entropix.config import ModelConfig, SamplerConfig
from entropix.metrics import Metrics, measure
from entropix.model import KVCache, KVTail
from entropix.samplers.base import Context, SampleInfo, Sampler
from entropix.weights import Weights

TAIL_SIZE = 32  # steps between two commits to the cache: the cost of a commit is spread over so many tokens
NO_TOKEN = -1  # pads a list of stop tokens


class Finish(IntEnum):
    """Why a row ended."""

    RUNNING = 0
    STOP_TOKEN = 1
    LENGTH = 2
    CONTEXT = 3
    NAN = 4
    STOP_STRING = 5
    INTERRUPTED = 6

    @property
    def sentence(self) -> str:
        """For the user."""
        return {
            Finish.RUNNING: "still running",
            Finish.STOP_TOKEN: "the model ended its answer",
            Finish.LENGTH: "max_new_tokens was reached",
            Finish.CONTEXT: "the model's context is full",
            Finish.NAN: "the model's logits were not finite, so this row was stopped",
            Finish.STOP_STRING: "a stop string appeared",
            Finish.INTERRUPTED: "it was interrupted",
        }[self]


class Purpose(IntEnum):
    """What a random key is for; folded in last, so that two uses in one step never share a key."""

    DRAW = 0


class Request(NamedTuple):
    """What stays fixed while a batch is generated."""

    key_B: Array  # one typed key a row
    limit_B: Array  # int32: most tokens to generate
    limit_reason_B: Array  # int32: Finish.LENGTH or Finish.CONTEXT, whichever the limit comes from
    stop_E: Array  # int32: tokens that end a row, padded with NO_TOKEN


class DecodeState(NamedTuple):
    """What a step hands to the next."""

    token_B: Array  # int32: the newest token, whose key and value are not computed yet
    step_B: Array  # int32: tokens generated so far
    finish_B: Array  # int32: Finish
    tail: KVTail
    sampler: Any  # the sampler's own state


class StepRecord(NamedTuple):
    """One step of every row, or a buffer of such steps with a leading axis."""

    token_B: Array  # int32
    live_B: Array  # bool: this row generated a token in this step
    finish_B: Array  # int32: Finish after the step
    metrics: Metrics
    info: SampleInfo


def row_keys(seed: int, digest_B: Array, occurrence_B: Array) -> Array:
    """One key a row from (seed, what the prompt is, how often the batch has had it before).

    A row's draws therefore do not depend on its place in the batch or on its neighbours, and repeating a prompt
    gives independent samples.
    """

    def row(digest: Array, occurrence: Array) -> Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), digest), occurrence)

    return jax.vmap(row)(digest_B, occurrence_B)


def decode_step(
    weights: Weights,
    request: Request,
    cache: KVCache,
    state: DecodeState,
    sampler_cfg: SamplerConfig,
    cfg: ModelConfig,
    sampler: Sampler,
) -> tuple[DecodeState, StepRecord]:
    """One token for every running row: forward pass, metrics, sampler, stop test."""
    logits_BTV, tail, attention = model.forward(weights, state.token_B[:, None], cache, state.tail, cfg)
    with jax.named_scope("metrics"):
        metrics = jax.tree.map(lambda metric_BT: metric_BT[:, 0], measure(logits_BTV, attention))
    with jax.named_scope("sampler"):
        key_B = jax.vmap(lambda key, step: jax.random.fold_in(jax.random.fold_in(key, step), Purpose.DRAW))(
            request.key_B, state.step_B
        )
        context = Context(logits_BTV[:, 0], metrics)
        token_B, sampler_state, info = sampler.step(key_B, state.sampler, context, sampler_cfg)
        chex.assert_tree_shape_prefix((token_B, info), state.token_B.shape)

    running_B = state.finish_B == Finish.RUNNING
    finite_B = jnp.isfinite(metrics.logits_entropy)  # NaN or +inf anywhere in a row's logits makes it NaN
    live_B = running_B & finite_B
    step_B = state.step_B + live_B.astype(jnp.int32)
    ended_B = jnp.select(
        [~finite_B, jnp.any(token_B[:, None] == request.stop_E[None, :], axis=-1), step_B >= request.limit_B],
        [jnp.full_like(step_B, Finish.NAN), jnp.full_like(step_B, Finish.STOP_TOKEN), request.limit_reason_B],
        jnp.full_like(step_B, Finish.RUNNING),
    )
    finish_B = jnp.where(running_B, ended_B, state.finish_B)
    state = DecodeState(
        token_B=jnp.where(live_B, token_B, state.token_B),
        step_B=step_B,
        finish_B=finish_B,
        tail=tail,
        sampler=sampler_state,
    )
    return state, StepRecord(token_B, live_B, finish_B, metrics, info)


@partial(jax.jit, static_argnames=("cfg", "sampler"), donate_argnames=("state",))
def decode_chunk(
    weights: Weights,
    request: Request,
    cache: KVCache,
    state: DecodeState,
    n_steps: Array,
    sampler_cfg: SamplerConfig,
    cfg: ModelConfig,
    sampler: Sampler,
) -> tuple[DecodeState, StepRecord, Array]:
    """(state, records `[tail size, B]`, how many of them are filled).

    Runs until `n_steps` are done, the tail is full or every row has ended. The cache is only read; `commit` the
    full tail before the next chunk.
    """
    step = partial(decode_step, sampler_cfg=sampler_cfg, cfg=cfg, sampler=sampler)
    size = state.tail.size
    blank = jax.tree.map(
        lambda leaf: jnp.zeros((size, *leaf.shape), leaf.dtype),
        jax.eval_shape(step, weights, request, cache, state)[1],
    )

    def go_on(carry: tuple[Array, DecodeState, StepRecord]) -> Array:
        done, state, _ = carry
        return (done < n_steps) & (state.tail.used < size) & jnp.any(state.finish_B == Finish.RUNNING)

    def body(carry: tuple[Array, DecodeState, StepRecord]) -> tuple[Array, DecodeState, StepRecord]:
        done, state, records = carry
        state, record = step(weights, request, cache, state)
        records = jax.tree.map(lambda buffer, new: buffer.at[done].set(new), records, record)
        return done + 1, state, records

    done, state, records = jax.lax.while_loop(go_on, body, (jnp.zeros((), jnp.int32), state, blank))
    return state, records, done


@partial(jax.jit, static_argnames=("cfg", "from_empty"), donate_argnames=("cache",))
def prefill(
    weights: Weights, tokens_BT: Array, count_B: Array, cache: KVCache, cfg: ModelConfig, from_empty: bool
) -> KVCache:
    """The cache with the first `count_B` of these tokens appended to each row; the rest is padding nobody sees.

    `from_empty` promises that the cache holds nothing yet, so that no query looks for keys in it.
    """
    batch, width = tokens_BT.shape
    dtype = cache.k_LBKHS[0].dtype
    past = model.empty_cache(cfg, batch, 0, dtype) if from_empty else cache
    _, tail, _ = model.forward(weights, tokens_BT, past, model.empty_tail(cfg, batch, width, dtype), cfg)
    return model.commit(cache, tail, count_B)


commit = jax.jit(model.commit, donate_argnames=("cache",))
grow = jax.jit(model.grow, static_argnames=("capacity",))
