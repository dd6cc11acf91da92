"""One checked request, from the user's words to the device."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from entropix import own_metrics
from entropix.checkpoint.loading import Model
from entropix.config import GenerateConfig, ModelConfig
from entropix.decoding import branching
from entropix.decoding.state import Program, RecordOptions
from entropix.samplers import Sampler
from entropix.samplers.rule_files import RuleFile


class PromptRow(NamedTuple):
    """A prompt with all that is its own; what all prompts share stands in the request."""

    ids: list[int]
    seed: int
    occurrence: int = 0
    """How often it came earlier with this seed: repeated prompts draw from streams of their own."""
    most_tokens: int | None = None
    """Tokens of its answer, where that is less than `max_new_tokens`."""
    n_forced: int = 0
    """How many tokens at its end are its answer's first ones, which nobody draws."""
    n_unkeyed: int = 0
    """How many tokens at its end its random numbers do not depend on."""
    numbers: Any = None
    """Of the sampler; they differ in those that are traced alone. None where all rows have the same."""


def prompt_rows(prompts: Sequence[list[int]], cfg: GenerateConfig) -> tuple[PromptRow, ...]:
    """Rows with the seeds and occurrences that the config names for each prompt, or implies."""
    seeds = cfg.seeds or (cfg.seed,) * len(prompts)
    counted = cfg.occurrences or occurrences(prompts, seeds)
    return tuple(PromptRow(*one) for one in zip(prompts, seeds, counted, strict=True))


def occurrences(prompts: Sequence[Sequence[int]], seeds: Sequence[int]) -> tuple[int, ...]:
    """How often each prompt came earlier with the same seed."""
    seen: Counter[tuple[int, tuple[int, ...]]] = Counter()
    found = []
    for one in zip(seeds, map(tuple, prompts), strict=True):
        found.append(seen[one])
        seen[one] += 1
    return tuple(found)


@dataclass(frozen=True)
class GenerationRequest:
    """What to continue, by which rule, how far; checked, and nothing of it computed yet."""

    model: Model
    rows: tuple[PromptRow, ...]
    sampler: Sampler
    sampler_config: Any  # the numbers of the sampler; of the first row where each has its own
    config: GenerateConfig  # `seeds` and `occurrences` as they were asked for; what counts are the rows'
    sampler_source: RuleFile | None = None  # of a rule in a file of somebody's own
    preset: str = ""  # how the rule with these numbers was called; "" for the rule's own name

    @property
    def prompt_ids(self) -> list[list[int]]:
        """Of each row."""
        return [row.ids for row in self.rows]

    @property
    def numbers_differ(self) -> bool:
        """Whether each row has numbers of its own."""
        return any(row.numbers is not None for row in self.rows)

    @property
    def program(self) -> Program:
        """What is static, but for shapes and the static numbers of the rule: where all are equal, nothing compiles."""
        cfg = self.config
        return Program(
            model=self.model.config,
            sampler=self.sampler,
            n_draft=cfg.speculate,
            record=RecordOptions(cfg.alternatives, cfg.head_entropies, own_metrics.registered()),
            branching=branching.plan(cfg.branching, self.sampler.strategies),
        )

    def of_rows(self, places: Sequence[int]) -> "GenerationRequest":
        """The request of some of its rows, of which one may come several times."""
        return dataclasses.replace(self, rows=tuple(self.rows[place] for place in places))

    def with_each(self, **columns: Sequence[Any]) -> "GenerationRequest":
        """The same with these fields of `PromptRow`, each with a value for every row."""
        rows = tuple(
            row._replace(**dict(zip(columns, values, strict=True)))
            for row, *values in zip(self.rows, *columns.values(), strict=True)
        )
        return dataclasses.replace(self, rows=rows)


def check_prompts(prompts: Sequence[Sequence[int]], cfg: ModelConfig) -> None:
    """Raises a ValueError for the first prompt that cannot be continued."""
    if not prompts:
        raise ValueError("no prompt: give at least one")
    context, vocabulary = cfg.context_length, cfg.vocab_size
    for number, prompt in enumerate(prompts, start=1):
        if not prompt:
            raise ValueError(f"prompt {number} is empty: give at least one token")
        if len(prompt) >= context:
            raise ValueError(
                f"prompt {number} has {len(prompt)} tokens, but the model's context holds {context} and at least one "
                "must be left for the answer; shorten the prompt"
            )
        if not 0 <= min(prompt) <= max(prompt) < vocabulary:
            raise ValueError(
                f"prompt {number} has token ids outside 0 to {vocabulary - 1}, the model's vocabulary"
            )


def check_texts(texts: Sequence[Sequence[int]], cfg: ModelConfig) -> None:
    """Raises a ValueError for the first text, as token ids, that cannot be read."""
    if not texts:
        raise ValueError("no text: give at least one")
    for number, text in enumerate(texts, start=1):
        if not text:
            raise ValueError(f"text {number} is empty: give at least one character")
        if len(text) > cfg.context_length:
            raise ValueError(
                f"text {number} has {len(text)} tokens, but the model's context holds {cfg.context_length}; "
                "cut it into shorter texts"
            )
        if not 0 <= min(text) <= max(text) < cfg.vocab_size:
            raise ValueError(
                f"text {number} has token ids outside 0 to {cfg.vocab_size - 1}, the model's vocabulary"
            )
