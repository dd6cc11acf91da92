"""What the answers of a grid say about its variants: numbers, intervals and tables.

Every measure is a number for each prompt, made of that prompt's answers from all seeds; a variant has the mean over
prompts. Prompts differ more than variants do, so variants are compared prompt by prompt: the 95 % interval of a mean
difference is Student's, over prompts.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from entropix import results
from entropix.lab.experiments.measures import REPEATED, distinct, repetition, self_bleu
from entropix.lab.experiments.results import Line
from entropix.lab.statistics import Contrast, Interval, contrast, holm, mean_interval
from entropix.tables import aligned

if TYPE_CHECKING:
    from entropix.lab.experiments.engine import Variant

CUT_OFF = tuple(reason.name.lower() for reason in results.CUT_OFF)
ALL_CUT_OFF = "all cut off"  # in place of an interval


def content(line: Line) -> list[int]:
    """The tokens of an answer without the one that ended it."""
    return line["token_ids"][:-1] if line["finish"] == "stop_token" else line["token_ids"]


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return math.fsum(there) / len(there) if there else None


def _distinct(n: int) -> Callable[[Sequence[Line]], float | None]:
    return lambda lines: distinct([content(line) for line in lines], n)


# By name, from a prompt's answers; None where there is no such number.
MEASURES: dict[str, Callable[[Sequence[Line]], float | None]] = {
    "length": lambda lines: _mean([line["new_tokens"] for line in lines]),
    "logprob": lambda lines: _mean([line["mean_logprob"] for line in lines]),
    "distinct-1": _distinct(1),
    "distinct-2": _distinct(2),
    "distinct-3": _distinct(3),
    f"rep-{REPEATED}": lambda lines: _mean([repetition(content(line), REPEATED) for line in lines]),
    "self-BLEU": lambda lines: self_bleu([content(line) for line in lines]),
}
UNTIMED = "no speed: all answers ended within the first chunk of a batch, whose time includes compilation"
MEANING = {
    "length": "tokens of an answer, the stop token included",
    "logprob": "nats: mean log-probability of an answer's tokens under the model (temperature 1, unfiltered)",
    "distinct-1": "different tokens as a share of all tokens, over all answers to a prompt",
    "distinct-2": "different pairs of tokens as a share of all pairs, over all answers to a prompt",
    "distinct-3": "different runs of three tokens as a share of all such runs, over all answers to a prompt",
    f"rep-{REPEATED}": f"share of runs of {REPEATED} tokens that stood earlier in the same answer",
    "self-BLEU": "BLEU-4 of each answer against the other answers to its prompt: 1 where all are the same",
}


@dataclass(frozen=True)
class Summary:
    """A variant. None stands for what there is no number for."""

    label: str
    answers: int
    tokens: int
    paths: float | None  # mean number that an answer was chosen from; None where it is not chosen
    computed_tokens: (
        int  # of all paths, for the answers to be compared at their cost; those of the answers without paths
    )
    # Of all rows together, those of other variants in the batch too, after the first chunk.
    tokens_per_second: float | None
    length_sd: float | None  # over answers
    finishes: dict[str, int]
    strategies: dict[str, float]  # shares of the tokens
    means: dict[str, float | None]  # of every measure
    intervals: dict[str, Interval | None]  # of the means
    contrasts: dict[str, Contrast | None]  # to the first variant
    # The p-values of these, by Holm's method, over all measures of all variants.
    corrected: dict[str, float | None]

    @property
    def cut_off(self) -> int:
        """Answers that did not end by themselves, so that their lengths are not known."""
        return sum(self.finishes.get(name, 0) for name in CUT_OFF)

    @property
    def says_no_length(self) -> bool:
        """Whether all of its lengths are the limit's."""
        return self.cut_off == self.answers > 0

    @property
    def differences(self) -> dict[str, Interval | None]:
        """To the first variant."""
        return {name: found and found.difference for name, found in self.contrasts.items()}

    def as_json(self) -> dict[str, Any]:
        """The same as JSON has it."""
        told = {
            part: {name: found and found._asdict() for name, found in getattr(self, part).items()}
            for part in ("intervals", "differences")
        }
        contrasts = {
            name: found
            and {
                "items": found.n,
                "effect": found.effect and found.effect._asdict(),
                "p": found.p,
                "p_corrected": self.corrected[name],
                "detectable": found.detectable,
            }
            for name, found in self.contrasts.items()
        }
        own = {name: value for name, value in vars(self).items() if name != "corrected"}
        return {**own, **told, "contrasts": contrasts, "cut_off": self.cut_off}


def summarize(
    labels: Sequence[str], lines: Sequence[Line], timings: Sequence[Mapping[str, Any]]
) -> list[Summary]:
    """A summary of each variant, in this order; the first is what the others are compared with."""
    summaries: list[Summary] = []
    first: dict[str, list[float | None]] = {}
    for label in labels:
        mine = [line for line in lines if line["variant"] == label]
        answers = by_prompt(mine).values()
        values = {name: [measure(given) for given in answers] for name, measure in MEASURES.items()}
        first = first or values
        of_label = [timing for timing in timings if label in timing["tokens"]]
        summaries.append(_summary(label, mine, of_label, values, first))
    p_values = [found and found.p for s in summaries[1:] for found in s.contrasts.values()]
    corrected = iter(holm(p_values))
    return [
        *summaries[:1],
        *(replace(s, corrected={name: next(corrected) for name in s.contrasts}) for s in summaries[1:]),
    ]


def by_prompt(lines: Sequence[Line]) -> dict[int, list[Line]]:
    """Answers to each prompt."""
    return {
        prompt: [line for line in lines if line["prompt"] == prompt]
        for prompt in sorted({line["prompt"] for line in lines})
    }


def _summary(
    label: str,
    lines: Sequence[Line],
    timings: Sequence[Mapping[str, Any]],
    values: Mapping[str, Sequence[float | None]],
    first: Mapping[str, Sequence[float | None]],
) -> Summary:
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(line["strategies"])
    lengths = [line["new_tokens"] for line in lines]
    seconds = math.fsum(timing["seconds"] for timing in timings)
    return Summary(
        label=label,
        answers=len(lines),
        tokens=sum(lengths),
        paths=_mean([line.get("paths") for line in lines]),
        computed_tokens=sum(int(line.get("computed_tokens") or line["new_tokens"]) for line in lines),
        tokens_per_second=sum(sum(t["tokens"].values()) for t in timings) / seconds if seconds > 0 else None,
        length_sd=float(np.std(lengths, ddof=1)) if len(lengths) > 1 else None,
        finishes=dict(Counter(line["finish"] for line in lines)),
        strategies={name: count / max(counts.total(), 1) for name, count in counts.items()},
        means={name: _mean(numbers) for name, numbers in values.items()},
        intervals={name: _interval(name, numbers) for name, numbers in values.items()},
        contrasts={name: contrast(values[name], first[name], are_scores=False) for name in MEASURES},
        corrected=dict.fromkeys(MEASURES),
    )


def _interval(measure: str, numbers: Sequence[float | None]) -> Interval | None:
    """Of a measure's mean; all but lengths and log-probabilities are shares."""
    found = mean_interval(numbers)
    return found if found is None or measure in ("length", "logprob") else found.within(0, 1)


def rows(
    summaries: Sequence[Summary], variants: "Sequence[Variant]", fields: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """A row for each variant, with the names of `Summary.as_json`, after the numbers that are varied."""
    for found, variant in zip(summaries, variants, strict=True):
        varied = {name: getattr(variant.sampler.numbers, name) for name in fields}
        told = found.as_json()
        yield {"variant": told.pop("label"), **varied, **told}


# ----- tables -----------------------------------------------------------------------------------------------


def tables(summaries: Sequence[Summary]) -> list[str]:
    """Lines of text: a line a variant, then the intervals of the differences, then the strategies."""
    first, *others = summaries
    timed = was_timed(summaries)
    with_paths = any(found.paths is not None for found in summaries)
    with_costs = with_paths or any(found.computed_tokens != found.tokens for found in summaries)
    costs = ["paths"] * with_paths + ["computed"] * with_costs
    shown = ["answers", "tokens", "cut off", *costs, *["tokens/s"] * timed]
    rows = [["", *shown, "length", "± sd", *list(MEASURES)[1:]]]
    rows += [
        [
            found.label,
            str(found.answers),
            str(found.tokens),
            str(found.cut_off),
            *[number(found.paths, 1)] * with_paths,
            *[str(found.computed_tokens)] * with_costs,
            *[number(found.tokens_per_second, 1)] * timed,
            number(found.means["length"], 1),
            number(found.length_sd, 1),
            *(number(found.means[name]) for name in list(MEASURES)[1:]),
        ]
        for found in summaries
    ]
    lines = aligned(rows)
    if not timed:
        lines.append(UNTIMED)
    if said := limit_said(summaries):
        lines.append(said)
    if others:
        rows = [[f"minus {first.label}", *MEASURES]]
        rows += [[found.label, *(interval(found, name, first) for name in MEASURES)] for found in others]
        lines += ["", "95 % intervals of the mean difference, over prompts:", *aligned(rows)]
        lines += _tests(first, others)
    if chosen := strategy_names(summaries):
        rows = [["strategies", *chosen]]
        rows += [
            [
                found.label,
                *(f"{found.strategies[name]:.1%}" if name in found.strategies else "-" for name in chosen),
            ]
            for found in summaries
            if len(found.strategies) > 1
        ]
        lines += ["", *aligned(rows)]
    return lines


def _tests(first: Summary, others: Sequence[Summary]) -> list[str]:
    """Effect sizes with p-values, and what could not have been seen."""
    known = [
        found for s in others for found in s.contrasts.values() if found is not None and found.p is not None
    ]
    if not known:
        return []
    sizes, least = [[f"minus {first.label}", *MEASURES]], [["", *MEASURES]]
    for other in others:
        sizes.append(
            [other.label, *(_size(other.contrasts[name], other.corrected[name]) for name in MEASURES)]
        )
        found = {name: other.contrasts[name] for name in MEASURES}
        least.append(
            [
                other.label,
                *(number(c and c.detectable, 1 if name == "length" else 3) for name, c in found.items()),
            ]
        )
    about = f"Cohen's d of the differences, and p corrected for {len(known)} contrasts (Holm):"
    unseen = "Smallest mean difference that so many prompts show four times out of five:"
    return ["", about, *aligned(sizes), "", unseen, *aligned(least)]


def _size(found: Contrast | None, corrected: float | None) -> str:
    if found is None or found.effect is None or corrected is None:
        return "-"
    return (
        f"{found.effect.mean:+.2f}, {'<.001' if corrected < 0.001 else format(corrected, '.3f').lstrip('0')}"
    )


def was_timed(summaries: Sequence[Summary]) -> bool:
    """Whether there is a speed to show."""
    return any(found.tokens_per_second is not None for found in summaries)


def strategy_names(summaries: Sequence[Summary]) -> list[str]:
    """What variants with a choice choose from."""
    return list(dict.fromkeys(name for s in summaries if len(s.strategies) > 1 for name in s.strategies))


def limit_said(summaries: Sequence[Summary]) -> str:
    """What the limit of tokens hides; nothing where every answer ended by itself."""
    cut, answers = sum(found.cut_off for found in summaries), sum(found.answers for found in summaries)
    if not cut:
        return ""
    return (
        f"{cut} of {answers} answers were cut off by the limit: how long they would have become is not known, and "
        "what is said of lengths is too sure"
    )


def interval(found: Summary, name: str, first: Summary) -> str:
    """From .. to, with the digits of the table; where the limit alone made both lengths, that."""
    if name == "length" and found.says_no_length and first.says_no_length:
        return ALL_CUT_OFF
    change = found.differences[name]
    if change is None or change.low is None or change.high is None:
        return "-"
    decimals = 1 if name == "length" else 3
    return f"{change.low:+.{decimals}f}..{change.high:+.{decimals}f}"


def number(value: float | None, decimals: int = 3) -> str:
    """With so many decimals; a dash for none."""
    return "-" if value is None else f"{value:.{decimals}f}"
