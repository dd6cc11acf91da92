"""Texts that vocabularies are compared on: all scripts, digits, white space, emoji, control characters."""

import random
import unicodedata
from collections.abc import Sequence

_SPACES = [
    *" \t\n\r\v\f\0",
    "\u00a0",
    "\u2003",
    "\u3000",
    "\u200b",
    "\u2028",
    "\ufeff",
    "  ",
    "\n\n",
    "\r\n",
    "    ",
]
_EMOJI = ["🦙", "👩‍👩‍👧‍👦", "🏳️‍🌈", "🇫🇷", "👍🏽", "❤️", "1️⃣", "☕"]
_WORDS = [
    *(
        "Why",
        "is",
        "the",
        "sky",
        "blue",
        "don't",
        "WE'LL",
        "naïve",
        "Straße",
        "e\u0301",
        "ﬁn",
        "²³",
        "½",
        "x_1",
    ),
    *(
        "->",
        "==",
        "https://example.org/?q=1&r=2",
        "return",
        "self.x",
        "<s>",
        "</s>",
        "<unk>",
        "<0x41>",
        "[INST]",
    ),
    *("▁", "##", "...", "'s", "Эйфелева", "башня", "東京", "都", "서울", "القاهرة", "नई", "दिल्ली", "กรุงเทพ"),
    *("Αθήνα", "ירושלים", "Հայաստան"),
]


def texts(n: int = 2000, seed: int = 0) -> Sequence[str]:
    """n texts, the same for a seed."""
    rng = random.Random(seed)
    letters = [chr(i) for i in range(0x20, 0x2FFFF) if unicodedata.category(chr(i)) not in ("Cn", "Cs", "Co")]
    controls = [chr(i) for i in (*range(0x20), *range(0x7F, 0xA0))]

    def part() -> str:
        match rng.randrange(8):
            case 0:
                return "".join(rng.choices(letters, k=rng.randrange(1, 6)))
            case 1:
                start = rng.randrange(len(letters) - 64)  # neighbours are of one script
                return "".join(rng.choices(letters[start : start + 64], k=rng.randrange(1, 9)))
            case 2:
                return "".join(rng.choices("0123456789", k=rng.randrange(1, 12)))
            case 3:
                return "".join(rng.choices(_SPACES, k=rng.randrange(1, 5)))
            case 4:
                return rng.choice([*_EMOJI, *controls])
            case _:
                return rng.choice(_WORDS) + rng.choice(["", " ", " "])

    return ["".join(part() for _ in range(rng.randrange(1, 14))) for _ in range(n)]
