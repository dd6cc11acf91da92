"""Static figures of a trace, for papers: matplotlib draws them, as PNG, SVG or PDF."""

import importlib.util
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from entropix import files, metric_labels, trace
from entropix.report import shell
from entropix.report.page import Named
from entropix.report.regions import RULES, Regions, limits, regions, sampler_config
from entropix.results import Result
from entropix.samplers.entropix import STRATEGIES
from entropix.trace import run_statistics

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")
DPI = 200
WIDTH = 6.5  # inches: the text width of a common paper
STYLE = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 8}
MARKS = ("o", "s", "D", "^", "X")  # as looks.MARKS


def write(traces: Sequence[Named], folder: str | Path, kind: str = "png") -> list[Path]:
    """Writes the figures of every row that has tokens, and returns their paths, like folder/why-scatter.png.

    The names are those of the traces without their endings, with `-row1` and so on where a trace has several rows.
    kind: one of `FORMATS`. Raises a ValueError if two traces have one name, if matplotlib is not
    installed, or if the folder cannot be made.
    """
    matplotlib = shell.require("matplotlib", "a figure")
    folder = Path(folder)
    stems = [Path(named.name).stem for named in traces]
    if repeated := [stem for stem in stems if stems.count(stem) > 1]:
        raise ValueError(f"two traces are called {repeated[0]!r}, and so would their figures; rename one")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder}: cannot make this folder for figures ({error.strerror})") from None
    paths = []
    for stem, named in zip(stems, traces, strict=True):
        several = len(named.trace.results) > 1
        for row, result in enumerate(named.trace.results):
            with matplotlib.rc_context(STYLE):
                for name, figure in draw(named.trace.header, result):
                    path = folder / f"{stem}{f'-row{row}' if several else ''}-{name}.{kind}"
                    save(figure, path)
                    paths.append(path)
    return paths


def draw(header: dict[str, Any], result: Result) -> Iterator[tuple[str, "Figure"]]:
    """The figures of one row by name: scatter, series, timeline, and heads if they were recorded. None if empty."""
    if not result.records:
        return
    yield "scatter", scatter(header, result)
    yield "series", series(header, result)
    yield "timeline", timeline(header, result)
    if all(record.get("head_entropies") for record in result.records):
        yield "heads", heads(result)


def scatter(header: dict[str, Any], result: Result) -> "Figure":
    """Every token by entropy and varentropy, over the regions of its sampler's rule if that has such."""
    figure = new(4.2)
    axes = figure.subplots()
    entropy_n, varentropy_n = (column(result, name) for name in ("logits_entropy", "logits_varentropy"))
    right, top = limits([header], [result])
    if header["sampler"] in RULES:
        shade(axes, regions(header["sampler"], sampler_config(header), right, top))
    strategies = header["strategies"]
    for i, name in enumerate(strategies):
        here = np.array([record["strategy"] == name for record in result.records])
        axes.scatter(
            entropy_n[here],
            varentropy_n[here],
            s=16,
            color=metric_labels.strategy_color(name, strategies),
            marker=MARKS[i % len(MARKS)],
            edgecolors="white",
            linewidths=0.4,
            label=f"{name} ({here.sum()})",
        )
    axes.set(
        xlim=(0, right),
        ylim=(0, top),
        xlabel=metric_labels.axis_title("logits_entropy"),
        ylabel=metric_labels.axis_title("logits_varentropy"),
    )
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1), borderaxespad=0)
    return figure


def shade(axes: "Axes", found: Regions, alpha: float = 0.22) -> None:
    """Colours the regions of the strategies."""
    from matplotlib.colors import ListedColormap

    axes.pcolormesh(
        found.entropy_edges,
        found.varentropy_edges,
        found.strategy_YX,
        cmap=ListedColormap(metric_labels.STRATEGIES),
        vmin=-0.5,
        vmax=len(STRATEGIES) - 0.5,
        alpha=alpha,
        linewidth=0,
        rasterized=True,  # or viewers show hairlines between the rectangles
    )


def series(header: dict[str, Any], result: Result) -> "Figure":
    """Every metric over the steps, one above the other."""
    labels = trace.metric_labels_of([header])
    figure = new(1.05 * len(labels) + 0.5)
    step_n = np.arange(1, len(result.records) + 1)
    panels = figure.subplots(len(labels), 1, sharex=True)
    for axes, name in zip(panels, labels, strict=True):
        axes.plot(step_n, column(result, name), color="#222222", linewidth=0.8)
        axes.set_title(labels[name].axis_title, fontsize=8, loc="left", pad=2)
        axes.margins(x=0.01)
    panels[-1].set_xlabel("token")
    return figure


def timeline(header: dict[str, Any], result: Result) -> "Figure":
    """A lane for each strategy, with its count and a mark at each of its tokens."""
    strategies = header["strategies"]
    figure = new(0.7 + 0.32 * len(strategies))
    axes = figure.subplots()
    counts = run_statistics.strategy_counts([result], strategies)
    for lane, name in enumerate(strategies):
        steps = [step for step, r in enumerate(result.records, start=1) if r["strategy"] == name]
        axes.vlines(
            steps,
            lane - 0.35,
            lane + 0.35,
            color=metric_labels.strategy_color(name, strategies),
            linewidth=1.2,
        )
    total = len(result.records)
    axes.set_yticks(
        range(len(strategies)),
        [f"{name}  {counts[name]} ({counts[name] / total:.0%})" for name in strategies],
    )
    axes.set(xlim=(0, total + 1), ylim=(len(strategies) - 0.5, -0.5), xlabel="token")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return figure


def heads(result: Result) -> "Figure":
    """Attention entropy of every head, its mean over the tokens."""
    bits_nLN = np.array([record["head_entropies"] for record in result.records], np.float64)
    layers, n_heads = bits_nLN.shape[1:]
    figure = new(min(9.0, 1.2 + 0.17 * layers), width=min(WIDTH, 1.8 + 0.3 * n_heads))
    axes = figure.subplots()
    image = axes.imshow(np.ma.masked_invalid(bits_nLN).mean(axis=0), cmap="viridis", aspect="auto", vmin=0)
    figure.colorbar(image, label="mean attention entropy (bits)")
    axes.set(xlabel="head", ylabel="layer")
    axes.locator_params(integer=True)
    axes.spines[:].set_visible(False)
    return figure


def column(result: Result, name: str) -> np.ndarray:
    """float64 `[n]`: a number of every token, NaN where there is none."""
    return np.array([math.nan if r.get(name) is None else r[name] for r in result.records], np.float64)


# ----- what every figure shares -----------------------------------------------------------------------------


def check(path: str | Path | None) -> None:
    """Raises a ValueError where no figure could be written there; for calling before the work. None is fine."""
    if path is None:
        return
    if Path(path).suffix[1:] not in FORMATS:
        *others, last = (f".{name}" for name in FORMATS)
        raise ValueError(f"{path}: a figure is a {', '.join(others)} or {last} file, by its ending")
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError(f"{path}: a figure needs matplotlib: pip install matplotlib")
    files.check_writable(path, "a figure")


def new(height: float, width: float = WIDTH) -> "Figure":
    """An empty figure of so many inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: "Figure", path: str | Path) -> None:
    """Replaces a file of that name only when complete. Its ending is the format."""
    with files.replacing(path) as temporary:
        figure.savefig(temporary, dpi=DPI, format=Path(path).suffix[1:])
