"""config.json, stop tokens and safetensors headers: what is read, and what is refused by name."""

import json
from pathlib import Path
from typing import Any

import folders
import numpy as np
import pytest
import toy
from safetensors.numpy import save_file

from entropix import paths
from entropix.checkpoint import hf_folder, tensors
from entropix.config import RopeScaling

# ----- config.json ------------------------------------------------------------------------------------------


def test_every_number_of_config_json_arrives(tmp_path: Path) -> None:
    folders.write_config(tmp_path)
    assert hf_folder.read_config(tmp_path) == toy.config()


@pytest.mark.parametrize("name", toy.VARIANTS)
def test_a_written_config_reads_back_equal(tmp_path: Path, name: str) -> None:
    cfg = toy.config(**toy.VARIANTS[name])
    hf_folder.write_config(tmp_path / "config.json", cfg, "float32", 1, (2,))
    assert hf_folder.read_config(tmp_path) == cfg


def test_absent_keys_have_the_defaults_of_transformers(tmp_path: Path) -> None:
    folders.write_config(tmp_path, num_key_value_heads=None, rope_theta=None, tie_word_embeddings=None)
    cfg = hf_folder.read_config(tmp_path)
    assert (cfg.n_kv_heads, cfg.head_dim, cfg.rope_theta, cfg.tied_embeddings) == (4, 8, 10_000.0, False)


def test_a_given_head_width_wins_over_the_quotient(tmp_path: Path) -> None:
    folders.write_config(tmp_path, head_dim=16)
    assert hf_folder.read_config(tmp_path).head_dim == 16


@pytest.mark.parametrize(
    "keys",
    [
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **folders.LLAMA3}},
        {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **folders.LLAMA3}},
        {"rope_theta": None, "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **folders.LLAMA3}},
        {"rope_theta": 5e5, "rope_parameters": {"rope_type": "llama3", **folders.LLAMA3}},
    ],
    ids=["classic", "old name of the type", "transformers 5", "theta outside"],
)
def test_llama3_scaling_is_read_wherever_it_is_written(tmp_path: Path, keys: dict[str, Any]) -> None:
    folders.write_config(tmp_path, **keys)
    cfg = hf_folder.read_config(tmp_path)
    assert (cfg.rope_theta, cfg.rope_scaling) == (5e5, RopeScaling(8.0, 1.0, 4.0, 8192))


def test_rotary_parameters_that_stand_twice_must_agree(tmp_path: Path) -> None:
    scaling, other = (
        {"rope_type": "llama3", **folders.LLAMA3},
        {"rope_type": "llama3", **folders.LLAMA3, "factor": 4},
    )
    same = {"rope_theta": None, "rope_parameters": scaling | {"rope_theta": 5e5}, "rope_scaling": scaling}
    folders.write_config(tmp_path, **same)
    cfg = hf_folder.read_config(tmp_path)
    assert (cfg.rope_theta, cfg.rope_scaling) == (5e5, RopeScaling(8.0, 1.0, 4.0, 8192))
    folders.write_config(tmp_path, rope_parameters={}, rope_scaling=scaling)
    assert hf_folder.read_config(tmp_path).rope_scaling == RopeScaling(8.0, 1.0, 4.0, 8192)
    different = "rope_parameters is .*, but rope_scaling is .*, which mean different rotary frequencies"
    for changes, complaint in (
        (same | {"rope_scaling": other}, different),
        ({"rope_parameters": {"rope_type": "default"}, "rope_scaling": scaling}, different),
        (
            {"rope_parameters": scaling, "rope_scaling": {"type": "ntk"}},
            "rope_scaling is of type 'ntk'",
        ),
        (
            {"rope_theta": 1e4, "rope_parameters": scaling | {"rope_theta": 5e5}},
            "it has rope_theta 10000.0 and rope_parameters.rope_theta 500000.0; make them agree",
        ),
    ):
        folders.write_config(tmp_path, **changes)
        with pytest.raises(ValueError, match=complaint):
            hf_folder.read_config(tmp_path)


def test_default_rotary_parameters_mean_no_scaling(tmp_path: Path) -> None:
    folders.write_config(
        tmp_path, rope_theta=None, rope_parameters={"rope_type": "default", "rope_theta": 5e5}
    )
    cfg = hf_folder.read_config(tmp_path)
    assert (cfg.rope_theta, cfg.rope_scaling) == (5e5, None)


def test_mistral_without_sliding_window_is_a_llama(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        json.dumps(folders.CONFIG | {"model_type": "mistral", "sliding_window": None})
    )
    assert hf_folder.read_config(tmp_path) == toy.config()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "model_type must be 'llama'.*'qwen2'.*got 'mamba'"),
        ({"model_type": None}, "model_type must be 'llama'.*got None"),
        ({"sliding_window": 128}, "sliding_window is 128: this llama has no such windows"),
        ({"attention_bias": True}, "attention_bias is True: biases"),
        ({"mlp_bias": True}, "mlp_bias is True: biases"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu': only SwiGLU"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config is .*gptq.*unquantised"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "partial_rotary_factor is 0.5",
        ),
        ({"num_local_experts": 8}, "num_local_experts is 8: mixtures of experts"),
        (
            {"layer_types": ["full_attention", "sliding_attention"]},
            "layer_types has sliding_attention: this llama",
        ),
        ({"rope_scaling": {"rope_type": "yarn"}}, "factor must be a number above 0, got None"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 0.5}},
            "rope_scaling: factor must be .* at least 1.0",
        ),
        ({"rope_scaling": {"rope_type": "ntk", "factor": 4.0}}, "rope_scaling is of type 'ntk'"),
        ({"rope_parameters": {"rope_type": "dynamic"}}, "factor must be a number above 0, got None"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "one flat object for all layers"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            "low_freq_factor must be a number above 0, got None",
        ),
        (
            {"rope_scaling": {"rope_type": "llama3", **folders.LLAMA3, "low_freq_factor": 5}},
            r"rope_scaling: high_freq_factor \(4\.0\) must be above low_freq_factor \(5\.0\)",
        ),
        ({"hidden_size": None}, "hidden_size must be a whole number of at least 1, got None"),
        ({"hidden_size": "32"}, "hidden_size must be a whole number of at least 1, got '32'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers must be a whole number of at least 1, got 0"),
        ({"rms_norm_eps": -1.0}, "rms_norm_eps must be a number above 0, got -1.0"),
        ({"rope_theta": float("nan")}, "rope_theta must be a number above 0, got nan"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false, got 'yes'"),
        ({"hidden_size": 33}, "no head_dim, and hidden_size / num_attention_heads is 33/4"),
        ({"num_key_value_heads": 3}, r"n_heads \(4\) must be a multiple of n_kv_heads \(3\)"),
    ],
)
def test_what_is_no_llama_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folders.write_config(tmp_path, **changes)
    with pytest.raises(ValueError, match=message) as raised:
        hf_folder.read_config(tmp_path)
    assert str(raised.value).startswith(f"{tmp_path}/config.json: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"{", "not a readable JSON file"),
        (b"\xff", "line 1 is not UTF-8"),
        (b"[]", "got a list"),
    ],
)
def test_an_unreadable_config_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=f"config.json: .*{message}"):
        hf_folder.read_config(tmp_path)


# ----- where folders are ------------------------------------------------------------------------------------


def test_weights_are_found_by_name_and_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTROPIX_WEIGHTS", str(tmp_path))
    (tmp_path / "toy").mkdir()
    folders.write_config(tmp_path / "toy")
    assert paths.weights_folder("toy") == tmp_path / "toy"
    assert paths.weights_folder(str(tmp_path / "toy")) == tmp_path / "toy"


def test_missing_weights_tell_the_command_that_fetches_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENTROPIX_WEIGHTS", str(tmp_path))
    with pytest.raises(ValueError, match=r"no weights 'absent'.*python -m entropix.download"):
        paths.weights_folder("absent")


def test_a_folder_of_another_format_tells_the_command_that_converts_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no config.json in this folder.*python -m entropix.convert"):
        paths.weights_folder(tmp_path)


# ----- stop tokens ------------------------------------------------------------------------------------------


def special(**ids: int) -> dict[str, Any]:
    """tokenizer_config.json's list of tokens; a name ending in _plain is not special."""
    return {
        "added_tokens_decoder": {
            str(i): {"content": f"<|{name.removesuffix('_plain')}|>", "special": not name.endswith("_plain")}
            for name, i in ids.items()
        }
    }


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"generation_config.json": {"eos_token_id": 2}, "config.json": {"eos_token_id": 9}}, (2, 9)),
        ({"generation_config.json": {"eos_token_id": [7, 3]}}, (3, 7)),
        ({"generation_config.json": {}, "config.json": {"eos_token_id": 9}}, (9,)),
        ({"tokenizer_config.json": {"eos_token": "<|stop|>", **special(stop=5)}}, (5,)),
        ({"tokenizer_config.json": {"eos_token": {"content": "<|stop|>"}, **special(stop=5)}}, (5,)),
        ({"tokenizer_config.json": special(im_end=4, other=5), "config.json": {"eos_token_id": 9}}, (4, 9)),
        ({"tokenizer_config.json": special(im_end_plain=4), "config.json": {"eos_token_id": 9}}, (4, 9)),
        ({"tokenizer.json": {"added_tokens": [{"id": 6, "content": "<|eot_id|>", "special": True}]}}, (6,)),
        ({}, ()),
    ],
    ids=[
        "what either file lists",
        "a list",
        "config.json otherwise",
        "the tokenizer's eos_token otherwise",
        "eos_token as an object",
        "a forgotten end of turn is added",
        "one that is not special too",
        "from tokenizer.json",
        "none known",
    ],
)
def test_stop_tokens(tmp_path: Path, files: dict[str, Any], expected: tuple[int, ...]) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    assert hf_folder.stop_token_ids(tmp_path) == expected


@pytest.mark.parametrize("value", ["2", -1, [1, None], True, 2.0])
def test_a_stop_token_that_is_no_id_is_refused(tmp_path: Path, value: Any) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(ValueError, match=r"generation_config.json: eos_token_id must be a token id"):
        hf_folder.stop_token_ids(tmp_path)


def test_a_damaged_token_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": ["<|eot_id|>"]}))
    with pytest.raises(
        ValueError, match=r"tokenizer.json: expected each of added_tokens to have a content and an id"
    ):
        hf_folder.stop_token_ids(tmp_path)


# ----- tensors ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", tensors.DTYPES.values(), ids=str)
def test_a_mapped_tensor_has_the_values_that_were_stored(tmp_path: Path, dtype: np.dtype) -> None:
    arrays = {"a": np.arange(6).reshape(2, 3).astype(dtype), "b": np.array([7, 8], dtype)}
    save_file(arrays, tmp_path / "model.safetensors")
    stored = tensors.stored_tensors(tmp_path)
    for name, array in arrays.items():
        values = stored[name].read()
        assert values.dtype == dtype
        assert isinstance(values, np.memmap)
        np.testing.assert_array_equal(values, array)


def test_the_index_names_the_files_that_are_read(tmp_path: Path) -> None:
    folders.write_tensors(tmp_path, {name: np.zeros(2, np.float32) for name in "abc"}, n_files=2)
    save_file({"d": np.zeros(2, np.float32)}, tmp_path / "consolidated.safetensors")
    assert sorted(tensors.stored_tensors(tmp_path)) == ["a", "b", "c"]


def test_one_whole_file_is_all_that_is_read(tmp_path: Path) -> None:
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
    # As in Mistral's repositories.
    save_file({"a": np.ones(3, np.float32)}, tmp_path / "consolidated.safetensors")
    stored = tensors.stored_tensors(tmp_path)
    assert {name: tensor.shape for name, tensor in stored.items()} == {"a": (2,)}


def test_a_file_that_the_index_names_must_be_there(tmp_path: Path) -> None:
    folders.write_tensors(tmp_path, {name: np.zeros(2, np.float32) for name in "abc"}, n_files=2)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"model-00002-of-00002.safetensors: no such file, but the index names it"
    ):
        tensors.stored_tensors(tmp_path)


def test_an_index_without_a_map_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"index\.json: expected an object 'weight_map'"):
        tensors.stored_tensors(tmp_path)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_file({"a": np.zeros(2, np.float32)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match=r"tensor a is both in .*one\.safetensors and in .*two\.safetensors"):
        tensors.stored_tensors(tmp_path)


def test_a_folder_without_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no \.safetensors file here"):
        tensors.stored_tensors(tmp_path)


@pytest.mark.parametrize(
    "keep", [0, 5, 40, -1], ids=["empty", "in the length", "in the header", "in the data"]
)
def test_a_truncated_file_is_named(tmp_path: Path, keep: int) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"a": np.zeros((4, 4), np.float32)}, file)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors: empty, truncated or no safetensors file"):
        tensors.stored_tensors(tmp_path)


def test_a_file_of_something_else_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"<!doctype html><title>Not Found</title>" * 3)
    with pytest.raises(ValueError, match=r"model\.safetensors: empty, truncated or no safetensors file"):
        tensors.stored_tensors(tmp_path)
