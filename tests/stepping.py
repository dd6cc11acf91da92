"""One step of a rule from its first state, as the tests of rules take it: jitted once a rule, in numpy."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array

from entropix.samplers import SAMPLERS, RuleConfig, SampleInfo, Sampler, SamplerInputs

TRACES: Counter[str] = Counter()  # how often the step of each rule was traced


def encode(text: str) -> list[int]:
    """A token for each byte."""
    return list(text.encode())


def counted(sampler: Sampler) -> Callable[..., Any]:
    """The jitted step, which counts how often it is traced."""

    def step(key_B: Array, state: Any, seen: SamplerInputs, cfg: RuleConfig) -> Any:
        TRACES[sampler.name] += 1
        return sampler.step(key_B, state, seen, cfg)

    return jax.jit(step)


STEPS = {name: counted(sampler) for name, sampler in SAMPLERS.items()}


def first_step(
    rule: str | Sampler, seen: SamplerInputs, cfg: Any, key: Array, prompts: Sequence[Sequence[int]] = ()
) -> tuple[np.ndarray, SampleInfo, np.ndarray]:
    """(token_B, info, the logits_BV that one draw was made from, -inf for removed tokens).

    key: of the batch, split into one a row. prompts: none by default, an empty one for each row.
    """
    sampler = SAMPLERS[rule] if isinstance(rule, str) else rule
    batch, vocabulary = seen.logits_BV.shape
    state = sampler.init(cfg, prompts or [[]] * batch, encode)
    outcome = STEPS[sampler.name](jax.random.split(key, batch), state, seen, cfg)
    token_B, _, info, candidates = jax.device_get(outcome)
    drawn_BV = np.full((batch, vocabulary), -np.inf, np.float32)
    np.put_along_axis(drawn_BV, candidates.token_BC, candidates.logits_BC, axis=1)
    return token_B, info, drawn_BV
