"""The command that compares samplers: its files, its table, its page, and what it does when it is stopped."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import folders
import pytest
from grid_files import tokens_of

from entropix import compare, presets
from entropix.decoding.loop import FinishReason
from entropix.lab.experiments import running, summary

Command = Callable[..., tuple[int, str, str]]
FLAGS = ("--seeds", "2", "--max-new-tokens", "18", "--batch", "3")


@pytest.fixture
def prompts(tmp_path: Path) -> str:
    path = tmp_path / "prompts.jsonl"
    lines = [{"prompt": "Why?"}, {"messages": [{"role": "user", "content": "<b>é & co"}]}, {"prompt": "a\nb"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


@pytest.fixture
def command(run_command: Command, toy_folder: str, prompts: str) -> Command:
    return partial(run_command, compare.main, "--prompts", prompts, "--weights", toy_folder, *FLAGS)


@pytest.mark.slow
def test_a_comparison_leaves_a_table_the_answers_and_a_page(command: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, table, notes = command("--samplers", "greedy,temperature", "--out", str(out))
    assert code == 0
    assert [line.split()[:3] for line in table.splitlines()[1:3]] == [
        ["greedy", "6", "108"],
        ["temperature", "6", "108"],
    ]
    counts = [int(line.partition("/12 answers (")[0]) for line in notes.splitlines()[:-1]]
    assert counts == sorted(counts) and counts[-1] == 12
    assert notes.splitlines()[-1] == f"{out}/report.html: the same with plots, and all answers side by side"
    assert sorted(path.name for path in out.iterdir()) == [
        "manifest.json",
        "report.html",
        "results.jsonl",
        "timings.jsonl",
    ]
    lines = list(map(json.loads, (out / "results.jsonl").read_text().splitlines()))
    assert len(lines) == 12 and {line["finish"] for line in lines} <= {f.name.lower() for f in FinishReason}

    again = command("--samplers", "greedy,temperature", "--out", str(out))
    assert again == (0, table, f"{out}: 12 answers are there already\n{notes.splitlines()[-1]}\n")


@pytest.mark.slow
@pytest.mark.parametrize(("most", "batch", "timed"), [("2", "4", True), ("1", "4", True), ("1", "6", False)])
def test_short_answers_have_a_speed_where_there_is_something_to_time(
    command: Command, tmp_path: Path, most: str, batch: str, timed: bool
) -> None:
    out = tmp_path / "out"
    flags = ("--max-new-tokens", most, "--batch", batch, "--out", str(out))
    code, table, _ = command("--samplers", "greedy", *flags)
    assert code == 0
    assert ("tokens/s" in table.splitlines()[0], summary.UNTIMED in table) == (timed, not timed)
    assert ("tokens/s" in (out / "report.html").read_text()) == timed


def test_a_number_that_a_files_rule_ignores_is_refused(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('sampler = "greedy"\ntop_p = 0.5\n')
    code, out, error = command("--samplers", f"temperature,{file}")
    assert (code, out) == (1, "")
    assert error.startswith(f"error: {file}: top_p has no effect with greedy; it is used by top-p, ")


@pytest.mark.slow
def test_prompts_that_tell_the_date_keep_that_of_the_folders_first_day(
    run_command: Command, prompts: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = "{{ strftime_now('%d %B %Y') }}: {{ messages[-1].content }}"
    weights = folders.write_checkpoint(tmp_path / "toy", chat_template=template)
    out = tmp_path / "out"
    flags = (
        "--prompts",
        prompts,
        "--weights",
        str(weights),
        *FLAGS,
        "--samplers",
        "greedy",
        "--out",
        str(out),
    )
    for day in (26, 27):
        monkeypatch.setattr(running, "today", lambda day=day: date(2026, 11, day))
        code, _, notes = run_command(compare.main, *flags)
        assert code == 0, notes
    assert notes.startswith(f"{out}: 6 answers are there already\n")
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["date"] == "2026-11-26"
    assert manifest["prompts"][0]["token_ids"] == list(b"26 November 2026: Why?")
    code, _, notes = run_command(compare.main, *flags, "--seeds", "3")
    assert code == 1 and "date" not in notes


def test_without_a_folder_there_is_the_table_alone_here_as_json(command: Command, tmp_path: Path) -> None:
    code, out, notes = command("--samplers", "temperature, greedy", "--json")
    assert code == 0 and "report.html" not in notes
    plain, greedy = json.loads(out)["variants"]
    assert (plain["label"], greedy["label"]) == ("temperature", "greedy")
    assert greedy["means"]["self-BLEU"] == 1 and greedy["means"]["length"] == 18
    assert plain["differences"]["logprob"] == {"mean": 0, "low": 0, "high": 0}
    own = greedy["intervals"]["logprob"]
    assert own["low"] < greedy["means"]["logprob"] < own["high"]
    assert own["mean"] == pytest.approx(greedy["means"]["logprob"])
    assert greedy["differences"]["logprob"]["low"] > 0  # greedy tokens are likelier
    assert greedy["strategies"] == {"greedy": 1}


@pytest.mark.slow
def test_a_file_is_a_sampler_too_and_the_seeds_begin_where_asked(command: Command, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('sampler = "temperature"\ntemp = 1.0\n')
    code, _, _ = command(
        "--samplers", f"temperature,{file}", "--seed", "7", "--out", str(tmp_path / "out"), "--raw"
    )
    assert code == 1  # there is a conversation in the prompts
    plain = tmp_path / "plain.txt"
    plain.write_text("Why?\nHow?\n")
    flags = ("--prompts", str(plain), "--raw", "--samplers", f"temperature,{file}", "--seed", "7")
    assert command(*flags, "--out", str(tmp_path / "out"))[0] == 0
    lines = list(map(json.loads, (tmp_path / "out" / "results.jsonl").read_text().splitlines()))
    assert {line["seed"] for line in lines} == {7, 8}
    preset, mine = (
        [line["token_ids"] for line in lines if line["variant"] == v] for v in ("temperature", str(file))
    )
    assert preset == mine
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert [prompt["token_ids"] for prompt in manifest["prompts"]] == [list(b"Why?"), list(b"How?")]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--samplers", "nothing"), "no sampler preset 'nothing'; there are dynamic-temperature, "),
        (("--samplers", "greedy,greedy"), "two variants are called 'greedy'; name each once"),
        (("--samplers", "greedy", "--seeds", "0"), "a grid needs at least one seed"),
        (("--samplers", "greedy", "--seed", "-1"), "--seed must be between 0 and 4294967295, got -1"),
        (("--samplers", "greedy", "--batch", "0"), "a batch needs at least one row, got 0"),
        (("--samplers", "greedy", "--max-new-tokens", "0"), "--max-new-tokens must be between 1 and"),
        (("--samplers", "greedy", "--prompts", "nowhere"), "nowhere: no such file"),
    ],
)
def test_bad_input_is_one_line(command: Command, flags: tuple[str, ...], message: str) -> None:
    code, out, errors = command(*flags)
    assert (code, out) == (1, "")
    assert errors.startswith("error: ") and message in errors and errors.count("\n") == 1


def test_a_folder_of_another_comparison_is_refused(command: Command, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    assert command("--samplers", "greedy", "--out", out)[0] == 0
    code, _, errors = command("--samplers", "greedy", "--out", out, "--seed", "1")
    assert code == 1
    assert errors == (
        f"error: {out} holds results of something else: seeds[0] is 0 there, 1 now; use another folder, or what "
        "was used there\n"
    )


@pytest.mark.slow
def test_stopped_and_started_again_it_has_the_results_of_one_run(
    command: Command, tmp_path: Path, toy_folder: str, prompts: str
) -> None:
    """Ctrl-C after an answer, then to the end; how grids end of other signals, test_run_grid has."""
    flags = ("--samplers", "greedy,temperature", "--seeds", "20", "--batch", "2")
    assert command(*flags, "--out", str(tmp_path / "whole"))[0] == 0
    whole = tokens_of(tmp_path / "whole")
    out = tmp_path / "out"
    line = [
        sys.executable,
        "-m",
        "entropix.compare",
        "--prompts",
        prompts,
        "--weights",
        toy_folder,
        *FLAGS,
        *flags,
    ]
    with subprocess.Popen([*line, "--out", str(out)], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "/120 answers (" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    done = (out / "results.jsonl").read_bytes().count(b"\n")
    assert (process.returncode, 0 < done < 120) == (130, True)
    [note, end] = rest.splitlines()[-2:]
    kept = int(note.split()[0])
    assert note == f"{kept} of 120 answers are in {out}; the same command goes on from there"
    assert end == "interrupted"
    assert kept <= done  # it may have come when some were just written
    code, _, notes = command(*flags, "--out", str(out))
    assert code == 0
    assert int(notes.split(": ")[1].split()[0]) == done
    assert tokens_of(out) == whole


def test_ctrl_c_without_a_folder_says_that_nothing_is_kept(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("entropix.lab.experiments.engine.answers", interrupted)
    code, out, notes = command("--samplers", "greedy")
    assert (code, out) == (130, "")
    assert notes == "nothing was kept; with --out DIR the same command could go on\ninterrupted\n"


# ----- the page ---------------------------------------------------------------------------------------------


class Texts(HTMLParser):
    """What stands where in a page."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.summaries: list[str] = []
        self.tags: list[str] = []
        self.ids: set[str] = set()
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._open.append(tag)
        self.ids |= {value for name, value in attrs if name == "id" and value}

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "td":
            self.cells.append(data)
        if self._open and self._open[-1] == "summary":
            self.summaries.append(data)


@pytest.mark.slow
def test_the_page_has_the_table_the_plots_and_the_answers_escaped(command: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code, table, _ = command("--samplers", "entropix,greedy", "--out", str(out))
    assert code == 0
    page = (out / "report.html").read_text(encoding="utf-8")
    found = Texts()
    found.feed(page)
    assert found.summaries == ["1. Why?", "2. <b>é & co", "3. a\nb"]
    assert "b" not in found.tags
    assert found.tags.count("article") == 3 * 2
    assert {"tradeoff", "lengths", "strategies", "entropies"} <= found.ids and "sweep" not in found.ids
    greedy = table.splitlines()[2].split()
    assert greedy[0] == "greedy" and {greedy[2], greedy[7].replace("-", "−"), greedy[9]} <= set(found.cells)
    assert "http://" not in found.cells


def test_every_preset_can_be_compared() -> None:
    for name in presets.preset_names("samplers"):
        assert compare.variant(name).label == name
