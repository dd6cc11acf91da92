"""Figures about results, and the table of `--stats`."""

import math
from typing import Any

from results import record, result

from entropix import run_statistics
from entropix.config import BacktrackConfig, BranchConfig, GenerateConfig
from entropix.metrics import Metrics
from entropix.samplers.entropix import STRATEGIES


def test_means_are_over_tokens_and_not_over_rows() -> None:
    long = result(*(record("flow", margin=x) for x in (1.0, 2.0, 3.0)))
    short = result(record("flow", margin=10.0))
    assert run_statistics.mean_metrics([long, short])["margin"] == 4.0


def test_means_leave_out_what_is_not_finite() -> None:
    means = run_statistics.mean_metrics([result(record("flow", margin=None), record("flow", margin=3.0))])
    assert means["margin"] == 3.0
    assert means.keys() == set(Metrics._fields)
    assert all(math.isnan(mean) for mean in run_statistics.mean_metrics([result()]).values())


def test_what_forks_rolled_forward_in_vain_is_counted() -> None:
    """Of a path of n tokens n - 1 are rolled forward; those of the chosen one count if only its first is kept."""
    paths = [([1, 2, 3], False), ([4, 5, 6], True), ([7], False)]
    branches = [{"ids": ids, "chosen": chosen} for ids, chosen in paths]
    results = [result(record("flow"), record("flow", branches=branches)), result(record("flow"))]
    assert run_statistics.discarded_tokens(results, "path") == 2
    assert run_statistics.discarded_tokens(results, "token") == 4
    assert run_statistics.discarded_tokens([result(record("flow"))], "path") == 0


def test_statistics_are_a_line_a_figure() -> None:
    results = [
        result(record("flow"), record("flow", branches=[]), record("explore", logits_entropy=2.5)),
        result(),
        result(record("flow", taken_back=[[1, 2], [3]]), record("flow", taken_back=[[4]], branches=[])),
    ]
    timing = run_statistics.Timing(
        first_token=1.23456, total=2.0, tokens_per_second=12.3456, computed_tokens=7, forward_passes=9
    )
    asked = GenerateConfig(branching=BranchConfig(paths=2), backtracking=BacktrackConfig(tokens=2))
    assert run_statistics.stats(results, STRATEGIES, timing, asked).split("\n")[:15] == [
        "prompt tokens                          9",
        "new tokens                             5",
        "computed tokens                        7  with those that are in no answer",
        "time to first token                1.235  s, compilation included",
        "forward passes                         9",
        "forks                                  2  places in the answer where several tokens were tried",
        "retreats                               3  times that tokens were taken back",
        "total time                             2  s",
        "speed                              12.35  tokens/s after the first chunk",
        "flow                                   4  80.0 %",
        "clarify                                0  0.0 %",
        "explore                                1  20.0 %",
        "resample                               0  0.0 %",
        "adaptive                               0  0.0 %",
        "mean logits_entropy                  1.3",
    ]


def test_forks_and_retreats_are_counted_where_there_may_be_some() -> None:
    def counted(**asked: Any) -> list[str]:
        timing = run_statistics.Timing(None, 0.5, None, 0, 1)
        lines = run_statistics.stats([result()], STRATEGIES, timing, GenerateConfig(**asked)).split("\n")
        return [line.split()[0] for line in lines if line.startswith(("forks ", "retreats "))]

    assert counted() == []
    assert counted(branching=BranchConfig(paths=2, depth=0)) == []
    assert counted(branching=BranchConfig(paths=2)) == ["forks"]
    assert counted(backtracking=BacktrackConfig(tokens=2)) == ["retreats"]


def test_statistics_of_nothing_are_dashes() -> None:
    timing = run_statistics.Timing(None, 0.5, None, 0, 1)
    lines = run_statistics.stats([result()], ("greedy",), timing, GenerateConfig()).split("\n")
    assert lines[1:8] == [
        "new tokens                             0",
        "computed tokens                        0  with those that are in no answer",
        "time to first token                    -  s, compilation included",
        "forward passes                         1",
        "total time                           0.5  s",
        "speed                                  -  tokens/s after the first chunk",
        "greedy                                 0",
    ]
    assert lines[8] == "mean logits_entropy                    -"
