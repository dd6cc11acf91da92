"""GGUF files: a model written in the format becomes the folder it came from, value by value."""

import math
from pathlib import Path
from typing import Any

import folders
import foreign
import gguf
import ml_dtypes
import numpy as np
import pytest
import toy
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize

from entropix import files
from entropix.checkpoint import hf_folder, load_weights
from entropix.checkpoint.convert import convert
from entropix.checkpoint.vocabulary.files import read_vocabulary
from entropix.config import ModelConfig, RopeScaling


def from_gguf(
    tmp_path: Path, tensors: foreign.Tensors, metadata: dict[str, Any], kind: Kind = Kind.F32
) -> Path:
    foreign.write_gguf(tmp_path / "model.gguf", tensors, metadata, kind)
    convert(tmp_path / "model.gguf", tmp_path / "out")
    return tmp_path / "out"


@pytest.mark.parametrize("name", [name for name in toy.VARIANTS if name != "scaled rotary frequencies"])
def test_a_gguf_file_becomes_the_folder_it_came_from(tmp_path: Path, name: str) -> None:
    cfg = toy.config(**toy.VARIANTS[name])
    tensors = folders.random_tensors(cfg)
    out = from_gguf(tmp_path, foreign.gguf_tensors(tensors, cfg), foreign.gguf_metadata(cfg))
    assert hf_folder.read_config(out) == cfg
    folders.assert_tensors(out, tensors)
    load_weights.load(out, cfg, np.float32)


@pytest.mark.parametrize(("kind", "dtype"), [(Kind.F16, np.float16), (Kind.BF16, ml_dtypes.bfloat16)])
def test_half_precision_stays_what_it_is(tmp_path: Path, kind: Kind, dtype: type) -> None:
    cfg = toy.config()
    tensors = folders.random_tensors(cfg)
    out = from_gguf(tmp_path, foreign.gguf_tensors(tensors, cfg), foreign.gguf_metadata(cfg), kind)
    folders.assert_tensors(out, tensors, dtype)
    assert files.read_json(out / "config.json")["torch_dtype"] == np.dtype(dtype).name


def dequantisable() -> list[Kind]:
    """Every block-quantised type of the gguf library that it can turn into numbers."""
    kinds = []
    for kind, (_, nbytes) in gguf.GGML_QUANT_SIZES.items():
        try:
            dequantize(np.zeros((1, nbytes), np.uint8), kind)
        except NotImplementedError:
            continue
        kinds.append(kind)
    return [kind for kind in kinds if kind not in (Kind.F32, Kind.F16)]


def random_blocks(kind: Kind, rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """Bytes of a [rows, columns] tensor of this type that stand for moderate numbers."""
    values_per_block, nbytes = gguf.GGML_QUANT_SIZES[kind]
    wanted = rows * columns // values_per_block
    blocks = np.empty((0, nbytes), np.uint8)
    while len(blocks) < wanted:
        candidates = rng.integers(0, 256, (2 * wanted, nbytes), np.uint8)
        with np.errstate(all="ignore"):
            largest = np.abs(dequantize(candidates, kind)).max(axis=1)
        blocks = np.concatenate([blocks, candidates[largest < 1e6]])  # NaN is not less
    return blocks[:wanted].reshape(rows, -1)


def test_the_quantised_types_include_those_in_common_use() -> None:
    assert {Kind.Q8_0, Kind.Q4_0, Kind.Q4_1, Kind.Q5_1, Kind.Q2_K, Kind.Q4_K, Kind.Q5_K, Kind.Q6_K} <= set(
        dequantisable()
    )


@pytest.mark.parametrize("kind", dequantisable(), ids=lambda kind: kind.name)
def test_every_quantised_type_keeps_its_values(tmp_path: Path, kind: Kind) -> None:
    cfg = toy.config(dim=256, n_heads=4, n_kv_heads=1, head_dim=64, ffn_dim=256, n_layers=1)
    rng = np.random.default_rng(int(kind))
    stored, expected = {}, {}
    for name, array in folders.random_tensors(cfg).items():
        if array.ndim == 1:
            stored[name] = expected[name] = array
            continue
        stored[name] = random_blocks(kind, *array.shape, rng)
        expected[name] = dequantize(stored[name], kind)
    # Blocks lie along the rows, so reordering rows of blocks reorders the same rows of values.
    foreign.write_gguf(
        tmp_path / "m.gguf", foreign.gguf_tensors(stored, cfg), foreign.gguf_metadata(cfg), kind
    )
    convert(tmp_path / "m.gguf", tmp_path / "out", dtype="float32")
    folders.assert_tensors(tmp_path / "out", expected)


def llama3_factors(cfg: ModelConfig) -> np.ndarray:
    """What `rope_freqs.weight` holds: the divisor of each frequency, case by case as Meta published it."""
    scaling = cfg.rope_scaling
    assert scaling is not None
    factors = []
    for i in range(0, cfg.head_dim, 2):
        wavelength = 2 * math.pi * cfg.rope_theta ** (i / cfg.head_dim)
        if wavelength < scaling.original_context_length / scaling.high_freq_factor:
            factors.append(1.0)
        elif wavelength > scaling.original_context_length / scaling.low_freq_factor:
            factors.append(scaling.factor)
        else:
            span = scaling.high_freq_factor - scaling.low_freq_factor
            smooth = (scaling.original_context_length / wavelength - scaling.low_freq_factor) / span
            factors.append(1 / ((1 - smooth) / scaling.factor + smooth))
    return np.array(factors, np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_scaling_is_recovered_from_its_factors(tmp_path: Path, factor: float) -> None:
    cfg = toy.config(head_dim=64, rope_theta=500_000.0, rope_scaling=RopeScaling(factor, 1.0, 4.0, 8192))
    factors = llama3_factors(cfg)
    assert len(set(factors.tolist())) > 3  # 1, the factor, and some in between
    tensors = foreign.gguf_tensors(folders.random_tensors(cfg), cfg) | {"rope_freqs.weight": factors}
    out = from_gguf(tmp_path, tensors, foreign.gguf_metadata(cfg))
    assert hf_folder.read_config(out) == cfg


def test_rotary_factors_of_one_are_no_scaling(tmp_path: Path) -> None:
    cfg = toy.config()
    tensors = foreign.gguf_tensors(folders.random_tensors(cfg), cfg) | {
        "rope_freqs.weight": np.ones(4, np.float32)
    }
    assert hf_folder.read_config(from_gguf(tmp_path, tensors, foreign.gguf_metadata(cfg))) == cfg


@pytest.mark.parametrize("context_length", [8193, 131_072])
@pytest.mark.parametrize("tied", [True, False])
def test_a_long_llama3_that_does_not_say_how_it_is_scaled_is_refused(
    tmp_path: Path, context_length: int, tied: bool
) -> None:
    """Converted as it stands, it would be an unscaled model, wrong at every position."""
    cfg = toy.config(rope_theta=500_000.0, context_length=context_length, tied_embeddings=tied)
    tensors = foreign.gguf_tensors(folders.random_tensors(cfg), cfg)
    message = (
        f"llama.context_length {context_length} with llama.rope.freq_base 500000 says Llama 3.1, 3.2 or 3.3"
    )
    with pytest.raises(
        ValueError, match=rf"model\.gguf: {message}.* no tensor rope_freqs\.weight to say how"
    ):
        from_gguf(tmp_path, tensors, foreign.gguf_metadata(cfg))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("theta", "context_length"), [(500_000.0, 8192), (1e6, 131_072), (5e6, 200_000)])
def test_other_long_models_are_unscaled(tmp_path: Path, theta: float, context_length: int) -> None:
    """Llama 3 itself, Mistral Nemo, Yi."""
    cfg = toy.config(rope_theta=theta, context_length=context_length)
    tensors = foreign.gguf_tensors(folders.random_tensors(cfg), cfg)
    assert hf_folder.read_config(from_gguf(tmp_path, tensors, foreign.gguf_metadata(cfg))) == cfg


def test_factors_beside_a_word_of_no_scaling_are_refused(tmp_path: Path) -> None:
    changes = {"llama__rope__scaling__type": "none"}
    ones, others = np.ones(4, np.float32), np.array([1, 2, 3, 4], np.float32)
    convert(foreign.toy_gguf(tmp_path, {"rope_freqs.weight": ones}, **changes), tmp_path / "out")
    with pytest.raises(
        ValueError, match=r"llama\.rope\.scaling\.type is 'none', but the tensor rope_freqs\.weight"
    ):
        convert(foreign.toy_gguf(tmp_path, {"rope_freqs.weight": others}, **changes), tmp_path / "other")


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        (np.ones(3, np.float32), r"must have the shape \[4\], half the head width, got \[3\]"),
        (np.ones((2, 2), np.float32), r"must have the shape \[4\], half the head width, got \[2, 2\]"),
        (np.full(4, np.nan, np.float32), "is not the Llama 3 scaling"),
        (np.full(4, -8, np.float32), "is not the Llama 3 scaling"),
        (np.full(4, np.inf, np.float32), "is not the Llama 3 scaling"),
        (np.ones(4, np.int8), "is of type I8, which cannot be dequantised"),
    ],
)
def test_rotary_factors_that_are_none_are_refused(tmp_path: Path, factors: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=rf"model\.gguf: rope_freqs\.weight {message}"):
        convert(foreign.toy_gguf(tmp_path, {"rope_freqs.weight": factors}), tmp_path / "out")


def test_absent_metadata_has_its_default(tmp_path: Path) -> None:
    cfg = toy.config(n_kv_heads=4)
    absent = {
        "llama.attention.head_count_kv": None,
        "llama.attention.key_length": None,
        "llama.attention.value_length": None,
        "llama.rope.dimension_count": None,
        "llama.rope.freq_base": None,
        "llama.vocab_size": None,
    }
    tensors = foreign.gguf_tensors(folders.random_tensors(cfg), cfg)
    assert hf_folder.read_config(from_gguf(tmp_path, tensors, foreign.gguf_metadata(cfg) | absent)) == cfg


def test_vocabulary_and_template_are_carried_over(tmp_path: Path) -> None:
    convert(foreign.toy_gguf(tmp_path), tmp_path / "out")
    vocabulary = read_vocabulary(tmp_path / "out")
    assert vocabulary.special == {"<|im_start|>": 257, "<|im_end|>": 258}
    assert vocabulary.plain.ranks[b"ab"] == 256
    tokenizer_config = files.read_json(tmp_path / "out" / "tokenizer_config.json")
    assert tokenizer_config["chat_template"] == foreign.TEMPLATE
    assert (tokenizer_config["bos_token"], tokenizer_config["eos_token"]) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer_config["add_bos_token"] is False
    assert files.read_json(tmp_path / "out" / "generation_config.json")["eos_token_id"] == [258]
    assert hf_folder.stop_token_ids(tmp_path / "out") == (258,)


def test_a_given_template_replaces_the_one_inside(tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text("{{ messages }}")
    convert(foreign.toy_gguf(tmp_path), tmp_path / "out", chat_template=tmp_path / "mine.jinja")
    assert files.read_json(tmp_path / "out" / "tokenizer_config.json")["chat_template"] == "{{ messages }}"


def test_every_end_that_the_file_knows_stops(tmp_path: Path) -> None:
    changes = {
        "tokenizer__ggml__eos_token_id": 3,
        "tokenizer__ggml__eot_token_id": 5,
        "tokenizer__ggml__eom_token_id": 7,
    }
    convert(foreign.toy_gguf(tmp_path, **changes), tmp_path / "out")
    assert hf_folder.stop_token_ids(tmp_path / "out") == (3, 5, 7, 258)  # 258 is <|im_end|>


def test_ordinary_text_that_looks_like_an_end_does_not_stop(tmp_path: Path) -> None:
    changes = {"tokenizer__ggml__eos_token_id": 3, "tokenizer__ggml__token_type": [1] * 259}
    convert(foreign.toy_gguf(tmp_path, **changes), tmp_path / "out")
    assert hf_folder.stop_token_ids(tmp_path / "out") == (3,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"architecture": "gemma"},
            "the architecture is 'gemma'; only llama, qwen2, qwen3, olmo2, smollm3,",
        ),
        ({"split__count": 3}, "one of 3 parts; give the first one, whose name ends with -00001-of-"),
        ({"llama__expert_count": 8}, "llama.expert_count is 8; only 0 is supported"),
        (
            {"llama__rope__scaling__type": "yarn"},
            "llama.rope.scaling.type is 'yarn'; only 'none' is supported",
        ),
        (
            {"llama__attention__sliding_window": 4096},
            "llama.attention.sliding_window is 4096; this may change",
        ),
        ({"llama__rope__dimension_count": 4}, "llama.rope.dimension_count is 4; only the head width, 8,"),
        ({"llama__attention__value_length": 16}, "llama.attention.value_length is 16"),
        (
            {"llama__attention__head_count_kv": [2, 4]},
            r"head_count_kv must be one whole number of at least 1, got \[2, 4\]",
        ),
        (
            {"llama__context_length": None},
            "llama.context_length must be one whole number of at least 1, got None",
        ),
        ({"llama__vocab_size": 300}, "llama.vocab_size is 300, the embedding has 259 rows"),
        (
            {"llama__attention__head_count": 0},
            "llama.attention.head_count must be one whole number of at least 1, got 0",
        ),
        ({"llama__attention__head_count": 3}, "multiple of n_kv_heads"),
        ({"tokenizer__ggml__model": "llama"}, "no tokenizer.ggml.scores; the vocabulary is incomplete"),
        ({"tokenizer__ggml__model": None}, "tokenizer.ggml.model is None; only byte-level BPE"),
        ({"tokenizer__ggml__merges": None}, "no tokenizer.ggml.merges; the vocabulary is incomplete"),
        (
            {"tokenizer__ggml__tokens": foreign.TOKENS[:-1]},
            r"token_type must be a list of 258 whole numbers, got \[1, 1, 1, 1, 1, 1, \.\.\.\]",
        ),
        ({"tokenizer__ggml__pre": "deepseek-coder"}, "tokenizer.ggml.pre is 'deepseek-coder'"),
    ],
)
def test_metadata_of_another_model_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        convert(foreign.toy_gguf(tmp_path, **changes), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf"]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"blk.0.attn_q.bias": np.zeros(32, np.float32)}, r"unexpected: blk\.0\.attn_q\.bias \[32\]"),
        (
            {"blk.1.attn_q_norm.weight": np.zeros(8, np.float32)},
            r"unexpected: blk\.1\.attn_q_norm\.weight \[8\]",
        ),
        (
            {"blk.0.ffn_up.weight": np.zeros((32, 32), np.float32)},
            r"wrong shape: blk\.0\.ffn_up\.weight is \[32, 32\]",
        ),
        (
            {"blk.1.ffn_up.weight": np.full((64, 32), np.nan, np.float32)},
            r"1\.mlp\.up_proj\.weight has NaN or infinite",
        ),
        (
            {"rope_freqs.weight": np.array([1, 2, 3, 4], np.float32)},
            r"rope_freqs\.weight is not the Llama 3 scaling",
        ),
        ({"blk.0.ffn_up.weight": np.zeros((64, 32), np.int8)}, r"blk\.0\.ffn_up\.weight is of type I8"),
    ],
    ids=["bias", "query norm", "shape", "NaN", "rotary factors", "integers"],
)
def test_a_tensor_that_does_not_belong_is_refused_by_name(
    tmp_path: Path, tensors: foreign.Tensors, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        convert(foreign.toy_gguf(tmp_path, tensors), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.gguf"]


def test_all_misfits_of_a_gguf_file_come_in_one_message(tmp_path: Path) -> None:
    cfg = toy.config()
    tensors = foreign.gguf_tensors(folders.random_tensors(cfg), cfg)
    del tensors["output_norm.weight"], tensors["blk.1.attn_k.weight"]
    with pytest.raises(ValueError, match="do not fit the metadata") as raised:
        from_gguf(tmp_path, tensors, foreign.gguf_metadata(cfg))
    assert str(raised.value).splitlines()[1:] == [
        "  missing: blk.1.attn_k.weight [16, 32]",
        "  missing: output_norm.weight [32]",
    ]


@pytest.mark.parametrize(
    "keep", [0, 3, 100, 20_000, -100], ids=["empty", "magic", "header", "tensors", "end"]
)
def test_a_damaged_gguf_file_is_named(tmp_path: Path, keep: int) -> None:
    path = foreign.toy_gguf(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.gguf: empty, truncated or not a GGUF file"):
        convert(path, tmp_path / "out")


# ----- files in parts ---------------------------------------------------------------------------------------


def write_parts(folder: Path) -> list[Path]:
    """The toy in parts of at most nine tensors; the first has metadata alone, as some have it."""
    cfg = toy.config()
    tensors = foreign.gguf_tensors(folders.random_tensors(cfg), cfg)
    foreign.write_gguf(folder / "toy.gguf", tensors, foreign.gguf_metadata(cfg), per_part=9)
    return sorted(folder.glob("toy-*.gguf"))


def test_a_file_in_parts_is_read_by_its_first_one(tmp_path: Path) -> None:
    parts = write_parts(tmp_path)
    assert [part.name for part in parts] == [f"toy-{i:05}-of-00003.gguf" for i in (1, 2, 3)]
    convert(parts[0], tmp_path / "out")
    folders.assert_tensors(tmp_path / "out", folders.random_tensors(toy.config()))


def test_parts_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    parts = write_parts(tmp_path)
    with pytest.raises(ValueError, match=r"-00002-of-00003\.gguf: one of 3 parts; give the first one"):
        convert(parts[1], tmp_path / "out")
    parts[2].rename(tmp_path / "aside")
    with pytest.raises(
        ValueError, match=r"-00003-of-00003\.gguf: no such file, but toy-00001-of-00003\.gguf is the"
    ):
        convert(parts[0], tmp_path / "out")
    other = parts[1].read_bytes().replace(b"split.no", b"split.nO")
    parts[2].write_bytes(other)
    with pytest.raises(
        ValueError, match=r"-00003-of-00003\.gguf: it says that it is another part than 3 of 3"
    ):
        convert(parts[0], tmp_path / "out")
    parts[2].write_bytes(parts[1].read_bytes())
    with pytest.raises(
        ValueError, match=r"-00003-of-00003\.gguf: it says that it is another part than 3 of 3"
    ):
        convert(parts[0], tmp_path / "out")
    assert not (tmp_path / "out").exists()
