"""Grids from files: what a file means, and answers that no batch, part or interruption changes."""

import contextlib
import dataclasses
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import screens
from grid_files import HEAD, SAMPLED, TAIL, lines_of, tokens_of

from entropix import distributed, samplers
from entropix.checkpoint.loading import Model, load
from entropix.config import BacktrackConfig, BranchConfig
from entropix.decoding import inputs
from entropix.generation import generate
from entropix.lab.experiments import engine, file, running
from entropix.lab.experiments.results import MANIFEST, read_manifest

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "scripts"))
import run_grid  # noqa: E402

pytestmark = pytest.mark.slow

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def grid_file(tmp_path: Path) -> Path:
    """Three prompts, two seeds, three variants: 18 answers."""
    path = tmp_path / "grid.toml"
    path.write_text(HEAD + TAIL)
    return path


@pytest.fixture
def command(run_command: Command, toy_folder: str, grid_file: Path) -> Command:
    return partial(run_command, run_grid.main, str(grid_file), "--weights", toy_folder)


@pytest.fixture(scope="module")
def model(toy_folder: str) -> Model:
    return load(toy_folder)


# ----- files ------------------------------------------------------------------------------------------------


def test_a_file_says_what_is_generated(grid_file: Path) -> None:
    (grid_file.parent / "prompts.jsonl").write_text(
        '{"prompt": "Why?"}\n{"messages": [{"role": "user", "content": "How?"}]}\n'
    )
    (grid_file.parent / "mine.toml").write_text(
        'sampler = "min-p"\nmin_p = 0.2\n[branching]\npaths = 4\nentropy = 1\n[backtracking]\nbudget = 3\n'
    )
    grid_file.write_text("""
prompts = "prompts.jsonl"
seeds = 3
max_new_tokens = 40
stop = "\\n\\n"
branching = { paths = 2 }

[[samplers]]
sampler = "min-p"
temp = [1, 2]
min_p = [0.1, 0.3]

[[samplers]]
sampler = "mine.toml"
temp = 0.7
""")
    found = file.read(grid_file)
    assert found.prompts == ["Why?", [{"role": "user", "content": "How?"}]]
    assert (found.seeds, found.system, found.raw) == ((0, 1, 2), None, False)
    assert (found.options.max_new_tokens, found.options.stop, found.options.branching.paths) == (
        40,
        ("\n\n",),
        2,
    )
    assert found.options.chunk_length == 10
    assert [(variant.label, variant.sampler.name) for variant in found.variants] == [
        *((f"min-p temp={temp} min_p={min_p}", "min-p") for temp in (1, 2) for min_p in (0.1, 0.3)),
        ("mine.toml temp=0.7", "min-p"),
    ]
    looking = found.variants[4].sampler.looking  # as the grid says, and where it does not as the preset does
    assert looking == {"branching": BranchConfig(paths=2), "backtracking": BacktrackConfig(budget=3)}
    preset = samplers.resolve("min-p").numbers
    assert found.variants[1].sampler.numbers == dataclasses.replace(preset, temp=1.0, min_p=0.3)
    assert found.variants[4].sampler.numbers == dataclasses.replace(preset, temp=0.7, min_p=0.2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompts = [", "not a readable TOML file"),
        (TAIL, "prompts is missing"),
        (HEAD, "samplers is missing"),
        ("promts = 1" + HEAD + TAIL, "unknown key 'promts'; did you mean 'prompts'?"),
        ("seed = 1" + HEAD + TAIL, "unknown key 'seed'; did you mean 'seeds'?"),
        (HEAD.replace('"Why?"', "1") + TAIL, "prompts must be the name of a file or a list of texts"),
        (HEAD.replace('"Why?"', '""') + TAIL, "or a list of texts, none of them empty"),
        ('prompts = "nowhere.txt"' + TAIL, "nowhere.txt: no such file"),
        (HEAD.replace("[3, 5]", '"two"') + TAIL, "seeds must be a list of integers, got 'two'"),
        (HEAD.replace("[3, 5]", "[3, -5]") + TAIL, "seeds must be between 0 and 4294967295, got -5"),
        (HEAD.replace("10", "0") + TAIL, "max_new_tokens must be between 1 and"),
        ('stop = ["a", ""]' + HEAD + TAIL, "stop must not be an empty text"),
        ("system = 1" + HEAD + TAIL, "system must be a text, got 1"),
        ("raw = 1" + HEAD + TAIL, "raw must be true or false, got 1"),
        ('raw = true\nsystem = "S"' + HEAD + TAIL, "raw completes plain text, which has no system message"),
        (HEAD + "samplers = []", "samplers must be tables"),
        (HEAD + 'samplers = ["greedy"]', "samplers must be tables"),
        (HEAD + TAIL + "[[samplers]]\ntemp = 1", "samplers, number 3: expected an entry like sampler"),
        (HEAD + TAIL.replace("greedy", "greddy"), "number 2: no sampler preset 'greddy'; did you mean 'greedy'?"),
        (HEAD + TAIL.replace("temp =", "tempo ="), "number 1 tempo=0.5: unknown field 'tempo'; did you mean 'temp'?"),
        (HEAD + TAIL.replace("1.5]", "-1]"), "number 1 temp=-1: temp must be between 0.001 and 100.0, got -1"),
        (HEAD + TAIL.replace("1.5]", '"hot"]'), "number 1 temp=hot: temp must be of type float, got 'hot'"),
        (HEAD + TAIL.replace("[0.5, 1.5]", "[]"), "number 1: temp has no value; give at least one"),
        (HEAD + TAIL + "temp = 2", "number 2: temp has no effect with greedy; it is used by temperature, "),
    ],
)  # fmt: skip
def test_a_bad_file_is_one_line_that_names_the_key(
    command: Command, grid_file: Path, tmp_path: Path, text: str, message: str
) -> None:
    grid_file.write_text(text)
    code, out, errors = command("--out", str(tmp_path / "out"))
    assert (code, out) == (1, "")
    assert errors.startswith(f"error: {tmp_path}") and message in errors and errors.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--part", "3/2"), "--part: expected I/N like 2/4, I from 1 to N, got '3/2'"),
        (("--part", "2"), "--part: expected I/N like 2/4, I from 1 to N, got '2'"),
        (("--merge", "a", "b"), "give a GRID.toml to compute, or --merge with the folders of all parts of one"),
        (("--mesh", "data=0"), "mesh: expected auto or sizes like data=2,model=4"),
        (("--mesh", "data=4", "--batch", "6"), "a batch of 6 rows cannot be shared evenly by data=4; choose a"),
        (("--part", "1/7"), "7 parts are too many for 6 answers of each variant; take fewer"),
        (("--batch", "0"), "a batch needs at least one row, got 0"),
    ],
)  # fmt: skip
def test_bad_flags_are_one_line(
    command: Command, tmp_path: Path, flags: tuple[str, ...], message: str
) -> None:
    code, out, errors = command("--out", str(tmp_path / "out"), *flags)
    assert (code, out) == (1, "")
    assert errors.startswith("error: ") and message in errors and errors.count("\n") == 1


def test_two_samplers_that_are_the_same_are_refused(
    command: Command, grid_file: Path, tmp_path: Path
) -> None:
    grid_file.write_text(HEAD + TAIL + '[[samplers]]\nsampler = "greedy"')
    code, _, errors = command("--out", str(tmp_path / "out"))
    assert (code, errors) == (1, "error: two variants are called 'greedy'; name each once\n")


def test_the_example_is_what_its_comment_says() -> None:
    path = ROOT / "configs" / "grids" / "thresholds.toml"
    found = file.read(path)
    sizes = (len(found.prompts), len(found.seeds), len(found.variants))
    assert "{} prompts × {} seeds × {} variants = {} answers".format(*sizes, 16 * 4 * 7) in path.read_text()
    assert len({variant.label for variant in found.variants}) == sizes[2]


# ----- batches ----------------------------------------------------------------------------------------------


def test_batches_meshes_and_parts_do_not_change_a_token(
    command: Command, grid_file: Path, tmp_path: Path
) -> None:
    grid_file.write_text(HEAD + SAMPLED)
    ways = {
        "whole": (),
        "mesh": ("--mesh", "data=2,model=4", "--batch", "4"),
        "part": ("--batch", "1", "--part", "2/3"),
    }
    for name, flags in ways.items():
        assert command("--out", str(tmp_path / name), *flags)[0] == 0
    whole, mesh, part = (tokens_of(tmp_path / name) for name in ways)
    assert len(set(map(tuple, whole.values()))) == 12
    assert mesh == whole
    assert len(part) == 4 and part.items() <= whole.items()
    alone, divided = (read_manifest(tmp_path / name) for name in ("whole", "mesh"))
    assert alone["mesh"] is None  # four devices have each of the model's two key/value heads twice
    assert divided == alone | {"mesh": "data=2,model=4", "batch": 4, "groups": 2}


def test_prompts_with_one_digest_draw_the_same_wherever_they_are(
    model: Model, grid_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Digests have 32 bits: two of 10,000 prompts have the same one in about one set of a hundred."""
    monkeypatch.setattr(inputs, "_digest", lambda row: 7)
    whole = file.grid(file.read(grid_file), model)
    found = engine.answers(model, whole, engine.plan(whole)[0])
    lines = [line for lines, _ in found for line in lines if line["variant"] == "temperature temp=1.5"]
    assert len(lines) == 6
    for line in lines:
        [alone] = generate(
            model,
            [list(whole.prompts[line["prompt"]])],
            sampler="temperature",
            sampler_config={"temp": 1.5},
            seed=line["seed"],
            max_new_tokens=10,
        )
        assert line["token_ids"] == alone.token_ids


# ----- interruptions ----------------------------------------------------------------------------------------


def test_terminated_and_killed_and_started_again_it_has_the_answers_of_one_run(
    command: Command, grid_file: Path, toy_folder: str, tmp_path: Path
) -> None:
    """SIGTERM in the middle, SIGKILL after the next answers, then to the end."""
    grid_file.write_text(HEAD.replace("[3, 5]", "40") + SAMPLED)
    flags, out = ("--weights", toy_folder, "--batch", "4"), tmp_path / "out"
    assert command("--out", str(tmp_path / "whole"), *flags)[0] == 0
    whole = list(tokens_of(tmp_path / "whole").items())
    line = [sys.executable, str(ROOT / "scripts" / "run_grid.py"), str(grid_file), "-o", str(out), *flags]
    done = 0
    for number in (signal.SIGTERM, signal.SIGKILL):
        with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            while "/240 answers (" not in process.stderr.readline():
                assert process.poll() is None
            process.send_signal(number)
            rest = process.stderr.read()
        written = (out / "results.jsonl").read_bytes()
        assert done < written.count(b"\n") < 240
        done = written.count(b"\n")
        if number == signal.SIGTERM:
            assert process.returncode == running.TERMINATED == 143
            assert rest.splitlines()[-1] == (
                f"stopped by SIGTERM: {done} of 240 answers are in {out}; the same command goes on from there"
            )
    assert process.returncode == -signal.SIGKILL
    code, _, notes = command("--out", str(out), *flags)
    assert code == 0 and f"{out}: {done} answers are there already\n" in notes
    assert list(tokens_of(out).items()) == whole


def test_a_folder_goes_on_that_told_no_mesh(command: Command, tmp_path: Path) -> None:
    """As of releases that did not tell it: it is taken for one of a single device."""
    out = tmp_path / "out"
    assert command("--out", str(out))[0] == 0
    manifest = read_manifest(out)
    del manifest["mesh"]
    (out / MANIFEST).write_text(json.dumps(manifest))
    code, _, notes = command("--out", str(out))
    assert code == 0 and "18 answers are there already" in notes
    code, _, notes = command("--out", str(out), "--mesh", "model=2")
    assert (code, notes.count("\n")) == (1, 1)
    assert 'mesh is null there, "data=1,model=2" now' in notes


def test_a_signal_during_the_last_answers_does_not_spoil_the_end(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = engine.answers

    def interrupted(model: Model, whole: engine.Grid, wanted: Any) -> Any:
        for lines, timing in usual(model, whole, wanted):
            last = lines[-1]
            if (last["variant"], last["prompt"], last["seed"]) == ("greedy", 2, 5):
                signal.raise_signal(signal.SIGTERM)
            yield lines, timing

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(engine, "answers", interrupted)
    code, table, _ = command("--out", str(tmp_path / "out"))
    assert (code, len(lines_of(tmp_path / "out"))) == (0, 18)
    assert table.splitlines()[3].split()[:3] == ["greedy", "6", "60"]
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_pace_is_that_of_the_newest_answers_without_compilation() -> None:
    """The first answers of each of two programs take 100 seconds: four answers and 60 tokens each time. What came
    within three seconds tells nothing."""
    now = 0.0
    pace = running.Pace(4, lambda: now)

    def add(program: str, seconds: float, answers: int = 4) -> None:
        nonlocal now
        now += seconds
        pace.add(program, answers, 60)

    add("first", 99.0, answers=3)
    add("first", 1.0, answers=1)  # it was computed beside the first ones
    assert pace.tell(40) == ""
    add("first", 1.0)
    assert pace.tell(6) == ""
    add("first", 2.0)
    assert pace.tell(6) == "40.0 tokens/s, 0:00:02 left"
    add("second", 100.0)
    assert pace.tell(6) == "40.0 tokens/s, 0:00:02 left"
    add("second", 5.0)
    assert pace.tell(40) == "22.5 tokens/s, 0:00:27 left"  # 180 tokens in 8 s; 40 answers at 12 in 8 s
    for _ in range(32):
        add("first", 2.0)
    assert pace.tell(2) == "30.0 tokens/s, 0:00:01 left"


def test_a_new_number_is_the_same_program_and_a_new_rule_shape_or_guard_is_another() -> None:
    usual = engine.Variant("a", samplers.resolve("entropix"))
    assert engine.program(usual) == engine.program(
        engine.Variant("b", samplers.resolve("entropix", {"temp": 0.1}))
    )
    others = [
        engine.Variant("a", samplers.resolve("entropix-logits")),
        engine.Variant("a", samplers.resolve("entropix", {"max_top_k": 50})),
        engine.Variant("a", samplers.resolve("entropix", {"repetition_penalty": 1.1})),
    ]
    assert len({engine.program(variant) for variant in [usual, *others]}) == 4


def test_a_line_has_no_pace_before_there_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    with running.progress(12, 3) as advance:
        advance(4, "greedy", "")
        advance(5, "min-p", "60.0 tokens/s, 0:00:00 left")
    assert capsys.readouterr().err == (
        "7/12 answers (greedy)\n12/12 answers (min-p), 60.0 tokens/s, 0:00:00 left\n"
    )


def test_on_a_terminal_a_bar_shows_answers_speed_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    with contextlib.closing(screens.Terminal(100, 5)) as terminal:
        monkeypatch.setattr(sys, "stderr", terminal.stream)
        with terminal.reading(), running.progress(12, 3) as advance:
            advance(6, "min-p", "60.0 tokens/s, 0:00:02 left")
            time.sleep(0.5)  # it is drawn ten times a second
        [line] = {line for line in terminal.seen if line.startswith("min-p")}
    assert line.endswith(" 9/12 answers 60.0 tokens/s, 0:00:02 left")


# ----- several processes ------------------------------------------------------------------------------------


def test_other_processes_compute_the_same_answers_and_write_nothing(
    command: Command, grid_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two, which hears from the first that one of twelve answers is there."""
    grid_file.write_text(HEAD + SAMPLED)
    told, computed = [], []
    tell, compute = distributed.from_first, engine.answers
    monkeypatch.setattr(distributed, "from_first", lambda find: told.append(tell(find)) or told[-1])
    assert command("--out", str(tmp_path / "first"), "--batch", "3")[0] == 0
    [(_, manifest)] = json.loads(json.dumps(told))
    monkeypatch.setattr(distributed, "from_first", lambda find: (1, manifest))
    monkeypatch.setattr(engine, "answers", lambda *args: computed.append(args[2]) or compute(*args))
    code, out, _ = command("--out", str(tmp_path / "out"), "--batch", "3")
    assert (code, out) == (0, "")
    assert [len(wanted) for wanted in computed] == [11]
    assert not (tmp_path / "out").exists()
    code, out, errors = command("--out", str(tmp_path / "out"), "--batch", "4")
    assert (code, out, errors) == (
        1,
        "",
        "error: not the work of the first process: batch is 3 there, 4 now; give all of them the same files\n",
    )
