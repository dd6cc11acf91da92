"""Tables by the ending of their file: of tokens, of answers, of comparisons, of calibrations."""

import csv
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import Command

from entropix import calibrate, compare, score, sweep, tables
from entropix.report import __main__ as report

Run = Callable[..., tuple[int, str, str]]
ROWS: list[dict[str, Any]] = [
    {"name": 'a "b",\nc', "n": 1, "scores": {"p": 0.5, "q": {"r": None}}, "ids": [1, 2], "ok": True},
    {"name": "\r", "n": 2.5, "scores": None, "late": "\n"},
]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_csv_has_a_column_a_number_and_a_cell_for_what_has_parts(tmp_path: Path) -> None:
    tables.write(tmp_path / "t.csv", ROWS)
    assert (tmp_path / "t.csv").read_bytes().decode() == (
        'name,n,scores.p,scores.q.r,ids,ok,late\n"a ""b"",\nc",1,0.5,,"[1, 2]",True,\n"\r",2.5,,,,,"\n"\n'
    )
    assert read(tmp_path / "t.csv")[1]["name"] == "\r"


def test_parquet_gets_the_same_columns_of_one_type_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[dict[str, list[Any]]] = []

    def frame(columns: dict[str, list[Any]]) -> SimpleNamespace:
        kept.append(columns)
        return SimpleNamespace(write_parquet=lambda path: path.write_bytes(b"PAR1"))

    monkeypatch.setattr(tables, "_WRITERS", ("polars",))
    monkeypatch.setattr(tables.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setitem(sys.modules, "polars", SimpleNamespace(DataFrame=frame))  # type: ignore[arg-type]
    tables.write(tmp_path / "t.parquet", ROWS)
    assert (tmp_path / "t.parquet").read_bytes() == b"PAR1"
    [columns] = kept
    assert columns["n"] == [1.0, 2.5] and type(columns["n"][0]) is float
    assert columns["ids"] == ["[1, 2]", None] and columns["scores.p"] == [0.5, None]


def test_what_cannot_be_written_is_refused_before_the_work(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tables, "_WRITERS", ("no_such_package",))
    for name, hint in (
        ("t.xlsx", "a table is a .csv or .parquet file, by its ending"),
        ("t.parquet", "Parquet needs no_such_package (pip install pyarrow); CSV needs nothing"),
    ):
        ended = command("--prompt", "Why?", "--table", str(tmp_path / name))
        assert ended == (1, "", f"error: {tmp_path / name}: {hint}\n")


@pytest.mark.slow
def test_tokens_are_rows_and_those_of_a_trace_are_the_same(
    command: Command, run_command: Run, tmp_path: Path
) -> None:
    table, trace, again = tmp_path / "t.csv", tmp_path / "t.jsonl", tmp_path / "again.csv"
    assert command("--prompt", "Why?", "--table", str(table), "--trace", str(trace)).code == 0
    found, lines = read(table), [json.loads(line) for line in trace.read_text().splitlines()]
    of_tokens = [line for line in lines if "step" in line]
    assert [int(row["id"]) for row in found] == [line["id"] for line in of_tokens] and len(found) == 12
    assert [float(row["logits_entropy"]) for row in found] == [line["logits_entropy"] for line in of_tokens]
    assert run_command(report.main, str(trace), "--table", str(again))[0] == 0
    assert [{**row, "trace": None} for row in read(again)] == [{**row, "trace": None} for row in found]


@pytest.mark.slow
def test_paths_tell_their_prompt_and_which_was_chosen(
    command: Command, prompt_file: str, tmp_path: Path
) -> None:
    table = tmp_path / "t.csv"
    ended = command("--prompt-file", prompt_file, "--cot", "2", "--json", "--table", str(table))
    chosen = [json.loads(line)["chosen"] for line in ended.out.splitlines()]
    found = dict.fromkeys((row["prompt"], row["path"], row["chosen"]) for row in read(table))
    expected = [(str(p), str(i), str(i == chosen[p])) for p in range(2) for i in range(2)]
    assert list(found) == expected


def test_a_scored_text_is_a_table_too(run_command: Run, toy_folder: str, tmp_path: Path) -> None:
    text, table = tmp_path / "a.txt", tmp_path / "t.csv"
    text.write_text("Hello there")
    flags = ("--text", str(text), "--weights", toy_folder, "--format", "csv")
    _, printed, _ = run_command(score.main, *flags, "--table", str(table))
    rows = [{"document": "0", **row} for row in csv.DictReader(printed.splitlines())]
    assert read(table) == rows and len(rows) == 11


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["svg", "pdf", "png"])
def test_a_grid_leaves_its_table_its_answers_and_its_figure(
    run_command: Run, toy_folder: str, prompt_file: str, tmp_path: Path, ending: str
) -> None:
    table, answers, plot = tmp_path / "t.csv", tmp_path / "a.csv", tmp_path / f"p.{ending}"
    flags = ("--prompts", prompt_file, "--weights", toy_folder, "--seeds", "1", "--max-new-tokens", "3")
    outputs = ("--table", str(table), "--answers", str(answers), "--plot", str(plot))
    run = partial(run_command, *((compare.main, "--samplers", "greedy,min-p") if ending == "pdf" else ()))
    if ending != "pdf":
        grid = ("--grid", "min_p=0.1,0.2", *(("--grid", "temp=0.5,1") if ending == "png" else ()))
        run = partial(run_command, sweep.main, "--sampler", "min-p", *grid)
    code, printed, _ = run(*flags, *outputs, "--json")
    variants = json.loads(printed)["variants"]
    rows = read(table)
    assert (code, [row["variant"] for row in rows]) == (0, [found["label"] for found in variants])
    assert [float(row["means.logprob"]) for row in rows] == [found["means"]["logprob"] for found in variants]
    if ending == "svg":
        assert [row["min_p"] for row in rows] == ["0.1", "0.2"]
    shown = [text for text in ("Why?", "How?") for _ in rows]  # variants of one program go prompt by prompt
    if ending == "pdf":  # of two programs
        shown = ["Why?", "How?"] * len(rows)
    assert [row["prompt_text"] for row in read(answers)] == shown
    start = {"svg": b"<?xml", "pdf": b"%PDF", "png": b"\x89PNG"}[ending]
    assert plot.read_bytes().startswith(start)


def test_a_calibration_is_a_table_of_before_and_after(
    run_command: Run, toy_folder: str, tmp_path: Path
) -> None:
    text, table = tmp_path / "a.txt", tmp_path / "t.csv"
    text.write_text("A sentence, and then another one. " * 20)
    flags = ("--text", str(text), "--weights", toy_folder, "--flow", "0.2")
    code, _, _ = run_command(calibrate.main, *flags, "--table", str(table))
    rows = read(table)
    assert (code, len(rows)) == (0, 10) and {row["part"] for row in rows[:5]} == {"threshold"}
    [flow] = [row for row in rows if row["name"] == "flow"]
    assert (flow["part"], flow["wished"]) == ("share of observed tokens", "0.2")
