"""Attention in blocks against attention at once, and both against the formula in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropix.model import attention

B, K, G, H = 2, 2, 3, 8
blockwise_attention = jax.jit(attention.blockwise_attention)
attention_with_scores = jax.jit(attention.attention_with_scores)


Past = tuple[attention.LayerKV, ...]


def inputs(
    n_new: int,
    capacity: int,
    lengths: tuple[int, int],
    scale: float = 1.0,
    shared: tuple[int, tuple[int, int]] | None = None,
) -> tuple[jax.Array, Past, attention.LayerKV, jax.Array, tuple[jax.Array, ...]]:
    """Random arguments of `blockwise_attention`, for new tokens that follow each other behind so many in the cache.

    shared: capacity and lengths of what both rows begin with.
    """
    rng = np.random.default_rng(n_new + capacity)

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(shape), jnp.float32)

    past: list[attention.LayerKV] = [(normal(B, K, H, capacity), normal(B, K, capacity, H))]
    newest = normal(B, K, H, n_new), normal(B, K, n_new, H)
    parts = [(capacity, lengths)]
    if shared:
        past.insert(0, (normal(K, H, shared[0]), normal(K, shared[0], H)))
        parts.insert(0, shared)
    cached_BS = np.concatenate(
        [np.arange(n)[None] < np.asarray(filled)[:, None] for n, filled in parts], axis=1
    )
    visible_BTS = np.concatenate(
        [
            np.broadcast_to(cached_BS[:, None], (B, n_new, cached_BS.shape[1])),
            np.broadcast_to(np.tri(n_new, dtype=bool)[None], (B, n_new, n_new)),
        ],
        axis=-1,
    )
    return (
        scale * normal(B, K, G, n_new, H),
        tuple(past),
        newest,
        jnp.asarray(visible_BTS),
        tuple(jnp.asarray(max(filled)) for _, filled in parts),
    )


def exact(q_BKGTH: jax.Array, past: Past, newest: attention.LayerKV, visible_BTS: jax.Array) -> np.ndarray:
    """softmax(q·k/√H) v over the visible keys, in float64."""

    def of_every_row(x: jax.Array) -> np.ndarray:
        return np.broadcast_to(np.asarray(x, np.float64), (B, *x.shape[-3:]))

    k_BKHS, v_BKSH = (
        np.concatenate(list(map(of_every_row, parts)), axis=axis)
        for parts, axis in zip(zip(*past, newest, strict=True), (3, 2), strict=True)
    )
    score_BKGTS = np.einsum("BKGTH,BKHS->BKGTS", np.asarray(q_BKGTH, np.float64), k_BKHS) / H**0.5
    score_BKGTS = np.where(np.asarray(visible_BTS)[:, None, None], score_BKGTS, -np.inf)
    exp_BKGTS = np.exp(score_BKGTS - score_BKGTS.max(axis=-1, keepdims=True))
    return np.einsum("BKGTS,BKSH->BKGTH", exp_BKGTS / exp_BKGTS.sum(axis=-1, keepdims=True), v_BKSH)


@pytest.mark.parametrize(
    ("n_new", "capacity", "lengths", "shared"),
    [
        (1, 0, (0, 0), None),
        (64, 0, (0, 0), None),
        (8, 256, (256, 0), None),
        (128, 512, (512, 1), None),
        (192, 2048, (513, 1024), None),
        (65, 700, (3, 600), None),  # divided by no block
        (1, 0, (0, 0), (256, (200, 31))),
        (8, 256, (0, 17), (1024, (513, 1024))),
        (192, 512, (512, 3), (256, (0, 9))),
    ],
)
@pytest.mark.parametrize("scale", [1.0, 1e-3, 100.0], ids=["plain", "flat", "steep"])
def test_blocks_find_what_the_formula_says(
    n_new: int,
    capacity: int,
    lengths: tuple[int, int],
    shared: tuple[int, tuple[int, int]] | None,
    scale: float,
) -> None:
    """Rows that end in different blocks of the cache, and one that has nothing in it; rows that share more, less and
    nothing of a prefix. Scores up to ±700 in the steep case: an exponential without its peak taken off would
    overflow."""
    q_BKGTH, past, newest, visible_BTS, filled = inputs(n_new, capacity, lengths, scale, shared)
    expected = exact(q_BKGTH, past, newest, visible_BTS)
    close = {"rtol": 0, "atol": 2e-6 if scale <= 1 else 2e-4}  # a score of 700 has an error of 3e-5 itself
    np.testing.assert_allclose(
        blockwise_attention(q_BKGTH, past, newest, visible_BTS, filled), expected, **close
    )
    np.testing.assert_allclose(
        attention_with_scores(q_BKGTH, past, newest, visible_BTS)[0], expected, **close
    )


def test_blocks_that_no_row_has_filled_are_not_looked_at() -> None:
    """What they hold, even NaN, which would spoil every sum it is in, changes nothing."""
    q_BKGTH, past, newest, visible_BTS, filled = inputs(64, 2048, (500, 513))
    expected = blockwise_attention(q_BKGTH, past, newest, visible_BTS, filled)
    [(k_BKHS, v_BKSH)] = past
    past = ((k_BKHS.at[..., 1024:].set(jnp.nan), v_BKSH.at[:, :, 1024:].set(jnp.nan)),)
    np.testing.assert_array_equal(blockwise_attention(q_BKGTH, past, newest, visible_BTS, filled), expected)


def test_how_much_is_filled_does_not_compile_anew() -> None:
    traces = []

    @jax.jit
    def counted(*args: jax.Array) -> jax.Array:
        traces.append(1)
        return attention.blockwise_attention(*args)

    q_BKGTH, past, newest, visible_BTS, _ = inputs(8, 1024, (1, 1))
    for filled in (0, 1, 512, 1024):
        counted(q_BKGTH, past, newest, visible_BTS, (jnp.asarray(filled),))
    assert len(traces) == 1


def test_a_row_that_is_not_finite_spoils_no_other() -> None:
    q_BKGTH, past, newest, visible_BTS, filled = inputs(64, 512, (100, 400))
    expected = blockwise_attention(q_BKGTH, past, newest, visible_BTS, filled)
    found = blockwise_attention(q_BKGTH.at[1].set(jnp.nan), past, newest, visible_BTS, filled)
    np.testing.assert_array_equal(found[0], expected[0])
    assert np.isnan(found[1]).all()


@pytest.mark.parametrize("shared", [False, True])
def test_bfloat16_values_are_added_up_in_float32(shared: bool) -> None:
    """4,096 values of 1 with equal weights: in bfloat16, which counts in twos from 256 on, they would not make 1."""
    capacity = 4096
    zero = jnp.zeros((1, 1, 1, 8, H), jnp.bfloat16)
    own = jnp.zeros((1, 1, H, capacity), jnp.bfloat16), jnp.ones((1, 1, capacity, H), jnp.bfloat16)
    past = (tuple(x[0] for x in own), own) if shared else (own,)
    newest = jnp.zeros((1, 1, H, 8), jnp.bfloat16), jnp.ones((1, 1, 8, H), jnp.bfloat16)
    visible_BTS = jnp.ones((1, 8, len(past) * capacity + 8), bool)
    found = blockwise_attention(zero, past, newest, visible_BTS, (jnp.asarray(capacity),) * len(past))
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, jnp.ones_like(found))


def test_what_the_parts_add_is_rounded_once_in_bfloat16() -> None:
    """Half a unit in the last of 8 bits, and no more: a rounding for each part would be as much again for some."""
    half = jnp.bfloat16
    q_BKGTH, past, newest, visible_BTS, _ = inputs(1, 64, (64, 64), shared=(64, (64, 64)))
    pairs = [tuple(x.astype(half) for x in pair) for pair in (*past, newest)]
    mix_BKGTH, score_BKGTS = attention_with_scores(
        q_BKGTH.astype(half), tuple(pairs[:-1]), pairs[-1], visible_BTS
    )
    prob_BKGTS = np.asarray(jax.nn.softmax(score_BKGTS, axis=-1).astype(half), np.float64)
    v_BKSH = np.concatenate(
        [np.broadcast_to(np.asarray(v, np.float64), (B, *v.shape[-3:])) for _, v in pairs], 2
    )
    expected = np.einsum("BKGTS,BKSH->BKGTH", prob_BKGTS, v_BKSH)
    assert mix_BKGTH.dtype == half
    unit = 2.0 ** (np.floor(np.log2(np.abs(expected))) - 7)
    assert np.all(np.abs(np.asarray(mix_BKGTH, np.float64) - expected) <= 0.51 * unit)


@pytest.mark.slow
def test_a_soft_cap_is_of_every_score() -> None:
    """Of keys of the cache, of a prefix and of recent ones, in blocks or not."""
    q_BKGTH, past, newest, visible_BTS, filled = inputs(8, 64, (10, 40), shared=(16, (16, 16)))
    expected, score_BKGTS = attention.attention_with_scores(q_BKGTH, past, newest, visible_BTS, cap=0.5)
    _, plain_BKGTS = attention.attention_with_scores(q_BKGTH, past, newest, visible_BTS)
    np.testing.assert_allclose(score_BKGTS, 0.5 * np.tanh(plain_BKGTS / 0.5), atol=1e-6)
    found = attention.blockwise_attention(q_BKGTH, past, newest, visible_BTS, filled, cap=0.5)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
