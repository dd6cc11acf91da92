"""The page of a grid: measures, plots, and the answers to every prompt side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from entropix import files
from entropix.checkpoint.loading import Model
from entropix.lab import comparison_figures, plots, sweep_figures
from entropix.lab.experiments import summary
from entropix.lab.experiments.engine import Grid
from entropix.lab.experiments.results import Line
from entropix.lab.experiments.summary import MEANING, MEASURES, Summary, by_prompt, number
from entropix.report import looks, shell


def write(
    path: str | Path,
    title: str,
    grid: Grid,
    model: Model,
    summaries: Sequence[Summary],
    lines: Sequence[Line],
    fields: Sequence[str] = (),
) -> None:
    """Writes the page. Replaces a file of that name only when complete."""
    files.write_text(path, [page(title, grid, model, summaries, lines, fields)], "a page")


def page(
    title: str,
    grid: Grid,
    model: Model,
    summaries: Sequence[Summary],
    lines: Sequence[Line],
    fields: Sequence[str] = (),
) -> str:
    """One self-contained HTML document. fields: what a sweep varies; one or two of them are drawn as axes."""
    sections = _sections(grid, summaries, lines, fields)
    timed = summary.was_timed(summaries)
    body = shell.fragment(
        "comparison.html.jinja",
        model={"name": model.name, "dtype": model.precision},
        variants=[variant.label for variant in grid.variants],
        compared=len(grid.variants) > 1 and len(grid.prompts) > 1,
        n_prompts=len(grid.prompts),
        n_seeds=len(grid.seeds),
        max_new_tokens=grid.options.max_new_tokens,
        untimed="" if timed else summary.UNTIMED,
        heads=_heads(timed),
        rows=[
            {"entry": entry, "cells": _cells(found, summaries[0], timed)}
            for entry, found in zip(looks.marks([s.label for s in summaries]), summaries, strict=True)
        ],
        sections=sections,
        prompts=_prompts(grid, lines),
    )
    drawn = {plot.name: plot.figure for section in sections for plot in section.plots}
    return shell.document(title, body, drawn, styles=[shell.asset("comparison.css")])


def _heads(timed: bool) -> list[dict[str, str]]:
    names = ["answers", "tokens", "cut off", *["tokens/s"] * timed, *MEASURES]
    return [
        {"name": name, "unit": plots.UNITS.get(name, ""), "meaning": MEANING.get(name, "")} for name in names
    ]


def _cells(found: Summary, first: Summary, timed: bool) -> list[dict[str, str]]:
    """Each with its value, the interval of its difference to the first variant, and the side of zero that is on."""
    counts = [
        str(found.answers),
        str(found.tokens),
        str(found.cut_off),
        *[number(found.tokens_per_second, 1)] * timed,
    ]
    cells = [{"value": value, "interval": "", "side": ""} for value in counts]
    for name, mean in found.means.items():
        value = "–" if mean is None else looks.signed(number(mean, 1 if name == "length" else 3))
        if name == "length" and found.length_sd is not None:
            value += f" ± {found.length_sd:.1f}"
        change = found.differences[name]
        interval, side = "", ""
        if found is not first and change is not None and change.low is not None and change.high is not None:
            interval = looks.signed(summary.interval(found, name, first)).replace("..", " to ")
            side = "▲" if change.low > 0 else "▼" if change.high < 0 else ""
        cells.append({"value": value, "interval": interval, "side": side})
    return cells


def _sections(
    grid: Grid, summaries: Sequence[Summary], lines: Sequence[Line], fields: Sequence[str]
) -> list[plots.Section]:
    """In the order of the page."""
    found = [
        comparison_figures.tradeoff(summaries),
        comparison_figures.lengths(grid, summaries, lines),
        comparison_figures.entropies(summaries, lines),
    ]
    if summary.strategy_names(summaries):
        found.insert(2, comparison_figures.strategies(grid, summaries))
    if len(fields) in (1, 2):
        return [sweep_figures.sweep(grid, summaries, fields), *found]
    if len(summaries) > 1 and len(grid.prompts) > 1:
        return [comparison_figures.differences(summaries), *found]
    return found


def _prompts(grid: Grid, lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Each prompt with a column of answers for each variant."""
    of_prompt = by_prompt(lines)
    return [
        {
            "text": text,
            "columns": [
                {
                    "label": variant.label,
                    "answers": [
                        {
                            **line,
                            "logprob": line["mean_logprob"] and looks.signed(f"{line['mean_logprob']:.3f}"),
                            "end": line["finish"].replace("_", " "),
                            "is_cut": line["finish"] in summary.CUT_OFF,
                        }
                        for line in of_prompt.get(prompt, [])
                        if line["variant"] == variant.label
                    ],
                }
                for variant in grid.variants
            ],
        }
        for prompt, text in enumerate(grid.texts)
    ]
