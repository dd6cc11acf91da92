"""The benchmark of branching: its cases, and its table from runs made by hand."""

import importlib
import sys

import pytest

from entropix import PACKAGE_ROOT
from entropix.checkpoint.loading import Model
from entropix.config import BranchConfig

sys.path.append(str(PACKAGE_ROOT.parent / "scripts"))
bench_forks = importlib.import_module("bench_forks")
Case, Run = bench_forks.Case, bench_forks.Run


def test_a_case_forks_wherever_it_may(toy_model: Model) -> None:
    job = bench_forks.job(toy_model, Case(4, 8, "token"), 50)
    assert job.config.max_new_tokens == 50
    assert job.config.ignore_stop_tokens
    assert job.config.branching == BranchConfig(
        paths=4, depth=8, keep="token", entropy=1e-6, among="all", budget=2**31 - 1
    )


def test_the_table_has_medians_and_ratios_and_the_bytes_of_all_paths(toy_model: Model) -> None:
    """A token of the toy has 2 keys and values of 2 heads of 8 in 2 layers, in float32: 256 bytes."""
    runs = {
        Case(1, 0): [Run(10.0, 1.0), Run(40.0, 1.0), Run(20.0, 1.0)],
        Case(2, 4): [Run(5.0, 1.25), Run(4.0, 1.25), Run(9.0, 1.25)],
    }
    none, forks = bench_forks.table(runs, toy_model)
    assert none == {
        "case": "no branching",
        "tokens_per_second": 20.0,
        "of_none": 1.0,
        "passes_per_token": 1.0,
        "path_bytes": 0,
    }
    assert forks == {
        "case": "2 paths of depth 4, path kept",
        "tokens_per_second": 5.0,
        "of_none": 0.25,
        "passes_per_token": 1.25,
        "path_bytes": 2 * 4 * 256,
    }


@pytest.mark.slow
def test_a_run_counts_tokens_and_passes(toy_model: Model) -> None:
    """Without branching they are as many."""
    assert bench_forks.measured(bench_forks.job(toy_model, Case(1, 0), 5)).passes_per_token == 1


def test_numbers_that_make_no_benchmark_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_forks.py", "--new-tokens", "1"])
    with pytest.raises(ValueError, match="--new-tokens must be at least 2"):
        bench_forks.main()
