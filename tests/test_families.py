"""Every family against transformers: small models that it made, and the numbers that it computes from them."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import chex
import folders
import jax
import jax.numpy as jnp
import meshes
import numpy as np
import pth_files
import pytest
import toy
import transformers_process
import transformers_side
from transformers_side import FAMILIES, LONG, MODELS, NUMBERS

import entropix
from entropix import sharding
from entropix.checkpoint import hf_folder, load_weights
from entropix.checkpoint.convert import convert
from entropix.checkpoint.loading import Model
from entropix.scoring import score

pytestmark = pytest.mark.slow

LIMIT = 1e-4  # of a logit, relative to the largest; seen are some 1e-6
TEXT = np.array(transformers_side.prompts()[:1], np.int32)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All models of `transformers_side`, in a folder each. It takes some seconds, most of them to import torch."""
    folder = tmp_path_factory.mktemp("families")
    transformers_process.run(transformers_side.__file__, folder)
    return folder


class Reference(NamedTuple):
    """What transformers computes."""

    logits_TV: np.ndarray
    weights_LNTT: np.ndarray
    drawn: np.ndarray  # greedy tokens after each prompt


def reference(made: Path, name: str) -> Reference:
    found = np.load(made / name / "reference.npz")
    return Reference(*(found[field] for field in Reference._fields))


def load(folder: Path, mesh: str = "") -> Model:
    """The model of a folder, which has no tokenizer."""
    cfg = hf_folder.read_config(folder)
    devices = meshes.mesh_of(mesh) if mesh else None
    with sharding.on(devices):
        weights = load_weights.load(folder, cfg, jnp.float32, devices)
    return Model(folder, sharding.widened(cfg, devices), weights, toy.ByteTokenizer(), None, (), devices)


def entropies(weights_LNTT: np.ndarray) -> np.ndarray:
    """[L, N, T] in bits, of attention weights."""
    p = weights_LNTT.astype(np.float64)
    return -np.sum(p * np.log2(np.where(p > 0, p, 1)), axis=-1)


def assert_same_logits(logits_TV: Any, expected_TV: np.ndarray) -> None:
    error = np.abs(np.asarray(logits_TV) - expected_TV).max() / np.abs(expected_TV).max()
    print(f"relative error of the logits: {error:.1e}")
    assert error <= LIMIT


# ----- the same numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_attention_are_those_of_transformers(made: Path, name: str) -> None:
    model, expected = load(made / name), reference(made, name)
    logits_BTV, _, attention, _ = toy.read(model.weights, TEXT, model.config)
    assert_same_logits(logits_BTV[0], expected.logits_TV)
    found_LNT = np.empty(expected.weights_LNTT.shape[:3])
    attention = jax.device_get(attention)
    for layer, t in np.ndindex(len(found_LNT), found_LNT.shape[2]):
        scores_LNS = toy.visible_scores(toy.of_layer(attention, layer), 0, t).astype(np.float64)
        p_LNS = np.exp(scores_LNS - scores_LNS.max(axis=-1, keepdims=True))
        found_LNT[layer, :, t] = entropies(p_LNS / p_LNS.sum(axis=-1, keepdims=True))[0]
    error = np.abs(found_LNT - entropies(expected.weights_LNTT)).max()
    print(f"error of the attention entropies: {error:.1e} bits")
    assert error <= 2e-5


@pytest.mark.parametrize("name", MODELS)
def test_greedy_tokens_are_those_of_transformers(made: Path, name: str) -> None:
    """A ragged batch: a prompt that is read at once, a shorter one, and one whose text is stepped through."""
    found = greedy(load(made / name))
    assert found == reference(made, name).drawn.tolist()


@pytest.mark.parametrize("name", LONG)
def test_long_texts_have_frequencies_of_their_own(made: Path, name: str) -> None:
    """Side by side with short ones. With LongRoPE the answer to a short prompt ends where its text would become a long
    one; with dynamic scaling it goes on, as in transformers with a cache."""
    model, expected = load(made / name), reference(made, name)
    text, original = TEXT[0].tolist(), model.config.rope_original_length
    assert len(text) > original > transformers_side.PROMPTS[1]
    assert_same_logits(entropix.forward(model, text).logits_TV, expected.logits_TV)
    short = entropix.forward(model, text[:original]).logits_TV
    assert np.abs(short - expected.logits_TV[:original]).max() > 0.1

    logits_TV = expected.logits_TV[:-1].astype(np.float64)
    logprob_TV = logits_TV - np.log(np.exp(logits_TV).sum(axis=-1, keepdims=True))
    [scored] = score(model, [text])
    found = [record["logprob"] for record in scored.records[:-1]]
    np.testing.assert_allclose(found, logprob_TV[np.arange(len(text) - 1), text[1:]], atol=1e-4)

    answers = expected.drawn.tolist()
    if name == "phi3-long":
        answers[1] = answers[1][: original + 1 - transformers_side.PROMPTS[1]]
    assert greedy(model) == answers


@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        ("qwen2", "data=2,model=3"),  # a key head on each device
        ("qwen2-one", "model=4"),  # the one key head is there four times, and its bias
        ("qwen3", "model=3"),
        ("smollm3-one", "data=2,model=2"),
        ("granite", "model=3"),
        ("mistral-window", "data=2,model=3"),
        ("qwen3-some", "data=2,model=3"),
        ("gemma3", "data=2,model=3"),
        ("gemma2-one", "model=2"),
        ("olmo2", "data=2,model=3"),  # a norm over what lies on three devices
        ("olmo2-two", "model=4"),  # each of two key heads is there twice, and its norm
        ("olmo2-each", "model=2"),  # three heads, which two devices have whole
    ],
)
def test_a_mesh_gives_the_same(made: Path, name: str, mesh: str) -> None:
    model, expected = load(made / name, mesh), reference(made, name)
    with sharding.on(model.mesh):
        assert_same_logits(toy.read(model.weights, TEXT, model.config)[0][0], expected.logits_TV)
    assert greedy(model) == expected.drawn.tolist()


def greedy(model: Model) -> list[list[int]]:
    results = entropix.generate(
        model, transformers_side.prompts(), sampler="greedy", max_new_tokens=transformers_side.NEW
    )
    return meshes.tokens(results)


# ----- what is read -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FAMILIES)
def test_keys_that_are_left_out_mean_what_they_mean_to_transformers(made: Path, kind: str) -> None:
    means = json.loads((made / f"bare-{kind}" / "means.json").read_text())
    cfg = hf_folder.read_config(made / f"bare-{kind}")
    for name, value in means.pop("switches", {}).items():
        found = getattr(cfg, name)
        assert (list(found) if isinstance(found, tuple) else found) == value, name
    own = (cfg.norm_eps, cfg.n_kv_heads, cfg.context_length, cfg.tied_embeddings)
    assert (
        dict(zip(NUMBERS, own, strict=True)) | {"rope_theta": cfg.rope_theta, "head_dim": cfg.head_dim}
        == means
    )


def test_a_pytorch_model_bin_of_a_model_with_images_is_that_of_its_text_model(
    made: Path, tmp_path: Path
) -> None:
    source, whole = tmp_path / "source", made / "gemma3-images"
    source.mkdir()
    (source / "config.json").write_bytes((whole / "config.json").read_bytes())
    pth_files.write_pth(source / "pytorch_model.bin", folders.read_tensors(whole))
    convert(source, tmp_path / "out")
    chex.assert_trees_all_equal(load(tmp_path / "out").weights, load(whole).weights)
