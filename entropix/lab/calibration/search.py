"""The search for a rule's numbers: many candidates side by side, of which the worse half of a race asks no further.

Optuna's tree-structured Parzen estimator proposes them (Bergstra et al. 2011; Akiba et al. 2019, arXiv:1907.10902); a
generation of them races: all answer the first items, the best of them more, the best of those all. What a generation
found is appended to a journal, from which the same search goes on.
"""

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from entropix.checkpoint.loading import Model
from entropix.files import is_there, read_text, write_text
from entropix.lab.calibration.objective import MEASURES, Advance, Asked, Figures, figures, nothing_told
from entropix.lab.calibration.objective import answer as answered
from entropix.lab.calibration.space import Range, with_values
from entropix.lab.experiments.results import difference
from entropix.samplers import ResolvedSampler
from entropix.trace.schema import check

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
    passes: int = 0  # forward passes of all its answers
    finished: float = float("nan")
    gain: float = float("nan")  # over the items of coverage and finished

    @property
    def measures(self) -> dict[str, float]:
        """Those that its items have."""
        return {what: share for what in MEASURES if (share := getattr(self, what)) == share}

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
        return with_values(self.sampler, self.space, params)

    def race(self, first: Sequence[Mapping[str, float]] = (), advance: Advance = nothing_told) -> list[Trial]:
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
        found = told.share_right, told.mean_coverage, score, dict(told.strategies), told.passes
        return Trial(dict(params), n_items, *found, told.share_finished, told.mean_gain)

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


_TRIAL = {
    "params": "object",
    "n_items": "integer",
    "strategies": "object",
    "passes": "integer",
} | dict.fromkeys((*MEASURES, "gain", "score"), "number or null")


class Journal:
    """The trials of searches, kept as JSON lines behind a first one that tells what they depend on.

    A generation is written at once. Where power fails meanwhile, what is there of it is dropped at the next opening.
    """

    def __init__(self, path: str | Path, told: Mapping[str, Any]) -> None:
        """Opens the file, making it if need be. Raises a ValueError where it is none of this search, and leaves it as
        it is."""
        self._path = Path(path)
        self.trials: dict[str, list[Trial]] = {}
        head = json.dumps(told, ensure_ascii=False, allow_nan=False)
        text = read_text(path) if is_there(path) else ""
        *whole, rest = text.split("\n")
        is_begun = not whole and head.startswith(rest)  # of the first line not even all was written
        if not is_begun:
            before = self._object(1, whole[0] if whole else rest)
            if not whole or before != json.loads(head):
                other = difference(before, json.loads(head)) or "its first line has no end"
                raise ValueError(
                    f"{path}: the journal of another search, since {other}; use another name, or what was asked for "
                    "there"
                )
        lines = [self._entry(number, line) for number, line in enumerate(whole[1:], start=2)]
        n_torn = _torn([sampler for sampler, _ in lines])
        for sampler, trial in lines[: len(lines) - n_torn]:
            self.trials.setdefault(sampler, []).append(trial)
        kept = [head] if is_begun else whole[: len(whole) - n_torn]
        if kept != whole or rest:
            write_text(path, [f"{line}\n" for line in kept], "a journal")
        self._size = self._path.stat().st_size

    def add(self, sampler: str, trials: Sequence[Trial]) -> None:
        """Adds a generation; when this returns, it is on the disk. Raises a ValueError where somebody else has written
        to the file."""
        lines = [{"sampler": sampler, "trial": trial.as_json()} for trial in trials]
        text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
        with self._path.open("ab") as file:
            if os.fstat(file.fileno()).st_size != self._size:
                raise ValueError(
                    f"{self._path}: another process has written to this journal meanwhile; let one of them end, and "
                    "give the same command again"
                )
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
            self._size = os.fstat(file.fileno()).st_size

    def _entry(self, number: int, line: str) -> tuple[str, Trial]:
        """(rule, trial) of a line."""
        where = f"{self._path}: line {number}"
        value = self._object(number, line)
        check(value, {"sampler": "string", "trial": "object"}, where)
        # What journals did not have before: passes, and open texts
        older = {"strategies": {}, "passes": 0, "finished": None, "gain": value["trial"].get("coverage")}
        trial = older | value["trial"]
        check(trial, _TRIAL, where, "trial.")
        for name in ("params", "strategies"):
            check(trial[name], dict.fromkeys(trial[name], "number"), where, f"trial.{name}.")
        values: dict[str, Any] = {
            name: float("nan") if trial[name] is None else trial[name] for name in _TRIAL
        }
        return value["sampler"], Trial(**values)

    def _object(self, number: int, line: str) -> dict[str, Any]:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise ValueError(
                f"{self._path}: line {number} is not a JSON object, as journals have them; use another name"
            )
        return value


def _torn(samplers: Sequence[str]) -> int:
    """How many of the last lines, which are of these rules, are of a generation that is not there as a whole."""
    if not samplers:
        return 0
    own = list(itertools.takewhile(lambda name: name == samplers[-1], reversed(samplers)))
    return min(samplers.count(samplers[-1]) % GENERATION, len(own))
