"""Open continuations: nothing is right or wrong; the text itself is measured for loops, variety and endings."""

import dataclasses
from collections.abc import Hashable, Sequence

from entropix.lab.experiments import measures
from entropix.lab.tasks.base import DEV, Item, check_split, chosen, first_words, listed, split_of

LOOPING = 0.5  # share of 4-grams that were there before, from which a text is told to be in a loop
_FORMS = {
    "story": "Write a short story about {}.",
    "advice": "What should one know about {}?",
    "letter": "Write a letter to a friend about {}.",
    "poem": "Write a poem about {}.",
}
_SUBJECTS = listed(
    """a lighthouse, a lost key, the first snow, a talking fish, moving to a new town, an old clock,
    cooking for many people, a long walk, a broken robot, learning to swim, a night train, growing
    tomatoes, a hidden door, two brothers, sleeping well, a market in the morning, a painter, keeping
    bees, a storm at sea, a small island, saving money, a grandmother, the end of summer, a stray dog,
    reading more books, a bridge, an empty theatre, making friends, a map, a silent village, the taste
    of bread, a football match, a teacher, waiting for a letter, a mountain hut, repairing a bicycle"""
)


@dataclasses.dataclass(frozen=True)
class Openings:
    """Four forms of text, each about every subject of a split."""

    name: str = "open"
    max_new_tokens: int = 200
    is_closed: bool = False

    def items(self, seed: int, n: int | None, split: str = DEV) -> list[Item]:
        """See `base.Task`. Splits have subjects of their own."""
        check_split(split)
        made = [
            Item(f"{kind}-{subject.replace(' ', '-')}", form.format(subject), kind)
            for kind, form in _FORMS.items()
            for subject in _SUBJECTS
            if split_of(subject) == split
        ]
        return chosen(made, seed, n)

    def extract(self, item: Item, text: str) -> str | None:
        """The first sentence."""
        return first_words(text)

    def score(self, item: Item, text: str) -> None:
        """None: nothing is right or wrong."""


def is_in_loop(token_ids: Sequence[Hashable]) -> bool | None:
    """Whether so much of a text was there before; None for one of fewer than four tokens."""
    repeated = measures.repetition(token_ids, measures.REPEATED)
    return None if repeated is None else repeated >= LOOPING


def measured(token_ids: Sequence[Sequence[Hashable]], ended: Sequence[bool]) -> dict[str, float | None]:
    """What the answers to one item are like. token_ids: of each answer, without its end; ended: whether the model ended
    it itself. None where texts are too few or too short."""
    repeated = [measures.repetition(ids, measures.REPEATED) for ids in token_ids]
    there = [share for share in repeated if share is not None]
    return {
        "length": sum(map(len, token_ids)) / len(token_ids) if token_ids else None,
        "ended": sum(ended) / len(ended) if ended else None,
        "loops": sum(share >= LOOPING for share in there) / len(there) if there else None,
        "repetition": sum(there) / len(there) if there else None,
        "distinct_2": measures.distinct(token_ids, 2),
        "self_bleu": measures.self_bleu(token_ids),
    }
