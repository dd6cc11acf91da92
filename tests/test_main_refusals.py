"""What the command line says to bad input, before it reads the weights where that is possible."""

import re
from pathlib import Path

import commands
import folders
import numpy as np
import pytest
from commands import Command, Ended, type_in

from entropix.checkpoint import loading


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    return commands.ending(capsys)


@pytest.fixture
def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong with the flags is said before the weights are read."""

    def load(*args: object) -> None:
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr(loading, "load", load)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "nothing is asked; give one of --prompt, --prompt-file, --chat"),
        (["--prompt", "a", "--chat"], "not allowed together"),
        (["--prompt", "a", "--prompt-file", "b"], "not allowed together"),
        (["--prompt"], "missing value"),
        (["--prompt", "a", "--bogus", "1"], "error: there is no flag --bogus; --help lists all"),
        (["--prompt", "-x"], "begins with a dash is written --prompt=-x"),
        (["--prompt", "a", "--temp", "warm"], "--temp: expected a number, got 'warm'"),
        (["--prompt", "a", "--top-k", "2.5"], "--top-k: expected a whole number, got '2.5'"),
        (["--prompt", "a", "--seed", "x"], "--seed: expected a whole number, got 'x'"),
        (
            ["--prompt", "a", "--dtype", "int4"],
            "--dtype: expected float32, bfloat16, float16 or int8, got 'int4'",
        ),
        (["--prompt", "a", "--sampler"], "missing value"),
    ],
)
def test_a_flag_that_is_none_ends_with_2(
    command: Command, no_loading: None, args: list[str], message: str
) -> None:
    ended = command(*args)
    assert (ended.code, ended.out) == (2, "")
    assert message in " ".join(ended.err.replace("│", " ").split())


def assert_refused(ended: Ended, message: str) -> None:
    """Exit code 1, nothing on stdout, and on stderr one error alone that is about `message`."""
    assert (ended.code, ended.out) == (1, "")
    assert re.fullmatch(r"error: [^\n]*\n", ended.err)
    assert message in ended.err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--color", "pink"], "--color pink: unknown word 'pink'"),
        (["--sampler", "beam"], "no sampler preset 'beam'; there are "),
        (
            ["--sampler", "minp"],
            "no sampler preset 'minp'; did you mean 'min-p'? There are dynamic-temperature, ",
        ),
        (
            ["--sampler", "greedy", "--top-p=0.9"],  # its default where it is used
            "flags: --top-p has no effect with greedy; it is used by top-p, entropix, entropix-torch and 2 more, see ",
        ),
        (
            ["--batch-size", "4"],
            "--batch-size changes nothing without --prompt-file, which has several prompts",
        ),
        (["--dry-base", "2"], "flags: --dry-base has no effect while --dry-multiplier is 0; set that too"),
        (["--temp", "-1"], "--temp must be between 0.001 and 100.0, got -1.0"),
        (["--top-p", "1.5"], "--top-p must be between 0.0 and 1.0, got 1.5"),
        (["--top-k", "0"], "--top-k must be"),
        (["--top-k", "500"], "--top-k must be at most --max-top-k (128), got 500"),
        (["--low-ent-thresh", "-0.1"], "--low-ent-thresh must be"),
        (["--max-new-tokens", "0"], "--max-new-tokens must be"),
        (["--max-new-tokens", "-3"], "got -3"),
        (
            ["--alternatives", "21", "--trace", "t.jsonl"],
            "--alternatives must be between 0 and 20, got 21",
        ),
        (["--alternatives", "3"], "--alternatives goes into the trace; give --trace"),
        (["--branch", "17"], "--branch must be between 1 and 16, got 17"),
        (
            ["--branch", "2", "--branch-score", "luck"],
            "--branch-score must be logprob or margin or certainty or entropy, got 'luck'",
        ),
        (["--backtrack", "17"], "--backtrack must be between 0 and 16, got 17"),
        (["--backtrack-budget", "3"], "change nothing without it; give --backtrack M"),
        (["--branch-depth", "-1"], "--branch-depth must be between 0 and 15, got -1"),
        (["--cot", "0"], "--cot must be between 1 and 1024, got 0"),
        (["--branch-depth", "3"], "--branch-depth changes nothing without branching, which takes --branch C"),
        (["--branch", "3", "--branch-depth", "0"], "--branch-depth changes nothing without branching"),
        (["--head-entropies"], "--head-entropies goes into the trace; give --trace"),
        (["--seed", "-1"], "--seed must be between 0 and 4294967295, got -1"),
        (["--seed", "4294967296"], "--seed must be"),
        (["--sampler-config", "missing.toml"], "missing.toml: no such file"),
        (["--sampler-config", "greedy"], "--sampler-config takes a .toml file, got 'greedy'"),
        (["--raw", "--system", "Be brief."], "--raw completes plain text, which has no --system message"),
        (["--system", "\udcff"], "--system is not valid UTF-8"),
        (["--stop", "a", "--stop", "\udcff"], "--stop is not valid UTF-8"),
        (["--trace", "missing/t.jsonl"], "missing/t.jsonl: cannot write a trace there"),
        (["--trace", "."], "a trace needs a regular file"),
        (["--trace", ""], "a trace needs a regular file"),
    ],
)
def test_a_wrong_value_is_refused_before_the_weights_are_read(
    command: Command, no_loading: None, args: list[str], message: str
) -> None:
    assert_refused(command("--prompt", "a", *args), message)


def test_numbers_are_checked_as_numbers(command: Command, no_loading: None) -> None:
    for number in ("nan", "inf", "-inf", "1e400"):
        ended = command("--chat", "--ada-temp-agree", number)
        assert (ended.code, ended.out) == (1, "")
        assert ended.err.startswith("error: --ada-temp-agree must be a finite number")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("temp = 1.0", "bad.toml: expected an entry like sampler"),
        ('sampler = "entropix"\ntmep = 1.0', "bad.toml: unknown field 'tmep'; did you mean 'temp'?"),
        ('sampler = "entropix"\ntemp = "hot"', "bad.toml: temp must be of type float, got 'hot'"),
        ('sampler = "entropix"\ntop_k = 2.5', "bad.toml: top_k must be of type int, got 2.5"),
        ('sampler = "entropix"\nmin_p = 2.0', "bad.toml: min_p must be between 0.0 and 1.0, got 2.0"),
        ('sampler = "entropix"\ntemp = ', "bad.toml: not a readable TOML file"),
    ],
)
def test_a_wrong_config_file_is_refused(
    command: Command, no_loading: None, tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "bad.toml").write_text(content)
    assert_refused(command("--prompt", "a", "--sampler-config", str(tmp_path / "bad.toml")), message)


def test_a_preset_and_a_file_with_another_rule_contradict(
    command: Command, no_loading: None, tmp_path: Path
) -> None:
    (tmp_path / "c.toml").write_text('sampler = "entropix"')
    ended = command("--prompt", "a", "--sampler", "greedy", "--sampler-config", str(tmp_path / "c.toml"))
    assert_refused(ended, "c.toml, whose rule is 'entropix'; drop one of them")
    assert "--sampler greedy contradicts" in ended.err


def test_a_chat_is_not_raw(command: Command, no_loading: None) -> None:
    assert_refused(command("--chat", "--raw"), "--raw completes plain text, but --chat is a conversation")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"", "p.txt: there is no prompt in this file"),
        ("p.txt", b"\n  \n", "p.txt: there is no prompt in this file"),
        ("p.txt", b"fine\nna\xefve\n", "p.txt: line 2 is not UTF-8 (its byte 3 is 0xef)"),
        ("p.txt", b"\xff\xfeW\x00", "p.txt: line 1 is not UTF-8 (its byte 1 is 0xff)"),
        ("p.jsonl", b'{"prompt": "caf\xe9"}\n', "p.jsonl: line 1 is not UTF-8"),
        ("p.jsonl", b'{"prompt": "a"}\nWhy?\n', "p.jsonl: line 2: not JSON"),
        (
            "p.jsonl",
            b'{"promt": "a"}\n',
            'p.jsonl: line 1: expected {"prompt": "..."} or {"messages": [...]}',
        ),
        ("p.jsonl", b'{"prompt": "a", "messages": []}\n', "p.jsonl: line 1: expected"),
        ("p.jsonl", b'["a"]\n', "p.jsonl: line 1: expected"),
        ("p.jsonl", b'{"prompt": 3}\n', "p.jsonl: line 1: prompt must be a string, got 3"),
        ("p.jsonl", b'{"prompt": ""}\n', "p.jsonl: line 1: the prompt is empty"),
        ("p.jsonl", b'{"messages": []}\n', "p.jsonl: line 1: the prompt is empty"),
        ("p.jsonl", b'{"messages": [{"role": "user"}]}\n', "p.jsonl: line 1: messages must be a list of"),
        ("p.jsonl", b'{"messages": "Hi"}\n', "p.jsonl: line 1: messages must be a list of"),
    ],
)
def test_a_wrong_prompt_file_is_refused(
    command: Command, no_loading: None, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    assert_refused(command("--prompt-file", str(tmp_path / name)), message)


def test_a_missing_prompt_file_is_refused(command: Command, no_loading: None, tmp_path: Path) -> None:
    assert_refused(command("--prompt-file", str(tmp_path / "none.txt")), "none.txt: no such file")
    assert_refused(command("--prompt-file", str(tmp_path)), "expected a regular file, but this is a folder")


@pytest.mark.parametrize("flag", [["--raw"], ["--system", "Be brief."]])
def test_a_conversation_in_a_file_is_neither_raw_nor_has_another_system_message(
    command: Command, no_loading: None, tmp_path: Path, flag: list[str]
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n{"messages": [{"role": "user", "content": "Hi"}]}\n')
    assert_refused(command("--prompt-file", str(path), *flag), "p.jsonl: line 2 is a conversation")


def test_standard_input_must_be_utf8(
    command: Command, no_loading: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in(monkeypatch, b"ok\n\xff")
    assert_refused(command("--prompt", "-"), "standard input: line 2 is not UTF-8 (its byte 1 is 0xff)")


def test_missing_weights_are_refused(command: Command, tmp_path: Path) -> None:
    for weights in ("no-such-model", str(tmp_path / "nowhere")):
        assert_refused(command("--prompt", "a", "--weights", weights), f"no weights {weights!r}")
    assert_refused(command("--prompt", "a", "--weights", str(tmp_path)), "no config.json")


def test_an_unknown_rule_is_refused(command: Command, toy_folder: str, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('sampler = "beam"')
    ended = command("--prompt", "a", "--weights", toy_folder, "--sampler-config", str(tmp_path / "c.toml"))
    assert_refused(ended, "unknown sampler 'beam'; there are entropix")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", "x" * 512, "--raw"], "prompt 1 has 512 tokens, but the model's context holds 512"),
        (["--prompt", "x", "--stop", ""], "a stop string must not be empty"),
    ],
)
def test_what_the_model_cannot_take_is_refused(
    command: Command, toy_folder: str, args: list[str], message: str
) -> None:
    assert_refused(command("--weights", toy_folder, *args), message)


def test_empty_standard_input_is_an_empty_prompt(
    command: Command, toy_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in(monkeypatch, b"\n")
    assert_refused(command("--weights", toy_folder, "--prompt", "-"), "the prompt is empty")


def test_without_a_chat_template_there_is_neither_system_message_nor_chat(
    command: Command, tmp_path: Path
) -> None:
    folder = str(folders.write_checkpoint(tmp_path / "plain", chat_template=None))
    ended = command("--weights", folder, "--prompt", "a", "--system", "Be brief.")
    assert_refused(ended, "this model has no chat template")
    assert_refused(
        command("--weights", folder, "--chat"), "plain has no chat template, so there is no --chat"
    )


def test_weights_that_are_not_finite_are_refused(command: Command, tmp_path: Path) -> None:
    folder = folders.write_checkpoint(tmp_path / "broken")
    tensors = folders.read_tensors(folder)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = np.nan
    folders.write_tensors(folder, tensors)
    ended = command("--weights", str(folder), "--prompt", "a")
    assert_refused(ended, "model.layers.1.mlp.up_proj.weight has NaN or infinite values")


def test_a_refused_run_leaves_no_file(command: Command, toy_folder: str, tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    assert_refused(
        command("--weights", toy_folder, "--prompt", "", "--trace", str(trace)), "the prompt is empty"
    )
    assert_refused(
        command("--weights", toy_folder, "--raw", "--prompt", "x" * 999, "--trace", str(trace)),
        "has 999 tokens",
    )
    assert list(tmp_path.iterdir()) == []
