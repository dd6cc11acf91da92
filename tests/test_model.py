"""The forward pass against an independent one, and everything that must not change its results."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
import toy
from safetensors.numpy import load_file

from entropix import metrics, presets
from entropix.checkpoint.loading import Model
from entropix.config import ModelConfig, RopeScaling
from entropix.metrics import Metrics
from entropix.model import kv_cache, rope, transformer

CFG = toy.config()
WEIGHTS = toy.random_weights(CFG)
TOKENS = toy.random_tokens(CFG, 2, 17)
EMPTY = kv_cache.empty_cache(CFG, 2, 32, jnp.float32)

# Logits of the toy are about ±4 and scores about ±6; float32 keeps 7 digits through two layers.
CLOSE = {"rtol": 0, "atol": 2e-5}


def assert_metrics_close(actual: Metrics, expected: Metrics) -> None:
    for name in Metrics._fields:
        np.testing.assert_allclose(getattr(actual, name), getattr(expected, name), **CLOSE, err_msg=name)


# ----- against the reference --------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", toy.VARIANTS)
def test_logits_scores_and_metrics_equal_the_reference(variant: str) -> None:
    cfg = toy.config(**toy.VARIANTS[variant])
    weights = toy.random_weights(cfg, seed=1)
    logits_BTV, _, attention, measured = toy.read(weights, TOKENS, cfg)
    for row, tokens_T in enumerate(TOKENS):
        expected = reference.forward(reference.named_tensors(weights, cfg), tokens_T, cfg)
        np.testing.assert_allclose(logits_BTV[row], expected.logits_TV, **CLOSE)
        for t in range(len(tokens_T)):
            seen = expected.scores_LNTT[:, :, t, : t + 1]
            np.testing.assert_allclose(toy.visible_scores(attention, row, t), seen, **CLOSE)
            for name, value in reference.metrics(expected.logits_TV[t], seen).items():
                np.testing.assert_allclose(
                    getattr(measured, name)[row, t], value, **CLOSE, err_msg=f"{name} at {t}"
                )


def test_norm_epsilon_is_the_configs() -> None:
    """Activations of the toy are about 1, so an epsilon of 0.5 must show, and show as in the reference."""
    cfg = toy.config(norm_eps=0.5)
    logits_BTV = toy.read(WEIGHTS, TOKENS, cfg)[0]
    expected = reference.forward(reference.named_tensors(WEIGHTS, cfg), TOKENS[0], cfg)
    np.testing.assert_allclose(logits_BTV[0], expected.logits_TV, **CLOSE)
    assert np.abs(logits_BTV - toy.read(WEIGHTS, TOKENS, CFG)[0]).max() > 0.1


def test_rms_norm_in_closed_form() -> None:
    cfg = toy.config(norm_eps=0.25)
    x_BTD, weight_D = jnp.asarray([[[3.0, 4.0], [0.0, 0.0]]]), jnp.asarray([1.0, 2.0])
    scale = 1 / math.sqrt(12.5 + 0.25)
    expected = [[[3 * scale, 8 * scale], [0.0, 0.0]]]
    np.testing.assert_allclose(transformer.rms_norm(x_BTD, weight_D, cfg), expected, rtol=1e-6)


@pytest.mark.real
def test_real_logits_are_within_two_thousandths_of_float64(real_model: Model) -> None:
    """The metrics fit too. The reference reads the checkpoint's file itself: the loader is tested along."""
    tokens_T = np.asarray(real_model.tokenizer.encode(REAL_TEXT), np.int32)
    assert 40 <= len(tokens_T) <= 60
    cfg = real_model.config
    logits_BTV, _, attention, measured = toy.read(real_model.weights, tokens_T[None], cfg, capacity=1)
    expected = reference.forward(load_file(real_model.folder / "model.safetensors"), tokens_T, cfg)
    assert np.abs(logits_BTV[0] - expected.logits_TV).max() <= 2e-3
    last = len(tokens_T) - 1
    np.testing.assert_allclose(
        toy.visible_scores(attention, 0, last), expected.scores_LNTT[:, :, last], atol=5e-4
    )
    for name, value in reference.metrics(expected.logits_TV[last], expected.scores_LNTT[:, :, last]).items():
        np.testing.assert_allclose(getattr(measured, name)[0, last], value, rtol=2e-4, err_msg=name)


REAL_TEXT = """\
The sky is blue because air scatters short wavelengths of sunlight more strongly than long ones. In 1871 Lord
Rayleigh showed that the effect grows with the 4th power of the frequency."""


# ----- what must not matter ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pieces", [[1] * 17, [4, 4, 1, 4, 4], [16, 1]], ids=["stepwise", "chunks", "all but the last"]
)
def test_reading_in_pieces_changes_neither_logits_nor_metrics(pieces: list[int]) -> None:
    whole_BTV, _, _, whole = toy.read(WEIGHTS, TOKENS, CFG)
    logits_BTV, measured = toy.read_in_pieces(WEIGHTS, TOKENS, pieces, CFG)
    np.testing.assert_allclose(logits_BTV, whole_BTV, **CLOSE)
    assert_metrics_close(measured, whole)


def test_steps_that_share_a_tail_equal_one_pass() -> None:
    """As a decode loop runs: the cache holds the prompt, the tail fills token by token without a commit."""
    whole_BTV, tail, _, whole = toy.read(WEIGHTS, TOKENS, CFG)
    cache = toy.commit(EMPTY, tail, jnp.full(2, 9, jnp.int32))
    tail = kv_cache.empty_recent(CFG, 2, 12, jnp.float32)
    for t in range(9, 17):
        logits_BTV, tail, _, measured = toy.forward(WEIGHTS, TOKENS[:, t : t + 1], cache, tail, CFG)
        np.testing.assert_allclose(logits_BTV[:, 0], whole_BTV[:, t], **CLOSE)
        assert_metrics_close(measured, jax.tree.map(lambda metric_BT, t=t: metric_BT[:, t : t + 1], whole))
    assert tail.used_B.tolist() == [8] * len(tail.used_B)


@pytest.mark.parametrize(("capacity", "spare"), [(1, 0), (128, 40)])
def test_capacity_of_cache_and_tail_changes_nothing(capacity: int, spare: int) -> None:
    """Attention metrics over empty slots would grow with log2 of their number."""
    expected_BTV, _, _, expected = toy.read(WEIGHTS, TOKENS, CFG)
    logits_BTV, _, _, measured = toy.read(WEIGHTS, TOKENS, CFG, capacity, spare)
    np.testing.assert_allclose(logits_BTV, expected_BTV, **CLOSE)
    assert_metrics_close(measured, expected)


def test_leftovers_in_empty_slots_are_never_seen() -> None:
    """Bit by bit: whatever finite numbers empty slots hold, they have no part in any sum."""
    count_B = jnp.asarray([5, 3], jnp.int32)
    cache = toy.commit(EMPTY, toy.read(WEIGHTS, TOKENS, CFG)[1], count_B)
    empty_BS = np.arange(cache.capacity)[None] >= np.asarray(count_B)[:, None]

    def outcome(leftover: float) -> tuple[jax.Array, Metrics]:
        dirty = kv_cache.KVCache(
            tuple(jnp.where(empty_BS[:, None, None, :], leftover, k) for k in cache.k_LBKHS),
            tuple(jnp.where(empty_BS[:, None, :, None], leftover, v) for v in cache.v_LBKSH),
            count_B,
        )
        tail = kv_cache.empty_recent(CFG, 2, 12, jnp.float32)
        tail = jax.tree.map(lambda x: jnp.full_like(x, leftover) if x.ndim > 1 else x, tail)
        logits_BTV, _, _, measured = toy.forward(WEIGHTS, TOKENS[:, :1], dirty, tail, CFG)
        return logits_BTV, measured

    jax.tree.map(np.testing.assert_array_equal, outcome(-3e4), outcome(0.0))


def test_rows_of_different_lengths_each_go_on_at_their_own_place() -> None:
    """Prompts in one padded array, of which only each row's own tokens count; then a step of every row.
    Padding that is attended to, or a position that is skipped, would show."""
    whole_BTV, tail, _, whole = toy.read(WEIGHTS, TOKENS, CFG)
    lengths = [5, 16]
    cache = toy.commit(EMPTY, tail, jnp.asarray(lengths, jnp.int32))
    newest_BT = np.stack([TOKENS[row, n : n + 1] for row, n in enumerate(lengths)])
    tail = kv_cache.empty_recent(CFG, 2, 12, jnp.float32)
    logits_BTV, _, attention, measured = toy.forward(WEIGHTS, newest_BT, cache, tail, CFG)
    assert np.asarray(attention.visible_BTS).sum(-1).tolist() == [[6], [17]]
    for row, n in enumerate(lengths):
        np.testing.assert_allclose(logits_BTV[row, 0], whole_BTV[row, n], **CLOSE)
        assert_metrics_close(
            jax.tree.map(lambda metric_BT, row=row: metric_BT[row, 0], measured),
            jax.tree.map(lambda metric_BT, row=row, n=n: metric_BT[row, n], whole),
        )


def test_neighbours_change_nothing_bit_by_bit() -> None:
    """Not even when they are NaN: rows share no sum."""
    cfg, poisoned = toy.config(tied_embeddings=False), 7
    weights = toy.random_weights(cfg)
    weights = weights.replace(embed_VD=weights.embed_VD.at[poisoned].set(jnp.nan))
    first_BT = TOKENS // 2 + poisoned + 1
    second_BT = first_BT.copy()
    second_BT[1, 4] = poisoned
    first, second = (toy.read(weights, tokens_BT, cfg) for tokens_BT in (first_BT, second_BT))
    assert np.isnan(second[0][1, 4:]).all()
    assert np.isfinite(second[0][0]).all()
    np.testing.assert_array_equal(first[0][0], second[0][0])
    for name in Metrics._fields:
        np.testing.assert_array_equal(getattr(first[3], name)[0], getattr(second[3], name)[0], err_msg=name)


def test_a_row_alone_equals_the_row_in_a_batch() -> None:
    batch_BTV, _, _, batch = toy.read(WEIGHTS, TOKENS, CFG)
    alone_BTV, _, _, alone = toy.read(WEIGHTS, TOKENS[1:], CFG)
    np.testing.assert_allclose(alone_BTV[0], batch_BTV[1], **CLOSE)
    assert_metrics_close(alone, jax.tree.map(lambda metric_BT: metric_BT[1:], batch))


def test_later_tokens_change_nothing_before_them() -> None:
    changed = TOKENS.copy()
    changed[:, 9] = (changed[:, 9] + 1) % CFG.vocab_size
    first, second = toy.read(WEIGHTS, TOKENS, CFG), toy.read(WEIGHTS, changed, CFG)
    np.testing.assert_array_equal(first[0][:, :9], second[0][:, :9])
    for before, after in zip(first[3], second[3], strict=True):
        np.testing.assert_array_equal(before[:, :9], after[:, :9])
    assert np.all(np.abs(first[0][:, 9:] - second[0][:, 9:]).max(axis=-1) > 1e-3)


# ----- cache ------------------------------------------------------------------------------------------------


def test_grow_keeps_what_is_visible() -> None:
    tail = toy.read(WEIGHTS, TOKENS, CFG)[1]
    small = toy.commit(EMPTY, tail, jnp.asarray([16, 11], jnp.int32))
    large = kv_cache.grow(small, 50)
    assert (small.capacity, large.capacity) == (32, 50)
    np.testing.assert_array_equal(large.length_B, small.length_B)
    tail = kv_cache.empty_recent(CFG, 2, 12, jnp.float32)
    expected, actual = (toy.forward(WEIGHTS, TOKENS[:, 16:], cache, tail, CFG) for cache in (small, large))
    np.testing.assert_allclose(actual[0], expected[0], **CLOSE)
    assert_metrics_close(actual[3], expected[3])


def test_grow_refuses_to_shrink() -> None:
    with pytest.raises(AssertionError):
        kv_cache.grow(EMPTY, EMPTY.capacity - 1)


def test_commit_appends_at_each_rows_own_length() -> None:
    """Slot j of a row holds its j-th token: the same keys and values as when the row was read in one go."""
    cache = EMPTY
    counts = [(4, 2), (3, 4), (0, 3)]
    start = np.zeros(2, np.int32)
    for count in counts:
        piece_BT = np.stack([TOKENS[row, at : at + 4] for row, at in enumerate(start)])
        tail = toy.forward(WEIGHTS, piece_BT, cache, kv_cache.empty_recent(CFG, 2, 4, jnp.float32), CFG)[1]
        cache = toy.commit(cache, tail, jnp.asarray(count, jnp.int32))
        start += count
    assert cache.length_B.tolist() == [7, 9]
    whole = toy.read(WEIGHTS, TOKENS, CFG)[1]
    for row, n in enumerate((7, 9)):
        for layer in range(CFG.n_layers):
            np.testing.assert_allclose(
                cache.k_LBKHS[layer][row, :, :, :n], whole.k_LBKHR[layer][row, :, :, :n], **CLOSE
            )
            np.testing.assert_allclose(
                cache.v_LBKSH[layer][row, :, :n], whole.v_LBKRH[layer][row, :, :n], **CLOSE
            )


# ----- rotary embedding -------------------------------------------------------------------------------------


def test_rotary_frequencies_are_powers_of_theta() -> None:
    cfg = toy.config(head_dim=8, rope_theta=10_000.0)
    np.testing.assert_allclose(rope.rope_frequencies(cfg), [1.0, 0.1, 0.01, 0.001], rtol=1e-12)


def test_scaled_rotary_frequencies_by_hand() -> None:
    """Wavelengths 2π·10^i: with an original context of 1,024, those under 256 stay, those over 1,024 are divided
    by 8, and 2π·100 = 628 is at (1024/628 - 1) / (4 - 1) = 0.20991 of the way from the latter to the former."""
    keep = (1024 / (200 * math.pi) - 1) / 3
    assert math.isclose(keep, 0.20991, rel_tol=1e-4)
    expected = [1.0, 0.1, 0.01 * (keep + (1 - keep) / 8), 0.001 / 8]
    np.testing.assert_allclose(
        rope.rope_frequencies(toy.config(rope_scaling=toy.SCALING)), expected, rtol=1e-12
    )


@pytest.mark.parametrize("name", presets.preset_names("models"))
def test_rotary_frequencies_of_every_model_follow_the_published_rule(name: str) -> None:
    cfg = presets.read_model(name)
    np.testing.assert_allclose(rope.rope_frequencies(cfg), reference.frequencies(cfg), rtol=1e-12)


def test_a_scaled_pair_exactly_on_a_boundary_is_on_both_sides() -> None:
    """At wavelength original/high the blend keeps all, at original/low nothing: the rule has no jumps."""
    for low, high, factor in [(1.0, 4.0, 8.0), (0.5, 2.0, 32.0)]:
        for border, kept in [(high, 1.0), (low, 1 / factor)]:
            wavelength = 2 * math.pi * 10_000.0 ** (2 / 4)  # of the second pair of four components
            scaling = RopeScaling(factor, low, high, original_context_length=round(border * wavelength))
            cfg = toy.config(head_dim=4, rope_scaling=scaling)
            np.testing.assert_allclose(rope.rope_frequencies(cfg)[1], 0.01 * kept, rtol=5e-3)


def test_rotation_makes_scores_depend_on_distance_alone() -> None:
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.standard_normal((1, 1, 8)), jnp.float32) for _ in range(2))

    def score(query_at: int, key_at: int) -> float:
        rotated = [
            rope.rotate(x, *rope.rope_table(jnp.asarray([[at]], jnp.int32), CFG))
            for x, at in ((q, query_at), (k, key_at))
        ]
        return float(jnp.sum(rotated[0] * rotated[1]))

    assert math.isclose(score(5, 2), score(105, 102), abs_tol=1e-4)
    assert math.isclose(score(3, 3), float(jnp.sum(q * k)), abs_tol=1e-5)
    assert abs(score(5, 2) - score(2, 5)) > 1e-2


# ----- dtypes and compilation -------------------------------------------------------------------------------


def test_bfloat16_weights_and_cache_still_give_float32_logits_scores_and_metrics() -> None:
    weights = toy.random_weights(CFG, dtype=jnp.bfloat16)
    logits_BTV, tail, attention, measured = toy.read(weights, TOKENS, CFG, dtype=jnp.bfloat16)
    assert {x.dtype for x in (logits_BTV, attention.scores_LBNTS, *measured)} == {jnp.dtype(jnp.float32)}
    assert {x.dtype for x in (*tail.k_LBKHR, *tail.v_LBKRH)} == {jnp.dtype(jnp.bfloat16)}
    expected = reference.forward(reference.named_tensors(weights, CFG), TOKENS[0], CFG)
    error = np.abs(logits_BTV[0] - expected.logits_TV)
    assert 1e-4 < error.max() < 0.15  # bfloat16 keeps 8 bits: 0.4 % of logits up to 4, a few times over


def test_other_tokens_and_lengths_do_not_compile_anew() -> None:
    traces = []

    @jax.jit
    def step(tokens_BT: jax.Array, cache: kv_cache.KVCache, tail: kv_cache.RecentKV) -> kv_cache.RecentKV:
        traces.append(tokens_BT.shape)
        return transformer.forward(WEIGHTS, tokens_BT, cache, tail, CFG)[1]

    cache = kv_cache.empty_cache(CFG, 2, 32, jnp.float32)
    for length in (0, 3, 20):
        tail = kv_cache.empty_recent(CFG, 2, 4, jnp.float32)
        for t in range(4):
            tail = step(
                jnp.asarray(TOKENS[:, t : t + 1]),
                cache._replace(length_B=jnp.full(2, length, jnp.int32)),
                tail,
            )
    assert traces == [(2, 1)]


def test_the_same_architecture_is_the_same_static_argument() -> None:
    """Read twice, a config is equal and hashes equal, so that `jit` finds its program again."""
    again = dataclasses.replace(CFG)
    assert again is not CFG and hash(again) == hash(CFG) and again == CFG
    assert isinstance(CFG, ModelConfig) and toy.config(norm_eps=1e-6) != CFG


def test_every_layer_has_its_part_in_the_attention_metrics() -> None:
    """Taking the first layer's scores away must change them as much as taking the last one's."""
    _, _, attention, whole = toy.read(WEIGHTS, TOKENS, CFG)
    logits_BTV = jnp.zeros((2, 17, 4))
    for layer in range(CFG.n_layers):
        flat = attention._replace(scores_LBNTS=attention.scores_LBNTS.at[layer].set(0.0))
        assert np.all(
            jax.jit(metrics.measure)(logits_BTV, flat).attn_entropy[:, 1:] > whole.attn_entropy[:, 1:] + 1e-3
        )
