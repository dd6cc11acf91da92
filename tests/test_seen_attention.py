"""A rule may ask for the raw attention of its position, whatever way the decoder takes."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

from entropix import generate
from entropix.checkpoint.loading import Model
from entropix.samplers import SAMPLERS, Sampler, SamplerInputs


def step(key_B: Array, state: Any, seen: SamplerInputs, cfg: Any) -> Any:
    """Greedy; its score is the attention entropy of the first layer's last head."""
    assert seen.attention is not None
    token_B, state, info, offered = SAMPLERS["greedy"].step(key_B, state, seen, cfg)
    return token_B, state, info._replace(score_B=seen.attention.head_entropies()[:, 0, -1]), offered


@pytest.fixture
def rule() -> Sampler:
    """Made anew, and no module's: a module's must be as its file is, whose asserts pytest rewrites."""
    return SAMPLERS["greedy"]._replace(name="looks-inside", step=step, attention=True)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"speculate": 3}], ids=["plain", "drafts"])
def test_a_rule_sees_the_entropy_of_every_head(toy_model: Model, rule: Sampler, options: Any) -> None:
    for result in generate(
        toy_model, ["Why?", "ab" * 9], sampler=rule, max_new_tokens=12, head_entropies=True, **options
    ):
        seen = [record["score"] for record in result.records]
        expected = [record["head_entropies"][0][-1] for record in result.records]
        np.testing.assert_allclose(seen, expected, atol=1e-5)
        assert len(set(seen)) > 6


@pytest.mark.slow
def test_a_rule_sees_its_attention_on_the_paths_of_a_fork(toy_model: Model, rule: Sampler) -> None:
    """Of which the metrics are recorded: all heads of all layers look as widely as these on average."""

    def mean_step(key_B: Array, state: Any, seen: SamplerInputs, cfg: Any) -> Any:
        assert seen.attention is not None
        token_B, state, info, offered = SAMPLERS["greedy"].step(key_B, state, seen, cfg)
        mean_B = jnp.mean(seen.attention.head_entropies(), axis=(1, 2))
        return token_B, state, info._replace(score_B=mean_B), offered

    rule = rule._replace(step=mean_step)
    branching = {"paths": 3, "depth": 2, "entropy": 0.001, "among": "all", "distance": 4}
    [result] = generate(toy_model, "Why?", sampler=rule, max_new_tokens=12, branching=branching)
    told = [(r["score"], r["attn_entropy"]) for r in result.records if r["score"] is not None]
    assert any("branches" in record for record in result.records) and len(told) >= 8
    np.testing.assert_allclose(*np.array(told).T, atol=1e-5)


def test_who_does_not_ask_does_not_pay(toy_model: Model, rule: Sampler) -> None:
    """Nor is anything handed on."""

    def blind(key_B: Array, state: Any, seen: SamplerInputs, cfg: Any) -> Any:
        assert seen.attention is None
        return SAMPLERS["greedy"].step(key_B, state, seen, cfg)

    generate(toy_model, "Why?", sampler=rule._replace(step=blind, attention=False), max_new_tokens=2)
