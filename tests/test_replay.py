"""Replaying: equal traces pass, and whatever was changed in one is found and shown."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folders
import pytest

import entropix
from entropix import generation, replay, trace
from entropix.checkpoint.loading import Model
from entropix.console import cli
from entropix.decoding.session import Session
from entropix.replay import first_difference, main
from entropix.results import FinishReason
from entropix.samplers.entropix import SamplerConfig
from entropix.trace import Trace

pytestmark = pytest.mark.slow

Change = Callable[[list[dict[str, Any]]], Any]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return entropix.load(folders.write_checkpoint(tmp_path_factory.mktemp("weights") / "toy"))


@pytest.fixture(scope="module")
def batch(model: Model, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The text of a trace of two rows, in which several strategies occur."""
    path = tmp_path_factory.mktemp("trace") / "trace.jsonl"
    job = generation.prepare(
        model,
        ["Why?", [3, 1, 4]],
        sampler_config=SamplerConfig(low_vent_thresh=2.3, high_ent_thresh=7.1, high_vent_thresh=2.6),
        max_new_tokens=12,
        seed=5,
        alternatives=3,
        head_entropies=True,
    )
    trace.write(path, job, generation.collect(job, generation.run(job)))
    return path.read_text(encoding="utf-8")


@pytest.fixture
def path(tmp_path: Path, batch: str) -> Path:
    (tmp_path / "trace.jsonl").write_text(batch, encoding="utf-8")
    return tmp_path / "trace.jsonl"


@pytest.fixture(scope="module")
def conversation(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """Three turns on one cache; Ctrl-C ended the second after five tokens, and with it the cache."""
    path = tmp_path_factory.mktemp("chat") / "trace.jsonl"
    session, messages, prompts, results = Session(model, 1), [], [], []
    for turn in range(3):
        messages.append({"role": "user", "content": f"And {turn}?"})
        job = generation.prepare(model, messages, max_new_tokens=12, seed=2, ignore_stop_tokens=True)
        [result] = generation.collect(job, generation.run(job, session))
        if turn == 1:
            session = Session(model, 1)
            result = dataclasses.replace(
                result,
                token_ids=result.token_ids[:5],
                records=result.records[:5],
                text="cut",
                finish=FinishReason.INTERRUPTED,
            )
        messages.append({"role": "assistant", "content": result.text})
        prompts.append(result.prompt_ids)
        results.append(result)
    whole = dataclasses.replace(job, rows=generation.prepare(model, prompts, seed=2).rows)
    trace.write(path, whole, results, turns=True)
    return trace.read(path)


def change(path: Path, how: Change) -> None:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    how(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def ran(model: Model, path: Path) -> int:
    return cli.run(lambda: main([str(path), "--weights", str(model.folder)]))


def test_an_unchanged_trace_is_equal(model: Model, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ran(model, path) == 0
    assert capsys.readouterr() == (f"{path}: equal, 24 tokens in 2 rows\n", "")


def test_one_token_in_one_row_is_said_so(
    model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "one.jsonl"
    job = generation.prepare(model, ["Why?"], max_new_tokens=1)
    trace.write(path, job, generation.collect(job, generation.run(job)))
    assert ran(model, path) == 0
    assert capsys.readouterr().out == f"{path}: equal, 1 token in 1 row\n"


def test_a_changed_token_is_found_and_both_records_are_shown(
    model: Model, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    was = trace.read(path).results[1].token_ids[4]
    change(path, lambda lines: lines[18].update(id=7))
    assert ran(model, path) == 1
    out, err = capsys.readouterr()
    first, recorded, repeated = err.splitlines()
    assert out == ""
    assert first == f"error: {path}: row 1, step 4: id is 7 in the trace, {was} now"
    assert json.loads(recorded.removeprefix("  trace: "))["id"] == 7
    assert json.loads(repeated.removeprefix("  now:   "))["id"] == was


@pytest.mark.parametrize(
    ("how", "place"),
    [
        (lambda lines: lines[2].update(strategy="flow"), (0, 1, "strategy")),
        (lambda lines: lines[3].update(margin=lines[3]["margin"] + 0.01), (0, 2, "margin")),
        (lambda lines: lines[3].update(attn_entropy=None), (0, 2, "attn_entropy")),
        (lambda lines: lines[3]["alternatives"][1].update(id=3), (0, 2, "alternatives")),
        (lambda lines: lines[14]["head_entropies"][1].__setitem__(2, 9.0), (1, 0, "head_entropies")),
        (lambda lines: lines[13].update(finish="context"), (0, 12, "finish")),
        (lambda lines: lines[13].update(text="?"), (0, 12, "text")),
        (lambda lines: (lines.pop(12), lines[12].update(new_tokens=11)), (0, 11, "id")),
        (lambda lines: lines[0]["generation"].update(max_new_tokens=4), (0, 4, "new_tokens")),
    ],
)
def test_the_first_difference_is_named(
    model: Model, path: Path, how: Change, place: tuple[int, int, str]
) -> None:
    change(path, how)
    difference = first_difference(model, trace.read(path))
    assert difference is not None
    assert difference[:3] == place


def test_another_seed_is_found_by_its_tokens(model: Model, path: Path) -> None:
    change(path, lambda lines: lines[0]["generation"].update(seed=6))
    difference = first_difference(model, trace.read(path))
    assert difference is not None
    assert difference.field == "id"


def test_rounding_is_no_difference(model: Model, path: Path) -> None:
    """Nor are fields that only one of the two has."""

    def nudge(lines: list[dict[str, Any]]) -> None:
        for line in lines[1:]:
            for name, value in line.items():
                if isinstance(value, float):
                    line[name] = value * 1.0005
            line.pop("bytes", None)
            line["weather"] = "fine"

    change(path, nudge)
    assert first_difference(model, trace.read(path)) is None


def test_other_weights_are_refused(tmp_path: Path, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = folders.write_checkpoint(tmp_path / "other", seed=1)
    assert cli.run(lambda: main([str(path), "--weights", str(other)])) == 1
    assert "other: not the weights of the trace (toy, fingerprint " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("there", "text"),
    [
        ({"backend": "tpu"}, "backend tpu, here "),
        ({"mesh": "data=2,model=4"}, "mesh data=2,model=4, here none\n"),
        ({"matmul_precision": "highest"}, "matmul_precision highest, here none\n"),
    ],
)
def test_a_trace_made_elsewhere_says_so_when_it_differs(
    model: Model, path: Path, capsys: pytest.CaptureFixture[str], there: dict[str, str], text: str
) -> None:
    change(path, lambda lines: (lines[0].update(there), lines[1].update(id=1)))
    assert ran(model, path) == 1
    assert f"\n  the trace was made with {text}" in capsys.readouterr().err


def test_a_trace_of_a_release_that_told_no_mesh_does_not_blame_it(
    model: Model, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(path, lambda lines: (lines[0].pop("mesh"), lines[1].update(id=1)))
    assert ran(model, path) == 1
    assert "made with" not in capsys.readouterr().err


def test_traces_of_a_mesh_and_of_one_device_repeat_each_other(
    model: Model, path: Path, tmp_path: Path
) -> None:
    """On four devices each of the two key/value heads is there twice."""
    there = entropix.load(model.folder, mesh="data=2,model=4")
    here = trace.read(path)
    job = generation.prepare(there, here.prompts, **here.options)
    trace.write(tmp_path / "mesh.jsonl", job, generation.collect(job, generation.run(job)))
    assert trace.read(tmp_path / "mesh.jsonl").header["mesh"] == "data=2,model=4"
    assert first_difference(model, trace.read(tmp_path / "mesh.jsonl")) is None
    assert first_difference(there, here) is None


def test_a_conversation_is_replayed_turn_by_turn_on_one_cache(
    model: Model, conversation: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the interruption the cache is a new one, as it was."""
    batches = []

    class Counting(Session):
        def __init__(self, model: Model, batch: int) -> None:
            batches.append(batch)
            super().__init__(model, batch)

    monkeypatch.setattr(replay, "Session", Counting)
    assert [len(result.records) for result in conversation.results] == [12, 5, 12]
    assert first_difference(model, conversation) is None
    assert batches == [1, 1]


def test_a_difference_in_a_later_turn_names_the_turn(model: Model, conversation: Trace) -> None:
    record = conversation.results[2].records[3]
    record["id"] += 1
    try:
        difference = first_difference(model, conversation)
        assert difference is not None
        assert difference[:3] == (2, 3, "id")
    finally:
        record["id"] -= 1
