"""Ctrl-C and conversations on the command line."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import folders
import pytest
from commands import STOPPED, Command, interrupt_after, type_in

import entropix
from entropix import generation, samplers, trace
from entropix.checkpoint.loading import Model
from entropix.config import BranchConfig
from entropix.console import terminal
from entropix.console.chat import Chat
from entropix.decoding import loop
from entropix.results import FinishReason


@pytest.fixture(scope="module")
def model(toy_folder: str) -> Model:
    return entropix.load(toy_folder)


# ----- Ctrl-C -----------------------------------------------------------------------------------------------


def test_ctrl_c_prints_and_traces_what_there_was(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = json.loads(command("--prompt", "Why?", "--json").out)
    interrupt_after(monkeypatch, 5)
    ended = command("--prompt", "Why?", "--trace", str(tmp_path / "t.jsonl"))
    [result] = trace.read(tmp_path / "t.jsonl").results
    assert ended == (130, result.text + "\n", f"seed: 1\n{result.stopped}\ninterrupted\n")
    assert result.token_ids == whole["token_ids"][:5]
    assert result.finish == FinishReason.INTERRUPTED
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


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_real_signal_ends_the_real_command(tmp_path: Path, number: signal.Signals) -> None:
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
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    [result] = trace.read(path).results
    assert process.returncode == 128 + number
    assert (start + out).decode() == result.text + "\n"
    assert result.finish == FinishReason.INTERRUPTED
    assert re.fullmatch(rb"seed: \d+\nstopped after \d+ tokens?: it was interrupted\ninterrupted\n", err)


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
    hint = "chatting with toy; /help lists commands, /exit or Ctrl-D ends, Ctrl-C stops an answer\n"
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
    usual, computed = loop.prefill, []

    def prefill(weights: Any, tokens_BT: Any, count_B: Any, *rest: Any, **how: Any) -> Any:
        computed.append(int(count_B[0]))
        return usual(weights, tokens_BT, count_B, *rest, **how)

    monkeypatch.setattr(loop, "prefill", prefill)
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
    assert (first.finish, len(first.token_ids)) == (FinishReason.INTERRUPTED, 3)
    assert (second.finish, len(second.token_ids)) == (FinishReason.LENGTH, 12)


def test_a_cache_torn_by_ctrl_c_is_not_used_again(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the signal comes when the old cache was given away and the new one is not yet in its place."""
    usual, calls = loop.prefill, []

    def prefill(*args: Any, **how: Any) -> Any:
        calls.append(1)
        cache = usual(*args, **how)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return cache

    monkeypatch.setattr(loop, "prefill", prefill)
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


def test_a_turn_that_cannot_be_answered_does_not_count_and_the_chat_goes_on(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One is too long for the context, one is no text."""
    type_in(monkeypatch, b"Hi\n" + b"x" * 512 + b"\n\xff\xfe\nAnd you?\n")
    ended = command("--chat", "--trace", str(tmp_path / "t.jsonl"))
    assert ended.code == 0
    assert re.search(r"error: prompt 1 has \d+ tokens, but the model's context holds 512", ended.err)
    assert "error: this line is not UTF-8; it does not count\n" in ended.err
    first, second = trace.read(tmp_path / "t.jsonl").results
    assert ended.out == f"{first.text}\n{second.text}\n"
    type_in(monkeypatch, "Hi\nAnd you?\n")
    assert command("--chat").out == ended.out


def test_lines_with_a_slash_are_commands(
    command: Command, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = tmp_path / "talk.jsonl"
    type_in(
        monkeypatch,
        "/undo\nHi\nNo\n/undo\n/retry\n/sampler greedy\n/system Be brief.\n//slash\n/unod\n/sampler gredy\n"
        f"/save {saved}\n/help\n/quit\nnever read\n",
    )
    ended = command("--chat")
    options: dict[str, Any] = {"max_new_tokens": 12}
    [hi] = entropix.generate(model, "Hi", seed=2, **options)
    [message] = [json.loads(line)["messages"] for line in saved.read_text().splitlines()]
    assert [turn["role"] for turn in message] == ["system", "user", "assistant", "user", "assistant"]
    assert [turn["content"] for turn in message[:4]] == ["Be brief.", "Hi", hi.text, "/slash"]
    [slash] = entropix.generate(model, message[:4], seed=2, sampler="greedy", **options)
    assert message[4]["content"] == slash.text and ended.out.endswith(f"{hi.text}\n{slash.text}\n")
    for told in ("error: there is no turn yet\n", "taken back: No\n", "seed: 2\n", "did you mean /undo?\n"):
        assert told in ended.err
    assert "error: no sampler preset 'gredy'; did you mean 'greedy'?" in ended.err
    assert f"{saved}: 2 turns\n" in ended.err and "/retry    answers the last turn again" in ended.err


def test_another_sampler_in_a_chat_brings_its_own_branching_unless_the_flags_said_otherwise(
    model: Model, tmp_path: Path
) -> None:
    forking = tmp_path / "forking.toml"
    forking.write_text('sampler = "entropix"\n[branching]\npaths = 3\n')
    own, asked = BranchConfig(paths=3), BranchConfig(paths=2)
    for first, told, after in ((own, own, own), (None, BranchConfig(), own), (own, asked, asked)):
        options = {
            "sampler": dataclasses.replace(samplers.resolve("entropix"), branching=first),
            "branching": told,
        }
        conversation = Chat(model, options, terminal.Show())
        conversation.set_sampler(str(forking))
        assert generation.prepare(model, "Hi", **conversation.options).config.branching == after
        conversation.set_sampler("min-p")
        assert conversation.options.get("branching", BranchConfig()) == (
            asked if told == asked else BranchConfig()
        )


def test_a_trace_keeps_to_one_seed_and_one_sampler(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in(monkeypatch, "Hi\n/retry\n/sampler greedy\nAnd you?\n")
    ended = command("--chat", "--trace", str(tmp_path / "t.jsonl"))
    assert "a trace has one seed; leave out --trace" in ended.err and "one sampler" in ended.err
    assert len(trace.read(tmp_path / "t.jsonl").results) == 2


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
    assert result.finish == FinishReason.INTERRUPTED
