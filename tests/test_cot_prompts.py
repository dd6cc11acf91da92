"""Several paths for each of many prompts: batches that are full, answers that are those of each prompt alone."""

import dataclasses
import json
from typing import Any

import pytest
import toy
from commands import Command, interrupt_after

from entropix import replay, trace
from entropix.checkpoint.loading import Model
from entropix.console import paths as output
from entropix.console.terminal import Show
from entropix.cot import parallel
from entropix.cot.parallel import CotResult
from entropix.cot.plan import Plan
from entropix.decoding import loop
from entropix.generation import prepare
from entropix.report import tree
from entropix.results import FinishReason

pytestmark = pytest.mark.slow

PROMPTS = [[17, 4, 200, 31, 8], [17, 4, 200, 31, 20], [9] * 20, [17, 4, 200, 31, 8], [3, 1, 4]]
OPTIONS: dict[str, Any] = {"sampler": "top-p", "max_new_tokens": 24, "seed": 5, "chunk_length": 2}
STOPS = tuple(range(0, 256, 9))  # about one token in nine, so that rows end at different times
PLANS = {
    "start": Plan(4, extract="text"),
    "explore": Plan(4, "explore", extract="text", entropy=0.0),
    "best of": Plan(4, "none", "borda", "text"),
    "self-consistency": Plan(6, "none", "majority", "regex:(?s)^(.)"),
}
# So that votes are decided before all paths have ended, of which the last character may begin a stop string then.
COLD = {"sampler_config": {"temp": 0.2}, "stop": tuple(chr(i) + "\0" for i in range(1, 128))}


@pytest.fixture(scope="module")
def model() -> Model:
    """One layer, which compiles faster."""
    return toy.model_of(stop_ids=STOPS, n_layers=1)


def options_of(name: str) -> dict[str, Any]:
    return OPTIONS | (COLD if name == "self-consistency" else {})


def told(result: CotResult) -> list[Any]:
    """All that a prompt's paths are, and what they have cost."""
    paths = [
        (
            path.result.token_ids,
            path.result.text,
            path.result.finish,
            path.answer,
            (path.parent, path.position, path.given, path.seed),
            (path.forward_passes, path.computed_tokens),
        )
        for path in result.paths
    ]
    return [result.chosen, result.decided_early, result.interrupted, *paths]


@pytest.mark.parametrize("name", PLANS)
def test_each_prompt_has_the_paths_that_it_has_alone_whatever_the_batch(model: Model, name: str) -> None:
    plan, options = PLANS[name], options_of(name)
    alone = [parallel.run(prepare(model, prompt, **options), plan) for prompt in PROMPTS]
    assert len({result.text for result in alone}) == 4  # one prompt is there twice
    if name == "self-consistency":
        assert any(result.decided_early for result in alone)
    for most_rows in (3, 2 * plan.paths + 1, 64):
        together = [*parallel.answer_all(model, PROMPTS, plan, most_rows=most_rows, **options)]
        if name == "self-consistency":  # which paths are ended with the vote depends on which have begun
            assert [(r.chosen, r.text, r.winner.answer) for r in together] == [
                (r.chosen, r.text, r.winner.answer) for r in alone
            ]
            continue
        assert list(map(told, together)) == list(map(told, alone))


def test_more_samples_are_drawn_where_the_first_was_unsure_and_nowhere_else(model: Model) -> None:
    """The same samples as without that; alone and in one batch."""
    plan = PLANS["best of"]
    always = [parallel.run(prepare(model, prompt, **OPTIONS), plan) for prompt in PROMPTS]
    most = [max(r["logits_entropy"] for r in result.paths[0].result.records) for result in always]
    above = (max(most) + min(most)) / 2
    some = dataclasses.replace(plan, above=above)
    alone = [parallel.run(prepare(model, prompt, **OPTIONS), some) for prompt in PROMPTS]
    assert list(map(told, parallel.answer_all(model, PROMPTS, some, most_rows=5, **OPTIONS))) == list(
        map(told, alone)
    )
    for bits, result, whole in zip(most, alone, always, strict=True):
        n = plan.paths if bits > above else 1
        assert told(result)[3:] == told(whole)[3 : 3 + n]
        first, *others = (path.forward_passes for path in result.paths)
        assert result.forward_passes == first + max(others, default=0)
        said = "so it is the only one" in " ".join(output.notes(result, 7))
        assert said == (n == 1) and output.selection_header(result)["above"] == above
    assert {len(result.paths) for result in alone} == {1, plan.paths}


def test_what_all_prompts_begin_with_is_read_once(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [[*range(70), 5], [*range(70), 6, 7, 8, 9], [*range(70), 6, 1]]
    plans = [*PLANS.values()][:3]
    alone = [[parallel.run(prepare(model, prompt, **OPTIONS), plan) for prompt in prompts] for plan in plans]
    fed: list[list[int]] = []
    prefill = loop.prefill

    def counted(weights: Any, tokens_BT: Any, length_B: Any, *rest: Any, **options: Any) -> Any:
        fed.append(length_B.tolist())
        return prefill(weights, tokens_BT, length_B, *rest, **options)

    monkeypatch.setattr(loop, "prefill", counted)
    for plan, results in zip(plans, alone, strict=True):
        fed.clear()
        together = list(parallel.answer_all(model, prompts, plan, **OPTIONS))
        assert fed[0] == [70] and all(max(new) <= 3 for new in fed[1:])
        assert list(map(told, together)) == list(map(told, results))


def test_prompts_with_seeds_of_their_own_have_the_paths_of_these(model: Model) -> None:
    options = {**OPTIONS, "seeds": (5, 6), "occurrences": (0, 0)}
    found = parallel.answer_all(model, [PROMPTS[0]] * 2, PLANS["best of"], **options)
    for result, seed in zip(found, (5, 6), strict=True):
        alone = parallel.run(prepare(model, PROMPTS[0], **{**OPTIONS, "seed": seed}), PLANS["best of"])
        assert told(result) == told(alone)


def test_paths_of_all_prompts_fill_the_rows_of_a_batch(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    chunk = loop.decode_chunk

    def watched(weights: Any, inputs: Any, *rest: Any) -> Any:
        seen.append(len(inputs.key_B))
        return chunk(weights, inputs, *rest)

    monkeypatch.setattr(loop, "decode_chunk", watched)
    request = prepare(model, PROMPTS, **OPTIONS)
    for most_rows, widest in ((6, 6), (64, 20)):
        seen.clear()
        together = parallel.ParallelPaths(request, PLANS["best of"], most_rows)
        found = list(together.run())
        assert seen[0] == max(seen) == widest
        lengths = [path.forward_passes for result in found for path in result.paths]
        assert max(lengths) <= together.n_passes <= sum(lengths) // widest + 2 * max(lengths)


@pytest.mark.parametrize("name", PLANS)
def test_an_interrupt_keeps_the_prompts_that_are_done(model: Model, name: str) -> None:
    plan, options = PLANS[name], options_of(name)
    request = prepare(model, PROMPTS, **options)
    most_rows, done = plan.paths, []

    def until_two_are_done(events: Any, more: int) -> Any:
        for event in events:
            more -= len(done) >= 2
            if more < 0:
                return
            yield event

    whole = list(parallel.run_all(request, plan, most_rows=most_rows))
    for n in (0, 3):
        done.clear()
        for result in parallel.run_all(request, plan, lambda e, n=n: until_two_are_done(e, n), most_rows):
            done.append(result)
        assert list(map(told, done[:2])) == list(map(told, whole[:2]))
        assert len(done) == 5
        if name != "explore":  # whose first passes all begin at once, and end at about the same time
            assert any(result.interrupted for result in done)
        for cut, complete in zip(done, whole, strict=True):
            for path, other in zip(cut.paths, complete.paths, strict=False):
                assert path.result.token_ids == other.result.token_ids[: len(path.result.token_ids)]


@pytest.mark.parametrize("name", PLANS)
def test_logits_that_are_not_finite_spoil_no_other_prompt(name: str) -> None:
    broken, plan = toy.with_a_broken_token(77), PLANS[name]
    prompts = [[1, 2], [1, 77], [3, 1]]
    found = list(parallel.answer_all(broken, prompts, plan, **OPTIONS))
    assert {path.result.finish for path in found[1].paths} == {FinishReason.NAN}
    for prompt, result in ((prompts[0], found[0]), (prompts[2], found[2])):
        assert told(result) == told(parallel.run(prepare(broken, prompt, **OPTIONS), plan))


def test_what_cannot_be_is_said_before_anything_runs(model: Model) -> None:
    context = model.config.context_length
    with pytest.raises(ValueError, match=f"prompt 2 has {context - 1} tokens, .* paths need two more"):
        parallel.answer_all(model, [[1], [1] * (context - 1)], Plan(2), **OPTIONS)
    with pytest.raises(ValueError, match="at least one row, got 0"):
        parallel.answer_all(model, PROMPTS, Plan(2), most_rows=0, **OPTIONS)


# ----- the command --------------------------------------------------------------------------------------------

BEST = ("--best-of", "3", "--extract", "text", "--sampler", "top-p")


def said(entry: dict[str, Any]) -> dict[str, Any]:
    """An object of --json without the prompt's number and the scores, which other shapes round otherwise."""
    left_out = ("scores", "prompt")
    paths = [{key: value for key, value in path.items() if key not in left_out} for path in entry["paths"]]
    return {**entry, "row": 0, "paths": paths}


def test_answers_come_in_the_order_of_the_prompts_with_their_paths(
    command: Command, prompt_file: str, run_command: Any, toy_folder: str, tmp_path: Any
) -> None:
    file = tmp_path / "paths.jsonl"
    code, out, err = command("--prompt-file", prompt_file, *BEST)
    objects = [
        json.loads(line) for line in command("--prompt-file", prompt_file, *BEST, "--json").out.splitlines()
    ]
    assert code == 0 and [entry["row"] for entry in objects] == [0, 1]
    assert out == "\n".join(
        f"==> prompt {i} <==\n{entry['text']}\n" for i, entry in enumerate(objects, start=1)
    )
    assert "prompt 2: chose path" in err
    for prompt, entry in zip(("Why?", "How?"), objects, strict=True):
        alone = json.loads(command("--prompt", prompt, *BEST, "--json").out)
        assert said(entry) == said(alone)
        assert entry["token_ids"] == entry["paths"][entry["chosen"]]["token_ids"]

    assert command("--prompt-file", prompt_file, *BEST, "--trace", str(file), "--batch-size", "3").code == 0
    read = trace.read(file)
    assert [path["prompt"] for path in read.header["paths"]] == [0, 0, 0, 1, 1, 1]
    assert [r.token_ids for r in read.results] == [p["token_ids"] for e in objects for p in e["paths"]]
    assert run_command(replay.main, str(file), "--weights", toy_folder)[0] == 0
    shown = tree.paths(read)
    assert (
        shown is not None
        and shown["why"].startswith("Prompt 1: path ")
        and "\nPrompt 2: path " in shown["why"]
    )
    assert shown["summary"].startswith("6 paths of 2 prompts;")


def test_a_prompt_that_comes_twice_answers_the_same_and_its_trace_repeats(
    command: Command, run_command: Any, toy_folder: str, tmp_path: Any
) -> None:
    (tmp_path / "twice.txt").write_text("Why?\nWhy?\n")
    file = tmp_path / "twice.jsonl"
    out = command("--prompt-file", str(tmp_path / "twice.txt"), *BEST, "--json", "--trace", str(file)).out
    one, other = map(json.loads, out.splitlines())
    assert one["text"] == other["text"]
    assert run_command(replay.main, str(file), "--weights", toy_folder)[0] == 0


def test_forks_of_a_later_prompt_have_their_parents_row_in_the_trace(
    command: Command, prompt_file: str, tmp_path: Any
) -> None:
    file = tmp_path / "forks.jsonl"
    explore = ("--cot", "3", "--cot-at", "explore", "--cot-entropy", "0", *BEST[2:])
    assert command("--prompt-file", prompt_file, *explore, "--trace", str(file)).code == 0
    paths = trace.read(file).header["paths"]
    assert [(path["prompt"], path["parent"]) for path in paths] == [
        *((0, None), (0, 0), (0, 0)),
        *((1, None), (1, 3), (1, 3)),
    ]


def test_ctrl_c_prints_what_is_done_and_ends_with_its_code(
    command: Command, prompt_file: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = [
        json.loads(line) for line in command("--prompt-file", prompt_file, *BEST, "--json").out.splitlines()
    ]
    interrupt_after(monkeypatch, 3 * 12 + 7)  # three paths, and in the fourth of the chunk
    flags = ("--prompt-file", prompt_file, *BEST, "--json", "--trace", str(tmp_path / "t.jsonl"))
    ended = command(*flags)
    first, second = map(json.loads, ended.out.splitlines())
    assert ended.code == 130
    assert said(first) == said(whole[0])
    assert [path["new_tokens"] for path in second["paths"]] == [7, 0, 0]
    assert second["finish"] == "interrupted"
    assert len(trace.read(tmp_path / "t.jsonl").results) == 6


def test_a_prompt_whose_logits_are_not_finite_ends_with_an_error_after_the_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    request = prepare(toy.with_a_broken_token(77), [[1, 77], [1, 2]], **OPTIONS)
    with pytest.raises(ValueError, match="prompt 1: the model's logits were not finite"):
        output.answer(request, PLANS["best of"], Show(json=True))
    assert [json.loads(line)["finish"] == "nan" for line in capsys.readouterr().out.splitlines()] == [
        True,
        False,
    ]
