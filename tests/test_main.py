"""The command line's flags, its prompts, and what it says to bad input."""

import dataclasses
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import folders
import numpy as np
import pytest

from entropix import cli, config, loading
from entropix.config import BacktrackConfig, BranchConfig, SamplerConfig
from entropix.main import Flags, main, parse, read_prompts
from entropix.search_flags import read_backtracking, read_branching


class Ended(NamedTuple):
    code: int | str | None
    out: str
    err: str


Command = Callable[..., Ended]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command line in this process."""

    def run(*args: str) -> Ended:
        capsys.readouterr()
        try:
            code: int | str | None = cli.run(lambda: main(args))
        except SystemExit as end:
            code = end.code
        return Ended(code, *capsys.readouterr())

    return run


@pytest.fixture
def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is wrong with the flags is said before the weights are read."""

    def load(*args: object) -> None:
        raise AssertionError("the weights were loaded")

    monkeypatch.setattr(loading, "load", load)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(folders.write_checkpoint(tmp_path_factory.mktemp("weights") / "toy"))


def flags_of(*args: str) -> Flags:
    return parse(args).flags


def type_in(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


# ----- flags of the sampler ---------------------------------------------------------------------------------


def test_every_field_of_the_sampler_has_a_flag_that_sets_it() -> None:
    for field in dataclasses.fields(SamplerConfig):
        default = field.default
        value = f"{default}?" if isinstance(default, str) else default + 1 if default < 100 else default * 2
        if field.metadata["high"] <= 1:
            value = 0.25
        flag = "--" + field.name.replace("_", "-")
        chosen = parse(["--chat", flag, str(value)]).sampler_config
        assert chosen == dataclasses.replace(SamplerConfig(), **{field.name: value}), flag


@pytest.mark.parametrize("name", config.preset_names("samplers"))
def test_a_preset_brings_its_own_defaults(name: str) -> None:
    command = parse(["--chat", "--sampler", name])
    assert (command.sampler, command.sampler_config) == (name, config.read_preset(name)[1])
    changed = parse(["--chat", f"--sampler={name}", "--temp", "0.25"]).sampler_config
    assert changed == dataclasses.replace(config.read_preset(name)[1], temp=0.25)


def test_every_field_of_branching_has_a_flag_that_sets_it() -> None:
    wanted = BranchConfig(
        paths=3,
        depth=5,
        strategies=("explore", "resample"),
        entropy=2.5,
        margin=0.25,
        budget=7,
        distance=4,
        growth=1.5,
        score="entropy",
        penalty=0.75,
        keep="token",
        among="all",
    )
    args = "--prompt x --branch 3 --branch-depth 5 --branch-on explore resample --branch-entropy 2.5"
    args += " --branch-margin 0.25 --branch-budget 7 --branch-distance 4 --branch-growth 1.5"
    args += " --branch-score entropy --branch-penalty 0.75 --branch-keep token --branch-among all"
    assert read_branching(parse(args.split()).flags.branches) == wanted
    plain = BranchConfig()
    assert all(getattr(wanted, f.name) != getattr(plain, f.name) for f in dataclasses.fields(plain))


def test_every_field_of_backtracking_has_a_flag_that_sets_it() -> None:
    wanted = BacktrackConfig(tokens=5, strategies=("flow", "resample"), budget=3)
    assert all(value != getattr(BacktrackConfig(), name) for name, value in vars(wanted).items())
    args = "--prompt x --backtrack 5 --backtrack-on flow resample --backtrack-budget 3"
    assert read_backtracking(parse(args.split()).flags.backtracks) == wanted


def test_without_flags_there_is_neither_branching_nor_backtracking() -> None:
    flags = parse(["--prompt", "x"]).flags
    assert read_branching(flags.branches) == BranchConfig()
    assert read_backtracking(flags.backtracks) == BacktrackConfig()


def test_without_a_preset_it_is_entropix() -> None:
    command = parse(["--chat"])
    assert (command.sampler, command.sampler_config) == ("entropix", config.read_preset("entropix")[1])


def test_a_config_file_names_the_rule_and_flags_overrule_its_numbers(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('sampler = "min-p"\ntemp = 2\nmin_p = 0.2\n')
    command = parse(["--chat", "--sampler-config", str(path), "--min-p", "0.3"])
    assert command.sampler == str(path)
    assert command.sampler_config == SamplerConfig(temp=2.0, min_p=0.3)
    assert parse(["--chat", "--sampler", "min-p", "--sampler-config", str(path)]).sampler == str(path)


def test_a_numbers_default_in_the_help_is_the_presets(command: Command) -> None:
    ended = command("--sampler", "top-k", "--help")
    text = " ".join(ended.out.replace("│", " ").split())
    assert (ended.code, ended.err) == (0, "")
    assert "Filters apply in the order temperature, min-p, top-k, top-p." in text
    assert "base temperature [0.001 to 100] (default: 1.0)" in text
    assert "most tokens a draw may choose from; at most max_top_k [tokens, at least 1] (default: 50)" in text
    assert "flow below this logits entropy [bits, at least 0] (default: 0.1)" in text
    for field in dataclasses.fields(SamplerConfig):
        assert "--" + field.name.replace("_", "-") + " " in text
        assert field.metadata["help"] in text


def test_the_help_names_the_default_weights(command: Command) -> None:
    assert f"(default: {loading.DEFAULT_MODEL})" in " ".join(command("--help").out.replace("│", " ").split())


def test_numbers_are_checked_as_numbers(command: Command, no_loading: None) -> None:
    for number in ("nan", "inf", "-inf", "1e400"):
        ended = command("--chat", "--ada-temp-agree", number)
        assert (ended.code, ended.out) == (1, "")
        assert ended.err.startswith("error: flags: ada_temp_agree must be a finite number")


# ----- other flags ------------------------------------------------------------------------------------------


def test_every_seed_is_drawn_anew() -> None:
    seeds = {flags_of("--chat").seed for _ in range(4)}
    assert len(seeds) > 1  # four equal ones in 2**32: odds of 1 in 2**96
    assert flags_of("--chat", "--seed", "4294967295").seed == 4294967295


def test_the_help_has_the_ranges_of_generation(command: Command) -> None:
    text = " ".join(command("--help").out.replace("│", " ").split())
    for extent in ("[0 to 4294967295]", "prompt [tokens, at least 1] (default: 512)", "[tokens, 0 to 15]"):
        assert extent in text
    assert "step [tokens, 0 to 20], before and after filtering" in text


def test_texts_are_taken_literally() -> None:
    flags = flags_of("--prompt", "None", "--system", "True", "--stop", "[1, 2]", "--stop=-x")
    assert (flags.prompt, flags.system, flags.stop) == ("None", "True", ("[1, 2]", "-x"))


# ----- prompts ----------------------------------------------------------------------------------------------


def test_a_dash_is_standard_input_without_the_last_line_end(monkeypatch: pytest.MonkeyPatch) -> None:
    for data, prompt in (
        (b"Why?\n", "Why?"),
        (b"Why?\r\n", "Why?"),
        ("\ufefftwo\nlines é\n\n".encode(), "two\nlines é\n"),
        (b" x", " x"),
    ):
        type_in(monkeypatch, data)
        assert read_prompts(flags_of("--prompt", "-")) == [prompt]


def test_a_text_file_has_a_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffWhy?\r\n\n  \n  indented é\u2028\x0b\nlast".encode())
    assert read_prompts(flags_of("--prompt-file", str(path))) == ["Why?", "  indented é\u2028\x0b", "last"]


def test_a_jsonl_file_has_prompts_and_conversations(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'{{"prompt": "two\\nlines", "id": 7}}\n\n{json.dumps({"messages": messages})}\n')
    assert read_prompts(flags_of("--prompt-file", str(path))) == ["two\nlines", messages]


# ----- bad input --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "Missing required argument group"),
        (["--prompt", "a", "--chat"], "not allowed together"),
        (["--prompt", "a", "--prompt-file", "b"], "not allowed together"),
        (["--prompt"], "Missing value"),
        (["--prompt", "a", "--bogus", "1"], "error: there is no flag --bogus; --help lists all"),
        (["--prompt", "-x"], "begins with a dash is written --prompt=-x"),
        (["--prompt", "a", "--temp", "warm"], "could not convert string to float: 'warm'"),
        (["--prompt", "a", "--top-k", "2.5"], "invalid literal for int() with base 10: '2.5'"),
        (["--prompt", "a", "--seed", "x"], "invalid literal for int() with base 10: 'x'"),
        (["--prompt", "a", "--max-new-tokens", "ten"], "invalid literal for int()"),
        (["--prompt", "a", "--sampler"], "Missing value"),
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
            "flags: top_p has no effect, because greedy does not use it; it uses no number, and like any sampler ",
        ),
        (
            ["--batch-size", "4"],
            "--batch-size changes nothing without --prompt-file, which has several prompts",
        ),
        (["--dry-base", "2"], "flags: dry_base has no effect while dry_multiplier is 0; set that too"),
        (["--temp", "-1"], "flags: temp must be between 0.001 and 100.0, got -1.0"),
        (["--top-p", "1.5"], "flags: top_p must be between 0.0 and 1.0, got 1.5"),
        (["--top-k", "0"], "flags: top_k must be"),
        (["--top-k", "500"], "flags: top_k must be at most max_top_k (128), got 500"),
        (["--low-ent-thresh", "-0.1"], "flags: low_ent_thresh must be"),
        (["--max-new-tokens", "0"], "flags: max_new_tokens must be"),
        (["--max-new-tokens", "-3"], "got -3"),
        (
            ["--alternatives", "21", "--trace", "t.jsonl"],
            "flags: alternatives must be between 0 and 20, got 21",
        ),
        (["--alternatives", "3"], "--alternatives goes into the trace; give --trace"),
        (["--branch", "17"], "--branch: paths must be between 1 and 16, got 17"),
        (
            ["--branch", "2", "--branch-score", "luck"],
            "--branch: score must be logprob or margin or certainty or entropy, got 'luck'",
        ),
        (["--backtrack", "17"], "--backtrack: tokens must be between 0 and 16, got 17"),
        (["--backtrack-budget", "3"], "change nothing without --backtrack M"),
        (["--branch-depth", "3"], "--branch-depth changes nothing without branching, which takes --branch C"),
        (["--branch", "3", "--branch-depth", "0"], "--branch changes nothing without branching"),
        (["--head-entropies"], "--head-entropies goes into the trace; give --trace"),
        (["--seed", "-1"], "flags: seed must be between 0 and 4294967295, got -1"),
        (["--seed", "4294967296"], "flags: seed must be"),
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
    assert_refused(command("--prompt-file", str(tmp_path)), "cannot be read (Is a directory)")


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


def test_an_unknown_dtype_is_refused(command: Command, toy: str) -> None:
    ended = command("--prompt", "a", "--weights", toy, "--dtype", "int8")
    assert_refused(ended, "dtype must be one of float32, bfloat16, float16, got 'int8'")


def test_an_unknown_rule_is_refused(command: Command, toy: str, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('sampler = "beam"')
    ended = command("--prompt", "a", "--weights", toy, "--sampler-config", str(tmp_path / "c.toml"))
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
    command: Command, toy: str, args: list[str], message: str
) -> None:
    assert_refused(command("--weights", toy, *args), message)


def test_empty_standard_input_is_an_empty_prompt(
    command: Command, toy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    type_in(monkeypatch, b"\n")
    assert_refused(command("--weights", toy, "--prompt", "-"), "the prompt is empty")


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


def test_a_refused_run_leaves_no_file(command: Command, toy: str, tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    assert_refused(command("--weights", toy, "--prompt", "", "--trace", str(trace)), "the prompt is empty")
    assert_refused(
        command("--weights", toy, "--raw", "--prompt", "x" * 999, "--trace", str(trace)), "has 999 tokens"
    )
    assert list(tmp_path.iterdir()) == []
