"""What a config.json, and the tensors beside it, say of each family: which switches, and what is refused by name."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import folders
import jax
import jax.numpy as jnp
import numpy as np
import pth_files
import pytest
import toy
from transformers_side import FAMILIES

from entropix import presets
from entropix.checkpoint import hf_folder, tensors
from entropix.checkpoint.convert import convert
from entropix.checkpoint.families import FAMILIES as ROWS
from entropix.config import ModelConfig, YarnScaling
from entropix.model import kv_cache, transformer
from entropix.model.weights import abstract, init


def test_a_window_without_a_size_is_refused_where_layers_have_one_always(tmp_path: Path) -> None:
    raw = {**folders.CONFIG, **GEMMA2, "sliding_window": None}
    with pytest.raises(ValueError, match="sliding_window is None: this gemma2 has no such windows"):
        hf_folder.config_of(raw, tmp_path)


def test_every_row_of_the_table_is_compared() -> None:
    assert set(FAMILIES) == set(ROWS)


def test_a_llama_has_no_switch_on() -> None:
    assert toy.config().switches == {}
    assert toy.config(qkv_bias=True, no_rope_layers=(1,)).switches == {
        "qkv_bias": True,
        "no_rope_layers": (1,),
    }


MISTRAL, WINDOWED = {"model_type": "mistral"}, "sliding_attention"
PHI3 = {"model_type": "phi3"}
QWEN2 = {"model_type": "qwen2"}
SMOLLM3 = {"model_type": "smollm3"}
GRANITE = {"model_type": "granite"}
GEMMA2, GEMMA3 = {"model_type": "gemma2"}, {"model_type": "gemma3_text"}


@pytest.mark.parametrize(
    ("changes", "switches"),
    [
        (QWEN2, {"qkv_bias": True}),
        ({**QWEN2, "attention_bias": True, "sliding_window": 128, "max_window_layers": 1}, {"qkv_bias": True}),
        ({**QWEN2, "use_sliding_window": True, "max_window_layers": 2}, {"qkv_bias": True}),
        ({**QWEN2, "use_sliding_window": True, "layer_types": ["full_attention"] * 2}, {"qkv_bias": True}),
        ({"model_type": "qwen3"}, {"qk_norm": "head"}),
        ({**QWEN2, "use_sliding_window": True, "max_window_layers": 0, "sliding_window": 5},
         {"qkv_bias": True, "sliding_window": 5}),
        ({**QWEN2, "use_sliding_window": True, "sliding_window": 9, "layer_types": [WINDOWED] * 2},
         {"qkv_bias": True, "sliding_window": 9}),
        ({**QWEN2, "use_sliding_window": True, "max_window_layers": 1, "sliding_window": 100},
         {"qkv_bias": True, "sliding_window": 100, "global_layers": (0,)}),
        ({**QWEN2, "use_sliding_window": True, "sliding_window": 100, "layer_types": [WINDOWED, "full_attention"],
          "max_window_layers": 1}, {"qkv_bias": True, "sliding_window": 100, "global_layers": (1,)}),
        ({**QWEN2, "use_sliding_window": True, "max_window_layers": 1, "max_position_embeddings": 4096},
         {"qkv_bias": True}),
        ({**MISTRAL, "max_position_embeddings": 8192}, {"sliding_window": 4096}),
        ({**MISTRAL, "sliding_window": 100}, {"sliding_window": 100}),
        ({**MISTRAL, "sliding_window": 100, "layer_types": [WINDOWED] * 2}, {"sliding_window": 100}),
        ({**MISTRAL, "sliding_window": 8192, "max_position_embeddings": 8192}, {}),
        ({"rope_scaling": {"type": "linear", "factor": 4}}, {"rope_divisors": (4.0,)}),
        (SMOLLM3, {}),  # of two layers the fourth would be without
        ({**SMOLLM3, "no_rope_layers": [0, 1, 0]}, {"no_rope_layers": (0,)}),
        ({**SMOLLM3, "no_rope_layer_interval": 1}, {"no_rope_layers": (0, 1)}),
        ({**SMOLLM3, "no_rope_layers": [1, 0], "use_sliding_window": True, "sliding_window": 8},
         {"no_rope_layers": (1,), "sliding_window": 8, "global_layers": (0,)}),
        (GRANITE, {"attention_multiplier": 1.0}),
        ({**GRANITE, "logits_scaling": 8}, {"attention_multiplier": 1.0, "logits_divisor": 8.0}),
        ({"model_type": "olmo2"}, {"qk_norm": "width", "norm_after": True}),
        ({**GEMMA3, "query_pre_attn_scalar": 4, "sliding_window": 512, "sliding_window_pattern": 2,
          "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "rope_local_base_freq": 9.0},
         {"qk_norm": "head", "norm_around": True, "norm_offset": 1.0, "activation": "gelu_tanh",
          "rope_divisors": (8.0,), "rope_local_theta": 9.0, "sliding_window": 512, "global_layers": (1,),
          "attention_multiplier": 0.5, "embedding_multiplier": math.sqrt(32)}),
    ],
)  # fmt: skip
def test_a_family_turns_its_switches(
    tmp_path: Path, changes: dict[str, Any], switches: dict[str, Any]
) -> None:
    folders.write_config(tmp_path, **changes)
    assert hf_folder.read_config(tmp_path).switches == switches


def test_yarn_reads_texts_up_to_the_scaled_length(tmp_path: Path) -> None:
    """As the model cards of Qwen 2.5 and Qwen 3 say it, whose length may be that of pre-training or the scaled one."""
    yarn = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}
    for length, longest in ((32_768, 131_072), (131_072, 131_072), (262_144, 262_144)):
        folders.write_config(tmp_path, **QWEN2, max_position_embeddings=length, rope_scaling=yarn)
        cfg = hf_folder.read_config(tmp_path)
        assert (cfg.context_length, cfg.yarn) == (longest, YarnScaling(4.0, 32_768, 0.1 * math.log(4) + 1))


@pytest.mark.parametrize(
    ("model", "kind", "longest"),
    [
        ("llama", {"type": "linear", "factor": 4}, 16_384),
        ("gemma3_text", {"type": "linear", "factor": 4}, 4096),  # which its key has with the scaling
        ("llama", {"type": "dynamic", "factor": 4}, 16_384),
        (
            "llama",
            {"type": "longrope", "short_factor": [1] * 4, "original_max_position_embeddings": 1024},
            1024,
        ),
        (
            "llama",
            {"type": "longrope", "original_max_position_embeddings": 1024}
            | dict.fromkeys(("short_factor", "long_factor"), [1] * 4),
            4096,
        ),
        (
            "phi3",
            {"type": "longrope", "short_factor": [1] * 4, "original_max_position_embeddings": 1024},
            4096,
        ),
        ("phi3", {"type": "su", "short_factor": [1] * 4}, 4096),
    ],
)
def test_the_longest_text_is_that_of_the_frequencies(
    tmp_path: Path, model: str, kind: dict[str, Any], longest: int
) -> None:
    """Without frequencies for longer texts there are none. A length beside the scaling counts before one in it, as to
    transformers; Phi-3 has 4,096 there by default."""
    folders.write_config(tmp_path, model_type=model, max_position_embeddings=4096, rope_scaling=kind)
    assert hf_folder.read_config(tmp_path).context_length == longest


def test_longrope_with_the_same_numbers_for_all_texts_has_no_border(tmp_path: Path) -> None:
    """So one can answer at any length, as docs/models.md tells."""
    lengths = {"max_position_embeddings": 4096, "original_max_position_embeddings": 1024}
    for long_factor, border in (([1, 2, 3, 4.5], 0), ([1, 2, 3, 5], 1024)):
        rope = {"type": "longrope", "short_factor": [1, 2, 3, 4.5], "long_factor": long_factor}
        folders.write_config(tmp_path, **PHI3, **lengths, rope_scaling=rope)
        cfg = hf_folder.read_config(tmp_path)
        assert (cfg.context_length, cfg.rope_original_length) == (4096, border)
        assert [cfg.longest_text(n) for n in (1024, 1025)] == [border + 1 if border else 4096, 4096]
        assert cfg.rope_factor == pytest.approx(math.sqrt(1 + math.log(4) / math.log(1024)))


def test_longrope_sharpens_attention_by_how_much_longer_texts_may_be(tmp_path: Path) -> None:
    rope = {"type": "longrope", "short_factor": [1, 2, 3, 4.5]}
    for more, expected in (
        ({}, math.sqrt(1 + math.log(4) / math.log(1024))),
        ({"attention_factor": 1.5}, 1.5),
    ):
        length = {"max_position_embeddings": 4096, "original_max_position_embeddings": 1024}
        folders.write_config(tmp_path, **PHI3, **length, rope_scaling=rope | more)
        cfg = hf_folder.read_config(tmp_path)
        assert (cfg.rope_divisors, cfg.rope_factor) == ((1, 2, 3, 4.5), pytest.approx(expected, rel=1e-12))


@pytest.mark.parametrize(
    ("more", "attention_factor"),
    [
        ({}, 1.1386294361119891),
        ({"factor": 1}, 1.0),
        ({"attention_factor": 2}, 2.0),
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, 1.0),
        ({"mscale": 2.0, "mscale_all_dim": 0.5}, 1.2772588722239782 / 1.0693147180559945),
        ({"mscale": 2.0}, 1.1386294361119891),
    ],
)
def test_yarn_sharpens_attention_as_transformers_has_it(
    tmp_path: Path, more: dict[str, Any], attention_factor: float
) -> None:
    folders.write_config(tmp_path, rope_scaling={"rope_type": "yarn", "factor": 4.0, **more})
    yarn = hf_folder.read_config(tmp_path).yarn
    assert yarn is not None and yarn.attention_factor == pytest.approx(attention_factor, rel=1e-12)
    assert yarn.original_context_length == folders.CONFIG["max_position_embeddings"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({**QWEN2, "layer_types": [WINDOWED] * 2}, f"and layer_types has {WINDOWED}: this qwen2 has no such windows"),
        ({"layer_types": [WINDOWED] * 2}, "sliding_window is None and layer_types has .*: this llama has no"),
        ({**QWEN2, "layer_types": ["chunked_attention"] * 2}, "layer_types has chunked_attention: only"),
        ({**MISTRAL, "sliding_window": 0}, "sliding_window must be a whole number of at least 1"),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "rope_scaling has a factor of 0.5"),
        ({"rope_scaling": {"type": "linear", "factor": 1e30}}, "rope_scaling has a factor of 1e"),
        ({**PHI3, "rope_scaling": {"type": "longrope", "short_factor": []}}, "short_factor must be a list of numbers"),
        ({**PHI3, "original_max_position_embeddings": 8, "rope_scaling": {"type": "longrope", "short_factor": [1] * 4,
          "long_factor": [2] * 3}}, "has 4 numbers as short_factor and 3 as long_factor"),
        ({"rope_scaling": {"type": "dynamic", "factor": 0.5}}, "rope_scaling has a factor of 0.5"),
        ({**PHI3, "rope_scaling": {"type": "longrope", "short_factor": [1, 0]}}, r"factor\[1\] must be .* above 0"),
        ({**PHI3, "rope_scaling": {"type": "longrope", "short_factor": [2]}}, "short_factor must be a list of numbers"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2}, "head_dim": 2}, "takes 2 rotary pairs of a head or more"),
        ({**PHI3, "rope_scaling": {"type": "longrope", "short_factor": [1] * 3}}, "has 3 numbers for 4 rotary pairs"),
        ({**PHI3, "partial_rotary_factor": 1.5}, r"partial_rotary_factor must be one number of at most 1, got \[1.5\]"),
        ({**PHI3, "partial_rotary_factor": 0.1}, "partial_rotary_factor is 0.1: nothing of a head would be rotated"),
        ({**PHI3, "rope_scaling": {"type": "yarn", "factor": 4}}, "a phi3 scales its rotary frequencies by longrope"),
        ({**PHI3, "partial_rotary_factor": 0.4}, "rotary_dim must be even and at most head_dim, got 3"),
        ({**QWEN2, "use_sliding_window": True, "max_window_layers": -1}, "max_window_layers must be .*0, got -1"),
        ({**QWEN2, "use_sliding_window": "no"}, "use_sliding_window must be true or false, got 'no'"),
        ({**QWEN2, "attention_bias": 1}, "attention_bias must be true or false, got 1"),
        ({**QWEN2, "layer_types": ["full_attention"]}, "layer_types has 1 kinds for 2 layers"),
        ({"model_type": "llama", "layer_types": ["full_attention"] * 3}, "layer_types has 3 kinds for 2 layers"),
        ({**GRANITE, "embedding_multiplier": 5e-324}, "embedding_multiplier must be between .* as float32 has it"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 1e30}}, "rope_scaling has a factor of 1e\\+30 for"),
        ({"model_type": "qwen3", "attention_bias": True}, "attention_bias is True: biases in attention"),
        ({**SMOLLM3, "no_rope_layers": [1]}, r"no_rope_layers must be a 1 for each of the 2 layers .*, got \[1\]"),
        ({**SMOLLM3, "no_rope_layers": [1, 2]}, r"no_rope_layers must be .*, got \[1, 2\]"),
        ({**SMOLLM3, "no_rope_layer_interval": 0}, "no_rope_layer_interval must be a whole number of at least 1"),
        ({**GRANITE, "residual_multiplier": 0}, "residual_multiplier must be a number above 0, got 0"),
        ({**GRANITE, "mlp_bias": True}, "mlp_bias is True"),
        ({"model_type": "olmo2", "clip_qkv": 8.0}, "clip_qkv is 8.0: clipped"),
        ({**GEMMA2, "hidden_act": "silu"}, "hidden_act is 'silu': only gelu_pytorch_tanh"),
        ({**GEMMA2, "hidden_activation": "gelu"}, "hidden_activation is 'gelu': only gelu_pytorch_tanh"),
        ({**GEMMA2, "use_bidirectional_attention": True}, "use_bidirectional_attention is True: only"),
        ({**GEMMA2, "final_logit_softcapping": 0}, "final_logit_softcapping must be a number above 0, got 0"),
        ({"model_type": "gemma3", "text_config": {"final_logit_softcapping": 30.0}},
         "text_config.final_logit_softcapping is 30.0; in this gemma3 it must be None"),
        ({"model_type": "gemma3", "quantization_config": {}}, "quantization_config is {}: quantised"),
        ({**GEMMA3, "attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0: this family computes no"),
        ({**GEMMA3, "rope_scaling": {"rope_type": "yarn", "factor": 2}}, "a gemma3_text scales .* by linear"),
        ({**GEMMA3, "rope_parameters": {"rope_type": "default"}}, "rope_parameters must be an object for full"),
        ({**GEMMA3, "rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2}}},
         "rope_parameters scales the frequencies of sliding_attention"),
        ({**GEMMA3, "rope_local_base_freq": 9.0, "rope_parameters": {"sliding_attention": {"rope_theta": 8.0}}},
         "rope_local_base_freq 9.0 and rope_parameters.sliding_attention.rope_theta 8.0; make them agree"),
    ],
)  # fmt: skip
def test_what_a_family_may_not_have_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    folders.write_config(tmp_path, **changes)
    with pytest.raises(ValueError, match=f"^{tmp_path}/config.json: .*{message}"):
        hf_folder.read_config(tmp_path)


# ----- tensors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "missing", "unexpected"),
    [
        ("phi3", "self_attn.o_proj.weight [32, 32]", "self_attn.qkv_proj.bias [64]"),
        ("qwen2", "self_attn.v_proj.bias [16]", "self_attn.o_proj.bias [32]"),
        ("qwen3", "self_attn.q_norm.weight [128]", "self_attn.q_proj.bias [512]"),
        ("olmo2", "self_attn.k_norm.weight [32]", "input_layernorm.weight [32]"),
        ("olmo2", "post_feedforward_layernorm.weight [32]", "self_attn.q_norm.bias [32]"),
        ("gemma2", "pre_feedforward_layernorm.weight [32]", "self_attn.q_norm.weight [256]"),
    ],
)
def test_tensors_that_a_family_needs_or_does_not_know_are_named(
    tmp_path: Path, kind: str, missing: str, unexpected: str
) -> None:
    heads = {"num_key_value_heads": None} if kind == "olmo2" else {}
    folder = folders.write_checkpoint(tmp_path / "it", model_type=kind, **heads)
    cfg = hf_folder.read_config(folder)
    assert tensors.check(folder, cfg).keys() == tensors.tensor_shapes(cfg).keys()
    stored = folders.read_tensors(folder)
    del stored[f"model.layers.1.{missing.split()[0]}"]
    width = int(unexpected.split("[")[1].rstrip("]"))
    stored[f"model.layers.0.{unexpected.split()[0]}"] = np.zeros(width, np.float32)
    folders.write_tensors(folder, stored)
    with pytest.raises(ValueError, match=r"the tensors do not fit config\.json") as raised:
        tensors.check(folder, cfg)
    listed = [f"missing: model.layers.1.{missing}", f"unexpected: model.layers.0.{unexpected}"]
    assert [line.strip() for line in str(raised.value).splitlines()[1:]] == listed


def test_matrices_that_are_there_twice_are_named(tmp_path: Path) -> None:
    folder = folders.write_checkpoint(tmp_path / "it", model_type="phi3")
    cfg, stored = hf_folder.read_config(folder), dict(folders.read_tensors(folder))
    name = "model.layers.0.self_attn.qkv_proj.weight"
    stored[name] = np.zeros(((cfg.n_heads + 2 * cfg.n_kv_heads) * cfg.head_dim, cfg.dim), np.float32)
    folders.write_tensors(folder, stored)
    with pytest.raises(ValueError, match=f"unexpected: {name}"):
        tensors.check(folder, cfg)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-8b", 8_190_735_360),
        ("mistral-7b", 7_241_732_096),
    ],
)
def test_presets_have_as_many_parameters_as_are_published(name: str, parameters: int) -> None:
    assert sum(map(math.prod, tensors.tensor_shapes(presets.read_model(name)).values())) == parameters


SWITCHES: dict[str, Any] = {
    "qkv_bias": True,
    "qk_norm": "width",
    "no_rope_layers": (1,),
    "norm_after": True,
    "embedding_multiplier": 3.0,
    "attention_multiplier": 0.3,
    "residual_multiplier": 0.5,
    "logits_divisor": 2.0,
    "yarn": YarnScaling(4.0, 128, 1.1),
    "rope_divisors": (1.0, 2.0, 3.0, 4.0),
    "rope_factor": 1.2,
    "rope_original_length": 8,
    "rope_long_divisors": (2.0, 4.0, 6.0, 8.0),
    "rope_dynamic_factor": 2.0,
    "rotary_dim": 4,
    "sliding_window": 3,
    "global_layers": (1,),
    "rope_local_theta": 100.0,
    "norm_around": True,
    "norm_offset": 1.0,
    "activation": "gelu_tanh",
    "attention_softcap": 30.0,
    "logits_softcap": 30.0,
}
# What a switch needs.
BESIDE: dict[str, dict[str, Any]] = {
    **{name: {"sliding_window": 3} for name in ("global_layers", "rope_local_theta")},
    "rope_long_divisors": {"rope_divisors": (1.0, 2.0, 3.0, 4.0)},
}
# What is on with it.
WITH: dict[str, dict[str, Any]] = {
    "rope_original_length": {"rope_dynamic_factor": 3.0},
    **{key: {"rope_original_length": 8} for key in ("rope_long_divisors", "rope_dynamic_factor")},
}


@pytest.mark.parametrize(
    "name",
    [
        field.name
        for field in dataclasses.fields(ModelConfig)
        if field.default is not dataclasses.MISSING and field.name != "rope_scaling"
    ],
)
def test_a_switch_keeps_the_types_and_adds_instructions(name: str) -> None:
    """Layers stay in bfloat16, without a conversion unawares, which the suite forbids; logits are float32."""
    texts = []
    beside = BESIDE.get(name, {})
    for cfg in (toy.config(**beside), toy.config(**beside, **{name: SWITCHES[name]}, **WITH.get(name, {}))):
        cache = kv_cache.empty_cache(cfg, 2, 8, jnp.bfloat16)
        recent = kv_cache.empty_recent(cfg, 2, 4, jnp.bfloat16)
        lowered = jax.jit(transformer.forward, static_argnames="cfg").lower(
            abstract(cfg, jnp.bfloat16), np.zeros((2, 4), np.int32), cache, recent, cfg=cfg
        )
        logits, after, _ = lowered.out_info
        assert (logits.dtype, after.k_LBKHR[1].dtype) == (jnp.float32, jnp.bfloat16)
        texts.append(lowered.as_text())
    assert texts[0] != texts[1]


def test_random_weights_are_those_of_the_switches() -> None:
    cfg = toy.config(qkv_bias=True, qk_norm="width")
    layer = init(jax.random.key(0), cfg, jnp.bfloat16).layers[0]
    assert (layer.qkv_bias.shape, layer.q_norm.shape, layer.k_norm.shape) == ((2, 4, 8), (2, 2, 8), (2, 8))
    assert (layer.qkv_bias.dtype, layer.q_norm.dtype) == (jnp.bfloat16, jnp.float32)
    assert (layer.q_norm == 1).all() and (layer.qkv_bias != 0).any()


def test_a_pytorch_model_bin_keeps_the_config_of_its_family(tmp_path: Path) -> None:
    source = folders.write_checkpoint(tmp_path / "source", model_type="qwen2")
    stored = folders.read_tensors(source)
    pth_files.write_pth(source / "pytorch_model.bin", stored)
    (source / "model.safetensors").unlink()
    convert(source, tmp_path / "out")
    assert hf_folder.read_config(tmp_path / "out") == hf_folder.read_config(source)
    folders.assert_tensors(tmp_path / "out", stored)


def test_no_llama_is_written_of_another_family(tmp_path: Path) -> None:
    cfg = dataclasses.replace(toy.config(), qk_norm="head")
    with pytest.raises(ValueError, match=r"a config\.json of llama cannot say what this model has: qk_norm"):
        hf_folder.write_config(tmp_path / "config.json", cfg, "float32", None, ())
