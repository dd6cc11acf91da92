"""The policy of branching, on a table instead of a model: how paths grow, and which is kept."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from branches import STRATEGIES, V, context_of, info

from entropix import samplers
from entropix.config import BranchConfig
from entropix.decoding import branching
from entropix.decoding.sample_step import sample_step
from entropix.decoding.state import BatchInputs, BranchParams, BranchPlan, Paths, Program, RowState
from entropix.metrics import Metrics
from entropix.results import FinishReason
from entropix.samplers.base import SamplerInputs, full_vocabulary
from entropix.samplers.entropix import SamplerConfig

# The dynamics: after each token the likeliest next one and its probability; all others are equally likely. After token
# 0, the fork, 1, 2 and 3 may follow. The product of a path's probabilities is largest for the path of token 1 at depth
# 1 (0.45), of token 2 at depth 2 (0.216) and of token 3 at depth 3 (0.16).
NEXT = {1: (4, 0.9), 4: (5, 0.2), 5: (6, 0.5)}
NEXT |= {2: (7, 0.8), 7: (8, 0.9), 8: (9, 0.3)}
NEXT |= {3: (10, 0.9), 10: (11, 0.9), 11: (12, 0.99)}
FORK = {1: 0.5, 2: 0.3, 3: 0.2}


def table() -> np.ndarray:
    """logits_VV: row t is what follows token t."""
    p = np.full((V, V), 1 / V)
    for token, (follower, likely) in NEXT.items():
        p[token] = (1 - likely) / (V - 1)
        p[token, follower] = likely
    p[0] = 1e-30
    for token, likely in FORK.items():
        p[0, token] = likely
    return np.log(p).astype(np.float32)


def read(table_VV: jax.Array, token_BC: jax.Array, world: Any) -> tuple[SamplerInputs, Any]:
    """The rollout function: the table at the newest token of every path. There is nothing to remember."""
    return context_of(table_VV[token_BC.reshape(-1)]), world


def tree(
    table_VV: np.ndarray,
    rows: Sequence[int] = (0,),
    stop: int = 999,
    limit: int = 99,
    **options: Any,
) -> tuple[Paths, RowState]:
    """(all paths of a fork after each row's token, the ends of the best ones), greedy from there on."""
    cfg = BranchConfig(**{"paths": 3, "depth": 2, "among": "all"} | options)
    plan, params = branching.plan(cfg, STRATEGIES), branching.params(cfg)
    assert plan is not None
    return _tree(jnp.asarray(table_VV, jnp.float32), jnp.asarray(rows), stop, limit, params, plan)


@partial(jax.jit, static_argnames="plan")
def _tree(
    table_VV: jax.Array, row_B: jax.Array, stop: int, limit: int, params: BranchParams, plan: BranchPlan
) -> tuple[Paths, RowState]:
    context = context_of(table_VV[row_B])
    drawn_B = jnp.argmax(context.logits_BV, axis=-1).astype(jnp.int32)
    token_BC, valid_BC = branching.first_tokens(
        plan, params, drawn_B, full_vocabulary(context.logits_BV), context
    )
    n = token_BC.size
    request = BatchInputs(
        key_B=jax.random.split(jax.random.key(0), n),
        limit_B=jnp.full(n, limit),
        limit_reason_B=jnp.full(n, FinishReason.LENGTH),
        stop_E=jnp.asarray([stop], jnp.int32),
    )
    opened = RowState(
        token_B=token_BC.reshape(-1),
        step_B=jnp.ones(n, jnp.int32),
        finish_B=jnp.where(token_BC.reshape(-1) == stop, FinishReason.STOP_TOKEN, FinishReason.RUNNING),
        sampler=(),
    )
    program = Program(toy.config(), samplers.get("greedy"))
    ends, _, records = branching.roll(
        plan,
        opened,
        partial(read, table_VV),
        lambda rows, seen: sample_step(request, rows, seen, SamplerConfig(), program)[:2],
        (),
    )

    def column(first_BC: Any, rest_DX: Any) -> jax.Array:
        rest_BCD = jnp.moveaxis(rest_DX.reshape(plan.depth, len(row_B), plan.paths), 0, -1)
        return jnp.concatenate([first_BC[..., None], rest_BCD], axis=-1)

    log_p_BV = jax.nn.log_softmax(context.logits_BV)
    metrics = Metrics(
        *(
            column(jnp.broadcast_to(at_fork_B[:, None], token_BC.shape), rest)
            for at_fork_B, rest in zip(context.metrics, records.metrics, strict=True)
        )
    )
    logprob_BCD = column(jnp.take_along_axis(log_p_BV, token_BC, axis=1), records.info.logprob_B)
    live_BCD = column(valid_BC, records.live_B) & valid_BC[..., None]
    broken_BC = (ends.finish_B == FinishReason.NAN).reshape(-1, plan.paths)
    score_BC, best_B = branching.score_paths(
        plan, params, valid_BC, broken_BC, live_BCD, info()._replace(logprob_B=logprob_BCD), metrics
    )
    paths = Paths(
        forked_B=valid_BC[:, 1],
        best_B=best_B,
        score_BC=score_BC,
        token_BCD=column(token_BC, records.token_B),
        logprob_BCD=logprob_BCD,
        live_BCD=live_BCD,
    )
    return paths, jax.tree.map(lambda leaf: branching.pick(leaf, best_B), ends)


def texts(paths: Paths, row: int = 0) -> list[list[int]]:
    return [t[live].tolist() for t, live in zip(paths.token_BCD[row], paths.live_BCD[row], strict=True)]


# ----- golden trees -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "expected", "best"),
    [
        (1, [[1, 4], [2, 7], [3, 10]], 0),
        (2, [[1, 4, 5], [2, 7, 8], [3, 10, 11]], 1),
        (3, [[1, 4, 5, 6], [2, 7, 8, 9], [3, 10, 11, 12]], 2),
    ],
)
def test_the_best_branch_shows_at_its_depth(depth: int, expected: list[list[int]], best: int) -> None:
    paths, ends = tree(table(), depth=depth)
    assert texts(paths) == expected
    assert paths.best_B.tolist() == [best]
    assert ends.token_B.tolist() == [expected[best][-1]]
    assert ends.step_B.tolist() == [1 + depth]
    for path, score in zip(expected, paths.score_BC[0].tolist(), strict=True):
        p = [FORK[path[0]], *(NEXT[token][1] for token in path[:-1])]
        assert score == pytest.approx(math.fsum(map(math.log, p)) / (depth + 1), rel=1e-6)


def test_the_tree_of_the_default_score_in_full() -> None:
    paths, _ = tree(table(), depth=3)
    np.testing.assert_allclose(
        paths.logprob_BCD[0],
        np.log([[0.5, 0.9, 0.2, 0.5], [0.3, 0.8, 0.9, 0.3], [0.2, 0.9, 0.9, 0.99]]),
        rtol=1e-5,
    )
    np.testing.assert_allclose(paths.score_BC[0], [-0.775_273, -0.684_112, -0.457_552], rtol=1e-5)


def test_rows_do_not_see_each_other() -> None:
    """Each row's tree alone is the one it has in a batch."""
    both, ends = tree(table(), rows=(0, 4))
    for row, token in enumerate((0, 4)):
        alone, end = tree(table(), rows=(token,))
        for ours, theirs in zip(both, alone, strict=True):
            np.testing.assert_array_equal(ours[row], theirs[0])
        assert ends.token_B[row] == end.token_B[0]


# ----- scores -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", ["logprob", "margin", "certainty", "entropy"])
def test_scores_are_means_over_a_path_by_hand(score: str) -> None:
    """Every distribution of the table has one likely token with p, and V - 1 others with q = (1 - p) / (V - 1)."""

    def numbers(p: float, chosen: float | None = None) -> float:
        q = (1 - p) / (V - 1)
        bits = -p * math.log2(p) - (1 - p) * math.log2(q)
        return {
            "logprob": math.log(chosen or p),
            "margin": p - q,
            "certainty": -math.fsum([math.log(V * p), (V - 1) * math.log(V * q)]) / V,
            "entropy": math.log(chosen or p) - 0.25 * bits,
        }[score]

    paths, _ = tree(table(), rows=(4,), paths=2, depth=2, score=score, penalty=0.25)
    assert texts(paths) == [[5, 6, 0], [0, 1, 4]]  # of the others, the first
    uniform, q = numbers(1 / V), (1 - 0.2) / (V - 1)
    drawn = (numbers(0.2) + numbers(0.5) + uniform) / 3
    np.testing.assert_allclose(paths.score_BC[0, 0], drawn, rtol=1e-5, atol=1e-6)
    at_fork = {
        "logprob": math.log(FORK[1]),
        "margin": FORK[1] - FORK[2],
        "certainty": -(math.fsum(math.log(V * p) for p in FORK.values()) + 13 * math.log(V * 1e-30)) / V,
        "entropy": math.log(FORK[1]) + 0.25 * math.fsum(p * math.log2(p) for p in FORK.values()),
    }[score]
    other = (numbers(0.2, chosen=q) + at_fork + numbers(0.9)) / 3
    np.testing.assert_allclose(paths.score_BC[0, 1], other, rtol=1e-5, atol=1e-6)


def test_the_entropy_penalty_decides_between_paths_of_equal_probability() -> None:
    """The likeliest token after 1 and 2 has half of p; the rest of it has one token after 1, and all after 2."""
    p = np.full((V, V), 0.5 / (V - 1))
    p[:, 4] = 0.5
    p[1] = [1e-30] * 4 + [0.5, 0.5 - 14e-30] + [1e-30] * 10
    p[0] = [1e-30, 0.4, 0.6] + [1e-30] * 13
    logits_VV = np.log(p)
    assert texts(tree(logits_VV, paths=2, depth=1)[0])[0] == [2, 4]
    assert tree(logits_VV, paths=2, depth=1, score="entropy", penalty=0.0)[0].best_B.tolist() == [0]
    assert tree(logits_VV, paths=2, depth=1, score="entropy", penalty=1.0)[0].best_B.tolist() == [1]


@pytest.mark.parametrize("score", ["logprob", "margin", "certainty", "entropy"])
def test_of_equal_paths_the_drawn_token_is_kept(score: str) -> None:
    """All logits are equal, everywhere."""
    paths, _ = tree(np.zeros((V, V), np.float32), score=score)
    assert len(set(paths.score_BC[0].tolist())) == 1
    assert paths.best_B.tolist() == [0]


# ----- paths that end ---------------------------------------------------------------------------------------


def test_a_path_that_stops_is_scored_by_the_tokens_it_has() -> None:
    paths, ends = tree(table(), depth=3, stop=10)
    assert texts(paths) == [[1, 4, 5, 6], [2, 7, 8, 9], [3, 10]]
    assert paths.score_BC[0, 2] == pytest.approx((math.log(0.2) + math.log(0.9)) / 2, rel=1e-6)
    assert paths.best_B.tolist() == [1]
    assert ends.finish_B.tolist() == [FinishReason.RUNNING]


def test_a_path_that_opens_with_a_stop_token_has_one_token() -> None:
    paths, ends = tree(table(), depth=3, stop=1)
    assert texts(paths) == [[1], [2, 7, 8, 9], [3, 10, 11, 12]]
    assert paths.score_BC[0, 0] == pytest.approx(math.log(0.5), rel=1e-6)
    assert (paths.best_B.tolist(), ends.finish_B.tolist()) == ([2], [FinishReason.RUNNING])


def test_a_kept_path_that_stopped_ends_its_row() -> None:
    paths, ends = tree(table(), depth=3, stop=11)
    assert texts(paths)[2] == [3, 10, 11]
    assert paths.best_B.tolist() == [2]
    assert (ends.token_B.tolist(), ends.finish_B.tolist()) == ([11], [FinishReason.STOP_TOKEN])


def test_the_limit_ends_all_paths() -> None:
    paths, ends = tree(table(), depth=3, limit=3)
    assert texts(paths) == [[1, 4, 5], [2, 7, 8], [3, 10, 11]]
    assert paths.best_B.tolist() == [1], "the best at depth 2"
    assert ends.finish_B.tolist() == [FinishReason.LENGTH]


def test_a_path_whose_logits_are_not_finite_is_never_kept() -> None:
    broken = table()
    broken[10] = np.nan
    paths, ends = tree(broken, depth=3)
    assert paths.score_BC[0, 2] == -np.inf
    assert paths.best_B.tolist() == [1]
    assert ends.finish_B.tolist() == [FinishReason.RUNNING]


def test_if_all_paths_broke_down_the_drawn_token_is_kept() -> None:
    broken = table()
    broken[[1, 2, 3]] = np.nan
    paths, _ = tree(broken)
    assert paths.score_BC.tolist() == [[-np.inf] * 3]
    assert paths.best_B.tolist() == [0]
