"""Traces of generations that fork or take tokens back."""

from pathlib import Path
from typing import Any

import pytest
from traces import lines_of, rewrite

import entropix
from entropix import generation, trace
from entropix.checkpoint.loading import Model
from entropix.config import BranchConfig
from entropix.replay import first_difference
from entropix.results import Result
from entropix.trace import schema

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(toy_folder: str) -> Model:
    return entropix.load(toy_folder)


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory, model: Model) -> tuple[str, list[Result]]:
    """(the text of a trace, its results) of two rows that fork."""
    path = tmp_path_factory.mktemp("forked") / "trace.jsonl"
    branching = {"paths": 3, "depth": 2, "entropy": 6.0, "growth": 3.5, "strategies": ["explore", "flow"]}
    job = generation.prepare(
        model, ["Why?", [3, 1, 4]], sampler="min-p", max_new_tokens=12, seed=5, branching=branching
    )
    results = generation.collect(job, generation.run(job))
    trace.write(path, job, results)
    return path.read_text(encoding="utf-8"), results


@pytest.fixture
def forked_path(tmp_path: Path, forked: tuple[str, list[Result]]) -> Path:
    (tmp_path / "forked.jsonl").write_text(forked[0], encoding="utf-8")
    return tmp_path / "forked.jsonl"


def first_fork(path: Path) -> dict[str, Any]:
    return next(line for line in lines_of(path) if "branches" in line)


def test_a_trace_of_forks_is_read_as_written_and_repeats(
    forked_path: Path, model: Model, forked: tuple[str, list[Result]]
) -> None:
    """Every branch, token and score, and the branching itself among the options."""
    read = trace.read(forked_path)
    assert read.results == forked[1]
    assert read.options["branching"] == BranchConfig(
        paths=3, depth=2, entropy=6.0, growth=3.5, strategies=("explore", "flow")
    )
    assert first_difference(model, read) is None
    assert entropix.generate(model, read.prompts, **read.options) == read.results


def test_a_branch_that_comes_out_otherwise_is_a_difference(forked_path: Path, model: Model) -> None:
    read = trace.read(forked_path)
    step = next(i for i, record in enumerate(read.results[0].records) if "branches" in record)
    read.results[0].records[step]["branches"][1]["score"] += 0.01
    difference = first_difference(model, read)
    assert difference is not None
    assert (difference.row, difference.step, difference.field) == (0, step, "branches")


def test_a_fork_is_written_with_the_documented_fields_after_all_others(forked_path: Path) -> None:
    record = first_fork(forked_path)
    assert [list(branch) for branch in record["branches"]] == [list(schema.BRANCH)] * len(record["branches"])
    plain = next(line for line in lines_of(forked_path) if "step" in line and "branches" not in line)
    assert list(record) == [*plain, "branches"]


def test_what_was_taken_back_is_read_as_written_and_repeats(model: Model, tmp_path: Path) -> None:
    backtracking = {"tokens": 2, "budget": 3, "strategies": ["min-p"]}
    job = generation.prepare(
        model, "Why?", sampler="min-p", max_new_tokens=9, seed=5, backtracking=backtracking
    )
    results = generation.collect(job, generation.run(job))
    trace.write(tmp_path / "back.jsonl", job, results)
    read = trace.read(tmp_path / "back.jsonl")
    assert any("taken_back" in record for record in read.results[0].records)
    assert read.results == results
    assert first_difference(model, read) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda branches: branches.append(1), r"'branches' must be of type list of objects"),
        (lambda branches: branches[1].pop("score"), r"'branches\[1\].score' is missing"),
        (
            lambda branches: branches[0].update(ids=[1.5]),
            r"'branches\[0\].ids' must be of type list of integers",
        ),
        (
            lambda branches: branches[0].update(logprobs=["-1"]),
            r"'branches\[0\].logprobs' must be of type list of numbers",
        ),
        (lambda branches: branches[0].update(chosen=0), r"'branches\[0\].chosen' must be of type boolean"),
    ],
)
def test_a_damaged_branch_is_refused(forked_path: Path, change: Any, message: str) -> None:
    lines = lines_of(forked_path)
    number = next(i for i, line in enumerate(lines) if "branches" in line)
    change(lines[number]["branches"])
    rewrite(forked_path, lines)
    with pytest.raises(ValueError, match=rf"forked\.jsonl: line {number + 1}: field {message}"):
        trace.read(forked_path)
