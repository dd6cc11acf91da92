"""The entropix rule whose pauses come by chance: does it matter when a model pauses?

    sampler = "random_pauses.py:RULE"

Pauses that the rule asks for are left out, their tokens drawn as `adaptive` draws; as many come elsewhere.
"""

import jax
import jax.numpy as jnp

from entropix.config import parameter, rule_config
from entropix.samplers import entropix
from entropix.samplers.base import Sampler
from entropix.samplers.entropix import STRATEGIES, SamplerConfig, Strategy

_PAUSE = 1_000_003  # folded into a step's key; the rule's own draws fold in small numbers


@rule_config
class RandomPausesConfig(SamplerConfig):
    """The numbers of entropix, and how often a pause comes."""

    pause_probability: float = parameter(0.05, "probability of a pause, at every token", 0.0, 1.0)


def step(key_B, state, seen, cfg):
    """(token_B, state, info, candidates) of one step."""
    strategy_B = entropix.choose(seen.metrics, cfg)
    strategy_B = jnp.where(strategy_B == Strategy.CLARIFY, Strategy.ADAPTIVE, strategy_B)
    u_B = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, _PAUSE)))(key_B)
    strategy_B = jnp.where(u_B < cfg.pause_probability, Strategy.CLARIFY, strategy_B)
    return entropix.act(key_B, state, seen, cfg, strategy_B.astype(jnp.int32))


RULE = Sampler(
    "random-pauses",
    "entropix with pauses by chance instead of where it is unsure",
    STRATEGIES,
    entropix.init,
    step,
    RandomPausesConfig,
)
