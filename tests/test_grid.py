"""The engine of grids: plans, batches that are alike, and results that no interruption changes."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import entropix
from entropix import config, samplers, trace
from entropix.checkpoint.loading import Model
from entropix.config import GenerateConfig
from entropix.decoding import loop
from entropix.generation import generate
from entropix.lab.experiments import engine, results
from entropix.lab.experiments.engine import Batch, Cell, Grid, Variant
from entropix.lab.experiments.results import Store, difference
from entropix.lab.experiments.summary import summarize

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
    """How many batches were generated, up to a number of them."""
    with opened(folder, model, whole) as store:
        for count, _ in enumerate(engine.run(model, whole, store), start=1):
            if count == stop_after:
                return count
    return len(engine.plan(whole))


# ----- the plan ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_seeds", "max_rows"), [(3, 4), (3, 5), (1, 16), (5, 1), (7, 4), (7, 9), (2, 6)])
def test_a_plan_has_every_answer_once_in_batches_of_one_size(n_seeds: int, max_rows: int) -> None:
    whole = grid_of(n_seeds=n_seeds, max_rows=max_rows)
    batches = engine.plan(whole)
    cells = [(batch.variant, *cell) for batch in batches for cell in batch.cells]
    assert sorted(cells) == [(v, p, s) for v in range(2) for p in range(3) for s in range(n_seeds)]
    assert len({batch.size for batch in batches}) == 1
    assert all(1 <= len(batch.cells) <= batch.size <= max_rows for batch in batches)
    assert len(batches) == 2 * math.ceil(3 * n_seeds / max_rows)
    padding = sum(batch.size - len(batch.cells) for batch in batches)
    assert padding < len(batches)  # less than a row for each batch, whatever the numbers


def test_a_plan_has_the_same_answers_of_all_variants_together() -> None:
    first, second = (Cell(0, 0), Cell(0, 1), Cell(1, 0)), (Cell(1, 1), Cell(2, 0), Cell(2, 1))
    assert engine.plan(grid_of(n_seeds=2)) == [
        Batch(0, first, 3),
        Batch(1, first, 3),
        Batch(0, second, 3),
        Batch(1, second, 3),
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
    """Padded batches included."""
    whole = grid_of(max_rows=5)
    assert any(len(batch.cells) < batch.size for batch in engine.plan(whole))
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
        max_rows=2,
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
def whole_run(model: Model, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("whole")
    complete(folder, model, grid_of())
    return (folder / "results.jsonl").read_bytes()


@pytest.mark.parametrize("batches", [1, 3, 5, 6])
def test_a_grid_that_was_interrupted_has_the_same_bytes_in_the_end(
    model: Model, tmp_path: Path, whole_run: bytes, batches: int
) -> None:
    assert complete(tmp_path, model, grid_of(), stop_after=batches) == batches
    assert whole_run.startswith((tmp_path / "results.jsonl").read_bytes())
    complete(tmp_path, model, grid_of())
    assert (tmp_path / "results.jsonl").read_bytes() == whole_run
    assert len((tmp_path / "timings.jsonl").read_bytes().splitlines()) == 6


@pytest.mark.parametrize("kept", [1, 0.1, 0.3, 0.5, 0.77, 0.999])
def test_what_was_half_written_is_written_anew(
    model: Model, tmp_path: Path, whole_run: bytes, kept: float
) -> None:
    """The file ends anywhere: within a line, after one, within a batch."""
    complete(tmp_path, model, grid_of())
    size = int(len(whole_run) * kept) if kept < 1 else whole_run.index(b"\n") + 1
    (tmp_path / "results.jsonl").write_bytes(whole_run[:size])
    with opened(tmp_path, model, grid_of()) as store:
        assert len(store.lines) < 18
        assert len(store.lines) == sum(map(len, engine.keys(grid_of())[: store.n_batches]))
    complete(tmp_path, model, grid_of())
    assert (tmp_path / "results.jsonl").read_bytes() == whole_run
    assert len((tmp_path / "timings.jsonl").read_bytes().splitlines()) == 6


def test_a_batch_without_its_timing_is_written_anew(model: Model, tmp_path: Path, whole_run: bytes) -> None:
    complete(tmp_path, model, grid_of())
    timings = (tmp_path / "timings.jsonl").read_bytes()
    (tmp_path / "timings.jsonl").write_bytes(timings[:-5])
    with opened(tmp_path, model, grid_of()) as store:
        assert store.n_batches == 5
    complete(tmp_path, model, grid_of())
    assert (tmp_path / "results.jsonl").read_bytes() == whole_run


def test_a_write_that_stops_in_the_middle_loses_only_its_batch(
    model: Model, tmp_path: Path, whole_run: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The power fails when half of the third batch is on the disk."""
    usual, calls = results._append, 0

    def torn(file: Any, lines: Sequence[Mapping[str, Any]]) -> None:
        nonlocal calls
        calls += 1
        usual(file, lines)
        if calls == 6:  # the results of the third batch
            file.truncate(file.tell() - len(json.dumps(lines[-1], ensure_ascii=False).encode()) - 40)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(results, "_append", torn)
        with pytest.raises(KeyboardInterrupt):
            complete(tmp_path, model, grid_of())
    with opened(tmp_path, model, grid_of()) as store:
        assert store.n_batches == 2
    complete(tmp_path, model, grid_of())
    assert (tmp_path / "results.jsonl").read_bytes() == whole_run


def test_nothing_is_generated_twice(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    complete(tmp_path, model, grid_of(), stop_after=4)
    computed = []
    usual = engine.generate_batch
    monkeypatch.setattr(
        engine,
        "generate_batch",
        lambda model, whole, batch: computed.append(batch) or usual(model, whole, batch),
    )
    complete(tmp_path, model, grid_of())
    complete(tmp_path, model, grid_of())
    assert computed == engine.plan(grid_of())[4:]


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
    monkeypatch.setattr(trace, "fingerprint", lambda folder: "other")
    with pytest.raises(ValueError, match=r"model\.fingerprint is .* now"):
        opened(tmp_path, model, grid_of())


def test_files_that_were_changed_are_refused(model: Model, tmp_path: Path, whole_run: bytes) -> None:
    complete(tmp_path, model, grid_of(), stop_after=1)
    path, lines = tmp_path / "results.jsonl", whole_run.splitlines(keepends=True)
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
    path.write_bytes(whole_run)
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
