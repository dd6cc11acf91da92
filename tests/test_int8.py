"""Matrices in int8: what they stand for is near what is stored, and products are those of what they stand for."""

import dataclasses
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

import branches
import folders
import jax
import jax.numpy as jnp
import meshes
import numpy as np
import pytest
import toy

import entropix
from entropix import sharding, trace
from entropix.checkpoint import load_weights, loading
from entropix.config import ModelConfig
from entropix.cot import parallel
from entropix.decoding.session import Session
from entropix.generation import collect, prepare, run
from entropix.model.weights import Int8Matrix, Weights
from entropix.replay import load_model
from entropix.results import Result

TOKENS = toy.random_tokens(toy.config(), 2, 12)


def is_int8(node: Any) -> bool:
    return isinstance(node, Int8Matrix)


def meant(weights: Weights) -> Weights:
    """The same with every matrix as the float32 that it stands for."""

    def matrix(node: Any) -> Any:
        if not is_int8(node):
            return node
        scale = node.scale.reshape(node.scale.shape + (1,) * (node.value.ndim - node.scale.ndim))
        return node.value.astype(jnp.float32) * scale

    return jax.tree.map(matrix, weights, is_leaf=is_int8)


def loaded(folder: Path, cfg: ModelConfig, mesh: str = "", int8: bool = True) -> Weights:
    devices = meshes.mesh_of(mesh) if mesh else None
    with sharding.on(devices):
        return load_weights.load(folder, cfg, jnp.float32, devices, int8)


@pytest.mark.parametrize("variant", ["grouped queries", "untied"])
def test_each_row_is_rounded_to_127ths_of_its_largest_entry(
    variant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load_weights, "_INT8_VALUES", 500)  # so that it takes several pieces
    cfg = toy.config(**toy.VARIANTS[variant])
    folders.write_checkpoint(tmp_path / "it", tie_word_embeddings=cfg.tied_embeddings)
    found, stored = loaded(tmp_path / "it", cfg), loaded(tmp_path / "it", cfg, int8=False)
    n_matrices = 0
    for matrix, whole in zip(jax.tree.leaves(found, is_leaf=is_int8), jax.tree.leaves(stored), strict=True):
        if not is_int8(matrix):
            np.testing.assert_array_equal(matrix, whole)
            continue
        n_matrices += 1
        rows, exact = (np.asarray(x).reshape(matrix.scale.size, -1) for x in (matrix.value, whole))
        scale = np.asarray(matrix.scale).reshape(-1, 1)
        assert np.abs(rows).max(axis=1).tolist() == [127] * len(rows)
        np.testing.assert_allclose(scale[:, 0] * 127, np.abs(exact).max(axis=1), rtol=1e-6)
        assert (np.abs(rows * scale - exact) <= scale / 2 * (1 + 1e-5)).all()
    assert n_matrices == 4 * cfg.n_layers + (not cfg.tied_embeddings)


@pytest.mark.parametrize("mesh", ["", "data=2,model=2", "model=4"])
def test_a_pass_is_that_of_what_the_matrices_stand_for(mesh: str, tmp_path: Path) -> None:
    """On meshes too, which divide rows of some matrices, whose scales are those of whole rows."""
    cfg = toy.config(tied_embeddings=False)
    folders.write_checkpoint(tmp_path / "it", tie_word_embeddings=False)
    expected = toy.read(meant(loaded(tmp_path / "it", cfg)), TOKENS, cfg)[0]
    weights = loaded(tmp_path / "it", cfg, mesh)
    devices = meshes.mesh_of(mesh) if mesh else None
    with sharding.on(devices):
        found = toy.read(weights, TOKENS, sharding.widened(cfg, devices))[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * float(np.abs(expected).max()))
    rough = toy.read(loaded(tmp_path / "it", cfg, int8=False), TOKENS, cfg)[0]
    assert 1e-3 < np.abs(found - rough).max() / np.abs(rough).max() < 0.1


def test_a_row_of_zeros_stays_zero(tmp_path: Path) -> None:
    folder = folders.write_checkpoint(tmp_path / "it")
    stored = dict(folders.read_tensors(folder))
    stored["model.layers.0.mlp.down_proj.weight"][3] = 0
    folders.write_tensors(folder, stored)
    down = loaded(folder, toy.config()).layers[0].down
    assert is_int8(down) and not np.asarray(down.value)[3].any() and np.asarray(down.scale)[3] == 1


@pytest.mark.slow
def test_drafts_forks_and_several_paths_go_on_as_what_the_matrices_stand_for(tmp_path: Path) -> None:
    """Greedily: of each text every token is the likeliest after those before it, but for those that a fork chose."""
    cfg = toy.config(tied_embeddings=False, n_layers=1)
    folder = folders.write_checkpoint(tmp_path / "it", tie_word_embeddings=False, num_hidden_layers=1)
    stored = dict(folders.read_tensors(folder))
    # A next token follows mostly from the newest, so that drafts are often right.
    stored["lm_head.weight"][:] = 0
    np.add.at(stored["lm_head.weight"], np.arange(259) * 7 % 11, 2 * stored["model.embed_tokens.weight"])
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        stored[f"model.layers.0.{name}.weight"] /= 4
    folders.write_tensors(folder, stored)
    weights = loaded(folder, cfg)
    model, whole = dataclasses.replace(branches.SMALL, weights=weights), meant(weights)
    prompts = [*branches.PROMPTS, [7, 8] * 20]
    greedy: dict[str, Any] = {"sampler": "greedy", "max_new_tokens": 32, "alternatives": 5}

    def assert_greedy(result: Result, forced: Collection[int] = ()) -> None:
        text = [*result.prompt_ids, *result.token_ids]
        padded = np.array([text + [0] * (80 - len(text))])
        likeliest = np.asarray(toy.read(whole, padded, cfg, 80)[0][0]).argmax(axis=-1).tolist()
        start = len(result.prompt_ids)
        for step, token in enumerate(result.token_ids):
            assert step in forced or token == likeliest[start + step - 1], step

    job, session = prepare(model, prompts, **greedy, speculate=4), Session(model, len(prompts))
    for result in collect(job, run(job, session)):
        assert_greedy(result)
    assert session.costs.n_passes < 30, "few drafts were right, so little was tested"
    job = prepare(model, prompts, **greedy, branching=branches.EVERYWHERE | {"among": "all"})
    forked = collect(job, run(job))
    for result in forked:
        assert_greedy(result, branches.forks(result))
    assert sum(len(branches.forks(result)) for result in forked) > 9
    several = parallel.decode(model, prompts[0], paths=3, extract="text", **greedy)
    for path in several.paths:
        assert_greedy(path.result, [0])
    assert len({path.result.token_ids[0] for path in several.paths}) == 3


@pytest.mark.slow
def test_traces_say_int8_and_are_replayed_so(toy_folder: str, tmp_path: Path) -> None:
    model = entropix.load(toy_folder, dtype="int8")
    assert model.precision == "int8" and model.dtype == jnp.float32 and "int8, " in repr(model)
    request = prepare(model, "Why?", max_new_tokens=4, seed=1)
    trace.write(tmp_path / "it.jsonl", request, collect(request, run(request)))
    recorded = trace.read(tmp_path / "it.jsonl")
    assert recorded.header["model"]["dtype"] == "int8"
    assert load_model(recorded, toy_folder).precision == "int8"
    both = model, loading.load(toy_folder)
    sizes = [sum(leaf.nbytes for leaf in jax.tree.leaves(one.weights.layers)) for one in both]
    assert math.isclose(sizes[0] / sizes[1], 0.25, rel_tol=0.3)  # scales weigh much in rows of 32
