"""What to compare entropix with, to learn which part of it does the work: the same acts, chosen on less."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from entropix.config import parameter, rule_config
from entropix.metrics import Metrics
from entropix.samplers import entropix
from entropix.samplers.base import Sampler, SamplerInputs, StepResult
from entropix.samplers.entropix import (
    STRATEGIES,
    ActConfig,
    Clarifier,
    LogitsConfig,
    SamplerConfig,
)


@rule_config
class PlaceboConfig(ActConfig):
    """The numbers of placebo: how often it does what, and how."""

    placebo_flow: float = parameter(0.008, "relative frequency of flow", 0.0, 1.0)
    placebo_clarify: float = parameter(0.0, "relative frequency of clarify", 0.0, 1.0)
    placebo_explore: float = parameter(0.557, "relative frequency of explore", 0.0, 1.0)
    placebo_resample: float = parameter(0.213, "relative frequency of resample", 0.0, 1.0)
    placebo_adaptive: float = parameter(0.222, "relative frequency of adaptive", 0.0, 1.0)

    def problem(self) -> str | None:
        names = [f"placebo_{name}" for name in STRATEGIES]
        if not any(getattr(self, name) for name in names):
            return f"one of {', '.join(names)} must be above 0, got 0 for all"
        return super().problem()


def with_attention(cfg: ActConfig) -> SamplerConfig:
    """These numbers, with the default coefficients of attention, which have no effect: its metrics are 0 here."""
    known = {field.name for field in dataclasses.fields(SamplerConfig)}
    own = {field.name: getattr(cfg, field.name) for field in dataclasses.fields(cfg) if field.name in known}
    return SamplerConfig(**own)


def logits_only(metrics: Metrics) -> Metrics:
    """Entropy and varentropy of the logits as they are, and 0 for the metrics of attention.

    With 0 the terms they enter vanish, but for one: the top-k of `explore` is 1.5 times the base, about what it is with
    attention too, whose heads deviate little from their mean.
    """
    nothing_B = jnp.zeros_like(metrics.logits_entropy)
    return metrics._replace(
        attn_entropy=nothing_B,
        attn_varentropy=nothing_B,
        agreement=nothing_B,
        interaction_strength=nothing_B,
    )


def logits_step(key_B: Array, state: Clarifier, seen: SamplerInputs, cfg: LogitsConfig) -> StepResult:
    """The entropix rule without attention."""
    seen = seen._replace(metrics=logits_only(seen.metrics))
    return entropix.step(key_B, state, seen, with_attention(cfg))


def placebo_step(key_B: Array, state: Clarifier, seen: SamplerInputs, cfg: PlaceboConfig) -> StepResult:
    """A strategy drawn with the config's frequencies, which are relative, and done as if every metric were 0."""
    weight_S = jnp.stack([jnp.asarray(getattr(cfg, f"placebo_{name}"), jnp.float32) for name in STRATEGIES])
    # The strategies' own draws use the keys 0 to n - 1.
    choice_B = jax.vmap(
        lambda key: jax.random.categorical(jax.random.fold_in(key, cfg.n_adaptive_samples), jnp.log(weight_S))
    )(key_B)
    seen = seen._replace(metrics=Metrics(*(jnp.zeros_like(values_B) for values_B in seen.metrics)))
    return entropix.act(key_B, state, seen, with_attention(cfg), choice_B.astype(jnp.int32))


ENTROPIX_LOGITS = Sampler(
    "entropix-logits",
    "entropix without attention, whose metrics count as 0: what does attention add?",
    STRATEGIES,
    entropix.init,
    logits_step,
    LogitsConfig,
)
PLACEBO = Sampler(
    "placebo",
    "entropix's strategies picked by chance, as often as given: does it matter when each is chosen?",
    STRATEGIES,
    entropix.init,
    placebo_step,
    PlaceboConfig,
)
