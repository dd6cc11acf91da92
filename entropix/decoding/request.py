"""One checked request, from the user's words to the device."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from entropix import own_metrics
from entropix.checkpoint.loading import Model
from entropix.config import GenerateConfig, ModelConfig
from entropix.decoding import branching
from entropix.decoding.state import Program, RecordOptions
from entropix.samplers import Sampler
from entropix.samplers.rule_files import RuleFile


@dataclass(frozen=True)
class GenerationRequest:
    """What to continue, by which rule, how far; checked, and nothing of it computed yet."""

    model: Model
    prompt_ids: list[list[int]]
    sampler: Sampler
    sampler_config: Any  # the numbers of the sampler; of the first row where `row_numbers` has them for each
    config: GenerateConfig
    sampler_source: RuleFile | None = None  # of a rule in a file of somebody's own
    preset: str = ""  # how the rule with these numbers was called; "" for the rule's own name
    forced_prefix: tuple[int, ...] = ()
    """How many tokens at each prompt's end are its answer's first ones, which nobody draws; () for none anywhere."""
    most_tokens: tuple[int, ...] = ()
    """How many tokens each answer may have, where that is less than the `max_new_tokens` of all; () for no less."""
    row_numbers: tuple[Any, ...] = ()
    """The numbers of the sampler for each prompt, which differ in those that are traced alone; () for one set."""

    unkeyed: tuple[int, ...] = ()
    """How many tokens at each prompt's end its random numbers do not depend on; () for none anywhere."""

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

    def of_rows(self, rows: Sequence[int]) -> "GenerationRequest":
        """The request of some of its rows, of which one may come several times, with what each has of its own."""

        def chosen(column: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(column[row] for row in rows) if column else ()

        cfg = dataclasses.replace(
            self.config, seeds=chosen(self.config.seeds), occurrences=chosen(self.config.occurrences)
        )
        return dataclasses.replace(
            self,
            prompt_ids=[self.prompt_ids[row] for row in rows],
            config=cfg,
            forced_prefix=chosen(self.forced_prefix),
            most_tokens=chosen(self.most_tokens),
            row_numbers=chosen(self.row_numbers),
            unkeyed=chosen(self.unkeyed),
        )


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
