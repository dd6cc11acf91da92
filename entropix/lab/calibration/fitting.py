"""Observes a model and fits the entropix rule's thresholds to it: the report and the preset of a calibration."""

import dataclasses
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from entropix import metric_labels, scoring, trace
from entropix.checkpoint.loading import Model
from entropix.generation import generate
from entropix.lab.calibration import solver
from entropix.lab.calibration.solver import QUANTILES
from entropix.lab.calibration.targets import Targets, Thresholds
from entropix.metrics import Metrics
from entropix.report import figures
from entropix.report.figures import shade
from entropix.report.regions import RULES, regions
from entropix.results import Result, cut_off
from entropix.samplers import ResolvedSampler
from entropix.samplers.entropix import STRATEGIES, LogitsConfig

WINDOW = 512  # tokens of the text that the model reads from an empty context
MAX_ROWS = 16  # prompts answered in one batch


class Source(NamedTuple):
    """Where observations came from, in words, and what they are: arrays `[n]`."""

    description: str
    metrics: Metrics


class Loop(NamedTuple):
    """How often each strategy was used while the rule itself drew the tokens, whose text leads to the next ones."""

    description: str
    before: dict[str, float]
    after: dict[str, float]


class Fit(NamedTuple):
    """What came out."""

    sources: list[Source]
    metrics: Metrics  # of all sources together
    targets: Targets
    sampler: ResolvedSampler  # whose numbers are those before
    after: LogitsConfig
    loop: Loop | None = None


# ----- observing --------------------------------------------------------------------------------------------


def observe_text(model: Model, text: str, note: str) -> Source:
    """The model reading the text, in windows of `WINDOW` tokens: shorter than any context, and quick."""
    tokens = [*model.tokenizer.bos_ids, *model.tokenizer.encode(text)]
    width = min(WINDOW, model.config.context_length)
    windows = [tokens[start : start + width] for start in range(0, len(tokens), width)]
    records = [record for scored in scoring.score(model, windows) for record in scored.records]
    return Source(f"text {note}, {len(records)} positions in windows of {width}", _gather(records))


def observe_answers(
    model: Model, prompts: Sequence[Any], note: str, max_new_tokens: int, seed: int
) -> Source:
    """The model's own answers, drawn from its whole distribution."""
    results = _answers(model, prompts, sampler="temperature", max_new_tokens=max_new_tokens, seed=seed)
    records = [record for result in results for record in result.records]
    return Source(
        f"answers to the {len(prompts)} prompts of {note}, {len(records)} tokens drawn at temperature 1, at most "
        f"{max_new_tokens} an answer ({cut_off(results)} of {len(results)} were cut off there), seed {seed}",
        _gather(records),
    )


def observe_rule(model: Model, prompts: Sequence[Any], result: Fit, max_new_tokens: int, seed: int) -> Loop:
    """The rule answering the prompts, with the reference thresholds and with the fitted ones."""
    answers = [
        _answers(
            model,
            prompts,
            sampler=result.sampler,
            sampler_config=cfg,
            max_new_tokens=max_new_tokens,
            seed=seed,
        )
        for cfg in (result.sampler.numbers, result.after)
    ]
    used = [Counter(record["strategy"] for each in given for record in each.records) for given in answers]
    n_cut = [cut_off(given) for given in answers]
    before, after = ({name: counts[name] / counts.total() for name in STRATEGIES} for counts in used)
    totals = [counts.total() for counts in used]
    return Loop(
        f"the rule's own answers to these prompts, {totals[0]} tokens with the reference and {totals[1]} with the "
        f"fitted thresholds ({n_cut[0]} and {n_cut[1]} of {len(prompts)} were cut off at {max_new_tokens})",
        before,
        after,
    )


def _answers(model: Model, prompts: Sequence[Any], **options: Any) -> list[Result]:
    return [
        result
        for start in range(0, len(prompts), MAX_ROWS)
        for result in generate(model, prompts[start : start + MAX_ROWS], **options)
    ]


def file_note(path: str | Path) -> str:
    """The name of a file, quoted, and the SHA-256 of what is in it."""
    return f"{json.dumps(Path(path).name)} (sha256 {hashlib.sha256(Path(path).read_bytes()).hexdigest()})"


def _gather(records: Sequence[Mapping[str, Any]]) -> Metrics:
    """Arrays `[n]` from n records. Raises a ValueError if the model's logits went wrong somewhere."""
    metrics = Metrics(
        *(jnp.asarray([_number(record[name]) for record in records], jnp.float32) for name in Metrics._fields)
    )
    if not all(jnp.isfinite(values).all() for values in metrics):
        raise ValueError(
            "the model's metrics are not finite everywhere; try --dtype float32, or other weights"
        )
    return metrics


def _number(value: float | None) -> float:
    """What a record has: None stands for what is not finite."""
    return math.nan if value is None else value


# ----- fitting and telling ----------------------------------------------------------------------------------


def fit(sources: Sequence[Source], targets: Targets, sampler: ResolvedSampler) -> Fit:
    """The rule with the thresholds that it has, the reference, and those fitted to all sources together."""
    metrics = Metrics(*(jnp.concatenate(parts) for parts in zip(*(s.metrics for s in sources), strict=True)))
    observed = (np.asarray(metrics.logits_entropy), np.asarray(metrics.logits_varentropy))
    fitted = solver.thresholds(*observed, targets)
    return Fit(list(sources), metrics, targets, sampler, solver.apply(fitted, sampler.numbers))


def report(result: Fit) -> Iterator[str]:
    """Where the numbers come from, thresholds and occupancy before and after, quantiles."""
    yield from (f"observed: {source.description}" for source in result.sources)
    yield ""
    yield from _before_and_after(result)
    yield ""
    yield from _notes(result)
    for source in result.sources if len(result.sources) > 1 else ():
        yield f"strategies in the {source.description.split()[0]} alone:"
        yield from _occupancies(result, source.metrics)
        yield ""
    if result.loop is not None:
        yield f"strategies in {result.loop.description}:"
        yield from _occupancy_table(result, result.loop.before, result.loop.after)
        yield ""
    yield f"{'quantile':26}" + "".join(f"{quantile:>9g}" for quantile in QUANTILES)
    for name, values in solver.quantiles(result.metrics).items():
        yield f"{name:26}" + "".join(f"{value:9.4f}" for value in values)


def preset(result: Fit, model: Model) -> Iterator[str]:
    """The lines of a TOML file: the fitted thresholds, and what they were fitted to."""
    sampler, usual = result.sampler, result.sampler.rule.config()
    named = sampler.name if sampler.source is None else f"{sampler.source.file}:{sampler.source.object}"
    yield f"# {sampler.name} with thresholds fitted to {model.name} (python -m entropix.calibrate)"
    yield f"# Entropies in bits, varentropies in bits². Every other number is that of the {sampler.name} preset."
    yield "# Fitted is how often each strategy occurs, not whether answers get better: look at some before you use it."
    yield "#"
    yield from trace.comments(model)
    yield from (f"# observed: {source.description}" for source in result.sources)
    yield "#"
    yield from (f"# {line}".rstrip() for line in _before_and_after(result))
    yield from (f"# {line}" for line in _notes(result))
    if result.loop is not None:
        yield "#"
        yield f"# generated: {result.loop.description}"
        yield "#"
        yield from (f"# {line}" for line in _occupancy_table(result, result.loop.before, result.loop.after))
    yield f"sampler = {json.dumps(named)}"
    yield ""
    for name, value in dataclasses.asdict(result.after).items():
        if name in Thresholds._fields or value != getattr(usual, name):
            yield f"{name} = {json.dumps(value, ensure_ascii=False)}"
    yield from sampler.looking_as_toml()


def _thresholds(cfg: LogitsConfig) -> dict[str, float]:
    return {name: getattr(cfg, name) for name in Thresholds._fields}


def _before_and_after(result: Fit) -> Iterator[str]:
    yield f"{'threshold':18}{'reference':>10}{'fitted':>10}"
    after = _thresholds(result.after)
    for name, value in _thresholds(result.sampler.numbers).items():
        yield f"{name:18}{value:10g}{after[name]:10g}"
    yield ""
    yield from _occupancies(result, result.metrics)


def _occupancies(result: Fit, metrics: Metrics) -> Iterator[str]:
    before, after = (
        solver.occupancy(metrics, cfg, result.sampler.name) for cfg in (result.sampler.numbers, result.after)
    )
    yield from _occupancy_table(result, before, after)


def _occupancy_table(result: Fit, before: Mapping[str, float], after: Mapping[str, float]) -> Iterator[str]:
    wished = _wished(result)
    yield f"{'strategy':18}{'reference':>10}{'fitted':>10}{'wished':>10}"
    for name in STRATEGIES:
        yield f"{name:18}{before[name]:10.2%}{after[name]:10.2%}{wished[name]:10.2%}"


def _notes(result: Fit) -> Iterator[str]:
    """What was not reached, each with its reason."""
    achieved = solver.occupancy(result.metrics, result.after, result.sampler.name)
    for sentence in solver.notes(achieved, result.targets, len(result.metrics.logits_entropy)):
        yield f"note: {sentence}"


def rows(result: Fit) -> Iterator[dict[str, Any]]:
    """What `report` tells of thresholds and strategies: a row each, with the values before and after."""
    after = _thresholds(result.after)
    for name, value in _thresholds(result.sampler.numbers).items():
        yield {"part": "threshold", "name": name, "reference": value, "fitted": after[name], "wished": None}
    wished = _wished(result)
    observed = [
        solver.occupancy(result.metrics, cfg, result.sampler.name)
        for cfg in (result.sampler.numbers, result.after)
    ]
    shares = {"share of observed tokens": observed}
    if result.loop is not None:
        shares["share of generated tokens"] = [result.loop.before, result.loop.after]
    for part, (before, fitted) in shares.items():
        for name in STRATEGIES:
            told = {"reference": before[name], "fitted": fitted[name], "wished": wished[name]}
            yield {"part": part, "name": name, **told}


def _wished(result: Fit) -> dict[str, float]:
    """The shares that were aimed at; adaptive has the rest."""
    wished = result.targets._asdict()
    return {**wished, "adaptive": 1 - sum(wished.values())}


def draw(result: Fit, model: Model, path: str | Path) -> None:
    """A figure, in the format of its ending: every observation by entropy and varentropy, over the regions of the
    strategies, before and after.

    Below each half the shares of the strategies, above both the model and how many observations there are.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    entropy_n, varentropy_n = result.metrics.logits_entropy, result.metrics.logits_varentropy
    right, top = (1.05 * max(float(values.max()), 1.0) for values in (entropy_n, varentropy_n))
    rule = result.sampler.name if result.sampler.name in RULES else "entropix"
    figure = Figure(figsize=(12, 6), layout="constrained")
    figure.suptitle(title(result, model), fontsize="medium")
    for axes, cfg, name in zip(
        figure.subplots(1, 2, sharey=True),
        (result.sampler.numbers, result.after),
        ("reference", "fitted"),
        strict=True,
    ):
        shade(axes, regions(rule, cfg, right, top), alpha=0.35)
        axes.scatter(entropy_n, varentropy_n, s=3, color="black", alpha=0.4, linewidths=0, rasterized=True)
        shares = solver.occupancy(result.metrics, cfg, result.sampler.name)
        axes.legend(
            handles=[
                Patch(color=color, alpha=0.35, label=f"{strategy} {100 * shares[strategy]:.1f} %")
                for strategy, color in zip(STRATEGIES, metric_labels.STRATEGIES, strict=True)
            ],
            loc="upper center",
            bbox_to_anchor=(0.5, -0.12),
            ncols=3,
            frameon=False,
        )
        axes.set(
            title=f"{name} thresholds",
            xlabel=metric_labels.axis_title("logits_entropy"),
            ylabel=metric_labels.axis_title("logits_varentropy"),
        )
    figures.save(figure, path)


def title(result: Fit, model: Model) -> str:
    """The model and the number of observations, in all and of each source where there are several."""
    counts = [len(source.metrics.logits_entropy) for source in result.sources]
    parts = [
        f"{source.description.split()[0]} {n:,}" for source, n in zip(result.sources, counts, strict=True)
    ]
    apart = f" ({', '.join(parts)})" if len(parts) > 1 else ""
    return f"{model.folder.resolve().name}, {model.precision}: n = {sum(counts):,} tokens{apart}"
