"""Figures about finished results: strategy counts, mean metrics and the table of `--stats`."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from entropix import own_metrics
from entropix.config import GenerateConfig
from entropix.decoding import branching
from entropix.metrics import Metrics
from entropix.results import CUT_OFF, Result

Line = tuple[str, str, str]  # of `--stats`: what, how much, in which unit


class Timing(NamedTuple):
    """How long a generation took, in seconds from its start. None where it did not get so far."""

    first_token: float | None
    total: float
    tokens_per_second: float | None  # of the steady state: after the first chunk, which includes compilation
    computed_tokens: int  # see `decoding.batch.Costs`
    forward_passes: int  # of decoding, forks included; with drafts fewer than the longest answer has tokens


def discarded_tokens(results: Sequence[Result], keep: str) -> int:
    """Tokens that were computed and are not in the answer, rolled forward at forks or taken back, as far as records
    tell: of forks among tokens that were taken back later they do not.

    The first token of a path is not counted, since it comes from the same position as the drawn one. keep: that of
    `config.BranchConfig`.
    """
    records = [record for result in results for record in result.records]
    paths = [path for record in records for path in record.get("branches", ())]
    rolled = sum(len(path["ids"]) - 1 for path in paths if not (path["chosen"] and keep == "path"))
    return rolled + sum(len(ids) for record in records for ids in record.get("taken_back", ()))


class Totals:
    """What the statistics of results are made of; the results themselves may go."""

    def __init__(self, results: Iterable[Result] = ()) -> None:
        self.answers = self.prompt_tokens = self.new_tokens = self.injected = 0
        self.cut_off = 0  # answers that did not end by themselves
        self.forks = 0  # places in the answers where several tokens were tried, but for tokens taken back
        self.retreats = 0  # times that tokens were taken back
        self._strategies: Counter[str] = Counter()
        self._sums: dict[str, float] = dict.fromkeys(_metric_names(), 0.0)
        self._counts = dict.fromkeys(self._sums, 0)
        for result in results:
            self.add(result)

    def add(self, result: Result) -> None:
        """One more, whose records are all there."""
        self.answers += 1
        self.cut_off += result.finish in CUT_OFF
        self.prompt_tokens += len(result.prompt_ids)
        self.new_tokens += len(result.records)
        for record in result.records:
            self._strategies[record["strategy"]] += 1
            self.injected += record["injected"]
            self.forks += "branches" in record
            self.retreats += len(record.get("taken_back", ()))
            for name in self._sums:
                if (value := record.get(name)) is not None:
                    self._sums[name] += value
                    self._counts[name] += 1

    def strategies(self, names: Sequence[str]) -> dict[str, int]:
        """How many tokens each strategy chose, those with none included."""
        return {name: self._strategies[name] for name in names}

    def means(self) -> dict[str, float]:
        """Of every metric over all tokens, leaving out numbers that are not finite; NaN if none is left."""
        return {
            name: total / self._counts[name] if self._counts[name] else math.nan
            for name, total in self._sums.items()
        }


def _metric_names() -> list[str]:
    return [*Metrics._fields, *(metric.name for metric in own_metrics.registered())]


def strategy_counts(results: Sequence[Result], strategies: Sequence[str]) -> dict[str, int]:
    """How many tokens each strategy chose, those with none included."""
    counts = Counter(record["strategy"] for result in results for record in result.records)
    return {name: counts[name] for name in strategies}


def mean_metrics(results: Sequence[Result]) -> dict[str, float]:
    """Mean of every metric over all tokens, leaving out numbers that are not finite; NaN if none is left."""
    return Totals(results).means()


def stats(totals: Totals, strategies: Sequence[str], timing: Timing, asked: GenerateConfig) -> str:
    """Lines of speed, strategy counts with their share, and mean metrics; forks and retreats where `asked` has any."""
    searched = []
    if branching.plan(asked.branching, strategies) is not None:
        searched.append(("forks", str(totals.forks), "places in the answer where several tokens were tried"))
    if asked.backtracking.is_on:
        searched.append(("retreats", str(totals.retreats), "times that tokens were taken back"))
    rows = [
        ("prompt tokens", str(totals.prompt_tokens), ""),
        ("new tokens", str(totals.new_tokens), ""),
        of_ends(totals),
        ("computed tokens", str(timing.computed_tokens), "with those that are in no answer"),
        ("time to first token", _number(timing.first_token), "s, compilation included"),
        ("forward passes", str(timing.forward_passes), ""),
        *searched,
        ("total time", _number(timing.total), "s"),
        ("speed", _number(timing.tokens_per_second), "tokens/s after the first chunk"),
        *of_tokens(totals, strategies),
    ]
    return as_text(rows)


def of_ends(totals: Totals) -> Line:
    """How many did not end by themselves: means over them are means over beginnings."""
    why = ", by max_new_tokens or a full context" if totals.cut_off else ""
    return "cut off", str(totals.cut_off), f"of {totals.answers}{why}"


def of_tokens(totals: Totals, strategies: Sequence[str]) -> list[Line]:
    """Strategy counts with their share, and mean metrics."""
    counts = totals.strategies(strategies)
    n_tokens = sum(counts.values())
    return [
        *(
            (name, str(count), f"{100 * count / n_tokens:.1f} %" if n_tokens else "")
            for name, count in counts.items()
        ),
        *((f"mean {name}", _number(mean), "") for name, mean in totals.means().items()),
    ]


def as_text(lines: Sequence[Line]) -> str:
    """In columns."""
    return "\n".join(f"{name:30}{value:>10}  {unit}".rstrip() for name, value, unit in lines)


def _number(value: float | None) -> str:
    """Four significant digits; a dash for no value."""
    return "-" if value is None or math.isnan(value) else f"{value:.4g}"
