"""Traces: what is in them, that they repeat a generation, and that nothing else passes for one."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import folders
import jax
import pytest

import entropix
from entropix import generation, trace
from entropix.config import GenerateConfig, SamplerConfig
from entropix.decode import Finish
from entropix.generation import Job, Result
from entropix.loading import Model
from entropix.metrics import Metrics


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return entropix.load(folders.write_checkpoint(tmp_path_factory.mktemp("weights") / "toy"))


@pytest.fixture(scope="module")
def job(model: Model) -> Job:
    """Two rows, and thresholds that lie amid what the toy's random weights give."""
    return generation.prepare(
        model,
        ["Why?", [3, 1, 4]],
        sampler_config=SamplerConfig(low_vent_thresh=2.3, high_ent_thresh=7.1, high_vent_thresh=2.6),
        max_new_tokens=12,
        seed=5,
        stop=["\x00\x00"],
    )


@pytest.fixture(scope="module")
def results(job: Job) -> list[Result]:
    return generation.collect(job, generation.run(job))


@pytest.fixture
def path(tmp_path: Path, job: Job, results: list[Result]) -> Path:
    """A trace of the results."""
    trace.write(tmp_path / "trace.jsonl", job, results)
    return tmp_path / "trace.jsonl"


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def rewrite(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


# ----- what is in a trace -----------------------------------------------------------------------------------


def test_reading_gives_back_what_was_written(path: Path, results: list[Result]) -> None:
    assert {record["strategy"] for result in results for record in result.records} > {"clarify", "adaptive"}
    assert trace.read(path).results == results


def test_a_trace_repeats_its_generation(path: Path, model: Model, results: list[Result]) -> None:
    read = trace.read(path)
    again = entropix.generate(model, read.prompts, **read.options)
    assert [r.token_ids for r in again] == [r.token_ids for r in results]
    assert [r.text for r in again] == [r.text for r in results]


def test_a_trace_tells_its_configs_in_full(path: Path, job: Job) -> None:
    header = lines_of(path)[0]
    assert header["sampler_config"] == dataclasses.asdict(job.sampler_config)
    assert header["generation"] == {**dataclasses.asdict(job.config), "stop": ["\x00\x00"]}
    assert len(header["sampler_config"]) == len(dataclasses.fields(SamplerConfig))
    assert len(header["generation"]) == len(dataclasses.fields(GenerateConfig))


def test_the_header_tells_what_ran_where(path: Path, job: Job) -> None:
    header = lines_of(path)[0]
    assert (header["format"], header["version"]) == ("entropix-trace", 1)
    assert (header["entropix"], header["jax"]) == (entropix.__version__, jax.__version__)
    assert header["backend"] == jax.default_backend()
    assert header["model"]["name"] == "toy"
    assert header["model"]["dtype"] == "float32"
    assert header["model"]["config"] == dataclasses.asdict(job.model.config)
    assert (header["sampler"], header["strategies"]) == ("entropix", list(job.sampler.strategies))


def test_prompts_are_told_as_the_model_saw_them(path: Path) -> None:
    first, second = lines_of(path)[0]["prompts"]
    assert first["text"] == "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    assert second == {"token_ids": [3, 1, 4], "text": "\x03\x01\x04"}


def test_there_is_a_line_for_each_token_and_each_end(path: Path, results: list[Result]) -> None:
    _, *lines = lines_of(path)
    places = [(line["row"], line.get("step")) for line in lines]
    assert places == [*((0, i) for i in range(12)), (0, None), *((1, i) for i in range(12)), (1, None)]
    assert lines[3] == {"row": 0, "step": 3, **results[0].records[3]}
    assert set(Metrics._fields) < lines[3].keys()
    assert lines[-1] == {
        "row": 1,
        "finish": "length",
        "reason": "max_new_tokens was reached",
        "new_tokens": 12,
        "text": results[1].text,
    }


def test_text_of_any_kind_survives(path: Path, job: Job) -> None:
    text = 'line\u2028 separator, \x85, "quotes", \x00, \U0001f642, \ufffd\r\n'
    ends = [Result(ids, text, [], [], Finish.STOP_TOKEN) for ids in job.prompt_ids]
    trace.write(path, job, ends)
    assert trace.read(path).results == ends


def test_the_fingerprint_follows_the_weights_and_not_their_folder(tmp_path: Path, model: Model) -> None:
    copy = shutil.copytree(model.folder, tmp_path / "copy")
    assert trace.fingerprint(copy) == trace.fingerprint(model.folder)
    tuned = folders.write_checkpoint(tmp_path / "tuned", seed=1)
    assert trace.fingerprint(tuned) != trace.fingerprint(model.folder)


def test_a_change_in_any_single_tensor_changes_the_fingerprint(tmp_path: Path, model: Model) -> None:
    tensors = folders.read_tensors(model.folder)
    seen = {trace.fingerprint(model.folder)}
    for name, array in tensors.items():
        changed = array.copy()
        changed.flat[7] += 1
        folders.write_tensors(tmp_path, {**tensors, name: changed})
        seen.add(trace.fingerprint(tmp_path))
    assert len(seen) == 1 + len(tensors)


# ----- writing ----------------------------------------------------------------------------------------------


def test_a_failing_write_leaves_the_old_file_and_nothing_else(
    path: Path, job: Job, results: list[Result]
) -> None:
    before = path.read_bytes()
    damaged = [dataclasses.replace(results[0], records=[{"score": float("nan")}]), results[1]]
    with pytest.raises(ValueError, match="JSON"):
        trace.write(path, job, damaged)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_write_through_a_link_keeps_the_link(path: Path, job: Job, results: list[Result]) -> None:
    (path.parent / "elsewhere").mkdir()
    link = path.parent / "elsewhere" / "link.jsonl"
    link.symlink_to(path)
    trace.write(link, job, [Result(ids, "", [], [], Finish.INTERRUPTED) for ids in job.prompt_ids])
    assert link.is_symlink()
    assert trace.read(path).results[0].finish == Finish.INTERRUPTED


def test_checking_leaves_no_trace_of_itself(path: Path) -> None:
    before = path.read_bytes()
    trace.check_writable(path)
    trace.check_writable(path.parent / "new.jsonl")
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing/t.jsonl", "the folder .*missing does not exist"),
        (".", "needs a regular file"),
        ("x" * 300, "cannot write a trace there .*too long"),
        ("trace.jsonl/t.jsonl", "the folder .* does not exist"),
    ],
)
def test_an_unwritable_trace_is_refused(
    path: Path, job: Job, results: list[Result], name: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        trace.check_writable(path.parent / name)
    with pytest.raises(ValueError, match=message):
        trace.write(path.parent / name, job, results)


def test_a_device_is_not_replaced_by_a_file() -> None:
    with pytest.raises(ValueError, match="/dev/null: a trace needs a regular file"):
        trace.check_writable("/dev/null")


# ----- reading ----------------------------------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.jsonl: cannot be read as a trace"):
        trace.read(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"line 1: not JSON"),
        (b"Hello\n", r"line 1: not JSON"),
        (b"[1, 2]\n", r"line 1: expected a JSON object, got a list"),
        (b'{"prompt": "Hi"}\n', r'not a trace; .*"format": "entropix-trace"'),
        (b'{"format": "entropix-trace", "version": 2}\n', r"a trace of version 2, but this entropix reads 1"),
        (b'{"format": "entropix-trace"}\n', r"a trace of version None"),
        (b'{"format": "entropix-trace", "version": 1}\n', r"damaged; .*'prompts'"),
        (b"\xff\xfe\n", r"cannot be read as a trace"),
    ],
)
def test_another_kind_of_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "t.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=r"t\.jsonl: .*" + message if "line 1" not in message else message):
        trace.read(tmp_path / "t.jsonl")


def test_a_file_cut_anywhere_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, 97):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"trace\.jsonl: "):
            trace.read(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines.pop(5), r"line 6: expected step 4 of row 0"),
        (lambda lines: lines.pop(13), r"truncated; the end of row 0 is missing"),
        (lambda lines: lines.pop(12), r"line 13: row 0 has 11 tokens, but ends after 12"),
        (lambda lines: lines.append(lines[-2]), r"line 28: row 1 has already ended"),
        (lambda lines: lines[1].update(row=2), r"line 2: row 2, but the header has 2 prompts"),
        (lambda lines: lines[1].update(row=-1), r"line 2: row -1, but the header has 2 prompts"),
        (lambda lines: lines[1].pop("row"), r"damaged; .*'row'"),
        (lambda lines: lines[1].pop("id"), r"damaged; .*'id'"),
        (lambda lines: lines[1].update(row="0"), r"damaged"),
        (lambda lines: lines[-1].update(finish="tired"), r"damaged; .*'TIRED'"),
    ],
)
def test_a_damaged_trace_is_refused(path: Path, change: Any, message: str) -> None:
    lines = lines_of(path)
    change(lines)
    rewrite(path, lines)
    with pytest.raises(ValueError, match=r"trace\.jsonl: " + message):
        trace.read(path)


def test_fields_of_later_releases_are_passed_over(path: Path, results: list[Result]) -> None:
    lines = lines_of(path)
    lines[0]["weather"] = "fine"
    lines[-1]["mood"] = "good"
    rewrite(path, lines)
    assert trace.read(path).results == results


def test_a_config_field_that_is_not_known_is_an_error_when_repeating(path: Path) -> None:
    lines = lines_of(path)
    lines[0]["sampler_config"]["tmep"] = 1.0
    rewrite(path, lines)
    with pytest.raises(ValueError, match="sampler_config: unknown field 'tmep'; did you mean 'temp'"):
        _ = trace.read(path).options
