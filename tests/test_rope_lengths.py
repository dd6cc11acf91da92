"""Rotary frequencies that depend on how long a text is: what rows hold is what they would by themselves."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import toy

import entropix
from entropix.checkpoint.loading import Model
from entropix.cot import parallel
from entropix.decoding.prefix_cache import PrefixCache
from entropix.decoding.session import Session
from entropix.generation import collect, prepare, run
from entropix.model.rope import rope_frequencies, rope_table
from entropix.results import FinishReason

pytestmark = pytest.mark.slow

ORIGINAL = 70  # more than are copied from row to row
SCALINGS: dict[str, dict[str, Any]] = {
    "longrope": {"rope_divisors": (1.0, 1.5, 2.0, 3.0), "rope_long_divisors": (1.0, 3.0, 6.0, 9.0)},
    "dynamic": {"rope_dynamic_factor": 3.0},
}
TEXT = toy.random_tokens(toy.config(), 120, seed=5).tolist()


@pytest.fixture(params=SCALINGS)
def model(request: pytest.FixtureRequest) -> Model:
    return toy.model_of(rope_original_length=ORIGINAL, **SCALINGS[request.param])


def test_angles_are_those_of_the_closed_form(model: Model) -> None:
    """Of texts that are not longer those of no scaling, or of the short numbers."""
    cfg = model.config
    position_BT = jnp.asarray([[0, 3, 69], [0, 3, 69], [3, 70, 99]], jnp.int32)
    length_B = [0, cfg.rope_length(71), cfg.rope_length(100)]
    cos_BTH, _ = rope_table(position_BT, cfg, rope_length_B=jnp.asarray(length_B, jnp.int32))
    pairs = np.arange(4)
    for row, n in enumerate((70, 71, 100)):
        if cfg.rope_long_divisors:
            divisors = cfg.rope_divisors if n <= ORIGINAL else cfg.rope_long_divisors
            frequency = cfg.rope_theta ** (-pairs / 4) / np.array(divisors)
        else:
            growth = cfg.rope_dynamic_factor * n / ORIGINAL - (cfg.rope_dynamic_factor - 1)
            frequency = (cfg.rope_theta * growth ** (8 / 6)) ** (-pairs / 4)
        if n == ORIGINAL:
            np.testing.assert_allclose(frequency, rope_frequencies(cfg), rtol=1e-12)
        expected = np.cos(np.asarray(position_BT[row])[:, None] * frequency)
        np.testing.assert_allclose(cos_BTH[row], expected, atol=2e-5)


def test_headers_of_other_models_are_what_they_were_before_there_was_this(model: Model) -> None:
    """So what was begun earlier goes on."""
    plain = toy.config()
    assert dataclasses.asdict(plain).items() - plain.as_json().items() == {
        ("rope_original_length", 0),
        ("rope_long_divisors", ()),
        ("rope_dynamic_factor", 0.0),
    }
    assert model.config.as_json()["rope_original_length"] == ORIGINAL


def held(cache: PrefixCache, row: int) -> list[np.ndarray]:
    """Keys and values of a row's tokens, the shared ones among them."""
    kv, n = cache.kv, len(cache.tokens[row])
    n_shared = 0 if kv.prefix is None else int(kv.prefix.length_B[row])
    found = []
    for parts in kv.layers():
        *shared, (k_BKHS, v_BKSH) = parts
        k_KHS, v_KSH = k_BKHS[row, ..., : n - n_shared], v_BKSH[row, :, : n - n_shared]
        for k_SHARED, v_SHARED in shared:
            k_KHS = jnp.concatenate([k_SHARED[..., :n_shared], k_KHS], axis=-1)
            v_KSH = jnp.concatenate([v_SHARED[:, :n_shared], v_KSH], axis=1)
        found += [np.asarray(k_KHS), np.asarray(v_KSH)]
    return found


def assert_is_read_alone(cache: PrefixCache, model: Model) -> None:
    for row, tokens in enumerate(cache.tokens):
        alone = PrefixCache(model, 1)
        alone.prefill([tokens])
        for found, expected in zip(held(cache, row), held(alone, 0), strict=True):
            np.testing.assert_allclose(found, expected, atol=2e-5)


def test_keys_are_those_of_the_text_whatever_was_held_before(model: Model) -> None:
    """Grown beyond the length, cut back below it, copied beside, and shared."""
    cache = PrefixCache(model, 3)
    for lengths in ((66, 69, 80), (69, 70, 100), (67, 100, 66)):
        cache.prefill([TEXT[:n] for n in lengths])
        assert [len(tokens) for tokens in cache.tokens] == [*lengths]
        assert_is_read_alone(cache, model)
    beside = cache.beside([TEXT[:69], TEXT[:90], TEXT[:100]])
    assert_is_read_alone(beside, model)
    cache.put([2, 0], cache.beside([TEXT[:68], TEXT[:110]]))
    cache.take([1, 0, 2, 2])
    assert_is_read_alone(cache, model)


def test_what_was_shared_is_of_no_use_to_texts_of_another_length(model: Model) -> None:
    """Some of those that come later, or all of them."""
    for texts in ([TEXT[:68], TEXT[:90]], [TEXT[:90], TEXT[:100]]):
        shared = PrefixCache(model, 1)
        shared.prefill([TEXT[:66]])
        shared.share(2)
        beside = shared.beside(texts)
        assert_is_read_alone(beside, model)
        shared.put([1, 0], beside)
        assert shared.tokens == texts[::-1]
        assert_is_read_alone(shared, model)
        shared.prefill([TEXT[:67], TEXT[:95]])
        assert_is_read_alone(shared, model)


def test_paths_may_grow_beyond_the_length(model: Model) -> None:
    """Of a prompt that is not longer, which is read once for all of them: what is longer is read anew."""
    text = TEXT[: ORIGINAL - 1]
    ends = model.config.longest_text(len(text)) - len(text)
    options: dict[str, Any] = {"sampler": "greedy", "max_new_tokens": 9, "raw": True, "extract": "text"}
    for at in ("start", "explore"):
        result = parallel.decode(model, text, paths=3, at=at, entropy=0.0, **options)
        n_paths = 2 if at == "explore" and ends < 3 else 3  # a fork takes a token, and needs one more
        assert [len(path.result.token_ids) for path in result.paths] == [min(9, ends)] * n_paths


def test_answers_are_those_of_each_prompt_alone(model: Model) -> None:
    """Prompts of all lengths in a batch of two rows, whose places are taken as they end."""
    prompts = [TEXT[:n] for n in (66, 100, 3, 70, 71, 69)]
    options: dict[str, Any] = {"sampler": "min-p", "max_new_tokens": 12, "raw": True}
    together = entropix.generate(model, prompts, seed=3, batch_size=2, **options)
    alone = [entropix.generate(model, prompt, seed=3, **options)[0] for prompt in prompts]
    assert [one.token_ids for one in together] == [one.token_ids for one in alone]
    for prompt, result in zip(prompts, together, strict=True):
        ends = model.config.longest_text(len(prompt)) - len(prompt)
        assert len(result.token_ids) == min(12, ends)
        assert result.finish == (FinishReason.CONTEXT if ends < 12 else FinishReason.LENGTH)


def test_a_conversation_may_grow_beyond_the_length(model: Model) -> None:
    session = Session(model, 1)
    text: list[int] = TEXT[:60]
    for more in ([], TEXT[:5], TEXT[5:20]):
        text = [*text, *more]
        request = prepare(model, [text], sampler="greedy", max_new_tokens=4)
        [kept] = collect(request, run(request, session))
        [anew] = collect(request, run(request))
        assert kept.token_ids == anew.token_ids
        text = [*text, *kept.token_ids]
    assert len(text) > ORIGINAL
