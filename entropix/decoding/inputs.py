"""What a batch is asked for, as arrays: keys, limits, stop tokens and the sampler's numbers."""

import dataclasses
import zlib
from collections import Counter
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from entropix.checkpoint.loading import Model
from entropix.config import GenerateConfig, SamplerConfig
from entropix.decoding import backtracking, branching, loop
from entropix.decoding.sample_step import BatchInputs
from entropix.decoding.speculation import NO_TOKEN
from entropix.results import FinishReason
from entropix.samplers import Sampler


def check_prompts(prompts: Sequence[Sequence[int]], model: Model) -> None:
    """Raises a ValueError for the first prompt that cannot be continued."""
    if not prompts:
        raise ValueError("no prompt: give at least one")
    context, vocabulary = model.config.context_length, model.config.vocab_size
    for number, prompt in enumerate(prompts, start=1):
        if not prompt:
            raise ValueError(f"prompt {number} is empty: give at least one token")
        if len(prompt) >= context:
            raise ValueError(
                f"prompt {number} has {len(prompt)} tokens, but the model's context holds {context} and at least one "
                "must be left for the answer; shorten the prompt"
            )
        if not 0 <= min(prompt) <= max(prompt) < vocabulary:
            raise ValueError(
                f"prompt {number} has token ids outside 0 to {vocabulary - 1}, the model's vocabulary"
            )


def make_request(
    prompts: Sequence[Sequence[int]],
    model: Model,
    sampler: Sampler,
    cfg: GenerateConfig,
    given: Sequence[int] = (),
) -> BatchInputs:
    """What stays fixed while a batch is generated; `given` is that of `Session.start`."""
    room = [model.config.context_length - len(prompt) for prompt in prompts]
    wanted = [cfg.max_new_tokens - n for n in given or [0] * len(prompts)]
    assert min(wanted) > 0, (given, cfg.max_new_tokens)
    stop_ids = () if cfg.ignore_stop_tokens else model.stop_ids
    stop_E = np.full(1 << max(len(stop_ids) - 1, 7).bit_length(), NO_TOKEN, np.int32)
    stop_E[: len(stop_ids)] = stop_ids
    return BatchInputs(
        key_B=loop.row_keys(
            *(
                jnp.asarray(numbers, jnp.uint32)
                for numbers in (_seeds(prompts, cfg), _digests(prompts), occurrences(prompts, cfg))
            )
        ),
        limit_B=jnp.asarray(list(map(min, wanted, room)), jnp.int32),
        limit_reason_B=jnp.asarray(
            [
                FinishReason.LENGTH if n <= left else FinishReason.CONTEXT
                for n, left in zip(wanted, room, strict=True)
            ],
            jnp.int32,
        ),
        stop_E=jnp.asarray(stop_E),
        branching=branching.numbers(cfg.branching),
        backtracking=backtracking.numbers(cfg.backtracking, sampler.strategies),
    )


def occurrences(prompts: Sequence[Sequence[int]], cfg: GenerateConfig) -> Sequence[int]:
    """How often each prompt came earlier with the same seed: repeated prompts draw from streams of their own."""
    if cfg.occurrences:
        return cfg.occurrences
    seen: Counter[tuple[int, tuple[int, ...]]] = Counter()
    found = []
    for seed, prompt in zip(_seeds(prompts, cfg), prompts, strict=True):
        found.append(seen[seed, tuple(prompt)])
        seen[seed, tuple(prompt)] += 1
    return found


def _seeds(prompts: Sequence[Sequence[int]], cfg: GenerateConfig) -> Sequence[int]:
    return cfg.seeds or [cfg.seed] * len(prompts)


def _digests(prompts: Sequence[Sequence[int]]) -> list[int]:
    return [zlib.crc32(np.asarray(prompt, np.int32).tobytes()) for prompt in prompts]


def device_config(cfg: SamplerConfig) -> SamplerConfig:
    """The same numbers as arrays of their field's dtype, so that 1 and 1.0 are the same program."""
    decimal = jax.tree.map(np.float32, cfg)
    return jax.device_put(dataclasses.replace(decimal, top_k=np.int32(cfg.top_k)))
