"""Weights from a folder: every value in its place, every fault named."""

import math
import tracemalloc
from pathlib import Path

import folders
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import toy

from entropix.checkpoint import load_weights, tensors
from entropix.config import ModelConfig
from entropix.model import weights
from entropix.model.weights import Weights


def assert_places(loaded: Weights, tensors: dict[str, np.ndarray], cfg: ModelConfig) -> None:
    """Every value of the folder is where the documentation of `Weights` says."""
    H, N, K, D = cfg.head_dim, cfg.n_heads, cfg.n_kv_heads, cfg.dim
    np.testing.assert_array_equal(loaded.embed_VD, tensors["model.embed_tokens.weight"])
    np.testing.assert_array_equal(loaded.norm_D, tensors["model.norm.weight"])
    for i, layer in enumerate(loaded.layers):
        stored = {name: tensors[f"model.layers.{i}.{name}.weight"] for name in PARTS}
        np.testing.assert_array_equal(layer.attn_norm_D, stored["input_layernorm"])
        np.testing.assert_array_equal(layer.ffn_norm_D, stored["post_attention_layernorm"])
        query = stored["self_attn.q_proj"].reshape(K, N // K, H, D)
        np.testing.assert_array_equal(layer.qkv[:, :-2], query)
        np.testing.assert_array_equal(layer.qkv[:, -2], stored["self_attn.k_proj"].reshape(K, H, D))
        np.testing.assert_array_equal(layer.qkv[:, -1], stored["self_attn.v_proj"].reshape(K, H, D))
        np.testing.assert_array_equal(layer.attn_out, stored["self_attn.o_proj"].reshape(D, N, H))
        np.testing.assert_array_equal(layer.gate_up[0, 0], stored["mlp.gate_proj"])
        np.testing.assert_array_equal(layer.gate_up[0, 1], stored["mlp.up_proj"])
        np.testing.assert_array_equal(layer.down, stored["mlp.down_proj"])
    if not cfg.tied_embeddings:
        np.testing.assert_array_equal(loaded.unembed_VD, tensors["lm_head.weight"])


PARTS = (
    *("input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    *("post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)


def shapes_of(tree: Weights) -> list[tuple[tuple[int, ...], np.dtype]]:
    return [(leaf.shape, np.dtype(leaf.dtype)) for leaf in jax.tree.leaves(tree)]


@pytest.mark.parametrize("n_files", [1, 3])
@pytest.mark.parametrize("name", toy.VARIANTS)
def test_every_value_is_in_its_place(tmp_path: Path, name: str, n_files: int) -> None:
    cfg = toy.config(**toy.VARIANTS[name])
    tensors = folders.random_tensors(cfg)
    folders.write_tensors(tmp_path, tensors, n_files)
    assert_places(load_weights.load(tmp_path, cfg, jnp.float32), tensors, cfg)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, "float32") for name in toy.VARIANTS), ("untied", "bfloat16"), ("untied", "float16")],
)
def test_abstract_init_and_load_agree(tmp_path: Path, name: str, dtype: str) -> None:
    cfg = toy.config(**toy.VARIANTS[name])
    folders.write_tensors(tmp_path, folders.random_tensors(cfg))
    abstract = weights.abstract(cfg, dtype)
    for made in (weights.init(jax.random.key(0), cfg, dtype), load_weights.load(tmp_path, cfg, dtype)):
        assert jax.tree.structure(made) == jax.tree.structure(abstract)
        assert shapes_of(made) == shapes_of(abstract)
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract) if leaf.ndim == 1} == {np.dtype(np.float32)}


@pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("wanted", [jnp.float32, jnp.float16, jnp.bfloat16])
def test_casting_keeps_values_that_both_types_hold(tmp_path: Path, stored: type, wanted: type) -> None:
    cfg = toy.config(tied_embeddings=False)
    tensors = folders.random_tensors(cfg)
    folders.write_tensors(tmp_path, {name: array.astype(stored) for name, array in tensors.items()})
    loaded = load_weights.load(tmp_path, cfg, wanted)
    assert loaded.layers[0].qkv.dtype == wanted
    assert_places(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), loaded), tensors, cfg)


def test_random_weights_keep_their_scale() -> None:
    """Standard deviations within 5 % of 1/√in: 18 standard errors for the smallest of the matrices."""
    cfg = toy.config(dim=256, n_heads=4, n_kv_heads=2, head_dim=64, ffn_dim=512, vocab_size=1024, n_layers=1)
    drawn = weights.init(jax.random.key(0), cfg, jnp.float32)
    layer = drawn.layers[0]
    for matrix, fan_in in (
        (drawn.embed_VD, 256),
        (layer.qkv, 256),
        (layer.attn_out, 256),
        (layer.down, 512),
    ):
        assert float(jnp.std(matrix)) * math.sqrt(fan_in) == pytest.approx(1, rel=0.05)
    np.testing.assert_array_equal(layer.attn_norm_D, np.ones(256, np.float32))


def test_random_weights_follow_their_key() -> None:
    first, again, other = (
        weights.init(jax.random.key(seed), toy.config(), jnp.float32) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first.embed_VD, again.embed_VD)
    assert not np.array_equal(first.embed_VD, other.embed_VD)
    assert not np.array_equal(first.layers[0].qkv, first.layers[1].qkv)


# ----- faults -----------------------------------------------------------------------------------------------


def test_all_faults_come_in_one_message(tmp_path: Path) -> None:
    cfg = toy.config()
    tensors = folders.random_tensors(cfg)
    del tensors["model.norm.weight"], tensors["model.layers.1.mlp.up_proj.weight"]
    tensors["model.layers.0.self_attn.q_proj.bias"] = np.zeros(32, np.float32)
    tensors["model.layers.0.self_attn.k_proj.weight"] = np.zeros((32, 32), np.float32)
    tensors["model.layers.1.mlp.down_proj.weight"] = np.zeros((32, 64), np.int8)
    folders.write_tensors(tmp_path, tensors)
    with pytest.raises(ValueError, match=r"the tensors do not fit config.json") as raised:
        load_weights.load(tmp_path, cfg, jnp.float32)
    assert sorted(str(raised.value).splitlines()[1:]) == [
        "  missing: model.layers.1.mlp.up_proj.weight [64, 32]",
        "  missing: model.norm.weight [32]",
        "  unexpected: model.layers.0.self_attn.q_proj.bias [32]",
        "  wrong dtype: model.layers.1.mlp.down_proj.weight is I8, expected one of F32, F16, BF16",
        "  wrong shape: model.layers.0.self_attn.k_proj.weight is [32, 32], config.json implies [16, 32]",
    ]


def test_an_untied_model_needs_its_unembedding(tmp_path: Path) -> None:
    folders.write_tensors(tmp_path, folders.random_tensors(toy.config()))
    with pytest.raises(ValueError, match=r"missing: lm_head\.weight \[259, 32\]"):
        load_weights.load(tmp_path, toy.config(tied_embeddings=False), jnp.float32)


def test_a_tied_model_may_repeat_its_embedding(tmp_path: Path) -> None:
    cfg = toy.config()
    tensors = folders.random_tensors(cfg)
    folders.write_tensors(tmp_path, tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()})
    assert load_weights.load(tmp_path, cfg, jnp.float32).unembed_VD is None


def test_a_tied_model_may_not_have_another_unembedding(tmp_path: Path) -> None:
    cfg = toy.config()
    tensors = folders.random_tensors(cfg)
    other = tensors["model.embed_tokens.weight"].copy()
    other[-1, -1] += 1
    folders.write_tensors(tmp_path, tensors | {"lm_head.weight": other})
    with pytest.raises(ValueError, match=r"tie_word_embeddings, but lm_head\.weight differs"):
        load_weights.load(tmp_path, cfg, jnp.float32)


def test_stored_rotary_frequencies_are_ignored(tmp_path: Path) -> None:
    cfg = toy.config()
    tensors = folders.random_tensors(cfg)
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    folders.write_tensors(tmp_path, tensors | buffer)
    assert_places(load_weights.load(tmp_path, cfg, jnp.float32), tensors, cfg)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "name",
    ["model.embed_tokens.weight", "model.norm.weight", "model.layers.1.mlp.up_proj.weight", "lm_head.weight"],
)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_weight_that_is_no_number_is_named(tmp_path: Path, name: str, bad: float, dtype: type) -> None:
    cfg = toy.config(tied_embeddings=False)
    tensors = folders.random_tensors(cfg)
    tensors[name].flat[-1] = bad
    folders.write_tensors(tmp_path, tensors)
    with pytest.raises(ValueError, match=rf"model\.safetensors: {name} has NaN or infinite values"):
        load_weights.load(tmp_path, cfg, dtype)


def test_a_value_beyond_float16_is_named(tmp_path: Path) -> None:
    cfg = toy.config()
    tensors = folders.random_tensors(cfg)
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = 70_000
    folders.write_tensors(tmp_path, tensors)
    with pytest.raises(ValueError, match=r"0\.mlp\.up_proj\.weight has NaN or infinite values as float16"):
        load_weights.load(tmp_path, cfg, jnp.float16)
    assert load_weights.load(tmp_path, cfg, jnp.float32).layers[0].gate_up[0, 1, 0, 0] == 70_000


# ----- the real model ---------------------------------------------------------------------------------------


@pytest.mark.real
def test_the_default_model_is_smollm2() -> None:
    from entropix.checkpoint.hf_folder import read_config, stop_token_ids
    from entropix.paths import weights_folder
    from entropix.presets import read_model

    folder = weights_folder("smollm2-135m-instruct")
    assert read_config(folder) == read_model("smollm2-135m")
    assert stop_token_ids(folder) == (2,)
    assert sum(math.prod(t.shape) for t in tensors.check(folder, read_config(folder)).values()) == 134_515_008


def test_loading_never_holds_a_second_copy_of_the_model(tmp_path: Path) -> None:
    """What is allocated at the worst moment, beside the mapped file: the model and a few layers' worth of scratch."""
    cfg = toy.config(dim=128, ffn_dim=512, n_layers=24)
    folders.write_tensors(tmp_path, folders.random_tensors(cfg))
    tracemalloc.start()
    loaded = load_weights.load(tmp_path, cfg, jnp.float32)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.3 * sum(leaf.nbytes for leaf in jax.tree.leaves(loaded))
