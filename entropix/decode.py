"""The compiled half of generation: prefill, one decode step, and the loop that runs many steps without the host.

A step is a pure function of its inputs. Rows share a batch and nothing else: each has its own key, strategy, limit
and end. How many steps run before the host looks is a traced number, so chunk length changes neither the program
nor a single token.

A step usually makes one token a row. With drafts it makes several: one forward pass reads the newest token and the
drafted ones after it, and the sampler then goes through these positions in order, each with its own logits, metrics
and key, for as long as what it draws is what was drafted.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from entropix import drawing, filters, model, speculation
from entropix.config import ModelConfig, SamplerConfig
from entropix.drawing import Extras, Finish, Request, Rows, StepRecord, draw_logprob, draw_token, where_row
from entropix.metrics import Metrics, entropy_bits, measure, softmax_parts
from entropix.model import Attention, KVCache, KVTail
from entropix.samplers import backtracking, branching
from entropix.samplers.base import Candidates, Context, Sampler, is_token, log_normalizer
from entropix.samplers.branching import Paths, Plan
from entropix.speculation import NO_TOKEN
from entropix.weights import Weights

TAIL_SIZE = 32  # tokens between two commits to the cache: the cost of a commit is spread over so many
_NO_EXTRAS, _NO_BRANCHES = Extras(), Plan()


class DecodeState(NamedTuple):
    """What a step hands to the next."""

    rows: Rows
    tail: KVTail
    text_BX: Array  # int32: prompt and answer, for drafts; without drafts X is 0


def decode_step(
    weights: Weights,
    request: Request,
    cache: KVCache,
    state: DecodeState,
    sampler_cfg: SamplerConfig,
    cfg: ModelConfig,
    sampler: Sampler,
    n_draft: int,
    extras: Extras,
    plan: Plan,
) -> tuple[DecodeState, StepRecord]:
    """(state, records `[n_draft + 1, B]`) after one forward pass; at least one token for every running row.

    Where no row has a draft, the pass is no wider than without speculation. Where rows branch there are no drafts,
    `plan.depth` more passes and `plan.lookahead + 1` records.
    """
    draw = partial(draw_token, sampler_cfg=sampler_cfg, sampler=sampler, n_alternatives=extras.alternatives)
    if plan.is_on:
        assert n_draft == 0 and not extras.head_entropies
        return _advance_branching(weights, request, cache, state, draw, cfg, plan)
    advance = partial(_advance, weights, request, cache, state, draw=draw, cfg=cfg, extras=extras)
    if n_draft == 0:
        return advance(jnp.zeros((len(request.key_B), 0), jnp.int32))
    end_B = cache.length_B + state.tail.used_B + 1
    draft_BK = speculation.lookup(state.text_BX, end_B, n_draft)
    running_B1 = (state.rows.finish_B == Finish.RUNNING)[:, None]

    def without_drafts() -> tuple[DecodeState, StepRecord]:
        state, records = advance(draft_BK[:, :0])

        def padded(leaf_TB: Array) -> Array:
            return jnp.pad(leaf_TB, ((0, n_draft), *((0, 0),) * (leaf_TB.ndim - 1)))

        return state, jax.tree.map(padded, records)

    return jax.lax.cond(
        jnp.any((draft_BK != NO_TOKEN) & running_B1), lambda: advance(draft_BK), without_drafts
    )


def _advance(
    weights: Weights,
    request: Request,
    cache: KVCache,
    state: DecodeState,
    draft_BK: Array,
    draw: Callable[..., tuple[Rows, StepRecord, Candidates]],
    cfg: ModelConfig,
    extras: Extras,
) -> tuple[DecodeState, StepRecord]:
    """One forward pass over the newest token and the draft, and all the tokens that follow from it."""
    given_BT = jnp.concatenate([state.rows.token_B[:, None], jnp.maximum(draft_BK, 0)], axis=1)
    logits_BTV, tail, attention = model.forward(weights, given_BT, cache, state.tail, cfg)
    with jax.named_scope("metrics"):
        metrics_BT = measure(logits_BTV, attention)

    def follow(
        carry: tuple[Rows, Array], position: tuple[Context, Array]
    ) -> tuple[tuple[Rows, Array], StepRecord]:
        rows, following_B = carry  # and which rows have drawn what was drafted so far
        context, drafted_B = position
        rows, record, _ = draw(request, rows, following_B, context)
        return (rows, record.live_B & (record.token_B == drafted_B)), record

    n_positions = given_BT.shape[1]
    nothing_B1 = jnp.full_like(draft_BK, NO_TOKEN, shape=(len(draft_BK), 1))
    positions = jax.tree.map(
        lambda leaf_BT: jnp.moveaxis(leaf_BT, 1, 0),
        (Context(logits_BTV, metrics_BT), jnp.concatenate([draft_BK, nothing_B1], axis=1)),
    )
    everyone_B = jnp.ones(len(draft_BK), bool)
    (rows, _), records = jax.lax.scan(follow, (state.rows, everyone_B), positions, unroll=n_positions == 1)
    if extras.head_entropies:
        records = records._replace(head_entropy_BLN=_head_entropies(attention))

    text_BX = state.text_BX
    if text_BX.shape[1] > 0:
        end_B = cache.length_B + state.tail.used_B + 1
        text_BX = model.place(text_BX, records.token_B.T, end_B, axis=1)
    return DecodeState(rows=rows, tail=_used(state.tail, tail, records), text_BX=text_BX), records


def _used(before: KVTail, after: KVTail, records: StepRecord) -> KVTail:
    """The tail with one more slot in use for every token that a row has drawn."""
    return after._replace(used_B=before.used_B + jnp.sum(records.live_B, axis=0, dtype=jnp.int32))


def _advance_branching(
    weights: Weights,
    request: Request,
    cache: KVCache,
    state: DecodeState,
    draw: Callable[..., tuple[Rows, StepRecord, Candidates]],
    cfg: ModelConfig,
    plan: Plan,
) -> tuple[DecodeState, StepRecord]:
    """One forward pass and one token of every row; then, if any row forks, the tokens of its best path instead.

    The paths of a row are as many positions of one forward pass, with the row's cache and tail behind all of them:
    nothing is copied or computed twice. What the best path has computed then moves into the tail.
    """
    logits_BTV, tail, attention = model.forward(weights, state.rows.token_B[:, None], cache, state.tail, cfg)
    context = _contexts(logits_BTV, attention)
    everyone_B = jnp.ones(len(tail.used_B), bool)
    rows, record, offered = draw(request, state.rows, everyone_B, context)
    may_go_on_B = (rows.finish_B == Finish.RUNNING) | (rows.finish_B == Finish.STOP_TOKEN)
    numbers, step_B = request.branching, state.rows.step_B
    asked_B = branching.wanted(plan, numbers, rows.forks, record.info, context.metrics, step_B)
    asked_B &= record.live_B & may_go_on_B

    def straight() -> tuple[Rows, KVTail, StepRecord]:
        nothing = branching.no_paths(plan, len(step_B))
        return rows, tail, _padded([record], plan, nothing)

    def forked() -> tuple[Rows, KVTail, StepRecord]:
        row_BC = jnp.repeat(jnp.arange(len(step_B)), plan.paths)

        def spread(tree: Any) -> Any:
            return jax.tree.map(lambda leaf: leaf[row_BC], tree)

        per_row = ("key_B", "limit_B", "limit_reason_B")
        fan_out = request._replace(**{name: spread(getattr(request, name)) for name in per_row})
        everywhere_B = spread(everyone_B)
        allowed = context
        if rows.retreats:
            allowed = backtracking.without_forbidden(rows.retreats, context, step_B)
        token_BC, valid_BC = branching.openings(plan, numbers, record.token_B, offered, allowed)
        opening_B = token_BC.reshape(-1)
        forced = spread(context)
        forced = forced._replace(
            logits_BV=jnp.where(is_token(forced.logits_BV, opening_B), forced.logits_BV, -jnp.inf)
        )
        openers, _, _ = draw(fan_out, spread(state.rows._replace(retreats=())), everywhere_B, forced)
        drawn_B = jnp.arange(len(opening_B)) % plan.paths == 0
        openers = where_row(drawn_B, spread(rows._replace(retreats=())), openers)
        info = spread(record.info)
        other = info._replace(
            logprob_B=filters.at(spread(context.logits_BV), opening_B)
            - spread(log_normalizer(context.logits_BV)),
            draw_logprob_B=draw_logprob(offered, token_BC).reshape(-1),
            score_B=jnp.full_like(info.score_B, jnp.nan),
        )
        opening = spread(record)._replace(
            token_B=opening_B, finish_B=openers.finish_B, info=where_row(drawn_B, info, other)
        )

        def rollout(token_BC: Array, world: tuple[KVTail, Array]) -> tuple[Context, tuple[KVTail, Array]]:
            fanned, depth = world
            layout = model.fan(cache, fanned, tail.size, plan.paths, depth)
            logits_BCV, wider, attention = model.forward(weights, token_BC, cache, fanned, cfg, layout)
            return _contexts(logits_BCV, attention), (wider._replace(used_B=fanned.used_B), depth + 1)

        def draw_path(paths: Rows, context: Context) -> tuple[Rows, StepRecord]:
            after, record, _ = draw(fan_out, paths, everywhere_B, context)
            return after, record._replace(before=(paths.sampler, spread(step_B)) if rows.retreats else ())

        world = (model.widen(tail, plan.paths * plan.depth), jnp.zeros((), jnp.int32))
        ends, (fanned, _), rest = branching.roll(plan, openers, rollout, draw_path, world)
        every = jax.tree.map(lambda first, later: jnp.concatenate([first[None], later]), opening, rest)
        columns = jax.tree.map(
            lambda leaf: jnp.moveaxis(leaf.reshape(len(leaf), len(step_B), plan.paths), 0, -1),
            every._replace(alternatives=(), before=()),
        )
        broken_BC = (ends.finish_B == Finish.NAN).reshape(-1, plan.paths)
        score_BC, best_B = branching.judge(
            plan, numbers, valid_BC, broken_BC, columns.live_B, columns.info, columns.metrics
        )
        fork_B = asked_B & jnp.any(valid_BC[:, 1:], axis=1)
        best_B = jnp.where(fork_B, best_B, 0)
        tried = branching.Paths(
            forked_B=fork_B,
            best_B=best_B,
            score_BC=score_BC,
            token_BCD=columns.token_B,
            logprob_BCD=columns.info.logprob_B,
            live_BCD=columns.live_B & valid_BC[:, :, None],
        )
        kept_B = fork_B & jnp.any(score_BC > -jnp.inf, axis=1)  # one NaN reaches all paths of its row
        last = ends if plan.whole else openers
        kept = jax.tree.map(lambda leaf: branching.pick(leaf, best_B), last)
        after = where_row(kept_B, kept, rows._replace(retreats=()))
        chosen = jax.tree.map(lambda leaf: branching.pick(leaf, best_B, axis=1), every)
        first_D1 = jnp.arange(len(chosen.live_B))[:, None] == 0
        chosen = chosen._replace(
            live_B=chosen.live_B & (kept_B[None] | first_D1),
            finish_B=jnp.where(kept_B[None], chosen.finish_B, rows.finish_B[None]),
        )
        records = [jax.tree.map(lambda leaf, d=d: leaf[d], chosen) for d in range(plan.lookahead + 1)]
        retreats = rows.retreats
        for rolled in records[1:] if retreats else ():
            counted = backtracking.count(retreats, rolled.info.injected_B)
            retreats = where_row(rolled.live_B, counted, retreats)
        after = after._replace(forks=branching.note(rows.forks, fork_B, step_B), retreats=retreats)
        adopted = model.adopt(tail, fanned, jnp.where(kept_B, best_B, model.NO_PATH), plan.paths)
        return after, adopted if plan.whole else tail, _padded(records, plan, tried)

    rows, after, records = jax.lax.cond(jnp.any(asked_B), forked, straight)
    return DecodeState(rows, _used(state.tail, after, records), state.text_BX), records


def _contexts(logits_BTV: Array, attention: Attention) -> Context:
    """What a sampler may look at, of every position as a row of its own, `[B·T]`."""
    with jax.named_scope("metrics"):
        metrics_BT = measure(logits_BTV, attention)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), Context(logits_BTV, metrics_BT))


def _padded(records: Sequence[StepRecord], plan: Plan, paths: Paths) -> StepRecord:
    """These records as one, `[plan.lookahead + 1, B]`, those that are missing not live; the paths go with the first."""
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *records)
    missing = plan.lookahead + 1 - len(records)

    def pad(leaf: Array, n: int) -> Array:
        return jnp.pad(leaf, ((0, n), *((0, 0),) * (leaf.ndim - 1)))

    first = jax.tree.map(lambda leaf: pad(leaf[None], plan.lookahead), paths)
    return jax.tree.map(lambda leaf: pad(leaf, missing), stacked)._replace(paths=first)


def _head_entropies(attention: Attention) -> Array:
    """[T, B, L, N] in bits: what the metric `attn_entropy` is the mean of, at every query position."""
    entropy_LBNT = entropy_bits(softmax_parts(attention.scores_LBNTS, attention.visible_BTS[:, None]))
    return jnp.transpose(entropy_LBNT, (3, 1, 0, 2))


@partial(jax.jit, static_argnames=("cfg", "sampler", "n_draft", "extras", "plan"), donate_argnames=("state",))
def decode_chunk(
    weights: Weights,
    request: Request,
    cache: KVCache,
    state: DecodeState,
    n_steps: Array,
    sampler_cfg: SamplerConfig,
    cfg: ModelConfig,
    sampler: Sampler,
    n_draft: int = 0,
    extras: Extras = _NO_EXTRAS,
    plan: Plan = _NO_BRANCHES,
) -> tuple[DecodeState, StepRecord, Array]:
    """(state, records `[tail size, R, B]`, how many of them, by the first axis, are filled).

    R is what one step may add to a row: 1, and n_draft or `plan.lookahead` more.

    Runs until `n_steps` are done, a tail has no room for another step, or every row has ended. The cache is only
    read; `commit` the full tail before the next chunk.
    """
    step = jax.jit(  # inline, hence only a memory of its trace, which is wanted twice
        partial(
            decode_step,
            sampler_cfg=sampler_cfg,
            cfg=cfg,
            sampler=sampler,
            n_draft=n_draft,
            extras=extras,
            plan=plan,
        ),
        inline=True,
    )
    size = state.tail.size
    blank = jax.tree.map(
        lambda leaf: jnp.zeros((size, *leaf.shape), leaf.dtype),
        jax.eval_shape(step, weights, request, cache, state)[1],
    )

    def go_on(carry: tuple[Array, DecodeState, StepRecord]) -> Array:
        done, state, _ = carry
        running_B = state.rows.finish_B == Finish.RUNNING
        room = jnp.all(~running_B | (state.tail.used_B + max(n_draft, plan.lookahead) < size))
        return (done < n_steps) & room & jnp.any(running_B)

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


@partial(jax.jit, static_argnames="cfg", donate_argnames=("cache",))
def read(
    weights: Weights, tokens_BT: Array, next_BT: Array, count_B: Array, cache: KVCache, cfg: ModelConfig
) -> tuple[KVCache, Array, Metrics]:
    """(the cache with these tokens, logprob_BT of the tokens that follow, metrics_BT) of a piece of given text.

    logprob_BT is in nats, of `next_BT` under the model; both it and the metrics are what decoding finds after each
    token. Only the first `count_B` positions of a row mean anything, the rest is padding that nobody sees. A row needs
    `length + T <= capacity`.
    """
    batch, width = tokens_BT.shape
    tail = model.empty_tail(cfg, batch, width, cache.k_LBKHS[0].dtype)
    logits_BTV, tail, attention = model.forward(weights, tokens_BT, cache, tail, cfg)
    with jax.named_scope("metrics"):
        metrics_BT = measure(logits_BTV, attention)
    logit_BT = jnp.take_along_axis(logits_BTV, next_BT[..., None], axis=-1)[..., 0]
    return model.commit(cache, tail, count_B), logit_BT - log_normalizer(logits_BTV), metrics_BT


@jax.jit
def take_rows(tree: Any, row_B: Array) -> Any:
    """Copies of these rows of every array, whose first axis is the row; a row may come several times."""
    return jax.tree.map(lambda leaf: leaf[row_B], tree)


row_keys = jax.jit(drawing.row_keys)
commit = jax.jit(model.commit, donate_argnames=("cache",))
truncate = jax.jit(model.truncate, donate_argnames=("cache",))
is_finite = jax.jit(model.is_finite)
grow = jax.jit(model.grow, static_argnames=("capacity",))
