"""Whatever stands in a trace, or in the folder of a grid, is read, or refused in one sentence that names the file."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fuzzing
import pytest
import traces
from hypothesis import given
from hypothesis import strategies as st
from mutations import DEEP, NASTY, places, put

from entropix import logprobs
from entropix.checkpoint.loading import load
from entropix.lab.experiments import engine, file, merging, summary
from entropix.lab.experiments.results import MANIFEST, RESULTS, TIMINGS, Store
from entropix.report import page
from entropix.results import FinishReason, Result

# fmt: off
NUMBERS_AND_NAMES: list[Any] = [
    1e39, -5, 2**53, "\ud83d", {"a": "\ud800"}, {"\ud800": 1}, [{}], [["x"]], [None], {"greedy": "x"}, ["explore"],
]
# fmt: on
GRID = """
prompts = ["Why?", "How so?"]
seeds = 2
max_new_tokens = 2

[[samplers]]
sampler = "temperature"

[[samplers]]
sampler = "greedy"
self_consistency = 2
"""
FEW = fuzzing.few(50)
Line = dict[str, Any]


def mutated(draw: st.DataObject, lines: list[Line]) -> str:
    """The lines as JSON, with another value, or none, somewhere in one of them."""
    number = draw.draw(st.integers(0, len(lines) - 1))
    place = draw.draw(st.sampled_from([place for place in places(lines[number]) if place]))
    new = draw.draw(st.sampled_from([*NASTY, DEEP, *NUMBERS_AND_NAMES]))
    how = draw.draw(st.sampled_from(["replace", "replace", "remove", "rename"]))
    changed = [*lines[:number], put(copy.deepcopy(lines[number]), place, new, how), *lines[number + 1 :]]
    return "".join(json.dumps(line) + "\n" for line in changed)


def assert_works_or_names(folder: Path, work: Callable[[], object]) -> None:
    try:
        work()
    except ValueError as error:
        assert type(error) is ValueError, f"{type(error)}: {error}"
        assert str(folder) in str(error), error
        assert len(str(error)) < 1000


def everything(path: Path) -> list[Line]:
    """A trace with all that there can be in one."""
    traces.write(
        path,
        traces.forked(["the", "sky", "is", "blue", "because", "of"]),
        traces.tokens("ab"),
        selection=traces.selection("mean-logprob"),
        paths=[
            traces.path("4", {"mean-logprob": -1.0}, chosen=True),
            traces.path(None, {"mean-logprob": None}, parent=0, position=1),
        ],
        metrics=[{"name": "mine", "title": "Mine", "unit": "bits", "meaning": "one of my own"}],
    )
    lines = traces.lines_of(path)
    return [line | {"mine": 0.5} if "id" in line else line for line in lines]


def test_any_other_value_in_a_trace_is_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    lines = everything(path)

    def shown() -> None:
        read = page.read([str(path)])
        json.dumps(logprobs.convert(read[0].trace), allow_nan=False)
        json.dumps(page.data_of(read), allow_nan=False, ensure_ascii=False).encode()

    @FEW
    @given(draw=st.data())
    def check(draw: st.DataObject) -> None:
        path.write_text(mutated(draw, lines))
        assert_works_or_names(tmp_path, shown)

    traces.rewrite(path, lines)
    shown()
    check()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[0]["generation"].update(branching="x"), "line 1: generation: branching must be"),
        (
            lambda lines: lines[0]["sampler_config"].update(low_ent_thresh="x"),
            "line 1: sampler_config: low_ent_thresh",
        ),
        (
            lambda lines: lines[1].update(logits_entropy=1e39),
            "line 2: field 'logits_entropy' must be null or a finite",
        ),
        (
            lambda lines: lines[1].update(logprob=float("nan")),
            "line 2: field 'logprob' must be null or a finite",
        ),
        (
            lambda lines: lines[1].update(mine="x"),
            "line 2: field 'mine' must be of type number or null, got \"x\"",
        ),
        (lambda lines: lines[1].update(text="\ud800"), "line 2: field 'text' must be whole characters"),
        (
            lambda lines: lines[0]["sampler_config"].update({"\ud800": 1}),
            "line 1: expected whole characters in names",
        ),
        (
            lambda lines: lines[0]["paths"][1].update(position=-1),
            r"field 'paths\[1\].position' must be from 0 to",
        ),
        (lambda lines: lines[1].update(bytes=[256]), "line 2: field 'bytes' must be from 0 to 255"),
        (
            lambda lines: lines[2].update(head_entropies=[[1.0]]),
            "line 3: field 'head_entropies' must have as many",
        ),
        (lambda lines: lines[0]["metrics"][0].update(name="text"), "has the name of another field, 'text'"),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_line_and_field(
    tmp_path: Path, change: Callable[[list[Line]], None], message: str
) -> None:
    path = tmp_path / "trace.jsonl"
    lines = everything(path)
    change(lines)
    traces.rewrite(path, lines)
    with pytest.raises(ValueError, match=message):
        page.read([str(path)])


def answer(variant: engine.Variant, cell: engine.Cell) -> Line:
    """An answer that nobody has generated."""
    records = traces.tokens("ab")
    result = Result([1], token_ids=[97, 98], records=records, text="ab", finish=FinishReason.LENGTH)
    of_paths = {"answer": None, "paths": 2, "computed_tokens": 4, "forward_passes": 2}
    key = {"variant": variant.label, **cell._asdict(), "sampler": variant.sampler.name}
    return key | engine.line(variant, result) | (of_paths if variant.plan else {})


def test_any_other_value_in_the_folder_of_a_grid_is_read_or_refused(toy_folder: str, tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text(GRID)
    toy, asked = load(toy_folder), file.read(tmp_path / "grid.toml")
    grid = file.grid(asked, toy, 8)
    whole, folder = tmp_path / "whole", tmp_path / "folder"
    with Store(whole, engine.manifest(grid, toy), engine.keys(grid)) as store:
        for turn in engine.plan(grid):
            variants = [grid.variants[variant] for variant, _ in turn]
            lines = [answer(variant, one.cell) for variant, one in zip(variants, turn, strict=True)]
            store.append(lines, {"tokens": {variants[0].label: 3}, "seconds": 0.5})

    def resumed() -> None:
        with Store(folder, engine.manifest(grid, toy), engine.keys(grid)) as store:
            found = summary.summarize([v.label for v in grid.variants], store.lines, store.timings)
        json.dumps([variant.as_json() for variant in found], allow_nan=False)
        assert summary.tables(found)

    def merged() -> None:
        merging.merge([str(folder)], str(tmp_path / "out"))

    @FEW
    @given(draw=st.data(), name=st.sampled_from([MANIFEST, RESULTS, TIMINGS]))
    def check(draw: st.DataObject, name: str) -> None:
        for work in (resumed, merged):
            for place in (folder, tmp_path / "out"):
                shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(whole, folder)
            lines = (
                [json.loads((whole / name).read_text())]
                if name == MANIFEST
                else traces.lines_of(whole / name)
            )
            (folder / name).write_text(mutated(draw, lines))
            assert_works_or_names(tmp_path, work)

    check()
