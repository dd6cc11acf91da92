"""The benchmark: its arithmetic on times made by hand, and a whole run on the toy."""

import importlib
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import folders
import foreign
import gguf
import numpy as np
import pytest
import toy
from gguf import GGMLQuantizationType as Kind

from entropix import PACKAGE_ROOT

sys.path.append(str(PACKAGE_ROOT.parent / "scripts"))
bench_decode, bench_peers, bench_timing = (
    importlib.import_module(f"bench_{name}") for name in ("decode", "peers", "timing")
)
Case, Row = bench_timing.Case, bench_timing.Row

# Three rounds: as one would wish, all twice as slow, and one in which a single case was held up.
ROUNDS = [
    {"read": [0.2, 0.1], "ours": [2], "wide": [0.5], "theirs": [4]},
    {"read": [0.2, 0.2], "ours": [4], "wide": [1], "theirs": [8]},
    {"read": [0.1, 0.4], "ours": [9], "wide": [0.5], "theirs": [4]},
]


def nothing() -> None:
    """What a case made by hand runs."""


CASES = [
    Case("read", 0, nothing, read_bytes=100),
    Case("ours", 6, nothing, read_bytes=800, ratio=("ours", "ours")),
    Case("wide", 12, nothing, ratio=("wide", "ours")),
    Case("theirs", 6, nothing, read_bytes=1000, ratio=("ours", "theirs")),
]


# ----- arithmetic -------------------------------------------------------------------------------------------


def test_the_bandwidth_of_a_round_is_that_of_its_best_read() -> None:
    assert [bench_timing.bandwidth(CASES, seconds) for seconds in ROUNDS] == [1000, 500, 1000]


def test_speeds_are_medians_and_what_is_compared_comes_from_one_round() -> None:
    assert list(bench_timing.speed_rows(CASES, ROUNDS)) == [
        # 400, 200 and 89 bytes/s: 0.4, 0.4 and 0.09 of the bandwidth
        Row("ours", 1.5, "tokens/s", 200 / 1e9, 0.4),
        Row("wide", 24.0, "tokens/s", ratio=8.0, ratio_of=("wide", "ours")),  # 8, 8 and 36
        Row("theirs", 1.5, "tokens/s", 250 / 1e9, 0.25, 2.0, ("ours", "theirs")),  # 2, 2 and 0.44
    ]


def test_parts_are_shares_of_one_step() -> None:
    seconds = {
        "batch 4: entropix": [bench_decode.STEPS * 10.0],
        "batch 4: greedy without metrics": [bench_decode.STEPS * 9.0],
        "batch 4: metrics alone": [bench_decode.CALLS * 2.0],
        "batch 4: sampler alone": [bench_decode.CALLS * 0.5],
    }
    values = {row.what: row.value for row in bench_decode.part_rows([4], [seconds])}
    assert values == pytest.approx(
        {"batch 4: metrics and sampler": 0.1, "batch 4: metrics alone": 0.2, "batch 4: sampler alone": 0.05}
    )


def test_a_line_says_what_is_compared_with_what() -> None:
    ours, wide, theirs = map(bench_timing.show, bench_timing.speed_rows(CASES, ROUNDS))
    assert ours.split() == ["ours", "1.5", "tokens/s", "0.0", "0.40"]
    assert wide.endswith("  8.00 × ours")
    assert theirs.endswith("  ours = 2.00 × this")


def test_cases_take_turns_and_preparing_them_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = [0.0], []

    def takes(name: str, seconds: float) -> Any:
        def run() -> None:
            order.append(name)
            clock[0] += seconds

        return run

    monkeypatch.setattr(bench_timing.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(bench_timing.time, "sleep", nothing_for)
    a = Case("a", 1, takes("a", 1.0), before=takes("before a", 10.0))
    b = Case("b", 1, takes("b", 2.0))
    assert bench_timing.rounds([b, a, b], 2) == [{"a": [1.0], "b": [2.0, 2.0]}] * 2
    assert order == ["b", "before a", "a", "b"] * 2


def nothing_for(seconds: float) -> None:
    """A sleep that takes no time."""


# ----- a whole run ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.write_checkpoint(tmp_path_factory.mktemp("weights") / "toy", num_hidden_layers=1)


TINY = (
    *("--tokens", "8", "--repeats", "1", "--read-megabytes", "1", "--no-startup"),
    *(
        "--batches",
        "1",
        "--contexts",
        "100",
        "120",
        "--budgets",
        "40",
        "300",
        "--prefills",
        "32",
        "--scored",
        "50",
    ),
)


def test_every_figure_is_on_the_last_line(
    toy_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench_decode.py", "--weights", str(toy_folder), *TINY])
    bench_decode.main()
    *table, last = capsys.readouterr().out.splitlines()
    report = json.loads(last)
    rows = report["rows"]
    assert [line[:46].strip() for line in table[1:]] == list(rows)
    assert set(rows) == {
        *("load", "weights", "programs compiled", "compilation", "programs compiled after the first round"),
        *("read bandwidth", "ceiling at batch 1", "answer: entropix", "prefill 32"),
        *(f"batch 1: {sampler}" for sampler in ("entropix", "greedy", "greedy without metrics")),
        *(f"batch 1: {part}" for part in ("metrics alone", "sampler alone", "metrics and sampler")),
        *("context 100", "context 120", "budget 40", "budget 300", "peak memory of this benchmark"),
        *("read 50", "score 50", "score 50: memory beyond weights and cache"),
    }
    assert rows.pop("programs compiled after the first round")["value"] == 0
    for what, row in rows.items():
        for key in {"value", "gigabytes", "share", "ratio"} & row.keys():
            assert math.isfinite(row[key]), what
            assert row[key] > 0, (what, key)
    compared = {what: row["ratio_of"] for what, row in rows.items() if "ratio" in row}
    assert compared == {
        "context 120": ["context 120", "context 100"],
        "budget 300": ["budget 300", "budget 40"],
        "score 50": ["score 50", "read 50"],
    }
    assert report["machine"]["cores"] == os.cpu_count()
    assert report["options"]["batches"] == [1]


def test_batches_are_compared_with_the_first(toy_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_decode, "bare_cases", lambda *_: ())
    cases = list(bench_decode.batch_cases(bench_decode.Args(batches=(1, 8), contexts=(100,)), toy_model))
    assert [(case.name, case.tokens, case.ratio) for case in cases] == [
        ("batch 1: entropix", bench_decode.STEPS, ("batch 1: entropix", "batch 1: entropix")),
        ("batch 1: greedy", bench_decode.STEPS, None),
        ("batch 8: entropix", 8 * bench_decode.STEPS, ("batch 8: entropix", "batch 1: entropix")),
        ("batch 8: greedy", 8 * bench_decode.STEPS, None),
    ]


def test_the_command_is_timed_from_outside(toy_folder: Path) -> None:
    flags = ("--prompt", "Hi", "--json", "--max-new-tokens", "3")
    ran = bench_decode.run_command(str(toy_folder), os.environ["ENTROPIX_COMPILATION_CACHE"], *flags)
    assert json.loads(ran.out)["new_tokens"] == 3
    assert 0 < ran.first_byte < ran.end
    assert 50 < ran.peak_megabytes < 5_000


def test_a_command_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"failed:\nerror: .*no weights"):
        bench_decode.run_command(str(tmp_path / "none"), "off", "--prompt", "Hi")


def test_the_command_runs_cold_then_warm_then_long(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, ...]] = []

    def run(weights: str, compiled: str, *flags: str) -> Any:
        calls.append((compiled, *flags))
        n = len(calls)
        return bench_decode.Ran(n * 1.0, n * 2.0, n * 100.0, b'{"new_tokens": 256}')

    monkeypatch.setattr(bench_decode, "run_command", run)
    rows = list(bench_decode.command_rows(bench_decode.Args(repeats=5)))
    assert [row.value for row in rows] == [1.0, 2.0, 3.0, 6.0, 256, 500.0]
    assert len({compiled for compiled, *_ in calls}) == 1
    assert [flags[-1] for flags in calls] == ["1", "1", "1", "1", "256"]


def test_a_prefill_that_is_no_whole_number_of_pieces_is_refused(toy_model: Any) -> None:
    with pytest.raises(ValueError, match="multiples of it, got 513"):
        bench_decode.prefill_case(toy_model, 513)


# ----- peers ------------------------------------------------------------------------------------------------


def test_peers_that_are_missing_are_named_and_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(bench_peers.importlib.util, "find_spec", lambda name: None)
    ours, prefill = Case("answer: entropix", 8, nothing), Case("prefill 16", 16, nothing)
    assert list(bench_peers.peer_cases(tmp_path, None, [1, 2], [], ours, prefill)) == []
    assert capsys.readouterr().err.splitlines() == [
        "no transformers rows: torch is not installed",
        "no llama.cpp rows: llama-cpp-python is not installed",
    ]


def test_peers_get_the_same_prompt_and_are_divided_by(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    seen: list[Any] = []

    def answer(prompt: list[int], n_tokens: int) -> list[int]:
        seen.append((prompt, n_tokens))
        return [7] * n_tokens

    peer = bench_peers.Peer(bench_peers.LLAMA_FLOAT32, 10, answer, seen.append)
    four_bit = bench_peers.Peer("4-bit", 3, lambda prompt, n_tokens: [8, 8][:n_tokens])
    monkeypatch.setattr(bench_peers, "load_peers", lambda *_: iter([peer, four_bit]))
    ours, prefill = Case("answer: entropix", 8, nothing), Case("prefill 5", 5, nothing)
    cases = list(bench_peers.peer_cases(tmp_path, None, [1, 2], [7, 7], ours, prefill))
    assert "4-bit begins with [8, 8] and not with [7, 7]" in capsys.readouterr().err
    for case in cases:
        case.run()
    assert seen == [([1, 2], 2), ([1, 2], 8), [1, 2, 1, 2, 1]]
    assert [(case.tokens, case.read_bytes, case.ratio) for case in cases] == [
        (8, 80, ("answer: entropix", "answer: llama.cpp float32")),
        (5, 0, ("prefill 5", "prefill 5: llama.cpp float32")),
        (8, 24, ("answer: entropix", "answer: 4-bit")),
    ]


def test_the_float32_file_says_in_full_what_the_quantised_one_says(tmp_path: Path) -> None:
    cfg = toy.config()
    tensors = foreign.gguf_tensors(folders.random_tensors(cfg), cfg)
    quantised = {
        name: gguf.quantize(array, Kind.Q4_1) if array.ndim == 2 else array for name, array in tensors.items()
    }
    foreign.write_gguf(tmp_path / "4bit.gguf", quantised, foreign.gguf_metadata(cfg), Kind.Q4_1)
    bench_peers.write_float32(tmp_path / "4bit.gguf", tmp_path / "full.gguf")
    old, new = (gguf.GGUFReader(tmp_path / name) for name in ("4bit.gguf", "full.gguf"))
    assert [tensor.name for tensor in new.tensors] == [tensor.name for tensor in old.tensors]
    for before, after in zip(old.tensors, new.tensors, strict=True):
        assert after.tensor_type == Kind.F32
        np.testing.assert_array_equal(after.data, gguf.dequantize(before.data, before.tensor_type))
    assert {key: field.contents() for key, field in new.fields.items()} == {
        key: field.contents() for key, field in old.fields.items()
    }
