"""Rows that hold the beginning of their texts together: they say what they would, each with a cache of its own."""

from typing import Any

import jax
import jax.numpy as jnp
import meshes
import numpy as np
import pytest
import reference
import toy

from entropix.decoding import loop
from entropix.decoding.session import Session
from entropix.generation import collect, generate, prepare, run
from entropix.model import kv_cache, transformer
from entropix.model.attention_mask import causal_mask
from entropix.results import Result

CFG = toy.config()
WEIGHTS = toy.random_weights(CFG)
TENSORS = reference.named_tensors(WEIGHTS, CFG)
CLOSE = {"rtol": 0, "atol": 2e-5}  # as in test_model.py
BEGINNING = toy.random_tokens(CFG, 12, seed=1)
SHARED = (12, 7, 0)  # how much of it each row begins with
TEXTS = [np.concatenate([BEGINNING[:n], toy.random_tokens(CFG, 9, seed=2 + n)]) for n in SHARED]
STEPS = range(len(TEXTS[0]) - SHARED[0])


def shared_cache() -> kv_cache.KVCache:
    """Of three rows that have nothing but their shares."""
    tail = toy.read(WEIGHTS, BEGINNING[None], CFG)[1]
    whole = toy.commit(kv_cache.empty_cache(CFG, 1, 16, jnp.float32), tail, jnp.asarray([12], jnp.int32))
    return kv_cache.truncate(kv_cache.share_row(whole, jnp.asarray(0), 3), jnp.asarray(SHARED, jnp.int32))


def own_tokens(first: int, last: int) -> np.ndarray:
    """[3, last - first] of those behind the shares."""
    return np.stack([text[n + first : n + last] for text, n in zip(TEXTS, SHARED, strict=True)])


def own_slots(cache: kv_cache.KVCache, first: int, last: int) -> kv_cache.KVCache:
    """With these own tokens committed, read without scores as a prompt is."""
    tail = kv_cache.empty_recent(CFG, 3, last - first, jnp.float32)
    tail = jax.jit(transformer.prefill, static_argnames="cfg")(
        WEIGHTS, own_tokens(first, last), cache, tail, CFG, causal_mask(cache, tail, last - first)
    )
    return kv_cache.commit(cache, tail, jnp.full(3, last - first, jnp.int32))


def assert_is_the_reference(found: tuple[Any, ...], first: int) -> None:
    """Logits, scores in the order of positions, and metrics, of own tokens from this one on."""
    logits_BTV, _, attention, measured = found
    for row, (text, n) in enumerate(zip(TEXTS, SHARED, strict=True)):
        expected = reference.forward(TENSORS, text, CFG)
        for i in range(logits_BTV.shape[1]):
            t = n + first + i
            np.testing.assert_allclose(logits_BTV[row, i], expected.logits_TV[t], **CLOSE)
            seen = expected.scores_LNTT[:, :, t, : t + 1]
            np.testing.assert_allclose(toy.visible_scores(attention, row, i), seen, **CLOSE)
            for name, value in reference.metrics(expected.logits_TV[t], seen).items():
                np.testing.assert_allclose(getattr(measured, name)[row, i], value, **CLOSE, err_msg=name)


# ----- keys and values --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_row_sees_its_share_and_what_is_its_own() -> None:
    """Step by step into the tail, behind shares of different lengths and no slots of their own."""
    cache, tail = shared_cache(), kv_cache.empty_recent(CFG, 3, 12, jnp.float32)
    for step in STEPS:
        found = toy.forward(WEIGHTS, own_tokens(step, step + 1), cache, tail, CFG)
        assert_is_the_reference(found, step)
        tail = found[1]


@pytest.mark.slow
@pytest.mark.parametrize("pieces", [(5,), (2, 3)])
def test_own_tokens_may_be_read_and_committed_behind_a_share(pieces: tuple[int, ...]) -> None:
    cache, first = kv_cache.grow(shared_cache(), 16), 0
    for size in pieces:
        cache, first = own_slots(cache, first, first + size), first + size
    assert cache.end_B.tolist() == [n + first for n in SHARED]
    found = toy.forward(
        WEIGHTS, own_tokens(first, 9), cache, kv_cache.empty_recent(CFG, 3, 6, jnp.float32), CFG
    )
    assert_is_the_reference(found, first)


@pytest.mark.slow
def test_rows_may_be_taken_and_cut_back_into_what_they_share() -> None:
    """The row that is cut into its share has no own token left, and goes on from there with other ones."""
    cache = kv_cache.gather_rows(own_slots(kv_cache.grow(shared_cache(), 16), 0, 5), jnp.asarray([1, 0, 0]))
    assert cache.end_B.tolist() == [12, 17, 17]
    cache = kv_cache.truncate(cache, jnp.asarray([10, 17, 4], jnp.int32))
    assert (cache.shared_B.tolist(), cache.length_B.tolist()) == ([7, 12, 4], [3, 5, 0])
    assert cache.prefix and cache.prefix.capacity == 16
    kept = [TEXTS[1][:10], TEXTS[0][:17], TEXTS[0][:4]]
    newest = np.asarray([[7], [8], [9]])
    tail = kv_cache.empty_recent(CFG, 3, 4, jnp.float32)
    logits_BTV = toy.forward(WEIGHTS, newest, cache, tail, CFG)[0]
    for row, text in enumerate(kept):
        expected = reference.forward(TENSORS, np.concatenate([text, newest[row]]), CFG)
        np.testing.assert_allclose(logits_BTV[row, 0], expected.logits_TV[-1], **CLOSE)


def test_what_lies_behind_a_share_is_never_seen() -> None:
    """Bit by bit: other rows may have it, this one does not."""
    cache = kv_cache.truncate(shared_cache(), jnp.asarray([7, 7, 0], jnp.int32))
    assert cache.prefix
    dirty = cache.prefix._replace(
        k_LKHS=tuple(k.at[..., 7:].set(3e4) for k in cache.prefix.k_LKHS),
        v_LKSH=tuple(v.at[..., 7:, :].set(-3e4) for v in cache.prefix.v_LKSH),
    )
    tail = kv_cache.empty_recent(CFG, 3, 4, jnp.float32)
    clean, found = (
        toy.forward(WEIGHTS, own_tokens(0, 2), one, tail, CFG)
        for one in (cache, cache._replace(prefix=dirty))
    )
    np.testing.assert_array_equal(found[0], clean[0])
    jax.tree.map(np.testing.assert_array_equal, found[3], clean[3])


# ----- sessions ---------------------------------------------------------------------------------------------

PROMPT = toy.random_tokens(CFG, 30, seed=3).tolist()
OPTIONS: dict[str, Any] = {"sampler": "temperature", "sampler_config": {"temp": 0.7}, "max_new_tokens": 70}


def forked(where: Any, n_rows: int, **options: Any) -> tuple[Session, list[Result]]:
    """A session with so many samples of the prompt, which was read once."""
    rows = Session(where, n_rows)
    rows.share(PROMPT[:-1])
    job = prepare(where, [PROMPT] * n_rows, **OPTIONS | options)
    return rows, collect(job, run(job, rows))


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"speculate": 3, "sampler_config": {"temp": 0.05}},
        {"branching": {"paths": 3, "depth": 2, "entropy": 6.0, "distance": 4}},
        {"backtracking": {"tokens": 4, "strategies": ["temperature"], "budget": 3}},
    ],
    ids=["plain", "drafts", "branches", "retreats"],
)
def test_samples_of_one_prompt_are_those_of_a_batch_with_a_cache_each(toy_model, options):
    """Longer than two tails, so that they have tokens in a cache of their own too."""
    rows, found = forked(toy_model, 3, **options)
    assert rows._cache.kv.prefix
    expected = generate(toy_model, [PROMPT] * 3, **OPTIONS | options)
    assert meshes.tokens(found) == meshes.tokens(expected)
    assert len({tuple(result.token_ids) for result in found}) > 1
    meshes.assert_close([r.records for r in found], [r.records for r in expected])


@pytest.mark.slow
def test_samples_on_a_mesh_are_those_of_one_device():
    there = toy.model_of(n_heads=8, n_kv_heads=2, vocab_size=264, tied_embeddings=False)
    expected = generate(there, [PROMPT] * 4, **OPTIONS)
    rows, found = forked(meshes.on_mesh(there, "data=2,model=4"), 4)
    meshes.assert_same(found, expected)
    kept = rows._cache.kv
    assert kept.prefix
    assert {meshes.shard_shape(k) for k in kept.prefix.k_LKHS} == {(1, 8, kept.prefix.capacity)}
    assert {meshes.shard_shape(k) for k in kept.k_LBKHS} == {(2, 1, 8, kept.capacity)}


@pytest.mark.slow
def test_paths_take_the_memory_of_one_until_they_have_a_cache_of_their_own(toy_model):
    rows, _ = forked(toy_model, 1)
    alone = sum(x.nbytes for x in jax.tree.leaves(rows._cache.kv))
    rows, _ = forked(toy_model, 8, max_new_tokens=20)
    together = sum(x.nbytes for x in jax.tree.leaves(rows._cache.kv))
    assert together - alone < 8 * 3 * 4  # numbers of rows


@pytest.mark.slow
def test_a_later_text_may_begin_anywhere_in_what_was_shared(toy_model, monkeypatch):
    """With more of it, less of it and nothing at all; only what is new is computed."""
    rows, found = forked(toy_model, 3)
    fed = []
    prefill = loop.prefill

    def counted(weights, tokens_BT, count_B, *rest, **options):
        fed.append(count_B.tolist())
        return prefill(weights, tokens_BT, count_B, *rest, **options)

    monkeypatch.setattr(loop, "prefill", counted)
    texts = [[*PROMPT, *found[0].token_ids[:40], 5], [*PROMPT[:20], 5], [5] * 4]
    for prompts, new in ((texts, [0, 0, 3]), ([[*text[:3], 9] for text in texts[::-1]], [3, 0, 3])):
        job = prepare(toy_model, prompts, **OPTIONS)
        answers = collect(job, run(job, rows))
        assert np.sum(fed, axis=0).tolist() == new
        fed.clear()
        assert meshes.tokens(answers) == meshes.tokens(generate(toy_model, prompts, **OPTIONS))
        fed.clear()


@pytest.mark.slow
def test_a_prefix_that_nobody_begins_with_is_dropped(toy_model):
    rows, _ = forked(toy_model, 3)
    job = prepare(toy_model, [[5, 6, 7]] * 3, **OPTIONS)
    answers = collect(job, run(job, rows))
    assert not rows._cache.kv.prefix
    assert meshes.tokens(answers) == meshes.tokens(generate(toy_model, [[5, 6, 7]] * 3, **OPTIONS))


def test_a_session_recovers_from_an_interrupt_of_a_share(toy_model, monkeypatch):
    """It is as before, but with an empty cache."""
    rows, job = Session(toy_model, 3), prepare(toy_model, [PROMPT] * 3, **OPTIONS)

    def torn(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "share_row", torn)
        with pytest.raises(KeyboardInterrupt):
            rows.share(PROMPT[:-1])
    assert rows.is_empty
    assert meshes.tokens(collect(job, run(job, rows))) == meshes.tokens(
        generate(toy_model, [PROMPT] * 3, **OPTIONS)
    )
