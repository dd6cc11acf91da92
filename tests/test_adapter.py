"""LoRA adapters: merging them is W + scale·B·A, and what is more than that is refused."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import folders
import meshes
import ml_dtypes
import numpy as np
import pth_files
import pytest
from safetensors.numpy import save_file

import entropix
from entropix import convert as convert_command
from entropix import main, replay, sharding, trace
from entropix.checkpoint import hf_folder, loading
from entropix.checkpoint.convert import convert

Command = Callable[..., tuple[int, str, str]]
Tensors = dict[str, np.ndarray]
Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
SHAPES = {Q: (32, 32), DOWN: (32, 64)}  # [out, in]
RANK = 4
# What PEFT 0.21 writes of a configuration of which only rank, alpha and target modules are given.
ABSENT = """alora_invocation_tokens arrow_config corda_config eva_config exclude_modules kasa_config layer_replication
    layers_pattern layers_to_transform lora_ga_config megatron_config modules_to_save monteclora_config revision
    target_parameters task_type trainable_token_indices use_bdlora velora_config"""
OFF = "ensure_weight_tying fan_in_fan_out lora_bias use_dora use_qalora use_rslora"
PEFT_021: dict[str, Any] = {
    **dict.fromkeys(ABSENT.split()),
    **dict.fromkeys(OFF.split(), False),
    **{key: {} for key in ("alpha_pattern", "loftq_config", "rank_pattern")},
    "auto_mapping": {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers.models.llama"},
    "base_model_name_or_path": "base",
    "inference_mode": True,
    "init_lora_weights": True,
    "lora_dropout": 0.0,
    "megatron_core": "megatron.core",
    "peft_version": "0.21.2",
    "qalora_group_size": 16,
    "target_modules": ["lm_head"],
}


def adapter_tensors() -> Tensors:
    """A and B of two matrices."""
    rng = np.random.default_rng(0)
    found = {}
    for module, (n_out, n_in) in SHAPES.items():
        found[f"base_model.model.{module}.lora_A.weight"] = rng.standard_normal((RANK, n_in), np.float32)
        found[f"base_model.model.{module}.lora_B.weight"] = rng.standard_normal((n_out, RANK), np.float32)
    return found


def write_adapter(folder: Path, tensors: Tensors | None = None, **changes: Any) -> Path:
    """As PEFT's save_pretrained does."""
    folder.mkdir()
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": 6,
        "bias": "none",
        "modules_to_save": None,
        **changes,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(adapter_tensors() if tensors is None else tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return folders.write_checkpoint(tmp_path / "base")


def merged(base: Path, scales: dict[str, float]) -> Tensors:
    """The base's tensors with scale·B·A added to these modules."""
    parts, found = adapter_tensors(), dict(folders.read_tensors(base))
    for module, scale in scales.items():
        a, b = (parts[f"base_model.model.{module}.lora_{part}.weight"].astype(np.float64) for part in "AB")
        found[f"{module}.weight"] = (found[f"{module}.weight"] + scale * b @ a).astype(np.float32)
    return found


@pytest.mark.parametrize(
    ("changes", "scales"),
    [
        ({}, {Q: 1.5, DOWN: 1.5}),
        ({"init_lora_weights": "mica"}, {Q: 1.5, DOWN: 1.5}),
        ({"use_rslora": True}, {Q: 6 / math.sqrt(4), DOWN: 6 / math.sqrt(4)}),
        ({"alpha_pattern": {"down_proj": 8}}, {Q: 1.5, DOWN: 2.0}),
        ({"r": 16, "rank_pattern": {"q_proj": 4, r"layers\.1\..*": 4}}, {Q: 1.5, DOWN: 1.5}),
        ({"alpha_pattern": {r".*\.1\.mlp": 100}}, {Q: 1.5, DOWN: 1.5}),  # is no end of a name
    ],
    ids=[
        "plain",
        "minor components",
        "rank-stabilised",
        "an alpha of its own",
        "ranks of their own",
        "a pattern that fits nothing",
    ],
)
def test_merging_adds_b_times_a(
    base: Path, tmp_path: Path, changes: dict[str, Any], scales: dict[str, float]
) -> None:
    convert(base, tmp_path / "out", adapter=write_adapter(tmp_path / "adapter", **changes))
    found, expected = folders.read_tensors(tmp_path / "out"), merged(base, scales)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-5, atol=1e-5, err_msg=name)
    assert hf_folder.read_config(tmp_path / "out") == hf_folder.read_config(base)
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()


def test_what_peft_writes_beside_an_adapter_of_the_logits_is_passed_over(tmp_path: Path) -> None:
    """The base's own matrix, in the type that it was trained in, and a configuration with all of PEFT 0.21's keys."""
    base = folders.write_checkpoint(tmp_path / "base", tie_word_embeddings=False)
    rng, stored = np.random.default_rng(1), folders.read_tensors(base)
    a, b = rng.standard_normal((RANK, 32), np.float32), rng.standard_normal((259, RANK), np.float32)
    tensors = {
        "base_model.model.lm_head.lora_A.weight": a,
        "base_model.model.lm_head.lora_B.weight": b,
        "base_model.model.lm_head.base_layer.weight": stored["lm_head.weight"].astype(ml_dtypes.bfloat16),
        "base_model.model.model.embed_tokens.weight": stored["model.embed_tokens.weight"],
    }
    adapter = write_adapter(tmp_path / "adapter", tensors, **PEFT_021)
    convert(base, tmp_path / "out", adapter=adapter)
    expected = stored["lm_head.weight"] + 1.5 * b @ a
    found = folders.read_tensors(tmp_path / "out")
    np.testing.assert_allclose(found["lm_head.weight"], expected, rtol=1e-5, atol=1e-5)
    assert np.array_equal(found["model.embed_tokens.weight"], stored["model.embed_tokens.weight"])
    tensors["base_model.model.model.embed_tokens.weight"] = stored["model.embed_tokens.weight"] * 2
    save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(
        ValueError, match=r"model\.embed_tokens\.weight is there whole, unlike the base's: trained"
    ):
        convert(base, tmp_path / "out", force=True, adapter=adapter)


def test_the_sum_is_rounded_once_to_the_type_of_the_base(base: Path, tmp_path: Path) -> None:
    stored = {name: array.astype(ml_dtypes.bfloat16) for name, array in folders.read_tensors(base).items()}
    folders.write_tensors(base, stored)
    adapter = write_adapter(tmp_path / "adapter")
    expected = merged(base, {Q: 1.5, DOWN: 1.5})[f"{Q}.weight"]
    for dtype in (None, "float32"):
        convert(base, tmp_path / "out", dtype, force=True, adapter=adapter)
        found = folders.read_tensors(tmp_path / "out")[f"{Q}.weight"]
        assert found.dtype == (ml_dtypes.bfloat16 if dtype is None else np.float32)
        np.testing.assert_allclose(
            found.astype(np.float32), expected, rtol=5e-3 if dtype is None else 1e-6, atol=1e-5
        )


def test_the_command_merges_files_of_torch_too(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = write_adapter(tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").unlink()
    pth_files.write_pth(adapter / "adapter_model.bin", adapter_tensors())
    convert_command.main([str(base), "--adapter", str(adapter), "--out-dir", str(tmp_path / "out")])
    assert capsys.readouterr().out == f"weights in {tmp_path / 'out'}\n"
    expected = merged(base, {Q: 1.5, DOWN: 1.5})[f"{DOWN}.weight"]
    np.testing.assert_allclose(
        folders.read_tensors(tmp_path / "out")[f"{DOWN}.weight"], expected, rtol=1e-5, atol=1e-5
    )


def test_layers_are_called_otherwise_where_a_model_reads_images_too(base: Path, tmp_path: Path) -> None:
    names = {
        "model.layers.0": "model.language_model.layers.0",
        "model.layers.1": "language_model.model.layers.1",
    }
    tensors = {
        re.sub(r"model\.layers\.\d", lambda layer: names[layer[0]], name): array
        for name, array in adapter_tensors().items()
    }
    convert(base, tmp_path / "out", adapter=write_adapter(tmp_path / "adapter", tensors))
    convert(base, tmp_path / "plain", adapter=write_adapter(tmp_path / "other"))
    folders.assert_tensors(tmp_path / "out", folders.read_tensors(tmp_path / "plain"))


def without(part: str) -> Callable[[], Tensors]:
    return lambda: {name: array for name, array in adapter_tensors().items() if part not in name}


def renamed(old: str, new: str) -> Callable[[], Tensors]:
    return lambda: {name.replace(old, new): array for name, array in adapter_tensors().items()}


@pytest.mark.parametrize(
    ("tensors", "changes", "message"),
    [
        (adapter_tensors, {"peft_type": "IA3"}, "peft_type is 'IA3': only LoRA is supported"),
        (adapter_tensors, {"use_dora": True}, "use_dora is True: magnitude vectors"),
        (adapter_tensors, {"bias": "all"}, "bias is 'all': trained biases"),
        (adapter_tensors, {"modules_to_save": ["lm_head"]}, "modules_to_save is ['lm_head']: whole modules"),
        (
            adapter_tensors,
            {"init_lora_weights": "pissa"},
            "init_lora_weights is 'pissa': such an adapter belongs to",
        ),
        (adapter_tensors, {"r": 8}, f"{Q} has the rank 8, but its tensors have 4; make them agree"),
        (adapter_tensors, {"lora_alpha": 0}, "lora_alpha must be a number above 0, got 0"),
        (adapter_tensors, {"alpha_pattern": {"(": 1}}, "alpha_pattern has '(', which is no expression"),
        (
            adapter_tensors,
            {"alpha_pattern": {r"(?:.|..|...)*[!?]": 4}},
            "which is no expression (regex timed out)",
        ),
        (adapter_tensors, {"rank_pattern": {"a{99999999999999999999}": 4}}, "which is no expression"),
        (adapter_tensors, {"rank_pattern": {"(" * 3000 + ")" * 3000: 4}}, "which is no expression"),
        (
            adapter_tensors,
            {"alora_invocation_tokens": [1]},
            "alora_invocation_tokens is [1]: what this changes is not",
        ),
        (
            lambda: {name: array[:0] for name, array in adapter_tensors().items()},
            {},
            "[0, 32] is not the A or the B",
        ),
        (without("q_proj.lora_B"), {}, f"{Q} has a lora_A alone; the file is incomplete"),
        (
            renamed("lora_A", "lora_embedding_A"),
            {},
            "lora_embedding_A.weight [4, 32] is not the A or the B of LoRA",
        ),
        (
            renamed("layers.1", "layers.7"),
            {},
            "unexpected: model.layers.7.mlp.down_proj is no linear layer",
        ),
        (renamed(Q, "lm_head"), {}, "unexpected: lm_head is no linear layer of the base, which is tied"),
        (renamed("down_proj", "up_proj"), {}, "mlp.up_proj is [32, 4] times [4, 64], the base has [64, 32]"),
        (
            lambda: {name: array.astype(np.int32) for name, array in adapter_tensors().items()},
            {},
            "is of type I32",
        ),
    ],
)
def test_what_is_more_than_lora_on_linear_layers_is_refused_by_name(
    base: Path, tmp_path: Path, tensors: Callable[[], Tensors], changes: dict[str, Any], message: str
) -> None:
    adapter = write_adapter(tmp_path / "adapter", tensors(), **changes)
    with pytest.raises(ValueError, match=re.escape(message)):
        convert(base, tmp_path / "out", adapter=adapter)
    assert not (tmp_path / "out").exists()


def test_an_adapter_needs_a_folder_with_safetensors(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ValueError, match=r"model\.gguf: an adapter is merged into a Hugging Face folder"):
        convert(tmp_path / "model.gguf", tmp_path / "out", adapter=write_adapter(tmp_path / "adapter"))


# ----- merged as the weights are loaded -------------------------------------------------------------------------


@pytest.mark.slow
def test_weights_that_are_loaded_with_an_adapter_are_those_of_the_merged_folder(
    base: Path, tmp_path: Path
) -> None:
    """On a mesh too, of which each device has a part of the sum; matrices that lie in one tensor are no exception."""
    adapter = write_adapter(tmp_path / "adapter")
    convert(base, tmp_path / "out", adapter=adapter)
    whole = entropix.load(tmp_path / "out")
    for shape in (None, sharding.Shape(data=1, model=2)):
        found = loading.load(base, mesh=shape, adapter=adapter)
        assert str(found.adapter) == str(adapter) and f"{base} with {adapter}" in repr(found)
        expected = loading.load(tmp_path / "out", mesh=shape)
        chex.assert_trees_all_close(found.weights, expected.weights, rtol=1e-6, atol=1e-6)
        assert meshes.tokens(entropix.generate(found, "Why?", max_new_tokens=8, seed=1)) == meshes.tokens(
            entropix.generate(whole, "Why?", max_new_tokens=8, seed=1)
        )
    assert entropix.load(base).adapter is None
    with pytest.raises(ValueError, match=re.escape(f"{base}/adapter_config.json: no such file")):
        entropix.load(base, adapter=base)


def test_a_trace_names_the_adapter_and_is_repeated_with_it_alone(
    base: Path, tmp_path: Path, run_command: Command
) -> None:
    adapter, kept = write_adapter(tmp_path / "adapter"), tmp_path / "t.jsonl"
    other = write_adapter(tmp_path / "other", lora_alpha=8)
    told = ("--weights", str(base), "--adapter", str(adapter))
    asked = ("--prompt", "Why?", "--max-new-tokens", "6", "--seed", "1", "--trace", str(kept))
    assert run_command(main.main, *told, *asked)[0] == 0
    assert trace.read(kept).header["model"]["adapter"]["name"] == "adapter"
    assert run_command(replay.main, str(kept), *told)[0] == 0
    for words, message in (
        (told[:2], "has the adapter 'adapter' merged in; give its folder with --adapter"),
        ((*told[:3], str(other)), "other: not the adapter of the trace (adapter, fingerprint"),
    ):
        code, _, notes = run_command(replay.main, str(kept), *words)
        assert code == 1 and message in notes
    assert run_command(main.main, *told[:2], *asked)[0] == 0
    code, _, notes = run_command(replay.main, str(kept), *told)
    assert code == 1 and "has no adapter; leave --adapter out" in notes
