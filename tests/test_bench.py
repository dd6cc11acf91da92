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
bench_decode, bench_engines, bench_peers, bench_timing = (
    importlib.import_module(f"bench_{name}") for name in ("decode", "engines", "peers", "timing")
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


@pytest.mark.slow
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
        "batch 1: products with weights",
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
        "batch 1: products with weights": ["batch 1: entropix", "batch 1: products with weights"],
        "context 120": ["context 120", "context 100"],
        "budget 300": ["budget 300", "budget 40"],
        "score 50": ["score 50", "read 50"],
    }
    assert report["machine"]["cores"] == os.cpu_count()
    assert report["options"]["batches"] == [1]


@pytest.mark.slow
def test_batches_alone_are_a_part_of_it(
    toy_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench", "--weights", str(toy_folder), *TINY, "--batches-only"])
    bench_decode.main()
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    cases = [what for what, row in rows.items() if row["unit"] == "tokens/s"]
    assert cases == [
        "ceiling at batch 1",
        *(f"batch 1: {sampler}" for sampler in ("entropix", "greedy", "greedy without metrics")),
        "batch 1: products with weights",
    ]


def test_batches_are_compared_with_the_first(toy_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_decode, "part_cases", lambda *_: ())
    args, peers = bench_decode.Args(batches=(1, 8), contexts=(100,)), bench_peers.Peers(Path(sys.executable))
    cases = list(bench_decode.batch_cases(args, toy_model, peers))
    assert [(case.name, case.tokens, case.ratio) for case in cases] == [
        ("batch 1: entropix", bench_decode.STEPS, ("batch 1: entropix", "batch 1: entropix")),
        ("batch 1: greedy", bench_decode.STEPS, None),
        ("batch 8: entropix", 8 * bench_decode.STEPS, ("batch 8: entropix", "batch 1: entropix")),
        ("batch 8: greedy", 8 * bench_decode.STEPS, None),
    ]


@pytest.mark.slow
def test_the_command_is_timed_from_outside(toy_folder: Path) -> None:
    flags = ("--prompt", "Hi", "--json", "--max-new-tokens", "3")
    ran = bench_decode.run_command(str(toy_folder), os.environ["ENTROPIX_COMPILATION_CACHE"], *flags)
    assert json.loads(ran.out)["new_tokens"] == 3
    assert 0 < ran.first_byte < ran.end
    assert 50 < ran.peak_megabytes < 5_000


@pytest.mark.slow
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


class Library:
    """Stands in for a process with a library: what it is asked, and what it goes on with."""

    def __init__(self, token: int) -> None:
        self.token = token
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def ask(self, what: str, **options: Any) -> Any:
        self.asked.append((what, options))
        if what != "prepare":
            return options.get("n_tokens")
        begins = [[self.token] * options["n_begin"] for _ in options["prompts"]]
        return {"variant": "slow", "seconds": {"slow": 1.0}, "begins": begins}


def sevens(prompts: list[list[int]]) -> list[list[int]]:
    """Our own first tokens."""
    return [[7, 7] for _ in prompts]


NOTHING_INSTALLED = """
import importlib.metadata

def version(name):
    raise importlib.metadata.PackageNotFoundError(name)

importlib.metadata.version = version
"""


def test_peers_that_are_missing_are_named_and_left_out(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(NOTHING_INSTALLED)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    ours = Case("batch 2: entropix", 8, nothing)
    with bench_peers.Peers(Path(sys.executable)) as peers:
        peers.load(tmp_path, None)
    assert peers.loaded == [] and peers.about == {}
    assert list(peers.answers([1, 2], sevens, ours)) + list(peers.batches([[1]], sevens, ours, 4)) == []
    assert capfd.readouterr().err.splitlines() == [
        "no transformers rows: torch is not installed",
        "no llama.cpp rows: llama-cpp-python is not installed",
    ]


def test_a_library_that_fails_or_dies_says_why() -> None:
    engine = bench_peers.Engine(Path(sys.executable), "llama.cpp")
    with pytest.raises(ValueError, match=r"^llama.cpp: rewind: KeyError: 'none'"):
        engine.ask("rewind", key="none")
    engine._process.kill()
    with pytest.raises(ValueError, match=r"the process ended with -9 when asked to about"):
        engine.ask("about")
    engine.close()


def test_peers_get_the_same_prompts_and_are_divided_by(capsys: pytest.CaptureFixture[str]) -> None:
    same, other = Library(7), Library(8)
    peers = bench_peers.Peers(Path(sys.executable))
    peers.loaded = [
        bench_peers.Peer("same", 10, same.ask, {"attentions": True}, batches=True, prefills=True),
        bench_peers.Peer("other", 3, other.ask),
        bench_peers.Peer(bench_peers.OPTILLM, 5, other.ask),
    ]
    cases = [
        *peers.answers([1, 2], sevens, Case("answer: entropix", 8, nothing)),
        *peers.prefills([1, 2], Case("prefill 5", 5, nothing)),
        *peers.batches([[1, 2], [3, 4]], sevens, Case("batch 2: entropix", 8, nothing), 4),
    ]
    assert [line for line in capsys.readouterr().err.splitlines() if "warning" in line] == [
        "warning: answer: other: 1 of 1 begin otherwise than entropix, with [8, 8] and not with [7, 7]: are its "
        "weights the same?"
    ]
    asked = {options["key"]: options for what, options in same.asked if what == "prepare"}
    assert asked["answer: same"]["attentions"] and asked["prefill 5: same"]["reading"]
    assert asked["batch 2: same"]["prompts"] == [[1, 2], [3, 4]]
    same.asked.clear()
    for case in cases:
        if case.before is not None:
            case.before()
        case.run()
    assert same.asked == [
        ("answer", {"key": "answer: same", "prompt": [1, 2], "n_tokens": 8}),
        ("prefill", {"key": "prefill 5: same", "prompt": [1, 2, 1, 2, 1]}),
        ("rewind", {"key": "batch 2: same"}),
        ("advance", {"key": "batch 2: same", "n_steps": 4}),
    ]
    assert [(case.tokens, case.read_bytes, case.ratio) for case in cases] == [
        (8, 80, ("answer: entropix", "answer: same")),
        (8, 24, ("answer: entropix", "answer: other")),
        (8, 40, ("answer: entropix", f"answer: {bench_peers.OPTILLM}")),
        (5, 0, ("prefill 5", "prefill 5: same")),
        (8, 40, ("batch 2: entropix", "batch 2: same")),
    ]


def test_an_answer_that_ends_early_is_not_timed() -> None:
    peer = bench_peers.Peer(bench_peers.OPTILLM, 5, lambda what, **options: 3)
    peers = bench_peers.Peers(Path(sys.executable))
    peers.loaded = [peer]
    [case] = peers.answers([1, 2], sevens, Case("answer: entropix", 8, nothing))
    with pytest.raises(ValueError, match="made 3 tokens, not 8"):
        case.run()


class Counting:
    """Rows whose next token is the length of their text; `seconds` pass on `clock` with every step."""

    def __init__(self, clock: list[float], seconds: float) -> None:
        self.clock, self.seconds, self.texts = clock, seconds, [[0]]

    def read(self, texts: list[list[int]]) -> list[int]:
        self.texts = [list(text) for text in texts]
        return [len(text) for text in self.texts]

    def step(self, tokens: list[int]) -> list[int]:
        self.clock[0] += self.seconds
        return self.read([[*text, token] for text, token in zip(self.texts, tokens, strict=True)])

    def cut(self, length: int) -> None:
        self.texts = [text[:length] for text in self.texts]


def test_an_engine_keeps_its_quickest_variant_and_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    rows = {"slow": Counting(clock, 2.0), "quick": Counting(clock, 1.0)}

    class Two(bench_engines.Engine):
        def variants(self, n_rows: int, room: int, **options: Any) -> Any:
            return iter(rows.items())

    engine = Two()
    monkeypatch.setattr(bench_engines.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(bench_engines.time, "sleep", nothing_for)
    found = engine.prepare("two", [[5, 6, 7], [6, 7, 8]], 10, 2)
    n = bench_engines.TRIAL_STEPS
    assert found == {
        "variant": "quick",
        "seconds": {"slow": 2.0 * n, "quick": 1.0 * n},
        "begins": [[3, 4], [3, 4]],
    }
    for _ in range(2):
        engine.rewind("two")
        assert engine.advance("two", 3) == [[3, 4, 5], [3, 4, 5]]
    assert rows["quick"].texts == [[5, 6, 7, 3, 4], [6, 7, 8, 3, 4]]
    assert engine.answer("two", [9, 9], 3) == [2, 3, 4]


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
