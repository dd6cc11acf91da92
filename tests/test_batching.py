"""Many prompts in batches: the same tokens whatever the size of a batch, and all rows in order."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import meshes
import pytest
import toy

import entropix
from entropix import generation, trace
from entropix.checkpoint.loading import Model
from entropix.decoding import loop
from entropix.decoding.batching import ContinuousBatch
from entropix.generation import GenerationRequest, collect
from entropix.main import main
from entropix.replay import first_difference
from entropix.results import Result, add

Run = Callable[..., tuple[int, str, str]]
PROMPTS = [
    "Why?",
    "How so?",
    "Why?",
    "Who?",
    "Why?",
    "How so?",
    "Why?",
]  # repeated across batches, and within


@pytest.fixture(scope="module")
def model(toy_folder: str) -> Model:
    return entropix.load(toy_folder)


@pytest.fixture
def prompt_file(tmp_path: Path) -> str:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS), encoding="utf-8")
    return str(path)


def job_of(model: Model, **options: object) -> GenerationRequest:
    return generation.prepare(model, PROMPTS, sampler="temperature", max_new_tokens=9, **options)


def found(model: Model, size: int, **options: object) -> list[Result]:
    request = job_of(model, **options)
    return collect(request, ContinuousBatch(request, size).run())


def tokens(results: list[Result]) -> list[tuple[object, ...]]:
    """All of them but the numbers of the records, whose last bits may depend on the shapes."""
    return [(result.prompt_ids, result.token_ids, result.text, result.finish) for result in results]


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"seed": 5}, {"seeds": (1, 2, 1, 1, 2, 2, 3)}])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 8])
def test_the_size_of_a_batch_changes_no_token(model: Model, size: int, options: dict[str, object]) -> None:
    request = job_of(model, **options)
    whole = collect(request, generation.run(request))
    assert tokens(found(model, size, **options)) == tokens(whole)


def test_a_prompt_that_is_repeated_in_another_batch_draws_anew(model: Model) -> None:
    answers = [
        tuple(result.token_ids)
        for result, prompt in zip(found(model, 2), PROMPTS, strict=True)
        if prompt == "Why?"
    ]
    assert len(answers) == len(set(answers)) == 4


def test_the_same_prompt_with_other_seeds_is_no_repetition(model: Model) -> None:
    """With the seeds 1 and 2 the first answer to a prompt is that of the prompt alone."""
    results = found(model, 2, seeds=(1, 2, 2, 1, 3, 3, 4))
    for row, seed in ((0, 1), (2, 2), (4, 3), (6, 4)):
        [alone] = entropix.generate(model, "Why?", sampler="temperature", max_new_tokens=9, seed=seed)
        assert tokens([results[row]]) == tokens([alone])


@pytest.mark.slow
def test_passes_and_tokens_are_those_of_all_batches_without_rows_that_only_fill_up(model: Model) -> None:
    batches = ContinuousBatch(job_of(model, ignore_stop_tokens=True), 3)
    assert len(list(batches.run())) == 9 * len(PROMPTS)
    assert (batches.n_passes, batches.n_computed) == (3 * 9, 9 * len(PROMPTS))  # 3 rows, then 3, then 1


LONG = [9, 8, 7] * 50  # tokens that some prompts begin with: they are copied from a row that has them
MIXED = [[*LONG, 1], [5], [*LONG, 2, 3], [6] * 300, [7, 7], [*LONG, 4], [8], [9, 1]]
WAYS: dict[str, dict[str, object]] = {
    "plain": {"sampler": "entropix", "chunk_length": 3},
    "guarded": {"sampler": "min-p", "sampler_config": {"repetition_penalty": 1.3}},
    "drafts": {"sampler": "temperature", "sampler_config": {"temp": 0.2}, "speculate": 3},
    "branches": {"sampler": "top-p", "branching": {"paths": 2, "depth": 2, "entropy": 5.0, "distance": 3}},
    "retreats": {"sampler": "top-p", "backtracking": {"tokens": 2, "strategies": ["top-p"], "budget": 2}},
    "stops": {"sampler": "top-p", "stop": ("a", "e", "i", "o", "u"), "chunk_length": 4},
}
ENDING = tuple(range(0, 256, 17))  # about one token in seventeen, so that rows end at different times


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_a_row_that_takes_the_next_prompt_answers_it_as_a_row_of_its_own(way: str) -> None:
    """Prompts that need a larger cache, that begin alike, of one token; every kind of state that a row has."""
    model = toy.model_of(stop_ids=ENDING, n_layers=1)
    request = generation.prepare(model, MIXED, max_new_tokens=40, seed=3, **WAYS[way])
    whole, batch = collect(request, generation.run(request)), ContinuousBatch(request, 3)
    found = collect(request, batch.run())
    assert tokens(found) == tokens(whole)
    meshes.assert_close([result.records for result in found], [result.records for result in whole])
    assert len({len(result.token_ids) for result in whole}) > 2
    computed = [batch.cost(number).computed for number in range(len(MIXED))]
    assert batch.n_computed == sum(computed)
    if way in ("plain", "guarded"):
        kept = sum(map(len, (result.token_ids for result in whole)))
        assert sum(computed) == kept and batch.n_passes <= 0.6 * kept


@pytest.mark.slow
def test_a_long_run_compiles_nothing_new_and_prompts_may_come_while_it_runs() -> None:
    model = toy.model_of(stop_ids=ENDING, n_layers=1)
    programs = (loop.decode_chunk, loop.prefill, loop.put_rows, loop.gather_rows, loop.commit)
    prompts = [[i, i + 1] for i in range(40)]

    def answered(n_first: int) -> list[Result]:
        request = generation.prepare(model, prompts, sampler="top-p", max_new_tokens=40, seed=3)
        batch = ContinuousBatch(request.of_rows(range(n_first)), 3)
        results, rest = [Result(ids) for ids in prompts], request.of_rows(range(n_first, len(prompts)))
        batch.complete = not rest.prompt_ids
        for event in batch.run():
            add(results, event)
            if event.finish and not batch.complete:
                batch.complete = True
                assert batch.add(rest) == range(n_first, len(prompts))
        return results

    whole = answered(len(prompts))
    before = [program._cache_size() for program in programs]
    assert tokens(answered(4)) == tokens(whole)
    assert [program._cache_size() for program in programs] == before


SETS: dict[str, list[dict[str, float]]] = {
    "entropix": [{}, {"low_ent_thresh": 6.5, "low_vent_thresh": 9.0}, {"temp": 2.0, "high_ent_thresh": 1.0}],
    "min-p": [{"min_p": 0.5}, {"temp": 1.5, "min_p": 0.01}, {"repetition_penalty": 1.5}],
    "mirostat": [{"mirostat_tau": 1.0}, {"mirostat_tau": 8.0}, {}],
    "top-n-sigma": [{"top_n_sigma": 0.5}, {"top_n_sigma": 2.0, "temp": 3.0}, {}],
}


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SETS)
def test_rows_with_numbers_of_their_own_are_those_of_single_runs(sampler: str) -> None:
    """Three sets of numbers for two prompts, in two rows, of one program."""
    model = toy.model_of(stop_ids=ENDING, n_layers=1)
    options = {"sampler": sampler, "max_new_tokens": 20, "seed": 3}
    prompts, sets = [[5, 6], [9, 1, 2]], SETS[sampler]
    each = [(prompt, numbers) for prompt in prompts for numbers in sets]
    found = generation.generate(
        model,
        [prompt for prompt, _ in each],
        sampler_config=[numbers for _, numbers in each],
        occurrences=[0] * len(each),
        batch_size=2,
        **options,
    )
    alone = [
        generation.generate(model, [prompt], sampler_config=numbers, **options)[0] for prompt, numbers in each
    ]
    assert tokens(found) == tokens(alone)
    assert len({tuple(result.token_ids) for result in found}) > len(prompts)


@pytest.mark.slow
def test_forks_and_steps_back_take_the_numbers_of_their_row() -> None:
    model = toy.model_of(stop_ids=ENDING, n_layers=1)
    options = {
        "sampler": "top-p",
        "max_new_tokens": 16,
        "seed": 3,
        "branching": {"paths": 2, "depth": 2, "entropy": 5.0, "distance": 3},
        "backtracking": {"tokens": 2, "strategies": ["top-p"], "budget": 2},
    }
    sets = [{"temp": 0.3}, {"temp": 2.0}, {"top_p": 0.2}]
    found = generation.generate(
        model, [[5, 6]] * 3, sampler_config=sets, occurrences=[0] * 3, batch_size=2, **options
    )
    alone = [generation.generate(model, [[5, 6]], sampler_config=numbers, **options)[0] for numbers in sets]
    assert tokens(found) == tokens(alone)
    assert any("branches" in record for result in found for record in result.records)


def test_rows_that_are_not_of_one_program_are_refused(model: Model, tmp_path: Path) -> None:
    sets = [{"max_top_k": 30}, {}]
    with pytest.raises(
        ValueError, match="the same max_top_k, which is part of their program, got 30 and 128"
    ):
        generation.prepare(model, ["a", "b"], sampler="entropix", sampler_config=sets)
    with pytest.raises(ValueError, match="3 sets of numbers for 2 prompts"):
        generation.prepare(model, ["a", "b"], sampler="min-p", sampler_config=[{}, {}, {}])
    request = generation.prepare(model, ["a", "b"], sampler="min-p", sampler_config=[{}, {"min_p": 0.3}])
    with pytest.raises(ValueError, match="a trace has one set of numbers"):
        trace.write(tmp_path / "t.jsonl", request, [])


@pytest.mark.slow
def test_what_all_prompts_begin_with_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = toy.model_of(n_layers=1), [[*LONG, i] for i in range(5)]
    request = generation.prepare(model, prompts, sampler="top-p", max_new_tokens=4, seed=3)
    fed: list[int] = []
    prefill = loop.prefill

    def counted(
        weights: object, tokens_BT: object, count_B: jax.Array, *rest: object, **options: object
    ) -> object:
        fed.append(int(count_B.sum()))
        return prefill(weights, tokens_BT, count_B, *rest, **options)

    monkeypatch.setattr(loop, "prefill", counted)
    found = collect(request, ContinuousBatch(request, 2).run())
    assert sum(fed) == len(LONG)
    alone = [collect(one, generation.run(one))[0] for one in map(request.of_rows, ([i] for i in range(5)))]
    assert tokens(found) == tokens(alone)


def test_a_size_without_rows_is_refused(model: Model) -> None:
    with pytest.raises(ValueError, match="a batch needs at least one row, got 0"):
        ContinuousBatch(job_of(model), 0)


@pytest.mark.slow
def test_the_command_prints_and_traces_all_rows_in_order_whatever_the_size(
    run_command: Run, toy_folder: str, prompt_file: str, tmp_path: Path, model: Model
) -> None:
    flags = ("--prompt-file", prompt_file, "--weights", toy_folder, "--seed", "3", "--max-new-tokens", "9")
    traces, told = [], []
    for size in ("32", "2"):
        path = tmp_path / f"{size}.jsonl"
        code, out, _ = run_command(main, *flags, "--batch-size", size, "--json", "--trace", str(path))
        assert code == 0
        told.append([json.loads(line) for line in out.splitlines()])
        traces.append(trace.read(path))
    assert told[0] == told[1] and [row["row"] for row in told[0]] == list(range(len(PROMPTS)))
    assert traces[0].header == traces[1].header
    assert tokens(traces[0].results) == tokens(traces[1].results)
    assert [result.token_ids for result in traces[1].results] == [row["token_ids"] for row in told[1]]
    assert first_difference(model, traces[1]) is None
    code, out, _ = run_command(main, *flags, "--batch-size", "2", "--json", "--as-completed")
    ended = list(map(json.loads, out.splitlines()))
    assert code == 0 and sorted(ended, key=lambda line: int(line["row"])) == told[0]
    plain = [run_command(main, *flags, "--batch-size", size)[1] for size in ("32", "2")]
    assert plain[0] == plain[1] and plain[0].count("==> prompt ") == len(PROMPTS)


@pytest.mark.slow
def test_more_prompts_than_a_batch_holds_replay(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = generation.prepare(model, ["Why?"] * 40, sampler="temperature", max_new_tokens=2)
    path = tmp_path / "many.jsonl"
    trace.write(path, request, collect(request, ContinuousBatch(request).run()))
    assert first_difference(model, trace.read(path)) is None


@pytest.mark.parametrize("size", ["0", "-1"])
def test_the_flag_takes_at_least_one(run_command: Run, prompt_file: str, size: str) -> None:
    code, _, error = run_command(main, "--prompt-file", prompt_file, f"--batch-size={size}")
    assert (code, error) == (1, f"error: --batch-size must be at least 1, got {size}\n")
