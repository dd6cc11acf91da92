"""A rule in a file of somebody's own is used wherever a built-in one can be."""

import importlib.util
import json
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pages
import pytest

import entropix
from entropix import compare, main, replay, samplers, sweep, trace
from entropix.checkpoint.loading import Model
from entropix.lab.experiments import file as grid_file
from entropix.lab.experiments.results import read_manifest
from entropix.samplers import SAMPLERS, registry, rule_files

Command = Callable[..., tuple[int, str, str]]
RULE = pages.files("docs/how-to/rule.md")["my_rule.py"]


@pytest.fixture
def rule(tmp_path: Path) -> str:
    """The rule of docs/how-to/rule.md in a file, and its name in it."""
    (tmp_path / "my_rule.py").write_text(RULE, encoding="utf-8")
    return f"{tmp_path / 'my_rule.py'}:RULE"


def test_a_rule_in_a_file_goes_from_flags_to_trace_to_replay(
    run_command: Command, rule: str, toy_folder: str, tmp_path: Path
) -> None:
    out, flags = tmp_path / "t.jsonl", ("--prompt", "Why?", "--weights", toy_folder, "--seed", "1")
    code, text, err = run_command(
        main.main, *flags, "--sampler", rule, "--times", "0.5", "--max-new-tokens", "5", "--trace", str(out)
    )
    assert (code, bool(text)) == (0, True), err
    header = trace.read(out).header
    assert header["sampler"] == "above-uniform"
    assert header["sampler_config"]["times"] == 0.5
    assert header["sampler_source"] == samplers.resolve(rule).source._asdict()  # type: ignore[union-attr]
    assert run_command(replay.main, str(out), "--weights", toy_folder)[0] == 0
    path = Path(rule.rpartition(":")[0])
    path.write_text(RULE + "\n# later\n", encoding="utf-8")
    code, _, err = run_command(replay.main, str(out), "--weights", toy_folder)
    assert code == 1 and "not the file that the rule RULE came from" in err and err.count("\n") == 1
    path.unlink()
    code, _, err = run_command(replay.main, str(out), "--weights", toy_folder)
    assert code == 1 and "the file of the rule RULE is not there" in err


@pytest.mark.slow
def test_a_rule_in_a_file_is_compared_swept_and_named_by_presets_and_grids(
    run_command: Command, rule: str, toy_folder: str, tmp_path: Path
) -> None:
    (tmp_path / "prompts.txt").write_text("Why?\n")
    flags = ("--prompts", str(tmp_path / "prompts.txt"), "--weights", toy_folder, "--seeds", "1")
    flags = (*flags, "--max-new-tokens", "3", "--json")
    out = str(tmp_path / "out")
    code, text, err = run_command(compare.main, *flags, "--samplers", f"greedy,{rule}", "--out", out)
    assert code == 0, err
    assert [variant["label"] for variant in json.loads(text)["variants"]] == ["greedy", rule]
    ours = read_manifest(Path(out))["variants"][1]
    assert ours["sampler_source"]["sha256"] == samplers.resolve(rule).source.sha256  # type: ignore[union-attr]
    code, text, err = run_command(sweep.main, *flags, "--sampler", rule, "--grid", "times=0.5,1")
    assert (code, len(json.loads(text)["variants"])) == (0, 2), err
    (tmp_path / "mine.toml").write_text('sampler = "my_rule.py:RULE"\ntimes = 0.25\n')
    found = samplers.resolve(str(tmp_path / "mine.toml"))
    assert (found.name, found.numbers.times, found.source) == (
        "above-uniform",
        0.25,
        samplers.resolve(rule).source,
    )
    (tmp_path / "g.toml").write_text(
        'prompts = ["a"]\n[[samplers]]\nsampler = "my_rule.py:RULE"\ntimes = [0.5, 1]\n'
    )
    variants = grid_file.read(tmp_path / "g.toml").variants
    assert [variant.sampler.numbers.times for variant in variants] == [0.5, 1.0]


def test_a_rule_object_generates_what_its_file_does(
    rule: str, toy_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("my_rule", rule.rpartition(":")[0])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "my_rule", module)
    spec.loader.exec_module(module)
    options: dict[str, Any] = {"sampler_config": {"times": 0.5}, "seed": 2, "max_new_tokens": 4}
    results = [entropix.generate(toy_model, "Hi", sampler=named, **options) for named in (rule, module.RULE)]
    assert results[0][0].token_ids == results[1][0].token_ids
    assert samplers.resolve(module.RULE).source == samplers.resolve(rule).source
    with pytest.raises(ValueError, match=r"'min-p' already; give this one another name"):
        entropix.generate(toy_model, "Hi", sampler=module.RULE._replace(name="min-p"))


@pytest.mark.parametrize(
    ("text", "named", "message"),
    [
        (RULE, "r.py:RULES", "r.py: there is no 'RULES' in it; did you mean 'RULE'?"),
        (RULE, "r.py:zzz", "there is no 'zzz' in it; its rules are RULE"),
        (RULE, "r.py:step", "r.py: step: expected a Sampler, got function"),
        (RULE, "r.py", "say which rule of the file is meant, like"),
        (RULE, "gone.py:RULE", "gone.py: no such file"),
        (RULE.replace("above-uniform", "min-p"), "r.py:RULE", "there is a sampler 'min-p' already"),
        ("x = 1\ny = x / 0\n", "r.py:RULE", "r.py: line 2: ZeroDivisionError: division by zero"),
        ("x = 1\ny = = 0\n", "r.py:RULE", "r.py: line 2: SyntaxError: "),
        (RULE.replace("times:", "seed:"), "r.py:RULE", "there is a flag --seed already; rename that number"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_a_sentence(
    run_command: Command, tmp_path: Path, text: str, named: str, message: str
) -> None:
    (tmp_path / "r.py").write_text(text)
    code, out, err = run_command(main.main, "--prompt", "a", "--sampler", str(tmp_path / named))
    assert (code, out) == (1, "")
    assert message in err and err.startswith("error: ")


def test_a_taken_name_is_refused_and_packages_offer_rules(
    rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"there is a sampler 'greedy' already; choose another name"):
        samplers.register(SAMPLERS["min-p"]._replace(name="greedy"))
    monkeypatch.setattr(registry, "SAMPLERS", known := dict(SAMPLERS))
    monkeypatch.setattr(rule_files, "SAMPLERS", known)
    (tmp_path / "offered_rule.py").write_text(RULE)
    monkeypatch.syspath_prepend(tmp_path)
    entry = EntryPoint("above-uniform", "offered_rule:RULE", "entropix.samplers")
    monkeypatch.setattr(registry.importlib.metadata, "entry_points", lambda group: [entry])
    registry._load_installed.cache_clear()
    try:
        found = samplers.resolve("above-uniform")
        assert (found.numbers.times, found.source) == (1.0, None)
        assert "above-uniform" in samplers.names()
    finally:
        registry._load_installed.cache_clear()
