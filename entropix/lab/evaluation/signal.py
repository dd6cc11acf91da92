"""The part signal: where a model is wrong, which metric knows it, and does it know more than the top probability?"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from entropix import presets, samplers
from entropix.checkpoint.loading import Model
from entropix.lab import plots
from entropix.lab.evaluation import documents
from entropix.lab.evaluation.documents import DRAWN, GREEDY, SIGNAL, TEXTS
from entropix.lab.evaluation.protocol import Protocol
from entropix.lab.evaluation.signal_figures import RANKS, Signal, of_answers, of_positions
from entropix.lab.experiments.results import Line
from entropix.lab.plots import Plot, Section
from entropix.lab.statistics import Interval
from entropix.lab.telling import Table, Told, as_json, numbers, percent, percents
from entropix.samplers.entropix import SamplerConfig

Row = dict[str, Any]
_TITLES = {
    TEXTS: "given texts, next token",
    DRAWN: "own answers drawn at temperature 1, next token (control)",
    GREEDY: "own greedy answers, answer right",
}


def run(model: Model, protocol: Protocol, folder: Path) -> list[Row]:
    """A row for each document."""
    lines = documents.read(model, protocol, folder)
    return [{"part": SIGNAL, "protocol": protocol.digest, **line} for line in lines]


def told(model: Model, protocol: Protocol, rows: Sequence[Line]) -> Told:
    """What these rows say. Regions are those of the model's preset."""
    preset = presets.for_model(model.name)
    cfg = samplers.resolve(preset).numbers
    assert isinstance(cfg, SamplerConfig)
    kinds = [of_positions(kind, rows, protocol.signal.bins, cfg) for kind in (TEXTS, DRAWN)]
    found = [each for each in (*kinds, of_answers(rows)) if each is not None]
    tables = [_amounts(found)]
    for each in found:
        tables.append(_rankings(each))
        if each.gains:
            tables.append(_gains(each))
        if each.regions:
            tables.append(_regions(each, preset))
    sections = [_curves(each) for each in found if each.gains]
    return Told(SIGNAL, _said(found), tables, sections, {each.kind: as_json(each) for each in found})


def _said(found: Sequence[Signal]) -> str:
    sentences = [
        "A next token is right where it is the one that the model finds likeliest. In answers that the model draws "
        "itself at temperature 1 the top probability is exactly the chance of that: nothing can add to it, and what "
        "seems to is noise."
    ]
    for each in found:
        if each.kind != TEXTS:
            continue
        if not each.gains:
            sentences.append(f"{each.documents} documents are too few for models; give more texts.")
        for gain in each.gains[1:]:
            assert gain.gain is not None
            is_more = gain.gain.low is not None and gain.gain.low > 0
            verdict = "knows more" if is_more else "nothing more shown"
            sentences.append(f"{gain.name}: {numbers(gain.gain, 4, '+')} nats a token, {verdict}.")
    return " ".join(sentences)


def _amounts(found: Sequence[Signal]) -> Table:
    rows = [
        [_TITLES[s.kind], str(s.documents), str(s.positions), percents(s.right), numbers(s.loss)]
        for s in found
    ]
    return Table("What was read", "", ["", "documents", "positions", "right (%)", "loss (nats)"], rows)


def _rankings(found: Signal) -> Table:
    n_bins = max(len(ranking.bins) for ranking in found.rankings)
    rows = [
        [ranking.metric, *map(numbers, (ranking.auroc, ranking.prr, *ranking.bins))]
        for ranking in found.rankings
    ]
    note = (
        "AUROC: the chance that a right one has more of the metric (of entropies and the like: less) than a wrong one; "
        "0.5 is no knowledge. PRR: how much of the gain of rejecting the worst half first is had by rejecting by the "
        "metric. Intervals over documents."
    )
    heads = ["metric", "AUROC", "PRR", *(f"AUROC, bin {number + 1}" for number in range(n_bins))]
    return Table(f"Which metric knows? ({_TITLES[found.kind]})", note, heads, rows)


def _gains(found: Signal) -> Table:
    rows = [
        [g.name, f"{g.loss:.4f}", numbers(g.gain, 4, "+"), numbers(g.gain_over_first, 4, "+")]
        for g in found.gains
    ]
    note = "Nested logistic models, judged on documents that they were not fitted to; gains are nats a token."
    heads = ["model", "loss", "gain over the one before", "gain over the first"]
    return Table(f"Who knows more? ({_TITLES[found.kind]})", note, heads, rows)


def _regions(found: Signal, preset: str) -> Table:
    rows = [
        [region.strategy, percent(region.share), *map(percents, region.ranks)] for region in found.regions
    ]
    heads = ["strategy", "positions (%)", *(f"rank {rank} (%)" for rank in RANKS)]
    return Table(f"Where {preset} does what ({_TITLES[found.kind]})", "", heads, rows)


def _curves(found: Signal) -> Section:
    """The gain of each model over the first, with its interval."""
    figure = plots.new_figure()
    gains = found.gains[1:]
    for lane, gain in enumerate(gains):
        assert gain.gain is not None
        scaled = Interval(*(None if end is None else 1000 * end for end in gain.gain))  # type: ignore[arg-type]
        plots.add_difference(figure, lane, scaled, f"{plots.plain(gain.name)}<br>%{{x:.2f}}")
    figure.update_layout(
        xaxis=plots.from_zero("gain (10⁻³ nats a token)"),
        yaxis=plots.lanes([gain.name for gain in gains]),
    )
    said = "; ".join(f"{gain.name}: {numbers(gain.gain, 4, '+')} nats a token" for gain in gains)
    note = "Held-out log-likelihood over the model before, 95 % intervals over documents."
    plot = Plot(f"gains-{found.kind}", "", said, 5.5 + 2.25 * len(gains), figure)
    return Section(f"Who knows more? ({_TITLES[found.kind]})", note, [], [plot])
