"""The command line's flags, its help and its prompts."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import commands
import folders
import pytest
from commands import Command, type_in

from entropix import presets, samplers
from entropix.checkpoint import loading
from entropix.config import BacktrackConfig, BranchConfig
from entropix.console.search_flags import read_backtracking, read_branching
from entropix.main import _read_prompts, parse
from entropix.samplers.baselines import MinPConfig, TopKConfig
from entropix.samplers.entropix import SamplerConfig


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    return commands.ending(capsys)


def flags_of(*args: str) -> Any:
    return parse(args).flags


# ----- flags of the sampler ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_field_of_the_sampler_has_a_flag_that_sets_it() -> None:
    for field in dataclasses.fields(SamplerConfig):
        default = field.default
        value = f"{default}?" if isinstance(default, str) else default + 1 if default < 100 else default * 2
        if field.metadata["high"] <= 1:
            value = 0.25
        flag = "--" + field.name.replace("_", "-")
        chosen = parse(["--chat", "--sampler", "entropix", flag, str(value)]).sampler.numbers
        assert chosen == dataclasses.replace(SamplerConfig(), **{field.name: value}), flag


@pytest.mark.parametrize("name", presets.preset_names("samplers"))
def test_a_preset_brings_its_own_defaults(name: str) -> None:
    command = parse(["--chat", "--sampler", name])
    assert command.sampler == samplers.resolve(name)
    changed = parse(["--chat", f"--sampler={name}", "--repetition-penalty", "1.25"]).sampler.numbers
    assert changed == dataclasses.replace(samplers.resolve(name).numbers, repetition_penalty=1.25)


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


def test_the_flags_of_branching_and_backtracking_begin_with_the_presets(tmp_path: Path) -> None:
    """As those of numbers do; what is in force is a preset that gives the same."""
    path = tmp_path / "mine.toml"
    path.write_text(
        'sampler = "entropix"\n[branching]\npaths = 3\nentropy = 2.5\n[backtracking]\ntokens = 2\n'
    )

    def looking(*flags: str) -> tuple[BranchConfig, BacktrackConfig]:
        command = parse(["--prompt", "x", "--sampler", str(path), *flags])
        dumped = tmp_path / "dumped.toml"
        dumped.write_text("\n".join(command.as_toml()))
        read = samplers.resolve(str(dumped))
        asked = command.generation.branching, command.generation.backtracking
        assert asked == (read.branching or BranchConfig(), read.backtracking or BacktrackConfig())
        return asked

    own, back = BranchConfig(paths=3, entropy=2.5), BacktrackConfig(tokens=2)
    assert looking() == (own, back)
    assert looking("--branch-depth", "2", "--backtrack", "3") == (
        dataclasses.replace(own, depth=2),
        BacktrackConfig(tokens=3),
    )
    off = looking("--branch", "1", "--backtrack", "0")
    assert off == (dataclasses.replace(own, paths=1), BacktrackConfig())
    with pytest.raises(ValueError, match="--branch-depth changes nothing without branching"):
        looking("--branch", "1", "--branch-depth", "2")
    with pytest.raises(ValueError, match="flags of --backtrack change nothing"):
        looking("--backtrack", "0", "--backtrack-budget", "2")


def test_without_a_preset_it_is_the_one_that_was_chosen_for_the_weights() -> None:
    assert parse(["--chat", "--weights", "some/model"]).sampler == samplers.resolve("entropix")
    for weights in ([], ["--weights", "weights/smollm2-135m-instruct/"]):
        assert parse(["--chat", *weights]).sampler.label == "entropix-smollm2-135m-instruct"


def test_a_config_file_names_the_rule_and_flags_overrule_its_numbers(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('sampler = "min-p"\ntemp = 2\nmin_p = 0.2\n')
    command = parse(["--chat", "--sampler-config", str(path), "--min-p", "0.3"])
    assert command.sampler.label == str(path)
    assert command.sampler.numbers == MinPConfig(temp=2.0, min_p=0.3)
    assert parse(["--chat", "--sampler", "min-p", "--sampler-config", str(path)]).sampler.label == str(path)


def test_a_numbers_default_in_the_help_is_the_presets(command: Command) -> None:
    ended = command("--sampler", "top-k", "--help")
    text = " ".join(ended.out.replace("│", " ").split())
    assert (ended.code, ended.err) == (0, "")
    assert "Filters apply in the order temperature, min-p, top-k, top-p." in text
    assert "base temperature [0.001 to 100] (default: 1.0)" in text
    assert "most tokens a draw may choose from; at most max_top_k [tokens, at least 1] (default: 50)" in text
    assert "flow below this logits entropy" not in text
    for field in dataclasses.fields(TopKConfig):
        assert "--" + field.name.replace("_", "-") + " " in text
        assert field.metadata["help"] in text


def test_what_is_in_force_is_a_preset_that_gives_the_same(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    flags = (
        "--prompt",
        "Why?",
        "--seed",
        "1",
        "--max-new-tokens",
        "4",
        "--weights",
        str(folders.write_checkpoint(tmp_path / "toy")),
    )
    first = command(*flags, "--sampler", "min-p", "--temp", "0.7", "--dump-config", str(path))
    assert first.code == 0
    assert samplers.resolve(str(path)).numbers == dataclasses.replace(
        samplers.resolve("min-p").numbers, temp=0.7
    )
    assert command(*flags, "--sampler-config", str(path)) == first
    ended = command(*flags, "--dump-config", "mine.txt")
    assert (ended.code, ended.err) == (
        1,
        "error: --dump-config takes the name of a .toml file, got 'mine.txt'\n",
    )


def test_the_short_help_begins_with_examples_and_leaves_the_rest_to_the_long_one(command: Command) -> None:
    brief, whole = (command(flag).out for flag in ("--help", "--help-all"))
    assert (
        brief.index("  entropix --prompt") < brief.index("--prompt-file FILE") < brief.index("--sampler NAME")
    )
    assert (
        brief.index("--temp FLOAT")
        < brief.index("--max-new-tokens")
        < brief.index("print one JSON")
        < brief.index("--weights")
    )
    for name in ("--branch C", "--cot C", "--mesh", "--backtrack M"):
        assert name in whole and name not in brief
    assert "--help-all tells of several paths" in " ".join(brief.split())


def test_the_help_names_the_default_weights(command: Command) -> None:
    assert f"(default: {loading.DEFAULT_MODEL})" in " ".join(command("--help").out.replace("│", " ").split())


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
        assert _read_prompts(flags_of("--prompt", "-")) == [prompt]


def test_a_text_file_has_a_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffWhy?\r\n\n  \n  indented é\u2028\x0b\nlast".encode())
    assert _read_prompts(flags_of("--prompt-file", str(path))) == ["Why?", "  indented é\u2028\x0b", "last"]


def test_a_jsonl_file_has_prompts_and_conversations(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    path = tmp_path / "prompts.jsonl"
    path.write_text(f'{{"prompt": "two\\nlines", "id": 7}}\n\n{json.dumps({"messages": messages})}\n')
    assert _read_prompts(flags_of("--prompt-file", str(path))) == ["two\nlines", messages]
