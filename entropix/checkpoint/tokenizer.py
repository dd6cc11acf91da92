"""Text to token ids and back, exactly as the checkpoint was trained."""

import codecs
import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from entropix.checkpoint import values
from entropix.checkpoint.special_tokens import SpecialTokens, read_special_tokens
from entropix.checkpoint.vocabulary.contents import Encoder, Vocabulary, for_text
from entropix.checkpoint.vocabulary.files import read_vocabulary
from entropix.prompts import token_ids

# What an id without a token decodes to: models often have more rows in their embedding than there are tokens.
REPLACEMENT = "\N{REPLACEMENT CHARACTER}".encode()

# What `tokenizers` takes for white space: Unicode's property White_Space.
_WHITE_SPACE = re.compile("[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]*")

# Some hundred thousand white space characters in a row exhaust the stack of tiktoken's regex engine.
LONGEST_WHITE_SPACE = 100_000


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizer; made by `load_tokenizer`.

    Attributes:
        encoder: what makes ids of plain text, without any special token.
        texts: the bytes of every id; `REPLACEMENT` where an id has none.
        special_tokens: control tokens by name. Text becomes one only where `allow_special` is given.
        added_tokens: further tokens that text always becomes wherever it contains them.
        missing_bytes: bytes for which the vocabulary has no token.
        bos_id: the token that begins a text, if the checkpoint names one.
        bos_ids: what belongs in front of a raw prompt; often nothing. `encode` never adds it.
        missing_ids: ids below `vocab_size` that no token has.
        ending: why the checkpoint would end every raw prompt with a token; "" where it does not.
        nfc: whether text is put into Unicode's normal form C before it is cut, as Qwen's is.
        late_tokens: names of special and added tokens that are looked for only in the normalised text.
        swallowing: names of special and added tokens that take the white space behind them along.
        begins_with_space: whether a text is encoded with a space before it, as SentencePiece does.
    """

    encoder: Encoder
    texts: tuple[bytes, ...]
    special_tokens: dict[str, int]
    added_tokens: dict[str, int]
    missing_bytes: frozenset[int]
    bos_id: int | None
    bos_ids: tuple[int, ...]
    missing_ids: tuple[int, ...] = ()
    ending: str = ""
    nfc: bool = False
    late_tokens: frozenset[str] = frozenset()
    swallowing: frozenset[str] = frozenset()
    begins_with_space: bool = False

    @property
    def vocab_size(self) -> int:
        """One more than the highest id; a model's own vocabulary may be padded beyond it."""
        return len(self.texts)

    def has_token(self, text: str) -> bool:
        """Whether a token is this text, special or not."""
        return text in self.special_tokens or text in self.added_tokens or text.encode() in self.texts

    def encode_text(self, text: str | Sequence[int], allow_special: bool = False) -> list[int]:
        """The ids of a text from its beginning, with the vocabulary's beginning-of-text tokens, or none for no text;
        ids as they are. Where the text itself begins with these tokens (`begins_itself`), they are there once.

        Raises a ValueError for a text that the checkpoint would end with a token, after which there is nothing to say.
        """
        if not isinstance(text, str):
            return token_ids(text, "a text", "a string or a sequence of token ids")
        if self.ending:
            raise ValueError(
                f"{self.ending}, so that a raw prompt would end before its answer; set add_eos_token to false in "
                "tokenizer_config.json, or give token ids"
            )
        ids = self.encode(text, allow_special)
        return ids if not text or self._begins(ids) else [*self.bos_ids, *ids]

    def begins_itself(self, text: str) -> bool:
        """Whether a text, special tokens read in it, spells out the tokens that `encode_text` puts before others."""
        names = len(self.decode(self.bos_ids))
        return bool(self.bos_ids) and self._begins(self.encode(text[:names], allow_special=True))

    def _begins(self, ids: Sequence[int]) -> bool:
        return tuple(ids[: len(self.bos_ids)]) == self.bos_ids

    def encode(
        self, text: str, allow_special: bool = False, plain: Collection[str] = frozenset(), start: int = 0
    ) -> list[int]:
        """The ids of `text`. The names of special tokens are plain text in it unless `allow_special`, those in `plain`
        even so, and even where they are added tokens. start: where it begins in a longer text, whose other parts are
        encoded apart.

        Raises:
            ValueError: a character, named with its position, has no tokens, since it contains one of
                `missing_bytes` or is half of one in text that was not UTF-8; or white space without end.
        """
        ids: list[int] = []
        for at, piece in self.pieces(text, allow_special, plain):
            if isinstance(piece, int):
                ids.append(piece)
            else:
                self.check(piece, at)
                ids.extend(self.encoder(piece, start + at == 0))
        return ids

    def pieces(
        self, text: str, allow_special: bool = False, plain: Collection[str] = frozenset()
    ) -> Iterator[tuple[int, str | int]]:
        """`text` cut at its added tokens, and at its special ones if allowed: (position, id or text between).

        Of tokens that begin at the same place the longest is taken. A special token that is not allowed, and any that
        is in `plain`, stays part of the text around it, with all that it contains. With `nfc` the text between them is
        in its normal form, and positions in it are counted there.
        """
        for start, piece in self._cut(self._names, text, allow_special, plain):
            if isinstance(piece, int) or not self.nfc:
                yield start, piece
                continue
            normal = unicodedata.normalize("NFC", piece)
            for further, part in self._cut(self._late_names, normal, allow_special, plain):
                yield start + further, part

    def _cut(
        self, names: re.Pattern[str], text: str, allow_special: bool, plain: Collection[str]
    ) -> Iterator[tuple[int, str | int]]:
        start = 0
        for match in names.finditer(text):
            if match[0] in plain or (match[0] in self.special_tokens and not allow_special):
                continue
            if match.start() > start:
                yield start, text[start : match.start()]
            yield match.start(), (self.added_tokens | self.special_tokens)[match[0]]
            start = match.end()
            if match[0] in self.swallowing and (spaces := _WHITE_SPACE.match(text, start)):
                start = spaces.end()
        if start < len(text):
            yield start, text[start:]

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token: maybe only a part of a character. `REPLACEMENT` for an id that has none."""
        return self.texts[token_id] if 0 <= token_id < len(self.texts) else REPLACEMENT

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, special tokens by their names; bytes that are no UTF-8 become U+FFFD. The space that
        `begins_with_space` puts before a text is there: the ids of an answer's tokens, which have no beginning, keep
        theirs. `decode_text` leaves it out."""
        return b"".join(self.token_bytes(i) for i in ids).decode("utf-8", errors="replace")

    def decode_text(self, ids: Iterable[int]) -> str:
        """The text whose ids these are: what `encode` makes of it, made undone."""
        text = self.decode(ids)
        return text[1:] if self.begins_with_space and text.startswith(" ") else text

    def stream_decoder(self) -> "StreamDecoder":
        """A decoder that takes one token after the other."""
        return StreamDecoder(self)

    def check(self, text: str, start: int = 0) -> None:
        """Raises the ValueError of `encode` if plain text has no ids; it begins at character `start`."""
        try:
            missing = self.missing_bytes.intersection(text.encode())
        except UnicodeEncodeError as error:
            raise ValueError(
                f"character {start + error.start} of the text is {text[error.start]!a}, half a character; "
                "the text was not valid UTF-8"
            ) from None
        if missing:
            i = next(i for i, char in enumerate(text) if not missing.isdisjoint(char.encode()))
            raise ValueError(
                f"character {start + i} of the text is {text[i]!r} (U+{ord(text[i]):04X}), "
                "for which this model's vocabulary has no tokens; remove or replace it"
            )
        if len(text) > LONGEST_WHITE_SPACE:
            longest = max(map(len, re.findall(r"\s+", text)), default=0)
            if longest > LONGEST_WHITE_SPACE:
                raise ValueError(
                    f"the text has {longest} white space characters in a row; at most {LONGEST_WHITE_SPACE} "
                    "can be tokenised"
                )

    @cached_property
    def _names(self) -> re.Pattern[str]:
        return _any_of({*self.special_tokens, *self.added_tokens} - self.late_tokens)

    @cached_property
    def _late_names(self) -> re.Pattern[str]:
        return _any_of(self.late_tokens)


def _any_of(names: Collection[str]) -> re.Pattern[str]:
    """The longest of these names at any place."""
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


class StreamDecoder:
    """Decodes token by token and never gives out half a character.

    Whatever the ids, what `push` returned and `flush` returns add up to `decode` of all of them.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that is certain after one more token; "" in the middle of a character."""
        return self._utf8.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """What is held back, as U+FFFD; ends the text, after which another may begin."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


def load_tokenizer(folder: Path, n_rows: int = values.MOST_TOKENS) -> Tokenizer:
    """The tokenizer of a checkpoint folder: `tokenizer.json`, else `tokenizer.model`.

    n_rows: of the model's embedding; tokens of images beyond it are left out (`vocabulary.contents.for_text`).
    Where a smaller file (`special_tokens`) has `bos_token` and `add_bos_token`, they overrule the tokenizer file.

    Raises:
        ValueError: there is none, it cannot be read, or its ids would not be exactly those of the original.
    """
    vocabulary, small = for_text(read_vocabulary(folder), n_rows), read_special_tokens(folder)
    bos_id, bos_ids = _beginning(vocabulary, small, folder)
    ids = range(max(vocabulary.texts) + 1)
    return Tokenizer(
        encoder=vocabulary.plain.encoder(str(folder)),
        texts=tuple(vocabulary.texts.get(i, REPLACEMENT) for i in ids),
        special_tokens=vocabulary.special,
        added_tokens=vocabulary.added,
        missing_bytes=vocabulary.plain.missing_bytes,
        bos_id=bos_id,
        bos_ids=bos_ids,
        missing_ids=tuple(i for i in ids if i not in vocabulary.texts),
        ending=_ending(vocabulary, small, folder),
        nfc=vocabulary.nfc,
        late_tokens=vocabulary.late,
        swallowing=vocabulary.swallowing,
        begins_with_space=vocabulary.begins_with_space,
    )


def _beginning(
    vocabulary: Vocabulary, small: SpecialTokens, folder: Path
) -> tuple[int | None, tuple[int, ...]]:
    """(the token that begins a text, what belongs in front of a raw prompt).

    Raises a ValueError where a special token has no id, or where the files contradict each other.
    """
    tokens = vocabulary.special | vocabulary.added
    everything = None if small.others.keys() <= tokens.keys() else set(vocabulary.texts.values())
    for name, where in small.others.items():
        if name not in tokens and everything is not None and name.encode() not in everything:
            raise ValueError(
                f"{where}: {values.shown(name)} is no token of the vocabulary, so that it has no id; give it one in "
                "added_tokens of tokenizer.json or take it out"
            )
    front, named = vocabulary.bos_ids, small.named.get("bos_token")
    bos_id = front[0] if front else None
    if named:
        bos_id = tokens.get(named)
        if bos_id is None:
            raise ValueError(
                f"{small.where['bos_token']}: bos_token {values.shown(named)} is no token of the vocabulary"
            )
    if small.add_bos is False:
        return bos_id, ()
    if small.add_bos and bos_id is None:
        raise ValueError(
            f"{folder / 'tokenizer_config.json'}: add_bos_token is true, but no bos_token is named; name one, or set "
            "add_bos_token to false"
        )
    return bos_id, (bos_id,) if small.add_bos and bos_id is not None else front


def _ending(vocabulary: Vocabulary, small: SpecialTokens, folder: Path) -> str:
    """Which file ends every text with which token, as the beginning of a sentence; "" where none does."""
    if small.add_eos:
        eos = small.named.get("eos_token", "the eos_token")
        return f"{folder / 'tokenizer_config.json'}: add_eos_token ends every text with {values.shown(eos)}"
    if vocabulary.eos_ids and small.add_eos is None:
        last = vocabulary.texts[vocabulary.eos_ids[0]].decode(errors="replace")
        return f"{folder / 'tokenizer.json'}: its post_processor ends every text with {values.shown(last)}"
    return ""
