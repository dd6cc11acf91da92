"""SentencePiece vocabularies: trained ones, and the tokenizer.json that transformers makes of one."""

import io
import json
from pathlib import Path
from typing import Any

import sentencepiece

SENTENCES = [
    "The sky is blue because of Rayleigh scattering, said she; 12345 and 678!",
    "Paris is the capital of France. [INST] Why? [/INST]",
    "Die Würde des Menschen ist unantastbar. Эйфелева башня.",
    "def f(x):\n    return x\n",
]


def model(**options: Any) -> bytes:
    """A trained tokenizer.model, as Llama 2's is: BPE, bytes for what has no token, no other normal form."""
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 20),
        model_writer=content,
        **{
            "vocab_size": 480,
            "model_type": "bpe",
            "byte_fallback": True,
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
            "split_digits": True,
            "allow_whitespace_only_pieces": True,
            "hard_vocab_limit": False,
            "minloglevel": 2,
            **options,
        },
    )
    return content.getvalue()


def processor(content: bytes) -> sentencepiece.SentencePieceProcessor:
    found = sentencepiece.SentencePieceProcessor()
    found.LoadFromSerializedProto(content)
    return found


def as_json(content: bytes) -> dict[str, Any]:
    """The tokenizer.json that transformers makes of a tokenizer.model: each way to halve a token is a merge, in the
    order of the tokens' scores."""
    read = processor(content)
    vocab = {read.id_to_piece(i): i for i in range(read.get_piece_size())}
    merges = [
        (vocab[token], i, [token[:i], token[i:]])
        for token in vocab
        if not read.is_byte(vocab[token]) and not read.is_control(vocab[token])
        for i in range(1, len(token))
        if token[:i] in vocab and token[i:] in vocab
    ]
    merges.sort(key=lambda merge: (-read.get_score(merge[0]), vocab[merge[2][0]], vocab[merge[2][1]]))
    special = [
        {
            "content": token,
            "id": i,
            "special": True,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
        for token, i in (("<unk>", 0), ("<s>", 1), ("</s>", 2))
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<s>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [pair for _, _, pair in merges],
        },
    }


def written(folder: Path, content: dict[str, Any] | bytes) -> Path:
    """The folder with this tokenizer file alone."""
    if isinstance(content, bytes):
        (folder / "tokenizer.model").write_bytes(content)
    else:
        (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
