"""Parts of a grid, which several machines compute, and how they merge into the whole."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from grid_files import HEAD, TAIL, lines_of, tokens_of

from entropix.checkpoint.loading import load
from entropix.lab.experiments import engine, file
from entropix.lab.experiments.results import Store

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "scripts"))
import run_grid  # noqa: E402

pytestmark = pytest.mark.slow

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory, toy_folder: str) -> Path:
    """A whole grid, and the same in parts 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("parts")
    (folder / "grid.toml").write_text(HEAD.replace("[3, 5]", "5") + TAIL)
    asked, toy = file.read(folder / "grid.toml"), load(toy_folder)
    for name, part in {"whole": (1, 1), "1": (1, 3), "2": (2, 3), "3": (3, 3)}.items():
        grid = file.grid(asked, toy, 4, part)
        with Store(folder / name, engine.manifest(grid, toy), engine.keys(grid)) as store:
            list(engine.run(toy, grid, store))
    return folder


def merge(run_command: Command, *folders: Path, out: Path) -> tuple[int, str, str]:
    return run_command(run_grid.main, "--merge", *map(str, folders), "--out", str(out))


def test_parts_have_every_answer_once_and_merge_into_the_whole(
    run_command: Command, parts: Path, tmp_path: Path
) -> None:
    answers = [key for name in "123" for key in tokens_of(parts / name)]
    assert len(answers) == len(set(answers)) == 45 and set(answers) == set(tokens_of(parts / "whole"))
    out = tmp_path / "out"
    code, table, _ = merge(run_command, parts / "3", parts / "1", parts / "2", out=out)
    assert code == 0
    assert table.splitlines()[1].split()[:4] == ["temperature", "temp=0.5", "15", "150"]
    assert (out / "manifest.json").read_bytes() == (parts / "whole" / "manifest.json").read_bytes()
    assert list(tokens_of(out).items()) == list(tokens_of(parts / "whole").items())


def test_a_merge_that_was_interrupted_goes_on(run_command: Command, parts: Path, tmp_path: Path) -> None:
    shutil.copytree(parts / "whole", tmp_path / "out")
    whole = (tmp_path / "out" / "results.jsonl").read_bytes()
    (tmp_path / "out" / "results.jsonl").write_bytes(whole[: len(whole) // 3])
    assert merge(run_command, *(parts / name for name in "123"), out=tmp_path / "out")[0] == 0
    assert tokens_of(tmp_path / "out") == tokens_of(parts / "whole")


def test_what_is_no_whole_set_of_parts_is_not_merged(
    run_command: Command, parts: Path, tmp_path: Path
) -> None:
    one, two, three = (parts / name for name in "123")
    half, other, torn = tmp_path / "half", tmp_path / "other", tmp_path / "torn"
    for copy in (half, other, torn):
        shutil.copytree(two, copy)
    text = (half / "results.jsonl").read_text()
    (half / "results.jsonl").write_text("".join(text.splitlines(keepends=True)[:7]))
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"seeds": [0, 1]}))
    (torn / "manifest.json").write_text("[]")
    out = tmp_path / "out"
    for folders, message in (
        ((one, three), "part 2/3 is missing; name its folder too"),
        ((one, two, three, two), f"part 2/3 is there twice, in {two} and {two}; drop one of them"),
        ((one, half, three), f"{half}: 7 of 15 answers are there; complete part 2/3 first"),
        ((one, other), f"{other} is not of the same grid as {one}: seeds is a list of 5 there, a list of 2 here"),
        ((one, parts / "whole"), f"{parts / 'whole'} is not of the same grid as {one}: parts is 3 there, 1 here"),
        ((one, torn, three), f"{torn / 'manifest.json'}: expected a JSON object"),
        ((one, tmp_path / "none"), f"{tmp_path / 'none' / 'manifest.json'}: no such file"),
    ):  # fmt: skip
        code, table, errors = merge(run_command, *folders, out=out)
        assert (code, table) == (1, "")
        assert errors.startswith(f"error: {message}") and errors.count("\n") == 1
        assert not out.exists()


def test_a_merge_takes_no_flags_of_a_run(run_command: Command, parts: Path) -> None:
    flags = ("--merge", str(parts / "1"), "--out", "out", "--batch", "3")
    message = "error: --batch changes nothing with --merge, which computes nothing\n"
    assert run_command(run_grid.main, *flags) == (1, "", message)


def test_a_part_that_is_still_running_is_not_merged(
    run_command: Command, parts: Path, tmp_path: Path
) -> None:
    manifest = json.loads((parts / "3" / "manifest.json").read_text())
    keys = [{"variant": line["variant"]} for line in lines_of(parts / "3")]
    with Store(parts / "3", manifest, keys):
        code, _, errors = merge(run_command, *(parts / name for name in "123"), out=tmp_path / "out")
    assert (code, errors) == (1, f"error: {parts / '3'}: another process is working in this folder\n")
