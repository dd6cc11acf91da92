"""Figures about finished results: strategy counts, mean metrics and the table of `--stats`."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from entropix import own_metrics
from entropix.config import GenerateConfig
from entropix.decoding import backtracking, branching
from entropix.metrics import Metrics
from entropix.results import Result, cut_off

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


def retreats(results: Sequence[Result]) -> int:
    """How often tokens were taken back."""
    return sum(len(record.get("taken_back", ())) for result in results for record in result.records)


def forks(results: Sequence[Result]) -> int:
    """Places in the answers where several tokens were tried; those among tokens that were taken back do not count."""
    return sum("branches" in record for result in results for record in result.records)


def strategy_counts(results: Sequence[Result], strategies: Sequence[str]) -> dict[str, int]:
    """How many tokens each strategy chose, those with none included."""
    counts = Counter(record["strategy"] for result in results for record in result.records)
    return {name: counts[name] for name in strategies}


def mean_metrics(results: Sequence[Result]) -> dict[str, float]:
    """Mean of every metric over all tokens, leaving out numbers that are not finite; NaN if none is left."""
    means = {}
    for name in (*Metrics._fields, *(metric.name for metric in own_metrics.registered())):
        values = [r[name] for result in results for r in result.records if r.get(name) is not None]
        means[name] = math.fsum(values) / len(values) if values else math.nan
    return means


def stats(results: Sequence[Result], strategies: Sequence[str], timing: Timing, asked: GenerateConfig) -> str:
    """Lines of speed, strategy counts with their share, and mean metrics; forks and retreats where `asked` has any."""
    searched = []
    if branching.plan(asked.branching, strategies) is not None:
        searched.append(
            ("forks", str(forks(results)), "places in the answer where several tokens were tried")
        )
    if backtracking.is_on(asked.backtracking):
        searched.append(("retreats", str(retreats(results)), "times that tokens were taken back"))
    rows = [
        ("prompt tokens", str(sum(len(result.prompt_ids) for result in results)), ""),
        ("new tokens", str(sum(len(result.records) for result in results)), ""),
        of_ends(results),
        ("computed tokens", str(timing.computed_tokens), "with those that are in no answer"),
        ("time to first token", _number(timing.first_token), "s, compilation included"),
        ("forward passes", str(timing.forward_passes), ""),
        *searched,
        ("total time", _number(timing.total), "s"),
        ("speed", _number(timing.tokens_per_second), "tokens/s after the first chunk"),
        *of_tokens(results, strategies),
    ]
    return as_text(rows)


def of_ends(results: Sequence[Result]) -> Line:
    """How many did not end by themselves: means over them are means over beginnings."""
    return "cut off", str(cut_off(results)), f"of {len(results)}, by max_new_tokens or a full context"


def of_tokens(results: Sequence[Result], strategies: Sequence[str]) -> list[Line]:
    """Strategy counts with their share, and mean metrics."""
    counts = strategy_counts(results, strategies)
    total = sum(counts.values())
    return [
        *(
            (name, str(count), f"{100 * count / total:.1f} %" if total else "")
            for name, count in counts.items()
        ),
        *((f"mean {name}", _number(mean), "") for name, mean in mean_metrics(results).items()),
    ]


def as_text(lines: Sequence[Line]) -> str:
    """In columns."""
    return "\n".join(f"{name:30}{value:>10}  {unit}".rstrip() for name, value, unit in lines)


def _number(value: float | None) -> str:
    """Four significant digits; a dash for no value."""
    return "-" if value is None or math.isnan(value) else f"{value:.4g}"
