"""Many prompts in batches: the same tokens whatever the size of a batch, and all rows in order."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import entropix
from entropix import generation, trace
from entropix.batching import Batches
from entropix.checkpoint.loading import Model
from entropix.generation import GenerationRequest, collect
from entropix.main import main
from entropix.replay import first_difference
from entropix.results import Result

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
    return collect(request, Batches(request, size).run())


def tokens(results: list[Result]) -> list[tuple[object, ...]]:
    """All of them but the numbers of the records, whose last bits may depend on the shapes."""
    return [(result.prompt_ids, result.token_ids, result.text, result.finish) for result in results]


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


def test_passes_and_tokens_are_those_of_all_batches_without_rows_that_only_fill_up(model: Model) -> None:
    batches = Batches(job_of(model, ignore_stop_tokens=True), 3)
    assert len(list(batches.run())) == 9 * len(PROMPTS)
    assert (batches.n_passes, batches.n_computed) == (3 * 9, 9 * len(PROMPTS))


def test_a_batch_has_no_more_rows_than_asked_for_and_all_have_the_same(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual, sizes = generation.run, []
    monkeypatch.setattr(
        generation,
        "run",
        lambda request, session: sizes.append(len(request.prompt_ids)) or usual(request, session),
    )
    for size, expected in ((1, [1] * 7), (3, [3, 3, 3]), (4, [4, 4]), (6, [4, 4]), (7, [7])):
        found(model, size)
        assert sizes == expected
        sizes.clear()


def test_a_size_without_rows_is_refused(model: Model) -> None:
    with pytest.raises(ValueError, match="a batch needs at least one row, got 0"):
        Batches(job_of(model), 0)


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
    plain = [run_command(main, *flags, "--batch-size", size)[1] for size in ("32", "2")]
    assert plain[0] == plain[1] and plain[0].count("==> prompt ") == len(PROMPTS)


def test_more_prompts_than_a_batch_holds_replay(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = generation.prepare(model, ["Why?"] * 40, sampler="temperature", max_new_tokens=2)
    path = tmp_path / "many.jsonl"
    trace.write(path, request, collect(request, Batches(request).run()))
    assert first_difference(model, trace.read(path)) is None


@pytest.mark.parametrize("size", ["0", "-1"])
def test_the_flag_takes_at_least_one(run_command: Run, prompt_file: str, size: str) -> None:
    code, _, error = run_command(main, "--prompt-file", prompt_file, f"--batch-size={size}")
    assert (code, error) == (1, f"error: --batch-size must be at least 1, got {size}\n")
