"""Tokens and numbers are the same whatever JAX's environment asks for."""

import contextlib
from typing import Any

import jax
import pytest
import toy

import entropix
from entropix import backend
from entropix.checkpoint.loading import Model

OPTIONS: dict[str, Any] = {"seed": 1, "max_new_tokens": 6, "sampler_config": {"high_vent_thresh": 2.0}}


@pytest.fixture(scope="module")
def usual(toy_model: Model) -> list[list[int]]:
    return tokens(toy_model)


def tokens(model: Model) -> list[list[int]]:
    return [result.token_ids for result in entropix.generate(model, ["Why?", "ab" * 9], **OPTIONS)]


@contextlib.contextmanager
def seed_offset(n: int) -> Any:
    jax.config.update("jax_random_seed_offset", n)
    yield
    jax.config.update("jax_random_seed_offset", 0)


@pytest.mark.parametrize(
    "setting",
    [
        lambda: jax.default_prng_impl("rbg"),
        lambda: jax.enable_x64(True),
        lambda: jax.threefry_partitionable(False),
        lambda: jax.debug_nans(True),
        lambda: jax.transfer_guard("disallow"),
        lambda: seed_offset(5),
    ],
    ids=["generator", "64 bits", "partitionable", "NaN", "transfers", "seeds"],
)
def test_a_setting_of_jax_changes_no_token(toy_model: Model, usual: list[list[int]], setting: Any) -> None:
    with setting():
        assert tokens(toy_model) == usual


def test_the_precision_of_products_is_recorded() -> None:
    """On accelerators it changes logits, as those who set it wish."""
    assert backend.matmul_precision() is None
    with jax.default_matmul_precision("highest"):
        assert backend.matmul_precision() == "highest"


def test_a_row_whose_logits_are_not_finite_still_ends_by_itself_where_nan_is_an_error_elsewhere() -> None:
    broken = toy.with_a_broken_token(77)
    with jax.debug_nans(True):
        [result] = entropix.generate(broken, [1, 77], max_new_tokens=4)
    assert result.finish == entropix.FinishReason.NAN
