"""Several paths from the command line: what is printed where, what is traced, what contradicts itself."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from entropix import replay, trace
from entropix.checkpoint.loading import load
from entropix.console import paths as output
from entropix.console.path_flags import read_plan
from entropix.cot.parallel import decode
from entropix.cot.plan import Plan
from entropix.cot.selection import SELECTORS
from entropix.main import main, parse
from entropix.trace import schema

pytestmark = pytest.mark.slow

Run = Callable[..., tuple[int, str, str]]
SMALL = ("--sampler", "top-p", "--max-new-tokens", "6", "--seed", "3", "--extract", "text")


QUESTION = ("--prompt", "Why?", "--cot", "3", *SMALL)


@pytest.fixture(scope="module")
def traced(toy_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("paths") / "cot.jsonl"
    main([*QUESTION, "--weights", toy_folder, "--trace", str(path)])
    return path


def test_the_chosen_text_is_printed_and_the_table_goes_to_stderr(
    toy_folder: str, run_command: Run, traced: Path
) -> None:
    """The same generation three ways: as text, as JSON and as a trace."""
    words = (*QUESTION, "--weights", toy_folder)
    code, out, err = run_command(main, *words, "--stats")
    assert code == 0
    _, printed, _ = run_command(main, *words, "--json")
    told = json.loads(printed)
    assert out == told["text"] + "\n"
    assert [path["chosen"] for path in told["paths"]].index(True) == told["chosen"]
    chosen = told["paths"][told["chosen"]]
    assert (chosen["text"], chosen["answer"]) == (told["text"], told["answer"])
    assert all(set(path["scores"]) == set(SELECTORS) for path in told["paths"])
    assert told["computed_tokens"] == sum(path["new_tokens"] for path in told["paths"])
    assert told["kept_tokens"] == chosen["new_tokens"]
    assert [line.split()[:2] for line in err.splitlines() if line.startswith("→")] == [
        ["→", str(told["chosen"])]
    ]
    assert (": max_new_tokens was reached\n" in err) == (chosen["finish"] == "length")
    assert chosen["finish"] == "length"
    for name, number in (("tokens kept", "kept_tokens"), ("tokens computed", "computed_tokens")):
        assert any(line.split()[:3] == [*name.split(), str(told[number])] for line in err.splitlines())
    assert f"{'top-p':30}{len(chosen['token_ids']):>10}  100.0 %\n" in err  # of the chosen path
    assert f"\n{'mean logits_entropy':30}" in err

    read = trace.read(traced)
    assert read.header["selection"] == {
        "fork": "start",
        "select": "answer-margin",
        "extract": "text",
        "decided_early": False,
    }
    assert list(read.header["selection"]) == list(schema.SELECTION)
    for path, row, result in zip(read.header["paths"], told["paths"], read.results, strict=True):
        assert list(path) == list(schema.PATH)
        assert path == {name: row[name] for name in schema.PATH}
        assert (result.text, result.token_ids) == (row["text"], row["token_ids"])


def test_it_says_what_decided_where_no_path_has_an_answer(toy_folder: str, run_command: Run) -> None:
    words = ("--prompt", "Why?", "--weights", toy_folder, "--cot", "3", *SMALL[:-1], "phrase")
    for select, reason in ((), "mean-logprob"), (("--select", "self-certainty"), "self-certainty"):
        _, _, err = run_command(main, *words, *select)
        assert f" of 3 by {reason}; kept" in err
        assert "no path has an answer that 'phrase' finds" in err


@pytest.mark.parametrize("select", SELECTORS)
@pytest.mark.parametrize("width", [80, 200])
def test_the_table_fits_its_terminal_and_says_what_it_leaves_out(
    toy_folder: str, width: int, select: str
) -> None:
    result = decode(
        load(toy_folder), "Why?", paths=3, extract="text", select=select, sampler="top-p", max_new_tokens=40
    )
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    shown = output.scores_that_fit(result, console)
    console.print(output.table(result, shown))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= width
    assert [line.rstrip().split()[-2:] for line in lines[-3:]] == [
        [str(len(path.result.token_ids)), path.result.finish.name.lower()] for path in result.paths
    ]
    assert select in shown and shown == [name for name in SELECTORS if name in shown]
    n_shown, n_all = len(shown), len(SELECTORS)
    assert (n_shown == n_all) == (width == 200)
    left_out = f"{n_shown} of {n_all} scores fit here; --json or a wider terminal has all"
    assert (left_out in output.notes(result, n_shown)) == (width == 80)


def test_the_table_tells_where_paths_part(toy_folder: str, run_command: Run) -> None:
    """Above 0 bits every position is uncertain, and the first pass is path 0."""
    explore = ("--cot", "3", "--cot-at", "explore", "--cot-entropy", "0")
    code, _, err = run_command(main, "--prompt", "Why?", "--weights", toy_folder, *explore, *SMALL)
    assert code == 0
    lines = [line.removeprefix("→").split() for line in err.splitlines()]
    assert [words[:2] for words in lines if words[:1] in (["1"], ["2"])] == [["1", "0:0"], ["2", "0:1"]]


def test_a_trace_of_forks_says_that_it_cannot_be_repeated(run_command: Run, traced: Path) -> None:
    code, _, err = run_command(replay.main, str(traced))
    assert code == 1 and "cannot be repeated" in err


def test_a_trace_of_samples_repeats(toy_folder: str, run_command: Run, tmp_path: Path) -> None:
    file = tmp_path / "samples.jsonl"
    words = ("--prompt", "Why?", "--weights", toy_folder, "--self-consistency", "3", "--trace", str(file))
    assert run_command(main, *words, *SMALL)[0] == 0
    assert trace.read(file).header["selection"]["select"] == "majority"
    code, out, _ = run_command(replay.main, str(file), "--weights", toy_folder)
    assert code == 0 and "in 3 rows" in out


def test_what_a_reader_needs_of_a_path_must_be_in_the_header(traced: Path, tmp_path: Path) -> None:
    head, *rest = traced.read_text(encoding="utf-8").splitlines()
    for change, message in (
        (lambda h: h["paths"][1].pop("parent"), r"paths\[1\].parent' is missing"),
        (lambda h: h["paths"].pop(), "2 paths for 3 prompts"),
        (lambda h: h["selection"].update(select=1), "selection.select' must be of type string"),
    ):
        header = json.loads(head)
        change(header)
        broken = tmp_path / "broken.jsonl"
        broken.write_text("\n".join([json.dumps(header), *rest, ""]), encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            trace.read(broken)


# ----- flags --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "plan"),
    [
        ((), None),
        (("--cot", "5"), Plan(5)),
        (("--cot", "5", "--cot-at", "explore", "--cot-entropy", "1.5"), Plan(5, "explore", entropy=1.5)),
        (("--best-of", "4"), Plan(4, "none", "borda")),
        (("--best-of", "4", "--select", "mean-logprob"), Plan(4, "none", "mean-logprob")),
        (("--best-of", "4", "--sample-above", "2.5"), Plan(4, "none", "borda", above=2.5)),
        (("--self-consistency", "7", "--extract", "phrase:so"), Plan(7, "none", "majority", "phrase:so")),
    ],
)
def test_flags_make_a_plan(words: tuple[str, ...], plan: Plan | None) -> None:
    assert read_plan(parse(["--prompt", "x", *words]).flags.paths) == plan


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--cot", "2", "--best-of", "3"), "--cot and --best-of contradict"),
        (("--select", "majority"), "--select is about several paths; give --cot"),
        (("--extract", "text"), "--extract is about several paths"),
        (("--best-of", "2", "--cot-at", "start"), "those of --best-of are independent"),
        (("--cot", "2", "--cot-at", "none"), "--cot-at must be start or explore, got 'none'"),
        (("--cot", "2", "--cot-entropy", "1"), "--cot-entropy is for --cot-at explore"),
        (("--self-consistency", "2", "--select", "borda"), "is a majority vote; --select borda"),
        (("--cot", "0"), "--cot must be between 1 and 1024, got 0"),
        (("--cot", "2", "--select", "best"), "no selector 'best'"),
        (("--cot", "2", "--extract", "regex:("), "no regular expression"),
    ],
)
def test_flags_that_contradict_each_other_are_errors(words: tuple[str, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(["--prompt", "x", *words])


def test_a_conversation_has_one_path() -> None:
    with pytest.raises(ValueError, match="--chat is a conversation"):
        parse(["--chat", "--cot", "2"])
