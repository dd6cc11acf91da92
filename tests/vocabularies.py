"""Tokenizer folders and texts for tests: small vocabularies, made here or by the `tokenizers` library."""

import itertools
import json
import random
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Reference

from entropix.checkpoint.convert.tokenizer_json import TextEnds, write_tokenizer_json
from entropix.checkpoint.vocabulary.byte_level import CHAR_OF_BYTE
from entropix.checkpoint.vocabulary.patterns import LLAMA3_PATTERN

BYTES = [CHAR_OF_BYTE[byte] for byte in range(256)]
SPECIAL = ["<|begin|>", "<|end|>", "<|end|>of"]

# What Qwen 2 and later cut text with, and what OLMo 2 has of GPT-4, as published.
QWEN2_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
GPT4_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)


def split_by(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


# As the `tokenizers` library builds the pre-tokenizers of these models.
PRE_TOKENIZERS = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    "smollm": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    ),
    "llama-bpe": split_by(LLAMA3_PATTERN),
    "qwen2": split_by(QWEN2_PATTERN),
    "gpt-4": split_by(GPT4_PATTERN),
}

_WORDS = [
    *(
        "the",
        "The",
        "theme",
        "hello's",
        "don't",
        "I'll",
        "we've",
        "THE'S",
        "'ſ",
        "'S",
        "'s",
        "'t",
        "'re",
        "'VE",
        "'M",
    ),
    *("naïve", "ﬀ", "ß", "Straße", "e\u0301", "привет", "мир", "مرحبا", "שלום", "हिन्दी", "ไทย"),
    *("你好", "世界", "こんにちは", "한국어", "🙂", "👩‍👩‍👧", "🇩🇪"),
    *("123", "4567", "1,000.5", "½", "ⅷ", "٣٤", "x_y", "foo(bar)", "--", "==", "-------", "//", "/*", "*/"),
    *("aaaaaaaaaaaa", "ha", "haha", "hahahaha", "user defined", *SPECIAL, "<|end| "),
]
_ASSIGNED = [
    char for char in map(chr, range(0x110000)) if unicodedata.category(char) not in ("Cn", "Cs", "Co")
]
_SPACES = [char for char in _ASSIGNED if char.isspace()]
_DIGITS = [char for char in _ASSIGNED if unicodedata.category(char)[0] == "N"]


def random_texts(n: int, seed: int) -> list[str]:
    """Words of many scripts, digits of all kinds, runs of white space, punctuation, and any character."""
    rng = random.Random(seed)
    kinds = [
        lambda: rng.choice(_WORDS),
        lambda: rng.choice(_WORDS),
        lambda: rng.choice([" ", "  ", "   ", "\t", "\n", "\n\n", " \n", "\r\n"]),
        lambda: rng.choice(_SPACES) * rng.randint(1, 4),
        lambda: str(rng.randrange(10 ** rng.randint(1, 6))),
        lambda: rng.choice(_DIGITS),
        lambda: rng.choice(_ASSIGNED) * rng.randint(1, 3),
        lambda: rng.choice("'\"-=_*#<>|.,!?a ") * rng.randint(1, 60),
    ]
    glue = ["", "", " ", " ", "  ", "   "]
    return [
        "".join(rng.choice(kinds)() + rng.choice(glue) for _ in range(rng.randint(1, 14))) for _ in range(n)
    ]


def digits_spaces_and_others() -> list[str]:
    """Every digit and every white space character there is, and one in forty of all others."""
    return sorted({*_DIGITS, *_SPACES, *_ASSIGNED[::40]})


def trained(folder: Path, pre: str, ignore_merges: bool = False) -> Path:
    """A vocabulary of 900 tokens, trained and saved by the `tokenizers` library."""
    reference = Reference(models.BPE(ignore_merges=ignore_merges))
    reference.normalizer = normalizers.NFC() if pre == "qwen2" else None
    reference.pre_tokenizer = PRE_TOKENIZERS[pre]
    reference.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    reference.train_from_iterator(random_texts(1500, seed=0), trainer)
    reference.add_tokens(["user defined"])
    folder.mkdir(exist_ok=True)
    reference.save(str(folder / "tokenizer.json"))
    return folder


def written(
    folder: Path, merged: Sequence[str] = (), special: Sequence[str] = (), pre: str = "gpt-2"
) -> Path:
    """A vocabulary of the 256 bytes, then `merged` ("a b" merges into "ab"), then the special tokens."""
    tokens = [*BYTES, *(pair.replace(" ", "") for pair in merged), *special]
    types = [1] * (256 + len(merged)) + [3] * len(special)
    folder.mkdir(exist_ok=True)
    write_tokenizer_json(folder / "tokenizer.json", tokens, merged, types, pre, TextEnds(None, None, False))
    return folder


def every_pair(folder: Path, pre: str) -> Path:
    """The vocabulary in which any two neighbouring bytes merge: every cut of the text shows in the ids."""
    return written(folder, [f"{left} {right}" for left, right in itertools.product(BYTES, BYTES)], pre=pre)


def edit(folder: Path, file: str = "tokenizer.json", **changes: Any) -> Path:
    """Replaces entries of a JSON file in the folder; `model` is updated, not replaced."""
    path = folder / file
    values = json.loads(path.read_text()) if path.is_file() else {}
    if "model" in changes:
        changes["model"] = values["model"] | changes["model"]
    path.write_text(json.dumps(values | changes))
    return folder
