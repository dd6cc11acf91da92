"""The tokenizer's file of a checkpoint folder, of whichever kind it is."""

from pathlib import Path

from entropix.checkpoint.special_tokens import SpecialTokens, read_special_tokens
from entropix.checkpoint.vocabulary import byte_level, sentence_pieces
from entropix.checkpoint.vocabulary.contents import Vocabulary
from entropix.files import MOST_JSON, is_there, read_bytes, read_json


def read_vocabulary(folder: Path) -> Vocabulary:
    """The vocabulary of a checkpoint folder: its `tokenizer.json`, else its `tokenizer.model`, completed by the added
    and special tokens of its smaller files.

    Raises a ValueError that names the file and what about it is damaged or cannot be reproduced exactly.
    """
    for name, read in (("tokenizer.json", read_tokenizer_json), ("tokenizer.model", read_tokenizer_model)):
        if is_there(folder / name):
            return read(folder / name, read_special_tokens(folder))
    raise ValueError(f"{folder}: no tokenizer; expected a tokenizer.json or a tokenizer.model")


def read_tokenizer_json(path: Path, small: SpecialTokens = byte_level.NOTHING) -> Vocabulary:
    """The vocabulary of a `tokenizer.json` of the `tokenizers` library.

    small: what smaller files say of special tokens; a token that they alone have is one of the vocabulary.
    """
    file = read_json(path)
    model = file.get("model")
    if isinstance(model, dict) and model.get("byte_fallback"):
        return sentence_pieces.of_json(path, file, small)
    return byte_level.of_json(path, file, small)


def read_tokenizer_model(path: Path, small: SpecialTokens = byte_level.NOTHING) -> Vocabulary:
    """The vocabulary of a `tokenizer.model`: the ranked tokens of Llama 3, or the SentencePiece model of Llama 1 and 2
    and of Mistral.

    small: what smaller files say of special tokens.
    """
    content = read_bytes(path, MOST_JSON)
    if sentence_pieces.is_model(content):
        return sentence_pieces.of_model(path, content, small)
    return byte_level.of_ranks(path, content, small)
