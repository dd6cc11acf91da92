"""What the command line prints where, of one answer and of several."""

import importlib
import io
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import folders
import pytest
from commands import MIXED, STOPPED, Command, type_in

import entropix
from entropix import paths, trace
from entropix.checkpoint import loading
from entropix.checkpoint.loading import Model
from entropix.console import terminal
from entropix.console.cli import DeviceFlags
from entropix.decoding.batching import ContinuousBatch
from entropix.main import main
from entropix.metrics import Metrics
from entropix.results import FinishReason, TokenEvent
from entropix.samplers.entropix import STRATEGIES
from entropix.trace import run_statistics

sys.path.append(str(entropix.PACKAGE_ROOT.parent / "scripts"))
draw_terminal = importlib.import_module("draw_terminal")

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(scope="module")
def model(toy_folder: str) -> Model:
    return entropix.load(toy_folder)


def test_the_default_model_is_fetched_where_somebody_says_so(
    run_command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Anything but yes fetches nothing, the end of the input (Ctrl-D) too, and a pipe is not even asked."""
    fetched: list[Path] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(paths, "weights_roots", lambda: [tmp_path])
    monkeypatch.setattr(terminal, "download_listed", lambda name, folder: fetched.append(folder))
    for answer, on_terminal in (("n\n", True), ("", False), ("", True), ("\n", True)):
        type_in(monkeypatch, answer)
        monkeypatch.setattr(sys.stdin, "isatty", lambda on=on_terminal: on)
        monkeypatch.setattr(sys.stderr, "isatty", lambda on=on_terminal: on)
        capsys.readouterr()
        with pytest.raises(ValueError, match=r"entropix\.download"):
            terminal.load(None, None, DeviceFlags())
        asked = (
            "the default model, smollm2-135m-instruct, is not there; fetch it (93 MB)"
            in capsys.readouterr().err
        )
        assert asked == on_terminal
    assert fetched == [tmp_path / "smollm2-135m-instruct"]


def test_a_beginning_that_is_typed_is_there_once_and_said(
    command: Command, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = folders.write_checkpoint(tmp_path / "toy")
    settings = json.loads((weights / "tokenizer_config.json").read_text())
    settings |= {"bos_token": "<|endoftext|>", "add_bos_token": True}
    (weights / "tokenizer_config.json").write_text(json.dumps(settings))
    flags = ("--raw", "--allow-special", "--prompt")
    typed = command(*flags, "<|endoftext|>Why?", weights=weights)
    plain = command(*flags, "Why?", weights=weights)
    assert typed.out == plain.out
    assert (
        typed.err
        == "the text begins with <|endoftext|> itself, which every text begins with: it is there once\n"
        + plain.err
    )


# ----- one answer -------------------------------------------------------------------------------------------


def test_the_answer_alone_goes_to_stdout(command: Command, model: Model) -> None:
    [result] = entropix.generate(model, "Why?", seed=1, max_new_tokens=12)
    assert command("--prompt", "Why?") == (0, result.text + "\n", "seed: 1\n" + STOPPED)


def test_a_prompt_may_come_from_stdin(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    type_in(monkeypatch, "Why?\n")
    assert command("--prompt", "-") == command("--prompt", "Why?")


def test_the_flags_reach_the_generation(command: Command, model: Model) -> None:
    flags = ("--sampler", "greedy", "--max-new-tokens", "5")
    options = {"sampler": "greedy", "max_new_tokens": 5}
    [result] = entropix.generate(model, "<|im_end|>", raw=True, allow_special=True, **options)
    assert command("--prompt", "<|im_end|>", *flags, "--raw", "--allow-special").out == result.text + "\n"
    [result] = entropix.generate(model, "Why?", system="Be brief.", **options)
    assert command("--prompt", "Why?", *flags, "--system", "Be brief.").out == result.text + "\n"


def test_weights_dtype_and_adapter_reach_the_loader(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*args: object) -> None:
        raise ValueError(args)

    monkeypatch.setattr(loading, "load", load)
    asked = command("--prompt", "a", "--dtype", "bfloat16", "--adapter", "mine", weights="here")
    assert asked == (1, "", "error: ('here', 'bfloat16', None, 'mine')\n")


def test_a_drawn_seed_is_printed_and_repeats_the_answer(
    toy_folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--weights", toy_folder, "--prompt", "Why?", "--max-new-tokens", "12"]
    main(args)
    first = capsys.readouterr()
    seed = re.match(r"seed: (\d+)\n", first.err)
    assert seed is not None
    main([*args, "--seed", seed[1]])
    assert capsys.readouterr() == first


def test_an_answer_the_model_ends_itself_needs_no_remark(
    command: Command, model: Model, tmp_path: Path
) -> None:
    """The same weights, in a checkpoint where the fourth token of the answer is a stop token."""
    [result] = entropix.generate(model, "Why?", seed=1, max_new_tokens=12)
    stop = result.token_ids[3]
    assert stop not in result.token_ids[:3]
    folder = folders.write_checkpoint(tmp_path / "quiet", eos_token_id=stop)
    before = model.tokenizer.decode(result.token_ids[:3])
    assert command("--prompt", "Why?", weights=folder) == (0, before + "\n", "seed: 1\n")


def test_a_stop_string_ends_the_answer_and_is_no_part_of_it(command: Command) -> None:
    whole = command("--prompt", "Why?").out
    ended = command("--prompt", "Why?", "--stop", "none such", "--stop", whole[4:6])
    assert ended.out == whole[: whole.index(whole[4:6])] + "\n"
    assert ended.err == "seed: 1\nstopped after 6 tokens: a stop string appeared\n"


def test_the_prompts_are_not_written_over_by_their_trace(command: Command, prompt_file: str) -> None:
    code, _, errors = command("--prompt-file", prompt_file, "--trace", prompt_file)
    assert code == 1 and "is read from and would be lost" in errors
    assert Path(prompt_file).read_text() == "Why?\nHow?\n"


def test_logits_that_are_not_finite_end_with_1(command: Command, tmp_path: Path) -> None:
    folder = folders.write_checkpoint(tmp_path / "wild")
    tensors = folders.read_tensors(folder)
    tensors["model.norm.weight"][:] = 3e38  # finite, but what it makes of the logits is not
    folders.write_tensors(folder, tensors)
    ended = command("--prompt", "Why?", "--trace", str(tmp_path / "t.jsonl"), weights=folder)
    assert (ended.code, ended.out) == (1, "\n")
    assert ended.err == f"seed: 1\nerror: prompt 1: {FinishReason.NAN.sentence}\n"
    assert trace.read(tmp_path / "t.jsonl").results[0].finish == FinishReason.NAN


# ----- several answers --------------------------------------------------------------------------------------


def answers_of(out: str) -> list[str]:
    """The answers that a script finds between the headings."""
    heading, *parts = re.split(r"(?:^|\n)==> prompt \d+ <==\n", out)
    assert heading == ""
    assert re.findall(r"==> prompt (\d+) <==", out) == [str(i + 1) for i in range(len(parts))]
    return [part[:-1] for part in parts]


def test_several_answers_stand_below_headings(command: Command, model: Model, prompt_file: str) -> None:
    results = entropix.generate(model, ["Why?", "How?"], seed=1, max_new_tokens=12)
    ended = command("--prompt-file", prompt_file)
    assert answers_of(ended.out) == [result.text for result in results]
    assert ended.err == "seed: 1\n" + "".join(f"prompt {i}: {STOPPED}" for i in (1, 2))


def test_answers_come_in_the_order_of_the_prompts(
    command: Command, prompt_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the last prompt is done first."""
    usual = ContinuousBatch.run

    def backwards(batch: ContinuousBatch) -> Iterator[TokenEvent]:
        yield from sorted(usual(batch), key=lambda event: -event.row)

    expected = command("--prompt-file", prompt_file)
    monkeypatch.setattr(ContinuousBatch, "run", backwards)
    assert command("--prompt-file", prompt_file) == expected


def test_json_is_an_object_a_prompt(command: Command, model: Model, prompt_file: str) -> None:
    results = entropix.generate(model, ["Why?", "How?"], seed=1, max_new_tokens=12)
    ended = command("--prompt-file", prompt_file, "--json")
    objects = [json.loads(line) for line in ended.out.split("\n")[:-1]]
    assert objects == [
        {
            "row": row,
            "text": result.text,
            "token_ids": result.token_ids,
            "finish": "length",
            "reason": "max_new_tokens was reached",
            "seed": 1,
            "prompt_tokens": len(result.prompt_ids),
            "new_tokens": 12,
            "strategies": run_statistics.strategy_counts([result], STRATEGIES),
        }
        for row, result in enumerate(results)
    ]


def test_json_of_one_prompt_is_one_line(command: Command) -> None:
    ended = command("--prompt", "Why?", "--json", "--color", "always")
    assert json.loads(ended.out)["text"] + "\n" == command("--prompt", "Why?").out
    assert (ended.out.count("\n"), ended.err) == (1, "seed: 1\n" + STOPPED)


# ----- colours, statistics, traces --------------------------------------------------------------------------


def test_colours_only_add_codes_and_a_legend(command: Command, prompt_file: str) -> None:
    for source in (("--prompt", "Why?"), ("--prompt-file", prompt_file)):
        plain = command(*source, *MIXED)
        colored = command(*source, *MIXED, "--color", "always")
        assert plain.out.count("\x1b") < colored.out.count("\x1b")
        assert ESCAPE.sub("", colored.out) == plain.out
        *rest, legend, end = colored.err.split("\n")
        assert "\n".join([*rest, end]) == plain.err
        printed = command(*source, *MIXED, "--json").out.split("\n")[:-1]
        counts = [json.loads(line)["strategies"] for line in printed]
        names = [f"{name} {sum(count[name] for count in counts)}" for name in counts[0]]
        assert ESCAPE.sub("", legend) == "  ".join([*names, "inserted"])


def test_statistics_go_to_stderr(command: Command) -> None:
    plain, ended = command("--prompt", "Why?"), command("--prompt", "Why?", "--stats")
    assert ended.out == plain.out
    assert ended.err.startswith(plain.err)
    lines = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in ended.err.split("\n")[2:-1])
    assert lines["new tokens"] == "12"
    counts = {name: int(lines[name].split()[0]) for name in STRATEGIES}
    assert sum(counts.values()) == 12 and counts["adaptive"] > 0
    assert lines["adaptive"] == f"{counts['adaptive']}  {100 * counts['adaptive'] / 12:.1f} %"
    assert float(lines["speed"].split()[0]) > 0
    assert {f"mean {name}" for name in Metrics._fields} < lines.keys()


@pytest.mark.slow
def test_statistics_tell_what_was_computed_in_vain(command: Command, tmp_path: Path) -> None:
    """Four forks of three paths with two rolled tokens each, of which one path is kept."""
    path = tmp_path / "t.jsonl"
    branch = ("--branch", "3", "--branch-depth", "2", "--branch-entropy", "0.001", "--branch-among", "all")
    ended = command("--prompt", "Why?", *branch, "--stats", "--trace", str(path))
    [result] = trace.read(path).results
    assert [step for step, record in enumerate(result.records) if "branches" in record] == [0, 3, 6, 9]
    lines = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in ended.err.split("\n")[2:-1])
    assert lines["new tokens"] == "12"
    assert lines["computed tokens"].split()[0] == str(12 + 4 * 2 * 2)
    assert lines["forward passes"] == str(4 * (1 + 2))


def test_a_trace_repeats_what_was_printed(
    command: Command, model: Model, prompt_file: str, tmp_path: Path
) -> None:
    path = tmp_path / "t.jsonl"
    ended = command("--prompt-file", prompt_file, *MIXED, "--json", "--trace", str(path))
    read = trace.read(path)
    printed = [json.loads(line) for line in ended.out.split("\n")[:-1]]
    assert [result.token_ids for result in read.results] == [entry["token_ids"] for entry in printed]
    again = entropix.generate(model, read.prompts, **read.options)
    assert [result.text for result in again] == [entry["text"] for entry in printed]


def test_a_picture_of_the_terminal_has_the_answer_and_its_scale(model: Model) -> None:
    """scripts/draw_terminal.py, which asks nothing of the network when the picture is looked at."""
    [result] = entropix.generate(model, "Why?", seed=1, max_new_tokens=12)
    for number, record in enumerate(result.records):
        record |= {"text": f"word{number}\n", "logits_entropy": 8.0}
    picture = draw_terminal.svg(result, "logits_entropy", "the command", columns=80)
    assert all(f">word{number}<" in picture for number in range(12)) and "8+&#160;bits" in picture
    assert picture.count('<rect fill="#fde725"') == 12
    assert "@font-face" not in picture


def test_signs_of_life_are_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    for is_terminal in (True, False):
        stream = io.StringIO()
        monkeypatch.setattr(stream, "isatty", lambda is_terminal=is_terminal: is_terminal)
        monkeypatch.setattr(sys, "stderr", stream)
        with terminal.status("compiling"):
            pass
        assert ("compiling" in stream.getvalue()) == is_terminal
