"""The search for a rule's numbers: many candidates side by side, of which the worse half of a race asks no further.

Optuna's tree-structured Parzen estimator proposes them (Bergstra et al. 2011; Akiba et al. 2019, arXiv:1907.10902); a
generation of them races: all answer the first items, the best of them more, the best of those all. What a generation
found is appended to a journal, from which the same search goes on.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from entropix.checkpoint.loading import Model
from entropix.files import read_text, write_text
from entropix.lab.calibration.objective import Asked, Figures, figures
from entropix.lab.calibration.objective import answer as answered
from entropix.lab.calibration.space import Range
from entropix.samplers import ResolvedSampler

GENERATION = 12  # candidates
LEFT = (4, 1)  # of them after the first and the second heat
PARTS = (1 / 6, 1 / 2, 1)  # of the items, in the three heats
_RANDOM = 12  # candidates before the proposals follow what was found


@dataclass(frozen=True)
class Trial:
    """A candidate and how far it came."""

    params: dict[str, float]
    n_items: int
    right: float
    coverage: float
    score: float
    strategies: dict[str, float] = field(default_factory=dict)  # shares of the tokens

    def as_json(self) -> dict[str, Any]:
        return {name: None if value != value else value for name, value in vars(self).items()}


@dataclass
class Search:
    """The numbers of one rule, searched on the development items."""

    model: Model
    sampler: ResolvedSampler
    space: Sequence[Range]
    asked: Sequence[Asked]
    seeds: Sequence[int]
    batch: int
    least_right: float
    seed: int = 0
    limits: Mapping[str, float] = field(default_factory=dict)  # the largest shares of strategies
    trials: list[Trial] = field(default_factory=list)

    @property
    def best(self) -> Trial | None:
        """Of the candidates that answered everything."""
        whole = [trial for trial in self.trials if trial.n_items == len(self.asked)]
        return max(whole, key=lambda trial: trial.score, default=None)

    def with_params(self, params: Mapping[str, float]) -> ResolvedSampler:
        """The rule with these numbers."""
        ints = {one.name for one in self.space if one.is_int}
        return self.sampler.changed({n: int(v) if n in ints else v for n, v in params.items()})

    def race(
        self, first: Sequence[Mapping[str, float]] = (), advance: Callable[[int], None] = lambda n: None
    ) -> list[Trial]:
        """One more generation. first: candidates that are among it whatever is proposed."""
        proposed = [*map(dict, first), *self._propose(GENERATION - len(first))]
        racing = list(range(len(proposed)))
        answers: list[list[Any]] = [[] for _ in proposed]
        found: dict[int, Trial] = {}
        start = 0
        for part, left in zip(PARTS, (*LEFT, 0), strict=True):
            end = _end(len(self.asked), part)
            new = self.asked[start:end]
            candidates = [self.with_params(proposed[i]) for i in racing]
            if new:
                for i, given in zip(
                    racing,
                    answered(self.model, candidates, new, self.seeds, self.batch, advance),
                    strict=True,
                ):
                    answers[i] += given
            for i in racing:
                found[i] = self._trial(proposed[i], figures(self.asked[:end], answers[i]), end)
            racing = sorted(racing, key=lambda i: -found[i].score)[:left]
            start = end
        self.trials += found.values()
        return list(found.values())

    def _trial(self, params: Mapping[str, float], told: Figures, n_items: int) -> Trial:
        score = told.score(self.least_right, self.limits)
        return Trial(
            dict(params), n_items, told.share_right, told.mean_coverage, score, dict(told.strategies)
        )

    def _propose(self, n: int) -> list[dict[str, float]]:
        """Candidates that follow from all trials so far, and from the seed."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        kinds: dict[str, Any] = {
            one.name: optuna.distributions.IntDistribution(int(one.low), int(one.high), log=one.is_log)
            if one.is_int
            else optuna.distributions.FloatDistribution(one.low, one.high, log=one.is_log)
            for one in self.space
        }
        sampler = optuna.samplers.TPESampler(
            seed=self.seed + len(self.trials), n_startup_trials=_RANDOM, constant_liar=True
        )
        study = optuna.create_study(direction="maximize", sampler=sampler)
        for trial in self.trials:
            study.add_trial(
                optuna.trial.create_trial(params=trial.params, distributions=kinds, value=trial.score)
            )
        return [dict(study.ask(kinds).params) for _ in range(n)]


def generation_answers(n_items: int, n_seeds: int) -> int:
    """Answers that a generation takes."""
    new = np.diff([0, *(_end(n_items, part) for part in PARTS)])
    return int(np.dot(new, (GENERATION, *LEFT))) * n_seeds


def _end(n_items: int, part: float) -> int:
    return max(1, round(n_items * part))


class Journal:
    """The trials of searches, kept as JSON lines behind a first one that tells what they depend on."""

    def __init__(self, path: str | Path, told: Mapping[str, Any]) -> None:
        """Opens the file, making it if need be. Raises a ValueError where it is of another search."""
        self._path = Path(path)
        self.trials: dict[str, list[Trial]] = {}
        head = json.loads(json.dumps(told))
        if not self._path.exists():
            self._append([head])
            return
        *whole, rest = read_text(self._path).split("\n")
        if rest:  # a line that was not written to its end
            write_text(self._path, [f"{line}\n" for line in whole], "a journal")
        lines = [self._object(number, line) for number, line in enumerate(whole, start=1)]
        if not lines or lines[0] != head:
            raise ValueError(
                f"{path}: the journal of another search; use another name, or what was asked for there"
            )
        for line in lines[1:]:
            values: dict[str, Any] = {
                name: float("nan") if value is None else value for name, value in line["trial"].items()
            }
            self.trials.setdefault(line["sampler"], []).append(Trial(**values))

    def add(self, sampler: str, trials: Sequence[Trial]) -> None:
        """Adds a generation; when this returns, it is on the disk."""
        self._append([{"sampler": sampler, "trial": trial.as_json()} for trial in trials])

    def _append(self, lines: Sequence[Mapping[str, Any]]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())

    def _object(self, number: int, line: str) -> dict[str, Any]:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise ValueError(
                f"{self._path}: line {number} is not a JSON object; delete the file to begin anew"
            )
        return value
