"""What byte-level tokenizers do to a text before they merge bytes: its normal form, and the regular expressions that
cut it into pieces, inside which bytes are merged."""

import re
import warnings
from pathlib import Path
from typing import Any

from entropix.checkpoint import values
from entropix.checkpoint.values import refusal

# GPT-2's published pattern. `tokenizers` applies the same one in its ByteLevel step.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# SmolLM isolates each digit before that pattern runs. So a digit never takes the space before it along, and
# white space in front of a digit is at the end of what the pattern sees, where it stays in one piece.
SMOLLM_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")  # published with Qwen 2; digits stand alone

_LONGEST = 10_000  # characters; the longest published patterns have some 300

# What means the same to Oniguruma (in `tokenizers`) and to Rust's fancy-regex (in tiktoken): no anchors, no
# nested classes, no escapes but these.
_ESCAPE = r"\\[pP]\{[A-Z][a-z]?\}|\\[sSdDrnt]|\\[^\w\s]"
_PORTABLE = re.compile(
    rf"(?:{_ESCAPE}|\[\^?(?:{_ESCAPE}|[^\\\[\]&])+\]|\((?!\?)|\(\?(?:i?:|!|=)|\}}(?!\+)|[^\\\[\](}}^$])*"
)


def normalises(path: Path, normalizer: Any) -> bool:
    """Whether the file puts texts into Unicode's normal form C first. Any other change of them is refused."""
    match normalizer:
        case None | {"type": "Sequence", "normalizers": []}:
            return False
        case {"type": "NFC"} | {"type": "Sequence", "normalizers": [{"type": "NFC"}]}:
            return True
    raise refusal(path, f"it alters the text first, by the normalizer {values.as_json(normalizer)}")


def pattern(path: Path, pre_tokenizer: Any) -> str:
    """The one regular expression that cuts text as the file's pre-tokenizer does.

    Letters and digits are what the Unicode version of each library counts as such: tiktoken may not know the
    newest of them, or know them earlier.
    """
    steps = [pre_tokenizer]
    match pre_tokenizer:
        case {"type": "Sequence", "pretokenizers": [*steps]}:
            pass
    # Files written before ByteLevel had `use_regex` mean true.
    match [{"use_regex": True, **step} if isinstance(step, dict) else step for step in steps]:
        case [{"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}]:
            return GPT2_PATTERN
        case [
            {"type": "Digits", "individual_digits": True},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
        ]:
            return SMOLLM_PATTERN
        case [
            {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": "Isolated", "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
        ]:
            if len(regex) > _LONGEST or not _PORTABLE.fullmatch(regex):
                raise refusal(path, f"its pattern {values.shown(regex)} may mean something else to tiktoken")
            if _may_be_empty(regex):
                raise refusal(
                    path, f"its pattern {values.shown(regex)} may match the empty text, or nothing at all"
                )
            # What lies between two matches is a piece too; tiktoken alone would drop it.
            return rf"{regex}|(?:(?!{regex})[\s\S])+"
    raise refusal(
        path,
        f"its pre-tokenizer is not like GPT-2's, SmolLM's or Llama 3's, but {values.as_json(pre_tokenizer)}",
    )


def _may_be_empty(regex: str) -> bool:
    """Whether a portable expression can match without taking a character, at which tiktoken panics, or is none."""
    plain = re.sub(r"\\[pP]\{[A-Z][a-z]?\}", r"\\w", regex)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of characters that may mean more in a later version of Python
            return not regex or re._parser.parse(plain).getwidth()[0] == 0  # type: ignore[attr-defined]
    except (re.error, OverflowError, RecursionError):
        return True
