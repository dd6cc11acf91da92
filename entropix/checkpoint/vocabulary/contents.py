"""What a vocabulary is made of, whichever file it comes from, and what all files are checked for."""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from entropix.checkpoint import values
from entropix.checkpoint.special_tokens import SpecialTokens
from entropix.checkpoint.values import refusal

# What stands for what the part of a model that reads images makes of one (Gemma 3).
IMAGE_TOKENS = ("<image_soft_token>",)

Encoder = Callable[[str, bool], list[int]]
"""(plain text between two special tokens, whether it begins the whole text) -> its ids."""


class PlainText(Protocol):
    """How text in which no token is special becomes ids."""

    @property
    def missing_bytes(self) -> frozenset[int]:
        """Bytes that no token can say."""
        ...

    def encoder(self, where: str) -> Encoder:
        """The function that does it. Raises a ValueError that says `where` if the library does not accept this."""
        ...


@dataclass(frozen=True)
class Vocabulary:
    """What a tokenizer file says.

    Attributes:
        plain: how text between special and added tokens becomes ids.
        texts: the bytes of every id.
        special: id of each control token, by its name. Plain text never becomes one.
        added: id of each further token that is cut out of any text first, wherever it occurs.
        bos_ids, eos_ids: tokens that the file puts in front of a text, and at its end.
        nfc: whether text between special and added tokens is put into normal form C before it is cut.
        late: names of those special and added tokens that are looked for only then.
        swallowing: names of those that take the white space behind them along (`rstrip`).
        begins_with_space: whether a space is put before a text, which is no part of what it says.
    """

    plain: PlainText
    texts: dict[int, bytes]
    special: dict[str, int]
    added: dict[str, int]
    bos_ids: tuple[int, ...]
    eos_ids: tuple[int, ...] = ()
    nfc: bool = False
    late: frozenset[str] = frozenset()
    swallowing: frozenset[str] = frozenset()
    begins_with_space: bool = False


def for_text(vocabulary: Vocabulary, n_rows: int) -> Vocabulary:
    """The vocabulary without those special tokens of images that the embedding, of so many rows, has no row for."""
    special = {name: i for name, i in vocabulary.special.items() if i < n_rows or name not in IMAGE_TOKENS}
    gone = vocabulary.special.keys() - special.keys()
    texts = {
        i: text
        for i, text in vocabulary.texts.items()
        if i < n_rows or text.decode(errors="replace") not in gone
    }
    return dataclasses.replace(vocabulary, special=special, texts=texts)


def vocab_of(path: Path, file: Mapping[str, Any]) -> dict[str, int]:
    """`model.vocab` of a tokenizer.json: the ids of its tokens."""
    vocab = file["model"].get("vocab")
    if not isinstance(vocab, dict) or not all(map(values.is_token_id, vocab.values())):
        raise ValueError(
            f"{path}: expected model.vocab to be an object of tokens and their ids, of 0 to {values.MOST_TOKENS - 1}"
        )
    if half := [token for token in vocab if not values.is_text(token)]:
        raise ValueError(f"{path}: the token {values.shown(half[0])} in model.vocab has half a character")
    return vocab


def check_ids(path: Path, vocab: Mapping[str, int], more: Mapping[str, int], small: SpecialTokens) -> None:
    """Raises where a token has two ids, or an id two tokens."""
    where = {token.text: token.where for token in small.added}
    token_of = {i: token for token, i in vocab.items()}
    if len(token_of) < len(vocab):
        raise ValueError(f"{path}: expected every token of model.vocab to have one id of its own")
    for token, i in more.items():
        other = vocab.get(token, i), token_of.setdefault(i, token)
        if other != (i, token):
            raise ValueError(
                f"{where.get(token, path)}: {values.shown(token)} has the id {i}, but in {path} "
                f"{values.shown(other[1])} has {other[0]}; expected every token of model.vocab and added_tokens to "
                "have one id of its own"
            )


def text_ends(
    path: Path, post_processor: Any, texts: Mapping[int, bytes], depth: int = 0
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens that the post-processor of a tokenizer.json puts in front of a text on its own, and at its end."""
    match post_processor:
        case None | {"type": "ByteLevel"}:
            return (), ()
        case {"type": "Sequence", "processors": [*steps]} if depth < 10:
            ends = [text_ends(path, step, texts, depth + 1) for step in steps]
            return tuple(i for front, _ in ends for i in front), tuple(i for _, back in ends for i in back)
        case {"type": "TemplateProcessing", "single": [*items], "special_tokens": dict(tokens)}:
            front = [*itertools.takewhile(_is_special, items)]
            back = [*filter(_is_special, items[len(front) :])]
            front, back = (
                [i for item in part for i in _processor_ids(path, tokens, item["SpecialToken"], texts)]
                for part in (front, back)
            )
            return tuple(front), tuple(back)
    raise refusal(path, f"its post-processor is {values.as_json(post_processor)}")


def _is_special(item: Any) -> bool:
    return isinstance(item, dict) and "SpecialToken" in item


def _processor_ids(
    path: Path, tokens: Mapping[str, Any], item: Any, texts: Mapping[int, bytes]
) -> Sequence[int]:
    """The ids that a post-processor has for one of its special tokens. Raises where the vocabulary has others."""
    match item:
        case {"id": str(name)} if isinstance(entry := tokens.get(name), dict):
            ids, names = entry.get("ids"), entry.get("tokens", [name])
        case _:
            raise ValueError(f"{path}: the post_processor names a token that it does not define")
    if not isinstance(ids, list) or not all(map(values.is_token_id, ids)):
        raise ValueError(f"{path}: expected token ids in the post_processor, got {values.shown(ids)}")
    if unknown := {*ids} - texts.keys():
        raise ValueError(f"{path}: its post-processor adds the token {min(unknown)}, which it does not have")
    found = [texts[i].decode(errors="replace") for i in ids]
    if found != names:
        raise ValueError(
            f"{path}: the post_processor has {values.shown(names)} with the ids {ids}, but model.vocab and "
            f"added_tokens have {values.shown(found)} there; make them agree"
        )
    return ids
