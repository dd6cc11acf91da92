"""What to compare entropix with, to learn which part of it does the work: the same acts, chosen on less."""

import jax
import jax.numpy as jnp
from jax import Array

from entropix.config import SamplerConfig
from entropix.metrics import Metrics
from entropix.samplers import entropix
from entropix.samplers.base import Candidates, SampleInfo, Sampler, SamplerInputs
from entropix.samplers.entropix import STRATEGIES, THRESHOLDS, Clarifier


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


def logits_step(
    key_B: Array, state: Clarifier, context: SamplerInputs, cfg: SamplerConfig
) -> tuple[Array, Clarifier, SampleInfo, Candidates]:
    """The entropix rule without attention."""
    context = context._replace(metrics=logits_only(context.metrics))
    return entropix.step(key_B, state, context, cfg, THRESHOLDS["entropix"])


def placebo_step(
    key_B: Array, state: Clarifier, context: SamplerInputs, cfg: SamplerConfig
) -> tuple[Array, Clarifier, SampleInfo, Candidates]:
    """A strategy drawn with the config's frequencies, which are relative, and done as if every metric were 0."""
    weight_S = jnp.stack([jnp.asarray(getattr(cfg, f"placebo_{name}"), jnp.float32) for name in STRATEGIES])
    # The strategies' own draws use the keys 0 to n - 1.
    choice_B = jax.vmap(
        lambda key: jax.random.categorical(jax.random.fold_in(key, cfg.n_adaptive_samples), jnp.log(weight_S))
    )(key_B)
    context = context._replace(metrics=Metrics(*(jnp.zeros_like(values_B) for values_B in context.metrics)))
    return entropix.act(key_B, state, context, cfg, choice_B.astype(jnp.int32))


ENTROPIX_LOGITS = Sampler(
    "entropix-logits",
    "entropix without attention, whose metrics count as 0: what does attention add?",
    STRATEGIES,
    entropix.init,
    logits_step,
)
PLACEBO = Sampler(
    "placebo",
    "entropix's strategies picked by chance, as often as given: does it matter when each is chosen?",
    STRATEGIES,
    entropix.init,
    placebo_step,
)
