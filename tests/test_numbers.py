"""A rule has the numbers that it uses and no others; what it does not have is refused."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from entropix import samplers
from entropix.config import HOST, STATIC, TRACED, fields_of_kind, parameter, rule_config
from entropix.console import cli
from entropix.metrics import Metrics
from entropix.samplers import SAMPLERS, RuleConfig, Sampler, guarded
from entropix.samplers.base import SamplerInputs

ROWS, VOCABULARY = 64, 300
GUARD = {field.name for field in dataclasses.fields(RuleConfig)}
FAMILY = ["entropix", "entropix-torch", "entropix-logits", "placebo"]


def context() -> SamplerInputs:
    """Flat and sharp logits; metrics on which the entropix rule meets every strategy, near every threshold."""
    rng = np.random.default_rng(0)
    metrics = Metrics(*(np.linspace(0.2, 0.8, ROWS, dtype=np.float32) for _ in Metrics._fields))._replace(
        logits_entropy=np.tile(np.array([0.05, 6, 4, 5.5, 0.2, 0.15, 6, 5.1], np.float32), ROWS // 8),
        logits_varentropy=np.tile(np.array([0.05, 0.05, 6, 5.5, 0.1, 0.15, 3, 9], np.float32), ROWS // 8),
    )
    logits_BV = rng.normal(0, 1, (ROWS, VOCABULARY)) * np.geomspace(0.2, 8, ROWS)[:, None]
    return SamplerInputs(logits_BV.astype(np.float32), metrics)


def outcomes(sampler: Sampler, numbers: Any) -> list[bytes]:
    """What a step returns, with a few keys, as bytes."""
    step, found = jax.jit(sampler.step), []
    state = sampler.init(numbers, [[3, 1, 4, 1, 3, 1, 4]] * ROWS, lambda text: list(text.encode()))
    for seed in range(3):
        out = step(jax.random.split(jax.random.key(seed), ROWS), state, context(), numbers)
        found += [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(out)]
    return found


def base(sampler: Sampler) -> Any:
    """The usual numbers, but with every strategy of placebo as likely."""
    likely = dict.fromkeys([name for name in vars(sampler.config()) if name.startswith("placebo_")], 0.5)
    return sampler.config(**likely)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_number_of_a_rule_changes_what_a_step_returns(name: str) -> None:
    """A dataclass that lists a number which its rule ignores fails here."""
    sampler, usual = SAMPLERS[name], base(SAMPLERS[name])
    before = outcomes(sampler, usual)
    for field in samplers.parameters(sampler.config):
        if field.name in GUARD:
            continue
        value = getattr(usual, field.name)
        tries = ["a text"] if isinstance(value, str) else [value * 2, value / 4, value + 1, value - 0.05]
        low, high = field.metadata["low"], field.metadata["high"]
        if isinstance(value, int):
            tries = [value // 2, value + 1]
        assert any(
            outcomes(sampler, dataclasses.replace(usual, **{field.name: tried})) != before
            for tried in tries
            if isinstance(tried, str) or low <= tried <= high
        ), field.name


def test_every_number_of_the_guard_changes_what_a_step_returns() -> None:
    everything = tuple(range(1000))
    sampler, on = guarded(SAMPLERS["temperature"]), {"repetition_penalty": 1.5, "dry_multiplier": 0.8}
    usual = SAMPLERS["temperature"].config(**on)
    before = outcomes(sampler, usual)
    for name in set(GUARD) - {"repetition_special"}:
        value = getattr(usual, name)
        assert outcomes(sampler, dataclasses.replace(usual, **{name: value * 1.5})) != before, name
    spared = guarded(SAMPLERS["temperature"], everything)
    assert outcomes(spared, dataclasses.replace(usual, repetition_special=1.0)) == before
    assert outcomes(spared, usual) != before


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("greedy", []),
        ("p-less", ["temp"]),
        ("top-k", ["temp", "top_k", "max_top_k"]),
        ("mirostat", ["temp", "mirostat_tau", "mirostat_eta"]),
    ],
)
def test_a_rule_has_its_own_numbers_first_and_those_of_the_guard_last(name: str, own: list[str]) -> None:
    names = [field.name for field in samplers.parameters(SAMPLERS[name].config)]
    assert names == [*own, *(field.name for field in dataclasses.fields(RuleConfig))]


def test_what_has_no_attention_has_no_numbers_of_attention() -> None:
    own = {name: {field.name for field in dataclasses.fields(SAMPLERS[name].config)} for name in FAMILY}
    assert own["entropix"] == own["entropix-torch"]
    gone = own["entropix"] - own["entropix-logits"]
    assert {"helv_attn_ent_coef", "ada_temp_attn", "ada_score_agree"} < gone and len(gone) == 11
    assert own["placebo"] - own["entropix"] == {f"placebo_{name}" for name in SAMPLERS["placebo"].strategies}
    assert not {name for name in own["placebo"] if name.endswith("_thresh")}
    assert samplers.users("clarifier") == samplers.users("n_adaptive_samples") == FAMILY


def test_a_number_of_another_rule_is_refused_with_the_rules_that_have_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('sampler = "min-p"\nmin_p = 0.2\ntop_k = 7\n')
    with pytest.raises(ValueError) as error:
        samplers.resolve(str(file))
    assert str(error.value) == (
        f"{file}: top_k has no effect with min-p; it is used by top-k, entropix, entropix-torch and 2 more, "
        "see docs/samplers.md"
    )
    with pytest.raises(
        ValueError, match="--xtc-probability has no effect with min-p; it is used by xtc, see "
    ):
        samplers.check_names(["xtc_probability"], SAMPLERS["min-p"], "flags", cli.spelled)
    with pytest.raises(
        ValueError, match=r"ada_temp_attn has .*; it is used by entropix and entropix-torch, see "
    ):
        samplers.resolve("greedy", {"ada_temp_attn": 1.0})


def test_a_file_of_before_may_list_numbers_of_other_rules_as_they_usually_are(tmp_path: Path) -> None:
    file = tmp_path / "old.toml"
    file.write_text('sampler = "min-p"\nmin_p = 0.2\ntop_k = 27\nclarifier = " ..."\n')
    assert samplers.resolve(str(file)).numbers == SAMPLERS["min-p"].config(min_p=0.2)


def test_numbers_of_a_guard_that_is_off_are_refused(tmp_path: Path) -> None:
    on = SAMPLERS["greedy"].config(dry_multiplier=0.1)
    samplers.check_guard(["dry_base"], on, "flags")
    with pytest.raises(
        ValueError, match=r"^flags: --dry-base has no effect while --dry-multiplier is 0; set that too"
    ):
        samplers.check_guard(["dry_base"], RuleConfig(), "flags", cli.spelled)


def test_a_config_of_another_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="min-p takes a MinPConfig or a mapping, got a RuleConfig"):
        samplers.resolve("min-p", RuleConfig())


def test_a_dataclass_without_documentation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Bare.alpha: write its default as parameter\(default, help"):

        @rule_config
        class Bare(RuleConfig):
            alpha: float = 0.5

    with pytest.raises(ValueError, match=r"Text.alpha: a traced number is a float, an int or a bool"):

        @rule_config
        class Text(RuleConfig):
            alpha: str = parameter("a", "some text")


def test_numbers_have_one_of_three_kinds() -> None:
    config = SAMPLERS["entropix"].config
    assert fields_of_kind(config, STATIC) == ["n_adaptive_samples", "max_top_k"]
    assert fields_of_kind(config, HOST) == ["clarifier"]
    assert len(fields_of_kind(config, TRACED)) == len(dataclasses.fields(config)) - 3
