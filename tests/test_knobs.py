"""Which numbers a sampler uses, and that one it ignores is refused."""

import dataclasses
from pathlib import Path

import pytest

from entropix import config, samplers
from entropix.config import SamplerConfig
from entropix.samplers import SAMPLERS, knobs

SWITCHES = ["repetition_penalty", "dry_multiplier"]
DRY = ["dry_base", "dry_allowed_length"]
FAMILY = {"entropix", "entropix-torch", "entropix-logits", "placebo"}


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("greedy", []),
        ("temperature", ["temp"]),
        ("top-p", ["temp", "top_p"]),
        ("top-k", ["temp", "top_k", "max_top_k"]),
        ("mirostat", ["temp", "mirostat_tau", "mirostat_eta"]),
    ],
)
def test_a_sampler_uses_its_own_numbers_and_the_switches_of_the_guard(name: str, own: list[str]) -> None:
    assert knobs.used(SAMPLERS[name], SamplerConfig()) == [*own, *SWITCHES]
    assert knobs.used(SAMPLERS[name], SamplerConfig(dry_multiplier=0.5)) == [*own, *SWITCHES, *DRY]


def test_texts_and_shapes_count_too() -> None:
    for field, users in (
        ("clarifier", FAMILY),
        ("n_adaptive_samples", FAMILY),
        ("max_top_k", FAMILY | {"top-k"}),
    ):
        using = {name for name, rule in SAMPLERS.items() if field in knobs.used(rule, SamplerConfig())}
        assert using == users, field


def test_every_number_is_used_by_some_sampler() -> None:
    on = SamplerConfig(dry_multiplier=1.0)
    used = {knob for sampler in SAMPLERS.values() for knob in knobs.used(sampler, on)}
    assert used == {field.name for field in dataclasses.fields(SamplerConfig)}


@pytest.mark.parametrize("name", config.preset_names("samplers"))
def test_no_preset_sets_a_number_that_its_rule_ignores(name: str) -> None:
    knobs.check_preset(name)
    written = config.read_toml(config.shipped("samplers") / f"{name}.toml")
    rule = written.pop("sampler")
    assert set(written) <= set(knobs.used(SAMPLERS[rule], SamplerConfig()))


def test_a_file_that_sets_one_is_refused_with_those_that_it_may_set(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('sampler = "min-p"\nmin_p = 0.2\ntop_k = 7\n')
    with pytest.raises(ValueError) as error:
        knobs.check_preset(str(file))
    assert str(error.value) == (
        f"{file}: top_k has no effect, because min-p does not use it; it uses temp, min_p, and like any sampler "
        "repetition_penalty and dry_multiplier"
    )


def test_the_numbers_of_a_guard_that_is_off_are_refused_and_its_switches_are_not() -> None:
    knobs.check_used(SWITCHES, SAMPLERS["greedy"], SamplerConfig(), "here")
    knobs.check_used(DRY, SAMPLERS["greedy"], SamplerConfig(dry_multiplier=0.1), "here")
    with pytest.raises(
        ValueError, match=r"^here: dry_base has no effect while dry_multiplier is 0; set that too$"
    ):
        knobs.check_used(DRY, SAMPLERS["greedy"], SamplerConfig(), "here")


def test_changed_names_the_fields_that_differ() -> None:
    cfg = SamplerConfig(top_p=0.5, clarifier="?")
    assert knobs.changed(cfg, SamplerConfig()) == ["top_p", "clarifier"]
    assert knobs.changed(cfg, cfg) == []


def test_an_unknown_sampler_is_refused_with_the_nearest_and_all_others() -> None:
    with pytest.raises(
        ValueError, match="unknown sampler 'minp'; did you mean 'min-p'\\? There are entropix, "
    ):
        samplers.get("minp")
