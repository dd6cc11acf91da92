"""An evaluation from its protocol to its folder: results.jsonl, summary.json, report.html, and tables on stdout."""

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from entropix import distributed, files, tables, trace
from entropix.checkpoint.loading import Model
from entropix.console import terminal
from entropix.lab import page, telling
from entropix.lab.evaluation import (
    forks,
    forks_told,
    policy,
    policy_figures,
    policy_told,
    signal,
)
from entropix.lab.evaluation.protocol import Protocol
from entropix.lab.experiments import engine
from entropix.lab.experiments.results import ELSEWHERE, MANIFEST, difference
from entropix.lab.telling import Told
from entropix.report import figures

RESULTS, SUMMARY, PAGE = "results.jsonl", "summary.json", "report.html"
Row = dict[str, Any]


class Run(NamedTuple):
    """What a part is asked for."""

    model: Model
    protocol: Protocol
    folder: Path
    max_rows: int
    kept: bool  # whether the folder outlives the process


def _policy(run: Run) -> tuple[list[Row], Callable[[], Told]]:
    rows = policy.run(*run)
    return rows, lambda: policy_told.told(run.protocol, policy_figures.figures(run.protocol, rows))


def _signal(run: Run) -> tuple[list[Row], Callable[[], Told]]:
    rows = signal.run(run.model, run.protocol, run.folder)
    return rows, lambda: signal.told(run.model, run.protocol, rows)


def _forks(run: Run) -> tuple[list[Row], Callable[[], Told]]:
    rows = forks.run(run.model, run.protocol, run.folder, run.max_rows)
    return rows, lambda: forks_told.told(run.model, run.protocol, rows)


# By name: the work of a part, which gives its rows and what they say, asked for in the first process alone.
PARTS: Mapping[str, Callable[[Run], tuple[list[Row], Callable[[], Told]]]] = {
    "policy": _policy,
    "signal": _signal,
    "forks": _forks,
}


def perform(
    run: Run, parts: Sequence[str], title: str, table: str | None = None, plot: str | None = None
) -> None:
    """Does what is missing of these parts, then writes and prints what they say. Raises a ValueError for bad input.

    table: where the rows go as a table too. plot: where the figure of the part policy goes.
    """
    distributed.from_first(lambda: _begin(run))
    done = [PARTS[part](run) for part in parts]
    if not distributed.is_first():
        return
    rows = [row for found, _ in done for row in found]
    told = [tell() for _, tell in done]
    if table is not None:
        tables.write(table, rows)
    for each in told:
        if plot is not None and each.draw is not None:
            figures.save(each.draw(), plot)
    note = _write(run, rows, told, title) if run.kept else ""
    print("\n\n".join("\n".join(telling.lines(each)) for each in told), flush=True)
    if note:
        terminal.note(note)


def _begin(run: Run) -> None:
    """Makes the folder one of this protocol. Raises a ValueError where it is one of another."""
    path = run.folder / MANIFEST
    described = {"digest": run.protocol.digest, **run.protocol.described(), **engine.date_of(run.model)}
    described = json.loads(json.dumps(described))
    if path.exists():
        before = files.read_json(path)
        if change := difference(before | {"digest": described["digest"]}, described):
            raise ValueError(f"{run.folder} holds results of another protocol: {change}; {ELSEWHERE}")
        return
    files.make_folder(run.folder)
    if foreign := [name for name in (RESULTS, SUMMARY, PAGE) if files.is_there(run.folder / name)]:
        raise ValueError(
            f"{run.folder / foreign[0]} is not of an evaluation (there is no {MANIFEST} beside it) and would be lost; "
            "use another folder"
        )
    files.write_text(path, [json.dumps(described, ensure_ascii=False, indent=1), "\n"], "a protocol")


def _write(run: Run, rows: Sequence[Row], told: Sequence[Told], title: str) -> str:
    """Fills the folder; returns what there is to say of it."""
    found = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows)
    files.write_text(run.folder / RESULTS, found, "results")
    summary = {
        "protocol": run.protocol.digest,
        "model": trace.circumstances(run.model),
        **{each.part: each.summary for each in told},
    }
    text = json.dumps(telling.as_json(summary), ensure_ascii=False, allow_nan=False, indent=1)
    files.write_text(run.folder / SUMMARY, [text, "\n"], "a summary")
    path = run.folder / PAGE
    if importlib.util.find_spec("plotly") is None:
        return f"no {path}: it needs plotly (pip install plotly), then the same command again"
    asked, model = run.protocol, run.model
    about = (
        f"{model.name}, {model.precision}. Protocol {asked.digest[:12]}: {len(asked.tasks)} tasks, "
        f"{len(asked.arms)} arms, {len(asked.seeds)} seeds."
    )
    page.write(path, title, about, told)
    return f"{path}: the same with figures; {RESULTS} beside it has every answer"
