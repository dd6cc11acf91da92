"""Windows in some layers alone: every layer sees, and counts, keys of its own."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import reference
import toy
from jax import Array

import entropix
from entropix import scoring
from entropix.metrics import Metrics
from entropix.samplers import SAMPLERS, SamplerInputs

WINDOW, GLOBAL = 7, 1
MODEL = toy.model_of(  # with what else such models have in attention
    n_layers=3, sliding_window=WINDOW, global_layers=(GLOBAL,), attention_softcap=1.5, rope_local_theta=50.0
)
PROMPT = [65, 66] * 12
FORKS = {"paths": 2, "depth": 3, "entropy": 0.001, "among": "all", "distance": 3}


def step(key_B: Array, state: Any, seen: SamplerInputs, cfg: Any) -> Any:
    """Greedy; its score is the attention entropy of all heads on average, from what a rule may look at."""
    assert seen.attention is not None
    token_B, state, info, offered = SAMPLERS["greedy"].step(key_B, state, seen, cfg)
    mean_B = jnp.mean(seen.attention.head_entropies(), axis=(1, 2))
    return token_B, state, info._replace(score_B=mean_B), offered


@pytest.mark.slow
@pytest.mark.parametrize("scale", [{"logits_softcap": 30.0}, {"logits_divisor": 2.5}])
def test_margins_are_those_of_logits_that_a_fusion_may_compute_again(scale: dict[str, float]) -> None:
    """To another last bit, where it joins a factor of the logits with what is taken from them."""
    model = toy.model_of(**scale)
    [result] = entropix.generate(model, [PROMPT], sampler="greedy", max_new_tokens=40)
    logits_TV = entropix.forward(model, [*PROMPT, *result.token_ids]).logits_TV.astype(np.float64)
    p_TV = np.sort(np.exp(logits_TV) / np.exp(logits_TV).sum(axis=-1, keepdims=True))
    expected = (p_TV[:, -1] - p_TV[:, -2])[len(PROMPT) - 1 : -1]
    np.testing.assert_allclose([record["margin"] for record in result.records], expected, atol=1e-5)


@pytest.fixture(scope="module")
def text() -> list[int]:
    """What all ways make of two prompts as one, whatever the way."""
    rule = SAMPLERS["greedy"]._replace(name="looks-inside", step=step, attention=True)
    [plain, _] = entropix.generate(MODEL, [PROMPT, [9]], sampler=rule, max_new_tokens=40, head_entropies=True)
    return [*PROMPT, *plain.token_ids]


@pytest.fixture(scope="module")
def seen(text: list[int]) -> entropix.Forward:
    return entropix.forward(MODEL, text)


def test_a_pass_over_a_text_has_the_metrics_of_the_keys_of_each_layer(seen: entropix.Forward) -> None:
    n = len(seen.token_ids)
    causal_TT, far_TT = np.tri(n, dtype=bool), np.tri(n, k=-WINDOW, dtype=bool)
    for layer in range(MODEL.config.n_layers):
        expected_TT = causal_TT if layer == GLOBAL else causal_TT & ~far_TT
        np.testing.assert_array_equal(seen.visible_LTT[layer], expected_TT)
    np.testing.assert_array_equal(seen.visible_TT, causal_TT)
    np.testing.assert_array_equal(
        seen.attention() > 0, np.broadcast_to(seen.visible_LTT[:, None], seen.scores_LNTT.shape)
    )
    for t in range(n):
        layers = [
            reference.metrics(seen.logits_TV[t], seen.scores_LNTT[layer : layer + 1, :, t, visible_T])
            for layer, visible_T in enumerate(seen.visible_LTT[:, t])
        ]
        for name in Metrics._fields:
            wanted = np.mean([of_layer[name] for of_layer in layers])
            found = getattr(seen.metrics, name)[t]
            np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"head_entropies": True}, {"head_entropies": True, "speculate": 3}, {"branching": FORKS}],
    ids=["plain", "drafts", "forks"],
)
def test_every_way_of_decoding_finds_what_a_pass_over_the_text_finds(
    seen: entropix.Forward, options: dict[str, Any]
) -> None:
    """A prompt beyond the window and one that grows past it; rules that look inside see the same."""
    rule = SAMPLERS["greedy"]._replace(name="looks-inside", step=step, attention=True)
    for result in entropix.generate(MODEL, [PROMPT, [9]], sampler=rule, max_new_tokens=40, **options):
        found = seen if result.prompt_ids == PROMPT and "branching" not in options else None
        found = found or entropix.forward(MODEL, [*result.prompt_ids, *result.token_ids])
        assert found.token_ids == [*result.prompt_ids, *result.token_ids]
        attention_LNTT = found.attention().astype(np.float64)
        logs_LNTT = np.log2(np.where(attention_LNTT > 0, attention_LNTT, 1))
        entropy_LNT = -np.sum(attention_LNTT * logs_LNTT, axis=-1)
        start = len(result.prompt_ids) - 1
        assert len(result.records) == 40
        for t, record in enumerate(result.records, start):
            for name in Metrics._fields:
                wanted = getattr(found.metrics, name)[t]
                assert record[name] == pytest.approx(wanted, rel=1e-3, abs=1e-4), (name, t)
            if record["score"] is not None:  # of a fork, whose other path was drawn, there is none
                assert record["score"] == pytest.approx(entropy_LNT[..., t].mean(), abs=1e-4)
            if "head_entropies" in record:
                np.testing.assert_allclose(record["head_entropies"], entropy_LNT[..., t], atol=1e-4)
        assert any("branches" in record for record in result.records) == ("branching" in options)


def test_scoring_in_pieces_finds_it_as_well(
    seen: entropix.Forward, text: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "PASS_BYTES", 1)
    [scored] = scoring.score(MODEL, [text])
    for t, record in enumerate(scored.records):
        for name in Metrics._fields:
            wanted = getattr(seen.metrics, name)[t]
            assert record[name] == pytest.approx(wanted, rel=1e-3, abs=1e-4), (name, t)
