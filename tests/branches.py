"""What the tests of branching share: what a sampler sees and says, and generations of the toy that fork."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import toy

from entropix import generation, samplers
from entropix.checkpoint.loading import Model
from entropix.decoding.session import Session
from entropix.generation import collect, prepare, run
from entropix.metrics import Metrics, self_certainty
from entropix.numerics import entropy_bits, second_shift, softmax_parts
from entropix.results import Result
from entropix.samplers.base import SampleInfo, SamplerInputs

V = 16
STRATEGIES = samplers.get("entropix").strategies
EXPLORE, ADAPTIVE = STRATEGIES.index("explore"), STRATEGIES.index("adaptive")

MODEL = toy.model_of(tied_embeddings=False)
PROMPTS = [[1, 2, 3, 4, 5], [200, 7], [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 11, 12]]
SMALL = toy.model_of(tied_embeddings=False, n_layers=1)
PLAIN: dict[str, Any] = {
    "sampler": "top-k",
    "max_new_tokens": 40,
    "alternatives": 5,
    "sampler_config": {"temp": 1.0, "top_k": 20},
}
EVERYWHERE = {"paths": 3, "depth": 2, "entropy": 0.001}


def branched(
    prompts: Sequence[Sequence[int]] = PROMPTS, model: Model = MODEL, **options: Any
) -> tuple[list[Result], Session]:
    """A generation of which other options than these are the same program."""
    branching = EVERYWHERE | options.pop("branching", {})
    job = prepare(model, prompts, **PLAIN | options, branching=branching)
    session = Session(model, len(prompts))
    return collect(job, run(job, session)), session


def unbranched(
    prompts: Sequence[Sequence[int]] = PROMPTS, model: Model = MODEL, **options: Any
) -> list[Result]:
    return generation.generate(model, prompts, **PLAIN | options)


def tokens(results: Sequence[Result]) -> list[list[int]]:
    return [result.token_ids for result in results]


def forks(result: Result) -> list[int]:
    """The steps at which a row forked."""
    return [step for step, record in enumerate(result.records) if "branches" in record]


def context_of(logits_BV: Any) -> SamplerInputs:
    """What a sampler sees of these logits; the metrics of attention are 0."""
    logits_BV = jnp.asarray(logits_BV, jnp.float32)
    parts = softmax_parts(logits_BV)
    top_B = 1 / parts.total
    nothing = Metrics(*(jnp.zeros(len(logits_BV)) for _ in Metrics._fields))
    return SamplerInputs(
        logits_BV,
        nothing._replace(
            logits_entropy=entropy_bits(parts),
            margin=top_B * -jnp.expm1(second_shift(logits_BV)),
            self_certainty=self_certainty(logits_BV, parts),
        ),
    )


def info(batch: int = 1, **fields: Any) -> SampleInfo:
    plain = {name: jnp.zeros(batch) for name in SampleInfo._fields}
    plain |= {"strategy_B": jnp.full(batch, ADAPTIVE), "kept_B": jnp.full(batch, 5)}
    plain |= {"injected_B": jnp.zeros(batch, bool)}
    return SampleInfo(**plain | {name: jnp.asarray(value) for name, value in fields.items()})
