"""What the command line prints where, and how it ends."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import folders
import pytest

import entropix
from entropix import cli, decode, generation, loading, statistics, terminal, trace
from entropix.decode import Finish
from entropix.generation import Event
from entropix.loading import Model
from entropix.main import main
from entropix.samplers.entropix import STRATEGIES

ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
# Thresholds amid what the toy's random weights give, so that there are several strategies.
MIXED = ("--low-vent-thresh", "2.3", "--high-ent-thresh", "7.1", "--high-vent-thresh", "2.6")
STOPPED = "stopped: max_new_tokens was reached\n"


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Ended]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.write_checkpoint(tmp_path_factory.mktemp("weights") / "toy")


@pytest.fixture(scope="module")
def model(folder: Path) -> Model:
    return entropix.load(folder)


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], folder: Path) -> Command:
    """Runs the command line in this process, on the toy; 12 tokens and seed 1 unless told otherwise."""

    def run(*args: str, weights: Path = folder) -> Ended:
        capsys.readouterr()
        defaults = ("--weights", str(weights), "--seed", "1", "--max-new-tokens", "12")
        code = cli.run(lambda: main([*defaults, *args]))
        return Ended(code, *capsys.readouterr())

    return run


@pytest.fixture
def prompt_file(tmp_path: Path) -> str:
    (tmp_path / "prompts.txt").write_text("Why?\nHow?\n")
    return str(tmp_path / "prompts.txt")


def type_in(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8"))


def interrupt_after(monkeypatch: pytest.MonkeyPatch, n_events: int) -> None:
    """The next generation meets a Ctrl-C after so many events; those after it run as usual."""
    usual = generation.run

    def run(*args: Any) -> Iterator[Event]:
        monkeypatch.setattr(terminal, "run", usual)
        for number, event in enumerate(usual(*args)):
            if number == n_events:
                raise KeyboardInterrupt
            yield event

    monkeypatch.setattr(terminal, "run", run)


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


def test_weights_and_dtype_reach_the_loader(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: object) -> None:
        raise ValueError(args)

    monkeypatch.setattr(loading, "load", load)
    asked = command("--prompt", "a", "--dtype", "bfloat16", weights=Path("here"))
    assert asked == (1, "", "error: ('here', 'bfloat16')\n")


def test_a_drawn_seed_is_printed_and_repeats_the_answer(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["--weights", str(folder), "--prompt", "Why?", "--max-new-tokens", "12"]
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
    assert ended.err == "seed: 1\nstopped: a stop string appeared\n"


def test_logits_that_are_not_finite_end_with_1(command: Command, tmp_path: Path) -> None:
    folder = folders.write_checkpoint(tmp_path / "wild")
    tensors = folders.read_tensors(folder)
    tensors["model.norm.weight"][:] = 3e38  # finite, but what it makes of the logits is not
    folders.write_tensors(folder, tensors)
    ended = command("--prompt", "Why?", "--trace", str(tmp_path / "t.jsonl"), weights=folder)
    assert (ended.code, ended.out) == (1, "\n")
    assert ended.err == f"seed: 1\nerror: prompt 1: {Finish.NAN.sentence}\n"
    assert trace.read(tmp_path / "t.jsonl").results[0].finish == Finish.NAN


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
    usual = generation.run

    def backwards(*args: Any) -> Iterator[Event]:
        yield from sorted(usual(*args), key=lambda event: -event.row)

    expected = command("--prompt-file", prompt_file)
    monkeypatch.setattr(terminal, "run", backwards)
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
            "strategies": statistics.strategy_counts([result], STRATEGIES),
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
    assert {f"mean {name}" for name in decode.Metrics._fields} < lines.keys()


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


def test_signs_of_life_are_for_terminals(monkeypatch: pytest.MonkeyPatch) -> None:
    for is_terminal in (True, False):
        stream = io.StringIO()
        monkeypatch.setattr(stream, "isatty", lambda is_terminal=is_terminal: is_terminal)
        monkeypatch.setattr(sys, "stderr", stream)
        with terminal.status("compiling"):
            pass
        assert ("compiling" in stream.getvalue()) == is_terminal


# ----- Ctrl-C -----------------------------------------------------------------------------------------------


def test_ctrl_c_prints_and_traces_what_there_was(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = json.loads(command("--prompt", "Why?", "--json").out)
    interrupt_after(monkeypatch, 5)
    ended = command("--prompt", "Why?", "--trace", str(tmp_path / "t.jsonl"))
    [result] = trace.read(tmp_path / "t.jsonl").results
    assert ended == (130, result.text + "\n", "seed: 1\nstopped: it was interrupted\ninterrupted\n")
    assert result.token_ids == whole["token_ids"][:5]
    assert result.finish == Finish.INTERRUPTED
    assert whole["text"].startswith(result.text) and result.text


def test_ctrl_c_in_a_batch_prints_every_row(
    command: Command, prompt_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_after(monkeypatch, 15)  # in the second row: a chunk is told row by row
    ended = command("--prompt-file", prompt_file, "--json")
    objects = [json.loads(line) for line in ended.out.split("\n")[:-1]]
    assert ended.code == 130
    assert [(entry["finish"], entry["new_tokens"]) for entry in objects] == [
        ("length", 12),
        ("interrupted", 3),
    ]


def test_ctrl_c_never_comes_between_a_token_and_its_printing(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the signal comes while the first token is being added."""
    usual = terminal.add

    def add(*args: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        usual(*args)

    monkeypatch.setattr(terminal, "add", add)
    ended = command("--prompt", "Why?", "--trace", str(tmp_path / "t.jsonl"))
    [result] = trace.read(tmp_path / "t.jsonl").results
    assert (ended.code, ended.out, len(result.token_ids)) == (130, result.text + "\n", 1)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_real_ctrl_c_ends_the_real_command(tmp_path: Path) -> None:
    folder = folders.write_checkpoint(tmp_path / "long", max_position_embeddings=10**6)
    path = tmp_path / "t.jsonl"
    args = ("--weights", str(folder), "--prompt", "Why?", "--max-new-tokens", "999999", "--trace", str(path))
    with subprocess.Popen(
        [sys.executable, "-m", "entropix.main", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        start = process.stdout.read(10)  # so it does stream
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
    [result] = trace.read(path).results
    assert process.returncode == 130
    assert (start + out).decode() == result.text + "\n"
    assert result.finish == Finish.INTERRUPTED
    assert re.fullmatch(rb"seed: \d+\nstopped: it was interrupted\ninterrupted\n", err)


# ----- chat -------------------------------------------------------------------------------------------------


def test_a_chat_goes_on_where_it_was(
    command: Command, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in(monkeypatch, "Hi\n\n  \nAnd you?  \n/exit\nnever read\n")
    path = tmp_path / "t.jsonl"
    ended = command("--chat", "--system", "Be brief.", "--trace", str(path))
    first, second = trace.read(path).results
    assert ended.code == 0
    assert ended.out == f"{first.text}\n{second.text}\n"
    hint = "chatting with toy; /exit or Ctrl-D ends, Ctrl-C stops an answer\n"
    assert ended.err == "seed: 1\n" + hint + STOPPED + STOPPED
    assert second.prompt_ids == generation.encode_prompt(
        model,
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": first.text},
            {"role": "user", "content": "And you?"},
        ],
    )


def test_a_chat_computes_only_what_is_new(
    command: Command, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its answers are those of computing everything anew."""
    usual, computed = decode.prefill, []

    def prefill(weights: Any, tokens_BT: Any, count_B: Any, *rest: Any, **how: Any) -> Any:
        computed.append(int(count_B[0]))
        return usual(weights, tokens_BT, count_B, *rest, **how)

    monkeypatch.setattr(decode, "prefill", prefill)
    type_in(monkeypatch, "Hi\nAnd you?\n")
    command("--chat", "--trace", str(tmp_path / "t.jsonl"))
    read = trace.read(tmp_path / "t.jsonl")
    assert read.header["rows"] == "turns"
    first, second = read.results
    held = first.prompt_ids + first.token_ids
    reused = next(i for i, pair in enumerate(zip(held, second.prompt_ids, strict=False)) if len({*pair}) == 2)
    assert reused >= len(first.prompt_ids)
    assert sum(computed) == len(first.prompt_ids) - 1 + len(second.prompt_ids) - 1 - reused
    for result in read.results:
        [again] = entropix.generate(model, [result.prompt_ids], **read.options)
        assert again.token_ids == result.token_ids


def test_ctrl_c_stops_an_answer_and_not_the_chat(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in(monkeypatch, "Hi\nAnd you?\n")
    interrupt_after(monkeypatch, 3)
    ended = command("--chat", "--trace", str(tmp_path / "t.jsonl"))
    first, second = trace.read(tmp_path / "t.jsonl").results
    assert (ended.code, ended.out) == (0, f"{first.text}\n{second.text}\n")
    assert (first.finish, len(first.token_ids)) == (Finish.INTERRUPTED, 3)
    assert (second.finish, len(second.token_ids)) == (Finish.LENGTH, 12)


def test_a_cache_torn_by_ctrl_c_is_not_used_again(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the signal comes when the old cache was given away and the new one is not yet in its place."""
    usual, calls = decode.prefill, []

    def prefill(*args: Any, **how: Any) -> Any:
        calls.append(1)
        cache = usual(*args, **how)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return cache

    monkeypatch.setattr(decode, "prefill", prefill)
    type_in(monkeypatch, "Hi\nAnd you?\nAgain?\n")
    assert command("--chat", "--trace", str(tmp_path / "t.jsonl")).code == 0
    counts = [len(result.token_ids) for result in trace.read(tmp_path / "t.jsonl").results]
    assert counts == [12, 0, 12]


def test_ctrl_c_while_asked_ends_the_chat(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(prompt: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupted)
    ended = command("--chat")
    assert (ended.code, ended.out) == (0, "")


def test_a_chat_that_outgrows_the_context_ends_with_an_error_and_its_trace(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in(monkeypatch, "Hi\n" + "x" * 512 + "\n")
    ended = command("--chat", "--trace", str(tmp_path / "t.jsonl"))
    assert ended.code == 1
    assert re.search(r"error: prompt 1 has \d+ tokens, but the model's context holds 512", ended.err)
    [result] = trace.read(tmp_path / "t.jsonl").results
    assert ended.out == result.text + "\n"


def test_a_reader_that_stops_early_still_gets_its_trace(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(text: str) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(terminal, "_write", closed)
    monkeypatch.setattr(os, "dup2", lambda *descriptors: None)  # of which cli.run needs a real stdout
    monkeypatch.setattr(sys.stdout, "fileno", lambda: 1, raising=False)
    assert command("--prompt", "Why?", "--trace", str(tmp_path / "t.jsonl")).code == 0
    [result] = trace.read(tmp_path / "t.jsonl").results
    assert result.finish == Finish.INTERRUPTED
