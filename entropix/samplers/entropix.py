"""The entropix rule: the shape of the model's uncertainty picks one of five strategies for every token.

    flow        H < low_ent_thresh    V < low_vent_thresh     take the likeliest
    clarify     H > high_ent_thresh   V < low_vent_thresh     pause or ask
    explore     H < high_ent_thresh   V > high_vent_thresh    look at the alternatives
    resample    H > med_ent_thresh    V > high_vent_thresh    draw wide
    adaptive    everything else                               numbers that follow the metrics, best of several draws

H is the entropy of the logits and V their varentropy; the first line that holds counts (`choose`). Each row becomes
four numbers (temperature, top-p, top-k, min-p); one chain and one draw then serve all strategies.
"""

from enum import IntEnum
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from entropix import filters
from entropix.config import HOST, STATIC, parameter, rule_config
from entropix.filters import SamplingParams
from entropix.metrics import Metrics
from entropix.numerics import power_of_two
from entropix.samplers import numbers
from entropix.samplers.base import (
    MIN_TEMPERATURE,
    Encode,
    Prompts,
    SampleInfo,
    Sampler,
    SamplerInputs,
    StepResult,
    log_normalizer,
    model_logprob,
    top_candidates,
)
from entropix.samplers.numbers import RuleConfig
from entropix.sharding import to_device

# Bounds and factors that are literals in the published code, and so no numbers of the config.
MAX_CLARIFY_TEMPERATURE = MAX_EXPLORE_TEMPERATURE = 1.5
MIN_RESAMPLE_TEMPERATURE, MIN_RESAMPLE_TOP_P = 2.0, 0.5
MIN_EXPLORE_TOP_K, EXPLORE_TOP_K_AGREE = 5, 0.5
MIN_ADAPTIVE_TOP_P, MAX_ADAPTIVE_TOP_P = 0.1, 1.0
MIN_ADAPTIVE_TOP_K, MAX_ADAPTIVE_TOP_K = 1, 100
MIN_ADAPTIVE_MIN_P, MAX_ADAPTIVE_MIN_P = 0.01, 0.5


class Strategy(IntEnum):
    """What to do about one token, in order of precedence."""

    FLOW = 0
    CLARIFY = 1
    EXPLORE = 2
    RESAMPLE = 3
    ADAPTIVE = 4


@rule_config
class ActConfig(RuleConfig):
    """What the five strategies do, without the thresholds that choose among them: for rules that choose in their own
    way. Of the coefficients of metrics only the score's are here.

    Entropies are in bits, varentropies in bits².
    """

    temp: float = numbers.temp(0.666)
    top_p: float = numbers.top_p(0.90)
    top_k: int = numbers.top_k(27)
    min_p: float = numbers.min_p(0.03)

    clarifier: str = parameter(
        " ...", "text that clarify inserts, tokenised by the model's own tokenizer", kind=HOST
    )

    # helv: high entropy, low varentropy, which is clarify
    helv_attn_ent_offset: float = parameter(1.3, "clarify: temperature factor at zero attention entropy")
    # lehv: low entropy, high varentropy, which is explore
    lehv_interaction_strength_offset: float = parameter(
        1.2, "explore: temperature factor at zero interaction strength"
    )
    # hehv: high entropy, high varentropy, which is resample
    hehv_attn_vent_offset: float = parameter(2.0, "resample: temperature factor at zero attention varentropy")

    n_adaptive_samples: int = parameter(
        5, "adaptive: draws, of which the best-scored is kept (static)", 1, 64, kind=STATIC
    )
    max_top_k: int = numbers.max_top_k(128)

    ada_score_logits_ent: float = parameter(0.1, "score weight of 1 - logits entropy")
    ada_score_attn_ent: float = parameter(0.2, "score weight of 1 - attention entropy")
    ada_score_logits_vent: float = parameter(0.3, "score weight of 1 - logits varentropy")
    ada_score_attn_vent: float = parameter(0.4, "score weight of 1 - attention varentropy")

    def problem(self) -> str | None:
        return numbers.top_k_problem(self)


@rule_config
class LogitsConfig(ActConfig):
    """`ActConfig` with the thresholds, and the coefficients by which `adaptive` follows the logits."""

    low_ent_thresh: float = parameter(0.1, "flow below this logits entropy", 0.0, unit="bits")
    low_vent_thresh: float = parameter(
        0.1, "flow and clarify below this logits varentropy", 0.0, unit="bits²"
    )
    med_ent_thresh: float = parameter(3.0, "resample above this logits entropy", 0.0, unit="bits")
    high_ent_thresh: float = parameter(
        5.0, "clarify above, explore below this logits entropy", 0.0, unit="bits"
    )
    high_vent_thresh: float = parameter(
        5.0, "explore and resample above this logits varentropy", 0.0, unit="bits²"
    )

    ada_temp_logits: float = parameter(
        0.3, "adaptive: temperature raised by entropy + varentropy of the logits"
    )
    ada_min_p: float = parameter(0.5, "adaptive: min-p lowered by entropy + varentropy of the logits")


@rule_config
class SamplerConfig(LogitsConfig):
    """All numbers of the rule `entropix`, those of attention among them. Names and defaults are the published ones."""

    helv_attn_ent_coef: float = parameter(
        0.2, "clarify: temperature factor per attention entropy", unit="1/bit"
    )
    lehv_interaction_strength_coef: float = parameter(
        0.3, "explore: temperature factor per interaction strength"
    )
    hehv_attn_ent_coef: float = parameter(0.2, "resample: top-p lowered per attention entropy", unit="1/bit")
    hehv_attn_vent_coef: float = parameter(
        0.5, "resample: temperature factor per attention varentropy", unit="1/bit²"
    )

    ada_temp_attn: float = parameter(0.2, "adaptive: temperature raised by entropy + varentropy of attention")
    ada_temp_agree: float = parameter(0.2, "adaptive: temperature lowered by agreement")
    ada_top_p: float = parameter(0.1, "adaptive: top-p raised by attention varentropy", unit="1/bit²")
    ada_top_k_int: float = parameter(0.3, "adaptive: top-k raised by interaction strength")
    ada_top_k_agree: float = parameter(0.2, "adaptive: top-k lowered by agreement")

    ada_score_agree: float = parameter(0.5, "score weight of agreement")
    ada_score_int: float = parameter(0.6, "score weight of interaction strength")


class Clarifier(NamedTuple):
    """The text that `clarify` inserts, and how far each row has got with it."""

    token_BQ: Array  # int32, padded; the same in every row
    length_B: Array  # int32; 0 inserts nothing
    next_B: Array  # int32: the next token to insert; 0 when no insertion is under way
    just_inserted_B: Array  # bool: the newest token was the clarifier's last


def init(cfg: ActConfig, prompts: Prompts, encode: Encode) -> Clarifier:
    """The clarifier's tokens. Padded to a power of two, so that few text lengths compile anew."""
    batch, tokens = len(prompts), encode(cfg.clarifier) if cfg.clarifier else []
    padded = tokens + [0] * (power_of_two(len(tokens)) - len(tokens))
    return Clarifier(
        token_BQ=to_device([padded] * batch),
        length_B=to_device([len(tokens)] * batch),
        next_B=to_device([0] * batch),
        just_inserted_B=to_device([False] * batch, bool),
    )


def choose(metrics: Metrics, cfg: LogitsConfig, swapped: bool = False) -> Array:
    """strategy_B: the first of the conditions that holds; `adaptive` where none does.

    A number exactly on a threshold is neither above nor below it. swapped: whether clarify and resample swap their
    thresholds, as in the variant published for PyTorch.
    """
    entropy, varentropy = metrics.logits_entropy, metrics.logits_varentropy
    calm, wild = varentropy < cfg.low_vent_thresh, varentropy > cfg.high_vent_thresh
    clarify_above, resample_above = cfg.high_ent_thresh, cfg.med_ent_thresh
    if swapped:
        clarify_above, resample_above = resample_above, clarify_above
    condition = {
        Strategy.FLOW: (entropy < cfg.low_ent_thresh) & calm,
        Strategy.CLARIFY: (entropy > clarify_above) & calm,
        Strategy.EXPLORE: (entropy < cfg.high_ent_thresh) & wild,
        Strategy.RESAMPLE: (entropy > resample_above) & wild,
    }
    return jnp.select(
        [*condition.values()],
        [jnp.full(entropy.shape, strategy, jnp.int32) for strategy in condition],
        jnp.int32(Strategy.ADAPTIVE),
    )


# ----- the four numbers of each strategy, a row ----------------------------------------------------------------


def base_params(metrics: Metrics, cfg: SamplerConfig) -> SamplingParams:
    """The config's own numbers, which no metric changes."""
    one = jnp.ones_like(metrics.logits_entropy)
    return SamplingParams(cfg.temp * one, cfg.top_p * one, jnp.full_like(one, cfg.top_k), cfg.min_p * one)


def flow_params(metrics: Metrics, cfg: SamplerConfig) -> SamplingParams:
    """Top-k = 1, that is argmax."""
    return base_params(metrics, cfg)._replace(top_k_B=jnp.ones_like(metrics.logits_entropy))


def clarify_params(metrics: Metrics, cfg: SamplerConfig) -> SamplingParams:
    """Where nothing may be inserted: warmer, by attention entropy."""
    factor = cfg.helv_attn_ent_offset + cfg.helv_attn_ent_coef * metrics.attn_entropy
    temperature_B = jnp.minimum(MAX_CLARIFY_TEMPERATURE, cfg.temp * factor)
    return base_params(metrics, cfg)._replace(temperature_B=temperature_B)


def explore_params(metrics: Metrics, cfg: SamplerConfig) -> SamplingParams:
    """Warmer, by interaction strength, and more tokens the less heads deviate."""
    strength = metrics.interaction_strength
    factor = cfg.lehv_interaction_strength_offset + cfg.lehv_interaction_strength_coef * strength
    wider = jnp.asarray(cfg.top_k, jnp.float32) * (1 + EXPLORE_TOP_K_AGREE * (1 - metrics.agreement))
    return base_params(metrics, cfg)._replace(
        temperature_B=jnp.minimum(MAX_EXPLORE_TEMPERATURE, cfg.temp * factor),
        top_k_B=jnp.maximum(MIN_EXPLORE_TOP_K, jnp.trunc(wider)),
    )


def resample_params(metrics: Metrics, cfg: SamplerConfig) -> SamplingParams:
    """Hot, by attention varentropy, from a nucleus that attention entropy makes smaller."""
    factor = cfg.hehv_attn_vent_offset + cfg.hehv_attn_vent_coef * metrics.attn_varentropy
    nucleus = cfg.top_p - cfg.hehv_attn_ent_coef * metrics.attn_entropy
    return base_params(metrics, cfg)._replace(
        temperature_B=jnp.maximum(MIN_RESAMPLE_TEMPERATURE, cfg.temp * factor),
        top_p_B=jnp.maximum(MIN_RESAMPLE_TOP_P, nucleus),
    )


def adaptive_params(metrics: Metrics, cfg: SamplerConfig) -> SamplingParams:
    """All four follow the metrics."""
    doubt = metrics.logits_entropy + metrics.logits_varentropy
    attention = metrics.attn_entropy + metrics.attn_varentropy
    agreement, strength = metrics.agreement, metrics.interaction_strength
    factor = 1 + cfg.ada_temp_logits * doubt + cfg.ada_temp_attn * attention - cfg.ada_temp_agree * agreement
    top_p = cfg.top_p * (1 + cfg.ada_top_p * metrics.attn_varentropy)
    top_k = jnp.asarray(cfg.top_k, jnp.float32) * (
        1 + cfg.ada_top_k_int * strength - cfg.ada_top_k_agree * agreement
    )
    min_p = cfg.min_p * (1 - cfg.ada_min_p * doubt)
    return SamplingParams(
        temperature_B=cfg.temp * factor,
        top_p_B=jnp.clip(top_p, MIN_ADAPTIVE_TOP_P, MAX_ADAPTIVE_TOP_P),
        top_k_B=jnp.clip(jnp.round(top_k), MIN_ADAPTIVE_TOP_K, MAX_ADAPTIVE_TOP_K),
        min_p_B=jnp.clip(min_p, MIN_ADAPTIVE_MIN_P, MAX_ADAPTIVE_MIN_P),
    )


def sampling_params(strategy_B: Array, metrics: Metrics, cfg: SamplerConfig) -> SamplingParams:
    """The four numbers of each row's draw: those of its strategy."""
    params = {
        Strategy.FLOW: flow_params,
        Strategy.CLARIFY: clarify_params,
        Strategy.EXPLORE: explore_params,
        Strategy.RESAMPLE: resample_params,
    }
    is_strategy = [strategy_B == strategy for strategy in params]

    def select(otherwise: Array, *values: Array) -> Array:
        return jnp.select(is_strategy, values, otherwise)

    of_each = (of_strategy(metrics, cfg) for of_strategy in params.values())
    chosen = jax.tree.map(select, adaptive_params(metrics, cfg), *of_each)
    return chosen._replace(
        temperature_B=jnp.maximum(chosen.temperature_B, MIN_TEMPERATURE),
        top_k_B=jnp.minimum(chosen.top_k_B, cfg.max_top_k).astype(jnp.int32),
    )


# ----- the draw ---------------------------------------------------------------------------------------------------


def step_score(metrics: Metrics, cfg: SamplerConfig) -> Array:
    """What the adaptive score adds to a token's log-probability.

    It depends on the step and not on the token, so the best-scored of several draws is simply the likeliest of them;
    the formula is kept because it is the published one, and because scores of different steps can be compared.
    """
    return (
        cfg.ada_score_logits_ent * (1 - metrics.logits_entropy)
        + cfg.ada_score_attn_ent * (1 - metrics.attn_entropy)
        + cfg.ada_score_logits_vent * (1 - metrics.logits_varentropy)
        + cfg.ada_score_attn_vent * (1 - metrics.attn_varentropy)
        + cfg.ada_score_agree * metrics.agreement
        + cfg.ada_score_int * metrics.interaction_strength
    )


def best_of_draws(key_B: Array, logits_BC: Array, log_p_BC: Array, strategy_B: Array, n: int) -> Array:
    """Index into the candidates, `[B]`: the likeliest of n draws for adaptive rows, the first draw for the others."""
    key_nB = jax.vmap(lambda i: jax.vmap(jax.random.fold_in, (0, None))(key_B, i))(jnp.arange(n))
    drawn_nB = jax.vmap(lambda key_B: filters.draw(key_B, logits_BC).token_B)(key_nB)
    score_nB = jax.vmap(lambda index_B: filters.gather(log_p_BC, index_B))(drawn_nB)
    winner_B = jnp.where(strategy_B == Strategy.ADAPTIVE, jnp.argmax(score_nB, axis=0), 0)
    return jnp.take_along_axis(drawn_nB, winner_B[None], axis=0)[0]


def step(
    key_B: Array, state: Clarifier, seen: SamplerInputs, cfg: SamplerConfig, swapped: bool = False
) -> StepResult:
    """One token a row. swapped: as of `choose`."""
    return act(key_B, state, seen, cfg, choose(seen.metrics, cfg, swapped))


def act(
    key_B: Array, state: Clarifier, seen: SamplerInputs, cfg: SamplerConfig, strategy_B: Array
) -> StepResult:
    """One token a row by the strategy chosen for it, unless the row is in the middle of an insertion."""
    metrics, logits_BV = seen.metrics, seen.logits_BV
    under_way_B = state.next_B > 0
    strategy_B = jnp.where(under_way_B, Strategy.CLARIFY, strategy_B)
    inject_B = under_way_B | (
        (strategy_B == Strategy.CLARIFY) & ~state.just_inserted_B & (state.length_B > 0)
    )

    params = sampling_params(strategy_B, metrics, cfg)
    candidates = top_candidates(logits_BV, cfg.max_top_k)
    filtered_BC = filters.chain(candidates.logits_BC, params)
    log_p_BC = candidates.logits_BC - log_normalizer(logits_BV)[:, None]
    index_B = best_of_draws(key_B, filtered_BC, log_p_BC, strategy_B, cfg.n_adaptive_samples)

    token_B = jnp.where(
        inject_B, filters.gather(state.token_BQ, state.next_B), filters.gather(candidates.token_BC, index_B)
    )
    logprob_B = model_logprob(logits_BV, token_B)
    adaptive_B = strategy_B == Strategy.ADAPTIVE
    info = SampleInfo(
        strategy_B=strategy_B,
        **params._asdict(),
        kept_B=filters.count_kept(filtered_BC),
        logprob_B=logprob_B,
        draw_logprob_B=jnp.where(
            inject_B, 0.0, filters.gather(jax.nn.log_softmax(filtered_BC, axis=-1), index_B)
        ),
        score_B=jnp.where(adaptive_B, logprob_B + step_score(metrics, cfg), jnp.nan),
        injected_B=inject_B,
    )
    return token_B, after_insertion(state, inject_B), info, candidates._replace(logits_BC=filtered_BC)


def after_insertion(state: Clarifier, inject_B: Array) -> Clarifier:
    """The state after a step that inserted the next of the clarifier's tokens into these rows."""
    end_B = inject_B & (state.next_B + 1 >= state.length_B)
    return state._replace(next_B=jnp.where(inject_B & ~end_B, state.next_B + 1, 0), just_inserted_B=end_B)


STRATEGIES = tuple(s.name.lower() for s in Strategy)

# The rules that this is, and whether clarify and resample swap their thresholds.
SWAPPED = {"entropix": False, "entropix-torch": True}

ENTROPIX = Sampler(
    name="entropix",
    summary="one of five strategies for each token, by the entropy and varentropy of the logits",
    strategies=STRATEGIES,
    init=init,
    step=step,
    config=SamplerConfig,
)

ENTROPIX_TORCH = Sampler(
    name="entropix-torch",
    summary="entropix as published for PyTorch: clarify and resample swap their thresholds",
    strategies=STRATEGIES,
    init=init,
    step=partial(step, swapped=True),
    config=SamplerConfig,
)
