"""Where branching forks, and which tokens it tries there."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from branches import STRATEGIES, V, context_of, info

from entropix import config, samplers
from entropix.config import BranchConfig
from entropix.decoding import branching
from entropix.decoding.branching import BranchState
from entropix.decoding.state import Program
from entropix.samplers.base import Candidates

# ----- what is tried ----------------------------------------------------------------------------------------


def first_tokens(
    logits: Sequence[float],
    offered: Sequence[tuple[int, float]],
    token: int,
    **options: Any,
) -> tuple[list[int], list[bool]]:
    cfg = BranchConfig(**{"paths": 4} | options)
    plan, numbers = branching.plan(cfg, STRATEGIES), branching.params(cfg)
    tokens, logits_C = zip(*offered, strict=True)
    candidates = Candidates(jnp.asarray([logits_C], jnp.float32), jnp.asarray([tokens], jnp.int32))
    token_BC, valid_BC = branching.first_tokens(
        plan, numbers, jnp.asarray([token], jnp.int32), candidates, context_of([logits])
    )
    return token_BC[0].tolist(), valid_BC[0].tolist()


EIGHT = [0.0, 5.0, 1.0, 4.0, 3.0, 2.0, -1.0, -2.0]


def test_the_drawn_token_comes_first_then_the_likeliest_others() -> None:
    offered = [(1, 5.0), (3, 4.0), (4, 3.0), (5, 2.0), (2, 1.0)]
    assert first_tokens(EIGHT, offered, token=4) == ([4, 1, 3, 5], [True] * 4)


def test_of_equally_likely_tokens_the_one_offered_first_is_tried() -> None:
    offered = [(6, 1.0), (2, 3.0), (7, 3.0), (5, 3.0), (1, 3.0)]
    assert first_tokens(EIGHT, offered, token=7) == ([7, 2, 5, 1], [True] * 4)


def test_only_what_the_filters_kept_is_tried_unless_all_may() -> None:
    offered = [(1, 5.0), (3, 4.0), (4, -np.inf), (5, -np.inf)]
    tokens, valid = first_tokens(EIGHT, offered, token=1)
    assert (tokens[:2], valid) == ([1, 3], [True, True, False, False])
    assert first_tokens(EIGHT, offered, token=1, among="all") == ([1, 3, 4, 5], [True] * 4)


@pytest.mark.parametrize("n_offered", [1, 2, 3])
def test_fewer_candidates_than_paths_are_fewer_paths(n_offered: int) -> None:
    """A path that there is not has the drawn token, whatever was filtered."""
    offered = [(1, 5.0), (3, 4.0), (4, 3.0)][:n_offered]
    tokens, valid = first_tokens(EIGHT, offered, token=1)
    assert valid == [True] * n_offered + [False] * (4 - n_offered)
    assert tokens == [1, 3, 4][:n_offered] + [1] * (4 - n_offered)


@pytest.mark.parametrize(
    ("bits", "growth", "expected"),
    [(0, 0.5, 2), (1, 1.0, 3), (2, 1.0, 4), (3, 1.0, 4), (3, 1.5, 4), (3, 2.0, 3), (3, 3.5, 2), (1, 0.0, 4)],
)
def test_a_growing_fork_has_a_path_more_for_every_so_much_entropy(
    bits: int, growth: float, expected: int
) -> None:
    """2^bits tokens are equally likely, so that the entropy is exact."""
    logits = [0.0 if token < 2**bits else -np.inf for token in range(8)]
    offered = [(token, -float(token)) for token in range(8)]
    assert sum(first_tokens(logits, offered, token=0, growth=growth)[1]) == expected


# ----- where it forks ---------------------------------------------------------------------------------------


def forks_at(
    cfg: BranchConfig,
    entropy: float = 1.0,
    margin: float = 0.5,
    count: int = 0,
    latest: int = 0,
    step: int = 10,
    **fields: Any,
) -> bool:
    plan, numbers = branching.plan(cfg, STRATEGIES), branching.params(cfg)
    metrics = context_of(np.zeros((1, V))).metrics
    metrics = metrics._replace(logits_entropy=jnp.asarray([entropy]), margin=jnp.asarray([margin]))
    forks = BranchState(*jnp.asarray([[count], [latest], [0]], jnp.int32))
    fields = {name: [value] for name, value in fields.items()}
    [answer] = branching.wanted(plan, numbers, forks, info(**fields), metrics, jnp.asarray([step], jnp.int32))
    return bool(answer)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_strategies_that_are_named_fork(strategy: str) -> None:
    cfg = BranchConfig(paths=2, strategies=("resample", "explore"))
    assert forks_at(cfg, strategy_B=STRATEGIES.index(strategy)) == (strategy in ("resample", "explore"))


def test_without_strategies_none_forks() -> None:
    cfg = BranchConfig(paths=2, strategies=())
    assert not any(forks_at(cfg, strategy_B=strategy) for strategy in range(len(STRATEGIES)))


def test_entropy_above_the_threshold_forks_and_0_is_off() -> None:
    cfg = BranchConfig(paths=2, entropy=2.0)
    assert [forks_at(cfg, entropy=bits) for bits in (1.9, 2.0, 2.1)] == [False, False, True]
    assert not forks_at(BranchConfig(paths=2), entropy=99.0)


def test_a_margin_below_the_threshold_forks_and_0_is_off() -> None:
    cfg = BranchConfig(paths=2, margin=0.25)
    assert [forks_at(cfg, margin=p) for p in (0.3, 0.25, 0.2)] == [False, False, True]
    assert not forks_at(BranchConfig(paths=2), margin=0.0)


def test_a_two_way_fork_is_seen_by_its_margin_where_varentropy_is_0() -> None:
    logits = [0.0, 0.0] + [-np.inf] * (V - 2)
    p = np.exp(jax.nn.log_softmax(jnp.asarray(logits)))[:2]
    assert np.var(-np.log2(p)) == 0
    metrics = context_of([logits]).metrics
    assert forks_at(
        BranchConfig(paths=2, margin=0.01),
        entropy=float(metrics.logits_entropy[0]),
        margin=float(metrics.margin[0]),
    )


def test_the_budget_is_the_most_forks_of_a_row() -> None:
    cfg = BranchConfig(paths=2, entropy=0.5, budget=2)
    assert [forks_at(cfg, count=n) for n in (0, 1, 2, 3)] == [True, True, False, False]
    assert not forks_at(BranchConfig(paths=2, entropy=0.5, budget=0))


def test_the_distance_is_from_one_fork_to_the_next() -> None:
    cfg = BranchConfig(paths=2, entropy=0.5, distance=4)
    assert [forks_at(cfg, count=1, latest=10, step=step) for step in (12, 13, 14)] == [False, False, True]


def test_no_distance_keeps_a_row_from_its_first_fork() -> None:
    assert forks_at(BranchConfig(paths=2, entropy=0.5, distance=2**31 - 1), step=0)


def test_an_inserted_token_never_forks() -> None:
    assert not forks_at(BranchConfig(paths=2, entropy=0.5), injected_B=True)


def test_where_nothing_else_was_kept_nothing_forks_unless_all_may_be_tried() -> None:
    assert not forks_at(BranchConfig(paths=2, entropy=0.5), kept_B=1)
    assert forks_at(BranchConfig(paths=2, entropy=0.5, among="all"), kept_B=1)


def test_a_fork_is_noted_in_its_own_row() -> None:
    forks = branching.no_forks(3)
    forks = branching.with_forks(forks, jnp.asarray([True, False, True]), jnp.asarray([5, 6, 7]))
    forks = branching.with_forks(forks, jnp.asarray([True, False, False]), jnp.asarray([8, 9, 9]))
    assert forks.count_B.tolist() == [2, 0, 1]
    assert (forks.latest_B[0], forks.latest_B[2]) == (8, 7)


# ----- small parts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("off", [{"paths": 1}, {"depth": 0}, {}])
def test_one_path_or_none_rolled_forward_is_no_plan(off: dict[str, int]) -> None:
    plan = branching.plan(BranchConfig(**off), STRATEGIES)
    assert plan is None


def test_a_plan_commits_a_whole_path_or_a_token() -> None:
    cfg = {"paths": 3, "depth": 5, "strategies": ("flow", "naught", "resample")}
    plan = branching.plan(BranchConfig(**cfg), STRATEGIES)
    assert plan is not None and plan.strategies == (0, 3)
    token = branching.plan(BranchConfig(**cfg, keep="token"), STRATEGIES)
    programs = (Program(toy.config(), samplers.SAMPLERS["entropix"], branching=one) for one in (plan, token))
    assert [program.lookahead for program in programs] == [5, 0]


def test_picking_takes_each_rows_own_path_along_any_axis() -> None:
    leaf = jnp.arange(2 * 6 * 3).reshape(2, 6, 3)  # D, B·C = 2·3, X
    best_B = jnp.asarray([2, 1])
    assert branching.pick(leaf, best_B, axis=1).tolist() == leaf[:, jnp.asarray([2, 4])].tolist()
    assert branching.pick(leaf[0], best_B).tolist() == leaf[0, jnp.asarray([2, 4])].tolist()


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("score", "logprob or margin or certainty or entropy"),
        ("keep", "path or token"),
        ("among", "kept or all"),
    ],
)
def test_an_unknown_choice_is_refused_with_those_there_are(name: str, known: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be {known}, got 'best'$"):
        config.check(BranchConfig(**{name: "best"}))
