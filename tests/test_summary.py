"""What the answers of a grid sum up to: measures, differences and tables, from answers made by hand."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from entropix.lab.experiments import summary
from entropix.lab.experiments.summary import summarize
from entropix.lab.statistics import contrast, holm


def answer(
    label: str, prompt: int, seed: int, ids: Sequence[int], logprob: float | None = -1.0, **more: Any
) -> Any:
    return {
        "variant": label,
        "prompt": prompt,
        "seed": seed,
        "token_ids": list(ids),
        "finish": "length",
        "new_tokens": len(ids),
        "strategies": {"a": len(ids), "b": 0},
        "mean_logprob": logprob,
        **more,
    }


def test_a_measure_is_a_mean_over_prompts_of_what_all_their_answers_give() -> None:
    lines = [
        answer("x", 0, 0, [1, 2, 3, 4], -1.0),
        answer("x", 0, 1, [1, 2, 3, 4], -3.0),
        answer("x", 1, 0, [7] * 13, -4.0, strategies={"a": 3, "b": 10}),
        answer("x", 1, 1, [8, 9], None),
    ]
    [found] = summarize(["x"], lines, [{"tokens": {"x": 20}, "seconds": 2.0}])
    assert (found.answers, found.tokens, found.tokens_per_second) == (4, 23, 10.0)
    assert found.length_sd == pytest.approx(np.std([4, 4, 13, 2], ddof=1))
    assert found.strategies == pytest.approx({"a": 13 / 23, "b": 10 / 23})
    assert found.means == pytest.approx(
        {
            "length": (4 + 7.5) / 2,
            "logprob": (-2 - 4) / 2,
            "distinct-1": (4 / 8 + 3 / 15) / 2,
            "distinct-2": (3 / 6 + 2 / 13) / 2,
            "distinct-3": (2 / 4 + 1 / 11) / 2,
            "rep-4": (0 + 9 / 10) / 2,
            "self-BLEU": (1 + 0) / 2,
        }
    )


def test_the_stop_token_counts_for_the_length_and_not_for_the_content() -> None:
    lines = [
        answer("x", 0, 0, [1, 2, 99], finish="stop_token"),
        answer("x", 0, 1, [3, 99], finish="stop_token"),
    ]
    [found] = summarize(["x"], lines, [])
    assert (found.means["length"], found.means["distinct-1"]) == (2.5, 1)
    assert found.tokens_per_second is None


def test_speed_is_that_of_the_whole_batch_where_the_variant_was_in_it() -> None:
    laps = [({"x": 10, "y": 5}, 1.0), ({"x": 20}, 2.0), ({"y": 7}, 4.0)]
    timings = [{"tokens": tokens, "seconds": seconds} for tokens, seconds in laps]
    [found] = summarize(["x"], [answer("x", 0, 0, [1])], timings)
    assert found.tokens_per_second == pytest.approx(35 / 3)


def test_differences_are_told_with_their_size_and_what_could_have_been_seen() -> None:
    """Lengths 3, 4, 6 against 1 in three prompts: differences 2, 3, 5."""
    lines = [answer("x", prompt, 0, [1]) for prompt in range(3)]
    lines += [answer("y", prompt, 0, [1] * n, finish="length") for prompt, n in enumerate((3, 4, 6))]
    _, found = summarize(["x", "y"], lines, [])
    expected = contrast([3.0, 4.0, 6.0], [1.0, 1.0, 1.0])
    assert found.contrasts["length"] == expected and expected is not None and expected.effect is not None
    told = found.as_json()
    assert told["differences"]["length"]["mean"] == pytest.approx(10 / 3)
    assert told["contrasts"]["length"]["detectable"] == expected.detectable
    tested = [c.p for c in found.contrasts.values() if c is not None and c.p is not None]
    assert found.corrected["length"] == holm(tested)[tested.index(expected.p)]
    table = "\n".join(summary.tables(summarize(["x", "y"], lines, [])))
    assert f"p corrected for {len(tested)} contrasts (Holm)" in table
    assert f"{expected.effect.mean:+.2f}, {found.corrected['length']:.3f}".replace(" 0.", " .") in table
    assert found.cut_off == 3 and found.as_json()["cut_off"] == 3


def test_lengths_that_the_limit_made_have_no_interval_and_the_table_says_how_many_there_are() -> None:
    def lines_of(finish: str) -> list[Any]:
        lines = [answer("x", prompt, 0, [1, 2]) for prompt in range(3)]
        return lines + [answer("y", prompt, 0, [3, 4], finish=finish) for prompt in range(3)]

    for finish, length, said in (
        ("length", "all cut off", "6 of 6 answers were cut off by the limit: "),
        ("stop_string", "+0.0..+0.0", "3 of 6 answers were cut off by the limit: "),
    ):
        summaries = summarize(["x", "y"], lines_of(finish), [])
        assert summary.interval(summaries[1], "length", summaries[0]) == length
        assert summary.interval(summaries[1], "self-BLEU", summaries[0]) == "-"
        assert any(line.startswith(said) for line in summary.tables(summaries))
    [alone] = summarize(["y"], lines_of("stop_string"), [])
    assert summary.limit_said([alone]) == ""


def test_a_table_has_a_line_for_each_variant_and_dashes_for_what_is_not_there() -> None:
    lines = [answer("x", 0, 0, [1, 2]), answer("yy", 0, 0, [1, 1], strategies={"yy": 2})]
    table = summary.tables(summarize(["x", "yy"], lines, [{"tokens": {"x": 9}, "seconds": 2}]))
    assert table[0].split()[:5] == ["answers", "tokens", "cut", "off", "tokens/s"]
    assert table[1].split() == [
        "x",
        "1",
        "2",
        "1",
        "4.5",
        "2.0",
        "-",
        "-1.000",
        "1.000",
        "1.000",
        "-",
        "-",
        "-",
    ]
    assert table[2].split() == [
        "yy",
        "1",
        "2",
        "1",
        "-",
        "2.0",
        "-",
        "-1.000",
        "0.500",
        "1.000",
        "-",
        "-",
        "-",
    ]
    assert table[3].startswith("2 of 2 answers were cut off")
    assert table[6].split() == ["minus", "x", *summary.MEASURES]
    assert table[7].split() == ["yy", "all", "cut", "off", *["-"] * 6]
    assert table[9].split() == ["strategies", "a", "b"]
    assert table[10].split() == ["x", "100.0%", "0.0%"]
    assert len(table) == 11


def test_without_a_speed_there_is_a_sentence_instead_of_the_column() -> None:
    lines = [answer("x", 0, 0, [1, 2])]
    untimed = [{"tokens": {"x": 0}, "seconds": 0.0}]
    assert summary.tables(summarize(["x"], lines, untimed))[:3] == [
        "   answers  tokens  cut off  length  ± sd  logprob  distinct-1  distinct-2  distinct-3  rep-4  self-BLEU",
        "x        1       2        1     2.0     -   -1.000       1.000       1.000           -      -          -",
        summary.UNTIMED,
    ]


def test_every_measure_is_explained() -> None:
    assert list(summary.MEANING) == list(summary.MEASURES)
