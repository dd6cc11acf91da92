"""What every sampler is: two pure functions over a batch, and one common account of what was done."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from entropix import filters
from entropix.filters import SamplingParams
from entropix.metrics import Metrics
from entropix.numerics import entropy_bits, softmax_parts
from entropix.samplers.numbers import RuleConfig
from entropix.sharding import top_k

Encode = Callable[[str], list[int]]
Prompts = Sequence[Sequence[int]]
_NEUTRAL = SamplingParams()
MIN_TEMPERATURE = 1e-3  # where a rule computes its temperature: keeps logits / T finite


class SeenAttention(NamedTuple):
    """The raw attention of one position, for rules that ask for it (`Sampler.attention`)."""

    scores_BLNS: Array  # float32: q·k/√H of each layer and head, before masking and softmax
    visible_BS: Array  # bool: the keys that are seen, in any layer
    visible_BLS: Array | None = None  # bool: in each, where a model's layers see different keys

    def head_entropies(self) -> Array:
        """[B, L, N]: the attention entropy of every head, in bits."""
        visible_BLS = self.visible_BS[:, None] if self.visible_BLS is None else self.visible_BLS
        return entropy_bits(softmax_parts(self.scores_BLNS, visible_BLS[:, :, None]))


class SamplerInputs(NamedTuple):
    """What a sampler may look at. (`sample_step` has the same of several positions at once, with an axis T after B.)"""

    logits_BV: Array  # float32, the model's own, unfiltered
    metrics: Metrics  # one number a row
    own: Mapping[str, Array] | None = None  # metrics of one's own by name, `own_metrics`
    attention: SeenAttention | None = None  # for rules that ask for it


class SampleInfo(NamedTuple):
    """What a sampler did, one number a row: the same fields for every sampler, so that traces compare.

    Temperature, top-p, top-k and min-p are the settings in force, neutral ones (1, 1, V, 0) where a rule has none of
    the kind. For a rule that is one pass through `filters.chain`, they give back what was drawn from.
    """

    strategy_B: Array  # index into the sampler's `strategies`
    temperature_B: Array
    top_p_B: Array
    top_k_B: Array
    min_p_B: Array
    kept_B: Array  # tokens that were left to draw from
    logprob_B: Array  # nats, of the token under the model: temperature 1, nothing filtered
    draw_logprob_B: Array  # nats, of the token under what one draw was made from; 0 when it was certain
    score_B: Array  # of the token, for strategies that choose among several draws; NaN elsewhere
    injected_B: Array  # the token was inserted, not chosen


class Candidates(NamedTuple):
    """Tokens of each row that may be drawn, and their logits, -inf for those that a filter removed."""

    logits_BC: Array
    token_BC: Array  # int32


# token_B int32, the rule's state, what was done, and what one draw was made from.
StepResult = tuple[Array, Any, SampleInfo, Candidates]


class Sampler(NamedTuple):
    """A named rule. The functions are module-level: a fresh closure would be a fresh compilation.

    `init(cfg, prompts, encode)` returns the state, a pytree of arrays whose first axis is the row, `()` when there is
    none. It runs on the host; `prompts` are token ids, `encode` turns text into them.
    `step(key_B, state, seen, cfg)` returns a `StepResult`. It is pure, traced under `jit`, treats rows apart and
    takes all its randomness from the row's key.
    `config` is the dataclass of the rule's numbers, which `cfg` is one of: a subclass of `RuleConfig`, or that itself
    for a rule without numbers. `attention`: whether it asks for `SamplerInputs.attention`.
    """

    name: str
    summary: str
    strategies: tuple[str, ...]
    init: Callable[[Any, Prompts, Encode], Any]
    step: Callable[[Array, Any, SamplerInputs, Any], StepResult]
    config: type[RuleConfig] = RuleConfig
    attention: bool = False


def stateless(cfg: Any, prompts: Prompts, encode: Encode) -> tuple[()]:
    """No state."""
    return ()


def full_vocabulary(logits_BV: Array) -> Candidates:
    """The whole vocabulary, in its own order."""
    return Candidates(logits_BV, jax.lax.broadcasted_iota(jnp.int32, logits_BV.shape, 1))


def top_candidates(logits_BV: Array, width: int) -> Candidates:
    """Enough of the vocabulary for any chain whose top-k is at most `width`, at a fraction of a full sort's cost."""
    logits_BC, token_BC = top_k(logits_BV, min(width, logits_BV.shape[-1]))
    return Candidates(logits_BC, token_BC.astype(jnp.int32))


def keep_argmax(logits_BV: Array, kept_BV: Array) -> Array:
    """The marked tokens and in any case the most likely one, the first among equals."""
    return kept_BV | is_token(logits_BV, jnp.argmax(logits_BV, axis=-1))


def is_token(logits_BV: Array, token_B: Array) -> Array:
    """Marks one token a row, bool `[B, V]`."""
    return jax.lax.broadcasted_iota(jnp.int32, logits_BV.shape, 1) == token_B[:, None]


def model_logprob(logits_BV: Array, token_B: Array) -> Array:
    """Log-probability in nats of one token a row under the model itself."""
    return filters.gather(logits_BV, token_B) - log_normalizer(logits_BV)


def log_normalizer(logits_BV: Array) -> Array:
    """log Σ exp(logits) of each row: what a logit exceeds its log-probability by."""
    return jnp.max(logits_BV, axis=-1) + jnp.log(softmax_parts(logits_BV).total)


def draw(
    key_B: Array,
    seen: SamplerInputs,
    candidates: Candidates,
    shown: SamplingParams = _NEUTRAL,
    strategy: int = 0,
) -> tuple[Array, SampleInfo]:
    """(token_B, info) of one draw a row from filtered candidates. `shown` are the settings to record."""
    batch, vocabulary = seen.logits_BV.shape
    drawn = filters.draw(key_B, candidates.logits_BC)
    token_B = filters.gather(candidates.token_BC, drawn.token_B)
    neutral = SamplingParams(
        jnp.ones(batch), jnp.ones(batch), jnp.full(batch, vocabulary, jnp.int32), jnp.zeros(batch)
    )
    settings = {
        name: given if given is not None else getattr(neutral, name)
        for name, given in shown._asdict().items()
    }
    info = SampleInfo(
        strategy_B=jnp.full(batch, strategy, jnp.int32),
        **settings,
        kept_B=filters.count_kept(candidates.logits_BC),
        logprob_B=model_logprob(seen.logits_BV, token_B),
        draw_logprob_B=drawn.logprob_B,
        score_B=jnp.full(batch, jnp.nan),
        injected_B=jnp.zeros(batch, bool),
    )
    return token_B, info
