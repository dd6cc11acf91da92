"""What the rollouts say: how far answers move, which metric finds the places where they do, and what it costs."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy import stats

from entropix import presets, samplers
from entropix.checkpoint.loading import Model
from entropix.lab import plots
from entropix.lab.evaluation.forks import FORKS, RANDOM, STRATIFIED
from entropix.lab.evaluation.protocol import Protocol
from entropix.lab.experiments.results import Line
from entropix.lab.plots import Plot, Section
from entropix.lab.statistics import Interval, TotalVariation, auroc, bootstrap, cluster_mean, total_variation
from entropix.lab.statistics.bootstrap import numbered, of_items
from entropix.lab.telling import Table, Told, as_json, numbers, percents
from entropix.metrics import Metrics
from entropix.report import looks
from entropix.samplers.entropix import STRATEGIES, choose

_RESAMPLES = 1000


class Group(NamedTuple):
    """Some of the places."""

    name: str
    places: int
    cautious: Interval | None  # mean total variation, at most the truth in expectation
    plug_in: Interval | None  # at least the truth
    forks: Interval | None  # share of places with at least the threshold
    gain: Interval | None  # accuracy after the likeliest token minus that after the others


class Finder(NamedTuple):
    """How well a metric finds forks."""

    metric: str
    correlation: Interval  # of ranks, with the total variation
    auroc: Interval  # of being at least the threshold


def told(model: Model, protocol: Protocol, rows: Sequence[Line]) -> Told:
    """What these rows say."""
    variation = [_variation(row["answers"]) for row in rows]
    moved_N = np.array([each.cautious for each in variation])
    fork_N = moved_N >= protocol.forks.threshold
    document_N = np.array([row["answer"] for row in rows])
    finders = [_finder(name, rows, moved_N, fork_N, document_N) for name in Metrics._fields]
    preset = presets.for_model(model.name)
    groups = [_group("all", rows, variation, fork_N, np.ones(len(rows), bool))]
    for chosen in (STRATIFIED, RANDOM):
        there = np.array([row["chosen"] == chosen for row in rows])
        groups.append(_group(chosen, rows, variation, fork_N, there))
    for name in dict.fromkeys((presets.PUBLISHED, preset)):
        strategy_N = _strategies(rows, name)
        groups += [
            _group(f"{strategy} of {name}", rows, variation, fork_N, strategy_N == number)
            for number, strategy in enumerate(STRATEGIES)
            if np.any(strategy_N == number)
        ]
    cost = sum(row["computed_tokens"] for row in rows)
    summary = {"groups": groups, "finders": finders, "computed_tokens": cost, "places": len(rows)}
    plan = protocol.forks
    said = (
        f"{len(rows)} places, {plan.tokens} tokens forced at each, {plan.rollouts} rollouts after each: {cost} tokens "
        f"computed, {cost / len(rows):.0f} for a place, prompts not counted. A fork is a place with a total variation "
        f"of at least {plan.threshold:g}."
    )
    tables = [_groups(groups), _finders(finders)]
    return Told(FORKS, said, tables, [_plane(rows, moved_N)], as_json(summary))


def _variation(answers: Sequence[Sequence[Any]]) -> TotalVariation:
    """Of the answers after the likeliest token and those after each other one, on average."""
    found = [total_variation(answers[0], others) for others in answers[1:]]
    return TotalVariation(*(float(np.mean(part)) for part in zip(*found, strict=True)))


def _strategies(rows: Sequence[Line], preset: str) -> np.ndarray:
    """What a preset of entropix does at each place: an index into `STRATEGIES`."""
    cfg = samplers.resolve(preset).numbers
    metrics = Metrics(
        *(jnp.asarray([row["metrics"][name] for row in rows], jnp.float32) for name in Metrics._fields)
    )
    return np.asarray(choose(metrics, cfg))


def _group(
    name: str,
    rows: Sequence[Line],
    variation: Sequence[TotalVariation],
    fork_N: np.ndarray,
    there_N: np.ndarray,
) -> Group:
    mine = [number for number in range(len(rows)) if there_N[number]]
    if not mine:
        return Group(name, 0, None, None, None, None)
    documents = [rows[number]["answer"] for number in mine]

    def mean(values: Sequence[float]) -> Interval:
        return cluster_mean(values, documents)

    return Group(
        name,
        len(mine),
        mean([variation[number].cautious for number in mine]).within(0, 1),
        mean([variation[number].plug_in for number in mine]).within(0, 1),
        mean([float(fork_N[number]) for number in mine]).within(0, 1),
        mean([_gain(rows[number]["scores"]) for number in mine]),
    )


def _gain(scores: Sequence[Sequence[float]]) -> float:
    first, *others = (float(np.mean(each)) for each in scores)
    return first - float(np.mean(others))


def _finder(
    name: str, rows: Sequence[Line], moved_N: np.ndarray, fork_N: np.ndarray, document_N: np.ndarray
) -> Finder:
    metric_N = np.array([row["metrics"][name] for row in rows])
    return Finder(
        name,
        _correlation(metric_N, moved_N, document_N),
        auroc(metric_N, fork_N.astype(float), document_N, resamples=_RESAMPLES),
    )


def _correlation(one_N: np.ndarray, other_N: np.ndarray, document_N: np.ndarray) -> Interval:
    """Spearman's, with an interval over answers; ranks are those among all places."""
    x_N, y_N = stats.rankdata(one_N), stats.rankdata(other_N)
    index, n = numbered(document_N)

    def figure(weights_RN: np.ndarray) -> np.ndarray:
        total_R = weights_RN.sum(axis=1)
        x, y = (weights_RN @ values / total_R for values in (x_N, y_N))
        xx, yy, xy = (weights_RN @ v / total_R for v in (x_N**2, y_N**2, x_N * y_N))
        with np.errstate(invalid="ignore", divide="ignore"):
            return (xy - x * y) / np.sqrt((xx - x**2) * (yy - y**2))

    return bootstrap(of_items(figure, index), n, resamples=_RESAMPLES)


def _groups(groups: Sequence[Group]) -> Table:
    rows = [
        [
            g.name,
            str(g.places),
            numbers(g.cautious),
            numbers(g.plug_in),
            percents(g.forks),
            percents(g.gain, "+"),
        ]
        for g in groups
    ]
    note = (
        "Total variation of the final answers after the likeliest token and after the others: the cautious figure is "
        "at most the truth in expectation, the plug-in one at least. Points: right answers after the likeliest token "
        "minus those after the others. Intervals over answers; random places say how many forks there are anyway."
    )
    heads = ["places", "n", "total variation", "plug-in", "forks (%)", "points"]
    return Table("How far do answers move?", note, heads, rows)


def _finders(finders: Sequence[Finder]) -> Table:
    rows = [[f.metric, numbers(f.correlation, 2, "+"), numbers(f.auroc, 2)] for f in finders]
    note = "Rank correlation with the total variation; AUROC: the chance that a fork has more of it than another place."
    return Table("Which metric finds forks?", note, ["metric", "correlation", "AUROC"], rows)


def _plane(rows: Sequence[Line], moved_N: np.ndarray) -> Section:
    """The places in the plane of entropy and varentropy, by how far answers move there."""
    figure = plots.new_figure()
    for chosen, mark in ((STRATIFIED, "circle"), (RANDOM, "square")):
        mine = [number for number, row in enumerate(rows) if row["chosen"] == chosen]
        figure.add_scatter(
            x=[rows[number]["metrics"]["logits_entropy"] for number in mine],
            y=[rows[number]["metrics"]["logits_varentropy"] for number in mine],
            text=[f"{moved_N[number]:.2f}" for number in mine],
            mode="markers",
            marker={
                "symbol": mark,
                "size": [6 + 18 * max(0.0, float(moved_N[number])) for number in mine],
                "color": looks.COLORS[0],
                "opacity": 0.7,
            },
            hovertemplate="%{x:.2f} bits, %{y:.2f} bits²<br>total variation %{text}<extra></extra>",
        )
    figure.update_layout(
        xaxis={"title": "entropy (bits)", "zeroline": False},
        yaxis={"title": "varentropy (bits²)", "zeroline": False},
    )
    key = [
        looks.entry("spread over the plane", looks.COLORS[0], "circle"),
        looks.entry("chosen by chance", looks.COLORS[0], "square"),
    ]
    said = f"{len(rows)} places; the numbers are in the tables"
    return Section(
        "Where answers move", "The larger, the further.", key, [Plot("plane", "", said, 26, figure)]
    )
