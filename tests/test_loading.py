"""A checkpoint folder as a whole: what ends an answer, which rows mean nothing, and files that do not fit together."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import folders
import jax.numpy as jnp
import pytest
import toy

import entropix
from entropix.checkpoint import loading
from entropix.checkpoint.loading import Model
from entropix.metrics import Metrics

END_OF_TEXT, IM_START, IM_END = 256, 257, 258


def change(folder: Path, name: str, **values: Any) -> Path:
    path = folder / name
    path.write_text(json.dumps((json.loads(path.read_text()) if path.is_file() else {}) | values))
    return folder


def added(folder: Path, *names: str, special: bool = True) -> Path:
    """The toy's tokenizer with other added tokens, from id 256."""
    tokens = [{"id": 256 + i, "content": name, "special": special} for i, name in enumerate(names)]
    return change(folder, "tokenizer.json", added_tokens=tokens)


# ----- ends -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("generation", "config", "eos", "stops"),
    [
        (None, None, None, (IM_END,)),
        (END_OF_TEXT, None, None, (END_OF_TEXT, IM_END)),
        (None, [END_OF_TEXT, 7], None, (7, END_OF_TEXT, IM_END)),
        ([3], 5, "<|endoftext|>", (3, 5, END_OF_TEXT, IM_END)),
    ],
)
def test_every_end_that_any_file_lists_stops(
    tmp_path: Path, generation: Any, config: Any, eos: str | None, stops: tuple[int, ...]
) -> None:
    folders.write_checkpoint(tmp_path, eos_token_id=config)
    change(tmp_path, "generation_config.json", eos_token_id=generation)
    change(tmp_path, "tokenizer_config.json", eos_token=eos)
    assert loading.load(tmp_path).stop_ids == stops


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize(
    ("template", "stops"),
    [
        ("{% for m in messages %}<|user|>{{ m.content }}<|done|>\n{% endfor %}", (258,)),
        ("{% for m in messages %}<|user|>{{ m.content | trim + ' ' }}<|done|>{% endfor %}", (258,)),
        ("{% for m in messages %}<|user|>{{ m.content }}\n<|turn|>x<|done|>{% endfor %}", (257,)),
        ("{% for m in messages %}<|user|>{{ m.content }} and<|done|>{% endfor %}", ()),
        ("{% for m in messages %}<|user|>{{ m.content }}{% endfor %}", ()),
        ("{{ raise_exception('no') }}", ()),
        (None, ()),
    ],
    ids=["ChatML's way", "after a space", "the first", "not after words", "none", "a refusal", "no template"],
)
def test_the_token_that_the_template_ends_an_answer_with_stops(
    tmp_path: Path, template: str | None, stops: tuple[int, ...], special: bool
) -> None:
    folders.write_checkpoint(tmp_path, chat_template=template)
    change(tmp_path, "tokenizer_config.json", eos_token=None)
    added(tmp_path, "<|user|>", "<|turn|>", "<|done|>", special=special)
    assert loading.load(tmp_path).stop_ids == stops


def test_an_end_of_turn_that_is_not_special_stops(tmp_path: Path) -> None:
    folders.write_checkpoint(tmp_path, chat_template=None, eos_token_id=9)
    assert loading.load(added(tmp_path, "<|im_end|>", special=False)).stop_ids == (9, 256)


def test_an_end_beyond_the_embedding_is_named(tmp_path: Path) -> None:
    folders.write_checkpoint(tmp_path, eos_token_id=[258, 259])
    with pytest.raises(
        ValueError, match=r"the end token 259 \(eos_token_id .*\) is beyond the vocab_size 259"
    ):
        loading.load(tmp_path)


# ----- vocabularies ---------------------------------------------------------------------------------------


def test_rows_without_a_token_are_known(tmp_path: Path) -> None:
    folders.write_checkpoint(tmp_path, vocab_size=264)
    change(
        tmp_path, "tokenizer_config.json", added_tokens_decoder={"261": {"content": "<|x|>", "special": True}}
    )
    model = loading.load(tmp_path)
    assert model.missing_ids == (259, 260, 262, 263)
    assert model.tokenizer.vocab_size == 262
    folders.write_checkpoint(tmp_path / "full")
    assert loading.load(tmp_path / "full").missing_ids == ()


def test_a_token_that_spells_the_replacement_character_is_one(tmp_path: Path) -> None:
    folders.write_checkpoint(tmp_path)
    model = loading.load(added(tmp_path, "<|im_start|>", "\N{REPLACEMENT CHARACTER}", "<|im_end|>"))
    assert model.missing_ids == ()


def test_tokens_beyond_the_embedding_are_named(tmp_path: Path) -> None:
    folders.write_checkpoint(tmp_path)
    padding = {"259": {"content": "[PAD]", "special": True}, "300": {"content": "[X]", "special": True}}
    change(tmp_path, "tokenizer_config.json", added_tokens_decoder=padding)
    complaint = r"has the tokens '\[PAD\]' \(259\), '\[X\]' \(300\), but config.json has a vocab_size of 259"
    with pytest.raises(ValueError, match=complaint):
        loading.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "values", "complaint"),
    [
        (
            "config.json",
            {"num_hidden_layers": 10**7},
            "num_hidden_layers must be at most 10000, got 10000000",
        ),
        ("config.json", {"vocab_size": 10**9}, "vocab_size must be at most 2097152, got 1000000000"),
        ("config.json", {"hidden_size": 2**62}, "hidden_size must be at most 4194304, got 46116860184273879"),
        (
            "config.json",
            {"rms_norm_eps": 10**400},
            "rms_norm_eps must be a number above 0, got a number of some 401 ",
        ),
        ("config.json", {"layer_types": 5}, "layer_types must be a list, got 5"),
        (
            "config.json",
            {"eos_token_id": 2**40},
            "eos_token_id must be a token id or a list of them, .*1099511627776",
        ),
        ("config.json", {"rope_scaling": "llama3"}, "rope_scaling must be an object, got 'llama3'"),
        ("config.json", {"model_type": ["llama"]}, r"model_type must be 'llama'.* got \['llama'\]"),
        (
            "generation_config.json",
            {"eos_token_id": [2**70]},
            "eos_token_id must be a token id or a list of them",
        ),
        ("tokenizer.json", {"added_tokens": 5}, "added_tokens must be a list, got 5"),
        ("tokenizer.json", {"model": 5}, "expected an object `model`"),
        ("tokenizer.json", {"model": {"type": [1]}}, r"its model is \[1\], not BPE"),
        (
            "tokenizer.json",
            {"added_tokens": [{"id": 10**9, "content": "a"}]},
            "expected each of added_tokens to have a content and an id of 0 to 2097151, got 'a' and 1000000000",
        ),
        (
            "tokenizer.json",
            {"model": {"vocab": {"a": 2**70}, "merges": []}},
            "expected model.vocab to be an object of tokens and their ids, of 0 to 2097151",
        ),
        (
            "tokenizer.json",
            {"model": {"vocab": {"a": 10**9}, "merges": []}},
            "expected model.vocab to be an object",
        ),
        (
            "tokenizer.json",
            {"model": {"vocab": {"\ud800": 1}, "merges": []}},
            "in model.vocab has half a character",
        ),
        (
            "tokenizer_config.json",
            {"chat_template": [5]},
            "each of chat_template must be a new name and a .*, got 5",
        ),
        (
            "tokenizer_config.json",
            {"chat_template": {"a": 1}},
            "chat_template must be text, or a list of named",
        ),
    ],
)
def test_numbers_and_types_that_no_checkpoint_has_are_refused_by_file_and_key(
    tmp_path: Path, name: str, values: dict[str, Any], complaint: str
) -> None:
    folders.write_checkpoint(tmp_path)
    with pytest.raises(ValueError, match=rf"{name}: .*{complaint}") as raised:
        loading.load(change(tmp_path, name, **values))
    assert len(str(raised.value)) < 1000


@pytest.mark.slow
def test_rows_without_a_token_count_in_no_metric_and_are_never_drawn(toy_model: Model) -> None:
    """A vocabulary that is padded with rows, whose logits would be the largest of all, is the vocabulary alone."""
    cfg = toy.config(vocab_size=toy_model.config.vocab_size + 5, tied_embeddings=False)
    small = toy.model_of(tied_embeddings=False)
    loud_VD = jnp.concatenate([small.weights.unembed_VD, jnp.full((5, cfg.dim), 9.0)])
    rows_VD = jnp.concatenate([small.weights.embed_VD, jnp.ones((5, cfg.dim))])
    weights = dataclasses.replace(small.weights, embed_VD=rows_VD, unembed_VD=loud_VD)
    padded = loading.without_missing(dataclasses.replace(small, config=cfg, weights=weights))
    assert padded.missing_ids == tuple(range(cfg.vocab_size - 5, cfg.vocab_size))
    options = {"seed": 3, "max_new_tokens": 12}
    for rule in ("temperature", "entropix", "typical", "greedy"):
        [expected], [found] = (
            entropix.generate(model, "Why?", sampler=rule, **options) for model in (small, padded)
        )
        assert max(found.token_ids) < cfg.vocab_size - 5
        for ours, theirs in zip(found.records[:1], expected.records[:1], strict=True):
            for name in Metrics._fields:
                assert ours[name] == pytest.approx(theirs[name], rel=1e-5, abs=1e-6), name
