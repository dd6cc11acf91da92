"""What a calibration for answers is asked for: tasks, budgets, and what may be lost."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from entropix import samplers, trace
from entropix.checkpoint.loading import Model
from entropix.lab.calibration import objective
from entropix.lab.calibration.objective import Asked
from entropix.lab.calibration.search import GENERATION, Journal, Trial, generation_answers
from entropix.lab.calibration.space import ranges
from entropix.lab.tasks import DEV, HELD_OUT, Task, digest
from entropix.samplers import ResolvedSampler

TEMPERATURE = "temperature"


@dataclass(frozen=True)
class Plan:
    """What is asked, how often, and what may be lost."""

    tasks: Sequence[Task]
    n_items: int  # of each task, in each split
    seeds: Sequence[int]
    budget: int  # answers for each rule that is tuned, or forward passes
    batch: int
    loss: float  # of the share of right answers against greedy ones, that all else may cost
    seed: int = 0
    opponents: Sequence[str] = (TEMPERATURE, "min-p", "top-p")
    free: Sequence[str] = ()
    limits: Mapping[str, float] = field(default_factory=dict)  # the largest shares of the rule's strategies
    in_passes: bool = False  # what the budget is of: numbers that look ahead take more of them for an answer

    def told(self, model: Model, sampler: ResolvedSampler) -> dict[str, Any]:
        """What a journal depends on."""
        return {
            "format": "entropix-calibration",
            "version": 5,
            **trace.circumstances(model),
            "sampler": sampler.name,
            "numbers": asdict(sampler.numbers),
            **{name: asdict(own) for name, own in sampler.looking.items()},
            "items": {split: digest_of(self.items(split)) for split in (DEV, HELD_OUT)},
            "seeds": list(self.seeds),
            "loss": self.loss,
            "seed": self.seed,
            "free": list(self.free),
            "limits": dict(self.limits),
            **({} if sampler.source is None else {"source": sampler.source.sha256}),
        }

    def check(self, sampler: ResolvedSampler) -> None:
        """Raises a ValueError for what would fail, or mean nothing, after much work."""
        if not any(task.is_closed for task in self.tasks):
            raise ValueError(
                f"task {self.tasks[0].name} has no right answers, and nonsense ends and does not loop either; name a "
                "task with right answers beside it, as questions"
            )
        for task in self.tasks:
            for split in (DEV, HELD_OUT):
                if not task.items(self.seed, self.n_items, split):
                    raise ValueError(
                        f"task {task.name} has no item in the split {split}; give it more items, or leave it out"
                    )
        rules = [sampler, *map(samplers.resolve, self.tuned_beside(sampler))]
        for number, rule in enumerate(rules):
            ranges(rule, self.free if number == 0 else ())
            if rule.name in [before.name for before in rules[:number]]:
                raise ValueError(
                    f"--opponents {rule.label}: {rule.name} is searched already, and journals tell rules by "
                    "their names; leave one of them out"
                )

    def items(self, split: str) -> list[Asked]:
        return objective.items(self.tasks, self.n_items, self.seed, split)

    @property
    def unit(self) -> str:
        """What is counted."""
        return "forward passes" if self.in_passes else "answers"

    def cost(self, n_answers: int, n_passes: int) -> int:
        """What these take of the budget."""
        return n_passes if self.in_passes else n_answers

    def is_spent(self, trials: Sequence[Trial]) -> bool:
        """Whether a search with these trials has nothing left for another generation, of which it has one at least.

        One more is taken to cost what those before cost on average; half of it is enough to begin.
        """
        n = len(trials) // GENERATION
        spent = sum(trial.passes for trial in trials) if self.in_passes else n * self._generation
        return n > 0 and spent + spent / n / 2 >= self.budget

    @property
    def _generation(self) -> int:
        """Answers of one."""
        return generation_answers(len(self.items(DEV)), len(self.seeds))

    def tuned_beside(self, sampler: ResolvedSampler) -> list[str]:
        """The opponents, each once, without the rule itself."""
        return [name for name in dict.fromkeys(self.opponents) if name != sampler.name]

    def total(self, sampler: ResolvedSampler, journal: Journal | None) -> int:
        """All that it takes, in `unit`, but what the journal knows; answers are taken to be as long as they may be."""
        searched = [*self.tuned_beside(sampler), sampler.name]
        measured = self.measured(1) + self.measured(len(self.seeds)) * (len(searched) + 1)
        left = 0
        for name in searched:
            trials = journal.trials.get(name, []) if journal else []
            if self.in_passes:
                least = 0 if trials else round(self._generation * self._mean_tokens)
                left += max(least, self.budget - sum(trial.passes for trial in trials))
            else:
                whole = max(1, math.ceil(self.budget / self._generation - 1 / 2))
                left += max(0, whole - len(trials) // GENERATION) * self._generation
        return measured + left

    @property
    def _mean_tokens(self) -> float:
        """Tokens of an answer that is as long as it may be, over the development items."""
        asked = self.items(DEV)
        return sum(one.task.max_new_tokens for one in asked) / len(asked)

    def measured(self, n_seeds: int) -> int:
        """What the answers of one sampler to all items take at most, in `unit`."""
        asked = [*self.items(DEV), *self.items(HELD_OUT)]
        return n_seeds * self.cost(len(asked), sum(one.task.max_new_tokens for one in asked))


def digest_of(asked: Sequence[Asked]) -> str:
    """Of the items, whatever their order."""
    return digest([one.item for one in asked])
