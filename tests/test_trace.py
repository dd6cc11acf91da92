"""Traces: what is in them, that they repeat a generation, and that nothing else passes for one."""

import dataclasses
import json
import math
import re
import shutil
import statistics
from pathlib import Path
from typing import Any

import folders
import jax
import pytest
from traces import lines_of, rewrite

import entropix
from entropix import files, generation, trace
from entropix.checkpoint import loading
from entropix.checkpoint.loading import Model
from entropix.config import GenerateConfig
from entropix.generation import GenerationRequest
from entropix.metrics import Metrics
from entropix.results import FinishReason, Result
from entropix.samplers.entropix import SamplerConfig
from entropix.sharding import Shape
from entropix.trace import schema


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return entropix.load(folders.write_checkpoint(tmp_path_factory.mktemp("weights") / "toy"))


@pytest.fixture(scope="module")
def job(model: Model) -> GenerationRequest:
    """Two rows, all that can be recorded, and thresholds that lie amid what the toy's random weights give."""
    return generation.prepare(
        model,
        ["Why?", [3, 1, 4]],
        sampler_config=SamplerConfig(low_vent_thresh=2.3, high_ent_thresh=7.1, high_vent_thresh=2.6),
        max_new_tokens=12,
        seed=5,
        stop=["\x00\x00"],
        alternatives=3,
        head_entropies=True,
    )


@pytest.fixture(scope="module")
def results(job: GenerationRequest) -> list[Result]:
    return generation.collect(job, generation.run(job))


@pytest.fixture
def path(tmp_path: Path, job: GenerationRequest, results: list[Result]) -> Path:
    """A trace of the results."""
    trace.write(tmp_path / "trace.jsonl", job, results)
    return tmp_path / "trace.jsonl"


# ----- what is in a trace -----------------------------------------------------------------------------------


def test_reading_gives_back_what_was_written(path: Path, results: list[Result]) -> None:
    assert {record["strategy"] for result in results for record in result.records} > {"clarify", "adaptive"}
    assert trace.read(path).results == results


def test_a_trace_repeats_its_generation(path: Path, model: Model, results: list[Result]) -> None:
    read = trace.read(path)
    again = entropix.generate(model, read.prompts, **read.options)
    assert [r.token_ids for r in again] == [r.token_ids for r in results]
    assert [r.text for r in again] == [r.text for r in results]


def test_a_trace_tells_its_configs_in_full(path: Path, job: GenerationRequest) -> None:
    header = lines_of(path)[0]
    assert header["sampler_config"] == dataclasses.asdict(job.sampler_config)
    assert header["generation"] == json.loads(json.dumps(dataclasses.asdict(job.config)))
    assert header["generation"]["stop"] == ["\x00\x00"]
    assert len(header["sampler_config"]) == len(dataclasses.fields(SamplerConfig))
    assert len(header["generation"]) == len(dataclasses.fields(GenerateConfig))


def test_the_header_tells_what_ran_where(path: Path, job: GenerationRequest) -> None:
    header = lines_of(path)[0]
    assert (header["format"], header["version"]) == ("entropix-trace", 1)
    assert (header["entropix"], header["jax"]) == (entropix.__version__, jax.__version__)
    assert header["backend"] == jax.default_backend()
    assert header["model"]["name"] == "toy"
    assert header["model"]["dtype"] == "float32"
    assert header["model"]["config"] == json.loads(json.dumps(job.model.config.as_json()))
    assert (header["sampler"], header["strategies"]) == ("entropix", list(job.sampler.strategies))


def test_on_a_mesh_the_header_has_the_folders_config_and_the_mesh(model: Model) -> None:
    """Where four devices share two key/value heads, each of which is there twice."""
    there = loading.load(model.folder, mesh=Shape(2, 4))
    assert (there.config.n_kv_heads, model.config.n_kv_heads) == (4, 2)
    divided, whole = (trace.header(generation.prepare(each, ["Why?"])) for each in (there, model))
    assert (divided.pop("mesh"), whole.pop("mesh")) == ("data=2,model=4", None)
    assert divided == whole


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


def test_text_of_any_kind_survives(path: Path, job: GenerationRequest) -> None:
    text = 'line\u2028 separator, \x85, "quotes", \x00, \U0001f642, \ufffd\r\n'
    ends = [Result(ids, text, [], [], FinishReason.STOP_TOKEN) for ids in job.prompt_ids]
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


def test_the_bytes_of_a_token_tell_what_its_text_cannot(path: Path, results: list[Result]) -> None:
    """Tokens of the toy are bytes: those from 128 on are no text by themselves."""
    records = [record for result in trace.read(path).results for record in result.records]
    tokens = [*records, *(other for record in records for other in record["alternatives"])]
    assert any(token["text"] == "\ufffd" for token in tokens)
    for token in tokens:
        if token["id"] < 256:
            assert token["bytes"] == [token["id"]]
            assert token["text"] == bytes(token["bytes"]).decode(errors="replace")


def test_alternatives_agree_with_what_is_known_of_the_chosen_token(results: list[Result]) -> None:
    """Filters keep the likeliest tokens, so that of N alternatives the first `kept` could be drawn."""
    records = [record for result in results for record in result.records]
    n_chosen = 0
    for record in records:
        others = record["alternatives"]
        logprobs = [other["logprob"] for other in others]
        assert len(others) == 3
        assert logprobs == sorted(logprobs, reverse=True)
        assert math.exp(logprobs[0]) == pytest.approx(record["top_prob"], rel=1e-5)
        drawable = [other["draw_logprob"] is not None for other in others]
        assert drawable == [i < record["kept"] for i in range(3)]
        for other in others:
            if other["id"] == record["id"] and not record["injected"]:
                n_chosen += 1
                assert other["logprob"] == pytest.approx(record["logprob"], abs=1e-5)
                assert other["draw_logprob"] == pytest.approx(record["draw_logprob"], abs=1e-5)
    assert n_chosen >= 4
    assert any(record["kept"] < 3 for record in records) or any(record["kept"] > 3 for record in records)


def test_entropies_of_the_heads_have_the_recorded_mean_and_variance(results: list[Result]) -> None:
    """The variance is one across heads, which tells layers and heads apart."""
    for record in (record for result in results for record in result.records):
        layers = record["head_entropies"]
        assert [len(heads) for heads in layers] == [4, 4]
        mean = statistics.fmean(statistics.fmean(heads) for heads in layers)
        variance = statistics.fmean(statistics.pvariance(heads) for heads in layers)
        assert mean == pytest.approx(record["attn_entropy"], abs=1e-5)
        assert variance == pytest.approx(record["attn_varentropy"], abs=1e-5)


# ----- the schema -------------------------------------------------------------------------------------------


def documented() -> dict[str, dict[str, str]]:
    """Fields and types in the tables of docs/trace.md, by heading."""
    text = (entropix.PACKAGE_ROOT.parent / "docs" / "trace.md").read_text(encoding="utf-8")
    tables: dict[str, dict[str, str]] = {}
    for section in re.split(r"^#+ ", text, flags=re.MULTILINE)[1:]:
        rows = re.findall(r"^\| `(\w+)` \| ([a-z ]+) \|", section, re.MULTILINE)
        if rows:
            tables[section.split("\n")[0]] = dict(rows)
    return tables


def test_the_document_names_exactly_the_fields_that_are_written(path: Path) -> None:
    header, *lines = lines_of(path)
    written = {
        "Header": header,
        "Model": header["model"],
        "Prompt": header["prompts"][0],
        "Token": {**lines[0], "branches": [], "taken_back": []},  # tests/test_trace_forks.py writes these
        "Alternative": lines[0]["alternatives"][0],
        "Row end": lines[-1],
    }
    of_plain_traces = {name: list(fields) for name, fields in documented().items()}
    for name in ("Branch", "Selection", "Path"):
        assert of_plain_traces.pop(name)
    assert of_plain_traces == {heading: list(fields) for heading, fields in written.items()}


def test_the_document_tells_the_types_that_are_checked() -> None:
    assert documented() == {
        "Header": schema.HEADER,
        "Model": schema.MODEL,
        "Prompt": schema.PROMPT,
        "Selection": schema.SELECTION,
        "Path": schema.PATH,
        "Token": {**schema.PLACE, **schema.RECORD},
        "Alternative": schema.ALTERNATIVE,
        "Branch": schema.BRANCH,
        "Row end": schema.END,
    }


# ----- writing ----------------------------------------------------------------------------------------------


def test_a_failing_write_leaves_the_old_file_and_nothing_else(
    path: Path, job: GenerationRequest, results: list[Result]
) -> None:
    before = path.read_bytes()
    damaged = [dataclasses.replace(results[0], records=[{"score": float("nan")}]), results[1]]
    with pytest.raises(ValueError, match="JSON"):
        trace.write(path, job, damaged)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_write_through_a_link_keeps_the_link(
    path: Path, job: GenerationRequest, results: list[Result]
) -> None:
    (path.parent / "elsewhere").mkdir()
    link = path.parent / "elsewhere" / "link.jsonl"
    link.symlink_to(path)
    trace.write(link, job, [Result(ids, "", [], [], FinishReason.INTERRUPTED) for ids in job.prompt_ids])
    assert link.is_symlink()
    assert trace.read(path).results[0].finish == FinishReason.INTERRUPTED


def test_checking_leaves_no_trace_of_itself(path: Path) -> None:
    before = path.read_bytes()
    files.check_writable(path, "a trace")
    files.check_writable(path.parent / "new.jsonl", "a trace")
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
    path: Path, job: GenerationRequest, results: list[Result], name: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        files.check_writable(path.parent / name, "a trace")
    with pytest.raises(ValueError, match=message):
        trace.write(path.parent / name, job, results)


def test_a_device_is_not_replaced_by_a_file() -> None:
    with pytest.raises(ValueError, match="/dev/null: a trace needs a regular file"):
        files.check_writable("/dev/null", "a trace")


# ----- reading ----------------------------------------------------------------------------------------------


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.jsonl: no such file"):
        trace.read(tmp_path / "none.jsonl")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"this file is empty; a trace has at least its header"),
        (b"\n", r"this file is empty"),
        (b"Hello\n", r"line 1: not JSON"),
        (b"[1, 2]\n", r"line 1: expected a JSON object, got a list"),
        (b'{"prompt": "Hi"}\n', r'not a trace; .*"format": "entropix-trace"'),
        (
            b'{"format": "entropix-trace", "version": 2}\n',
            r"line 1: a trace of version 2, .* reads version 1",
        ),
        (b'{"format": "entropix-trace"}\n', r"line 1: field 'version' must be .*, got None"),
        (b'{"format": "entropix-trace", "version": "1"}\n', r"line 1: field 'version' must be .*, got '1'"),
        (b'{"format": "entropix-trace", "version": 1}\n', r"line 1: field 'entropix' is missing"),
        (b"\xff\xfe\n", r"line 1 is not UTF-8"),
    ],
)
def test_another_kind_of_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "t.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=r"t\.jsonl: .*" + message if "line 1" not in message else message):
        trace.read(tmp_path / "t.jsonl")


def test_a_file_cut_anywhere_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, 397):
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
        (lambda lines: lines[1].pop("row"), r"line 2: field 'row' is missing"),
        (lambda lines: lines[1].pop("id"), r"line 2: field 'id' is missing"),
        (lambda lines: lines[1].update(row="0"), r"line 2: field 'row' must be of type integer, got \"0\""),
        (lambda lines: lines[1].update(id=True), r"line 2: field 'id' must be of type integer, got true"),
        (
            lambda lines: lines[2].update(margin="0.5"),
            r"line 3: field 'margin' must be of type number or null",
        ),
        (lambda lines: lines[2].update(strategy="nap"), r"line 3: field 'strategy' must be one of .*'nap'"),
        (
            lambda lines: lines[2].update(head_entropies=[0.5]),
            r"line 3: field 'head_entropies' must be of type",
        ),
        (
            lambda lines: lines[2]["alternatives"][1].pop("logprob"),
            r"line 3: field 'alternatives\[1\].logprob' is missing",
        ),
        (lambda lines: lines[-1].update(finish="tired"), r"line 27: field 'finish' must be one of .*'tired'"),
        (lambda lines: lines[0].update(rows="pile"), r"line 1: field 'rows' must be one of batch, turns"),
        (
            lambda lines: lines[0].update(mesh=8),
            r"line 1: field 'mesh' must be of type string or null, got 8",
        ),
        (lambda lines: lines[0]["model"].pop("dtype"), r"line 1: field 'model.dtype' is missing"),
        (
            lambda lines: lines[0]["prompts"][1].update(token_ids=[1, "2"]),
            r"line 1: field 'prompts\[1\].token_ids' must be of type list of integers",
        ),
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


def test_fields_that_earlier_releases_did_not_write_may_be_missing(path: Path) -> None:
    lines = lines_of(path)
    for name in ("margin", "bytes", "alternatives", "head_entropies"):
        del lines[1][name]
    del lines[0]["rows"], lines[0]["mesh"]
    rewrite(path, lines)
    read = trace.read(path)
    assert read.header["rows"] == "batch"
    assert read.results[0].records[0]["margin"] is None
    assert "alternatives" not in read.results[0].records[0]


def test_a_config_field_that_is_not_known_is_an_error_when_repeating(path: Path) -> None:
    lines = lines_of(path)
    lines[0]["sampler_config"]["tmep"] = 1.0
    rewrite(path, lines)
    with pytest.raises(ValueError, match="sampler_config: unknown field 'tmep'; did you mean 'temp'"):
        _ = trace.read(path).options


def test_numbers_of_other_rules_in_a_trace_of_before_are_left_out(path: Path) -> None:
    lines = lines_of(path)
    before = trace.read(path).options
    lines[0]["sampler_config"] |= {"typical_p": 0.95, "placebo_flow": 0.008}
    del lines[0]["sampler_source"]
    rewrite(path, lines)
    assert trace.read(path).options == before
