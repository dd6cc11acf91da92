"""The engine of grids: plans, batches that are alike, and results that no interruption changes."""

import dataclasses
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import entropix
from entropix import config, samplers
from entropix.checkpoint.loading import Model
from entropix.config import GenerateConfig
from entropix.decoding import loop
from entropix.generation import generate
from entropix.lab.experiments import engine, results
from entropix.lab.experiments.engine import Answer, Cell, Grid, Variant
from entropix.lab.experiments.results import Store, difference
from entropix.lab.experiments.summary import summarize

pytestmark = pytest.mark.slow

PROMPTS = [[17, 4, 200, 31, 8], [9] * 20, [3, 1, 4]]
NEW_TOKENS = 20  # more than one chunk, so that there is a speed


def variant(label: str, sampler: str = "temperature", **numbers: Any) -> Variant:
    return Variant(label, samplers.resolve(sampler, numbers))


def grid_of(*variants: Variant, n_seeds: int = 3, max_rows: int = 4, **changes: Any) -> Grid:
    whole = Grid(
        variants=variants or (variant("cold", temp=0.5), variant("hot", temp=2.0)),
        prompts=PROMPTS,
        texts=["one", "two", "three"],
        seeds=range(n_seeds),
        options=GenerateConfig(max_new_tokens=NEW_TOKENS),
        max_rows=max_rows,
    )
    return dataclasses.replace(whole, **changes)


@pytest.fixture(scope="module")
def model(toy_folder: str) -> Model:
    return entropix.load(toy_folder)


def opened(folder: Path, model: Model, whole: Grid) -> Store:
    return Store(folder, engine.manifest(whole, model), engine.keys(whole))


def complete(folder: Path, model: Model, whole: Grid, stop_after: int | None = None) -> int:
    """How many answers are there: all, or at least so many."""
    with opened(folder, model, whole) as store:
        for _ in engine.run(model, whole, store):
            if stop_after is not None and store.n_lines >= stop_after:
                break
        return store.n_lines


def told(folder: Path) -> list[dict[str, Any]]:
    """All lines without the numbers, whose last digits depend on what was computed beside them."""
    lines = map(json.loads, (folder / "results.jsonl").read_text().splitlines())
    names = ("mean_logprob", "mean_metrics", "logits_entropy")
    return [{name: value for name, value in line.items() if name not in names} for line in lines]


# ----- the plan ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [(1, 1), (1, 3), (3, 3)])
def test_a_plan_has_every_answer_once_and_the_same_of_all_variants_together(
    monkeypatch: pytest.MonkeyPatch, part: tuple[int, int]
) -> None:
    monkeypatch.setattr(engine, "_TURN", 2)
    whole = grid_of(
        variant("a", temp=0.5), variant("b", "min-p"), variant("c", temp=2.0), max_rows=4, part=part
    )
    cells = [Cell(prompt, seed) for prompt in range(3) for seed in range(3)][part[0] - 1 :: part[1]]
    assert engine.plan(whole) == [
        [Answer(variant, cell) for cell in cells[start : start + 4] for variant in together]
        for start in range(0, len(cells), 4)
        for together in ((0, 2), (1,))  # those of one program in one batch
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": ()}, "a grid needs at least one variant"),
        ({"prompts": []}, "a grid needs at least one prompt"),
        ({"seeds": range(0)}, "a grid needs at least one seed"),
        ({"max_rows": 0}, "a batch needs at least one row, got 0"),
        ({"variants": (variant("a"), variant("b"), variant("a"))}, "two variants are called 'a'"),
        ({"prompts": [[1], [2], [1]]}, "prompts 1 and 3 are the same; drop one of them"),
        ({"seeds": [4, 5, 4]}, "seed 4 is there twice"),
        ({"prompts": [[1], [2] * 600]}, "prompt 2 has 600 tokens"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(model: Model, changes: dict[str, Any], message: str) -> None:
    engine.check(grid_of(), model)
    with pytest.raises(ValueError, match=message):
        engine.check(grid_of(**changes), model)


# ----- the answers ------------------------------------------------------------------------------------------


def test_every_answer_is_that_of_its_prompt_alone(model: Model, tmp_path: Path) -> None:
    whole = grid_of(max_rows=5)
    complete(tmp_path, model, whole)
    lines = list(map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines()))
    assert len(lines) == 18
    for line in lines:
        [alone] = generate(
            model,
            PROMPTS[line["prompt"]],
            sampler=line["sampler"],
            sampler_config={"temp": {"cold": 0.5, "hot": 2.0}[line["variant"]]},
            seed=line["seed"],
            max_new_tokens=NEW_TOKENS,
        )
        assert (line["token_ids"], line["text"]) == (alone.token_ids, alone.text)
        assert line["finish"] == alone.finish.name.lower()
        assert line["new_tokens"] == len(alone.token_ids) == sum(line["strategies"].values())
        logprobs = [record["logprob"] for record in alone.records]
        assert line["mean_logprob"] == pytest.approx(np.mean(logprobs), rel=1e-4)
        entropies = [record["logits_entropy"] for record in alone.records]
        assert line["logits_entropy"] == pytest.approx(entropies, abs=1e-3)
        assert line["mean_metrics"]["logits_entropy"] == pytest.approx(np.mean(entropies), rel=1e-4)


def test_variants_that_agree_on_every_distribution_draw_the_same_tokens(model: Model, tmp_path: Path) -> None:
    """Common random numbers: cutoffs that remove nothing leave the plain distribution."""
    whole = grid_of(
        variant("plain", temp=1.0),
        variant("epsilon", "epsilon", temp=1.0, epsilon_cutoff=0.0),
        variant("typical", "typical", temp=1.0, typical_p=1.0),
        variant("hotter", temp=1.5),
    )
    complete(tmp_path, model, whole)
    with opened(tmp_path, model, whole) as store:
        drawn = {
            label: [line["token_ids"] for line in store.lines if line["variant"] == label]
            for label in ("plain", "epsilon", "typical", "hotter")
        }
    assert drawn["plain"] == drawn["epsilon"] == drawn["typical"] != drawn["hotter"]


def test_a_grid_compiles_once_for_each_sampler(model: Model, tmp_path: Path) -> None:
    before = loop.decode_chunk._cache_size()
    whole = grid_of(
        *(
            variant(f"{sampler} {temp}", sampler, temp=temp)
            for sampler in ("eta", "top-h")
            for temp in (0.5, 1.5, 2.0)
        ),
        max_rows=8,  # of 27 answers: too few for smaller batches in the end
    )
    complete(tmp_path, model, whole)
    assert loop.decode_chunk._cache_size() == before + 2


def test_logits_that_are_not_finite_leave_a_line_without_numbers(model: Model, tmp_path: Path) -> None:
    broken = dataclasses.replace(
        model, weights=model.weights.replace(embed_VD=model.weights.embed_VD * math.nan)
    )
    whole = grid_of(n_seeds=1, prompts=[[1]], texts=["one"])
    complete(tmp_path, broken, whole)
    with opened(tmp_path, broken, whole) as store:
        first = store.lines[0]
        [summary, _] = summarize(["cold", "hot"], store.lines, store.timings)
    assert (first["finish"], first["token_ids"], first["mean_logprob"]) == ("nan", [], None)
    assert set(first["mean_metrics"].values()) == {None}
    assert (summary.means["logprob"], summary.means["length"], summary.tokens_per_second) == (None, 0, None)
    assert summary.differences["logprob"] is None


def test_the_numbers_of_a_config_are_kept_in_the_manifest(model: Model) -> None:
    kept = engine.manifest(grid_of(), model)["variants"][0]["config"]
    numbers = grid_of().variants[0].sampler.numbers
    assert config.from_mapping(type(numbers), kept, "manifest") == numbers


# ----- interruptions ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_run(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    complete(folder, model, grid_of())
    return folder


@pytest.mark.parametrize("answers", [1, 5, 9, 17])
def test_a_grid_that_was_interrupted_has_the_same_answers_in_the_end(
    model: Model, tmp_path: Path, whole_run: Path, answers: int
) -> None:
    """None of them is generated twice, and none that was there is lost."""
    before = complete(tmp_path, model, grid_of(), stop_after=answers)
    kept = (tmp_path / "results.jsonl").read_bytes()
    assert answers <= before == kept.count(b"\n") and told(tmp_path) == told(whole_run)[:before]
    complete(tmp_path, model, grid_of())
    assert (tmp_path / "results.jsonl").read_bytes().startswith(kept)
    assert told(tmp_path) == told(whole_run)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.999])
def test_what_was_half_written_is_written_anew(
    model: Model, tmp_path: Path, whole_run: Path, kept: float
) -> None:
    shutil.copytree(whole_run, tmp_path, dirs_exist_ok=True)
    whole = (whole_run / "results.jsonl").read_bytes()
    cut = whole[: int(len(whole) * kept)]
    (tmp_path / "results.jsonl").write_bytes(cut)
    with opened(tmp_path, model, grid_of()) as store:
        assert len(store.lines) == cut.count(b"\n") < 18
        assert all(timing["answers"] <= len(store.lines) for timing in store.timings)
    complete(tmp_path, model, grid_of())
    assert told(tmp_path) == told(whole_run)


def test_a_timing_that_was_not_written_costs_no_answer(model: Model, tmp_path: Path, whole_run: Path) -> None:
    shutil.copytree(whole_run, tmp_path, dirs_exist_ok=True)
    timings = (tmp_path / "timings.jsonl").read_bytes()
    (tmp_path / "timings.jsonl").write_bytes(timings[:-5])
    with opened(tmp_path, model, grid_of()) as store:
        assert len(store.timings) == timings.count(b"\n") - 1 and store.n_lines == 18


def test_a_write_that_stops_in_the_middle_loses_only_its_line(
    model: Model, tmp_path: Path, whole_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The power fails when a part of a line is on the disk."""
    usual = results._append

    def torn(file: Any, lines: Sequence[Mapping[str, Any]]) -> None:
        usual(file, lines)
        if lines[0].get("seed") == 1:
            file.truncate(file.tell() - 40)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(results, "_append", torn)
        with pytest.raises(KeyboardInterrupt):
            complete(tmp_path, model, grid_of())
    with opened(tmp_path, model, grid_of()) as store:
        assert store.n_lines >= 1
    complete(tmp_path, model, grid_of())
    assert told(tmp_path) == told(whole_run)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompts": [[17, 4, 200, 31, 9], *PROMPTS[1:]]}, r"prompts\[0\].token_ids\[4\] is 8 there, 9 now"),
        ({"prompts": PROMPTS[:2], "texts": ["one", "two"]}, "prompts is a list of 3 there, a list of 2 now"),
        ({"seeds": range(1, 4)}, r"seeds\[0\] is 0 there, 1 now"),
        ({"options": GenerateConfig(max_new_tokens=9)}, "generation.max_new_tokens is 20 there, 9 now"),
        ({"max_rows": 3}, "batch is 4 there, 3 now"),
        (
            {"variants": (variant("cold", temp=0.5), variant("hot", temp=2.5))},
            r"variants\[1\].config.temp is 2.0 there, 2.5 now",
        ),
    ],
)
def test_a_folder_takes_nothing_else_and_says_what_differs(
    model: Model, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    complete(tmp_path, model, grid_of(), stop_after=1)
    before = (tmp_path / "results.jsonl").read_bytes()
    with pytest.raises(ValueError, match=f"holds results of something else: {message}; use another folder"):
        opened(tmp_path, model, grid_of(**changes))
    assert (tmp_path / "results.jsonl").read_bytes() == before


def test_a_folder_takes_no_other_weights(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete(tmp_path, model, grid_of(), stop_after=1)
    monkeypatch.setattr("entropix.trace.writing.fingerprint", lambda folder: "other")
    with pytest.raises(ValueError, match=r"model\.fingerprint is .* now"):
        opened(tmp_path, model, grid_of())


def test_files_that_were_changed_are_refused(model: Model, tmp_path: Path, whole_run: Path) -> None:
    shutil.copytree(whole_run, tmp_path, dirs_exist_ok=True)
    path, whole = tmp_path / "results.jsonl", (whole_run / "results.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    for content, message in (
        ([lines[1], lines[0]], "line 1 should be the answer of"),
        ([lines[0], b"[]\n"], "line 2 is not a JSON object"),
        ([lines[0], b"{\n"], "line 2 is not a JSON object"),
        ([*lines, lines[0]], "19 lines for 18 answers"),
    ):
        path.write_bytes(b"".join(content))
        with pytest.raises(ValueError, match=message):
            opened(tmp_path, model, grid_of())
        assert path.read_bytes() == b"".join(content)
    path.write_bytes(whole)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"a results.jsonl without its manifest.json"):
        opened(tmp_path, model, grid_of())


def test_two_processes_cannot_work_in_one_folder(model: Model, tmp_path: Path) -> None:
    with (
        opened(tmp_path, model, grid_of()),
        pytest.raises(ValueError, match="another process is working in this folder"),
    ):
        opened(tmp_path, model, grid_of())
    opened(tmp_path, model, grid_of()).close()


def test_a_file_is_no_folder(model: Model, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file: cannot be made a folder"):
        opened(tmp_path / "file", model, grid_of())


def test_the_first_difference_is_found_wherever_it_is() -> None:
    assert difference({"a": [1, {"b": None}]}, {"a": [1, {"b": None}]}) is None
    assert difference({"a": [1, {"b": 1}]}, {"a": [1, {"b": 2}]}) == "a[1].b is 1 there, 2 now"
    assert difference({"a": 1}, {}) == "a is 1 there, null now"
    assert difference({}, {"a": 1}) == "a is null there, 1 now"
    assert difference({"a": "x" * 99}, {"a": ""}) == 'a is "' + "x" * 58 + '… there, "" now'
