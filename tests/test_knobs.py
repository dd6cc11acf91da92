"""Which numbers a sampler uses, and that one it ignores is refused."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropix import files, presets, samplers
from entropix.config import SamplerConfig
from entropix.console import cli
from entropix.metrics import Metrics
from entropix.samplers import SAMPLERS, knobs
from entropix.samplers.base import SamplerInputs

SWITCHES = ["repetition_penalty", "dry_multiplier"]
DRY = ["dry_base", "dry_allowed_length"]
FAMILY = ["entropix", "entropix-torch", "entropix-logits", "placebo"]
OF_ATTENTION = {
    *("helv_attn_ent_coef", "lehv_interaction_strength_coef", "hehv_attn_ent_coef", "hehv_attn_vent_coef"),
    *("ada_temp_attn", "ada_temp_agree", "ada_top_p", "ada_top_k_int", "ada_top_k_agree"),
    *("ada_score_agree", "ada_score_int"),
}
THRESHOLDS = {"low_ent_thresh", "low_vent_thresh", "med_ent_thresh", "high_ent_thresh", "high_vent_thresh"}
FREQUENCIES = {f"placebo_{name}" for name in SAMPLERS["placebo"].strategies}


def used(name: str) -> list[str]:
    """The fields that a sampler uses."""
    return [
        field.name for field in dataclasses.fields(SamplerConfig) if knobs.uses(SAMPLERS[name], field.name)
    ]


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("greedy", []),
        ("p-less", ["temp"]),
        ("temperature", ["temp"]),
        ("top-p", ["temp", "top_p"]),
        ("top-k", ["temp", "top_k", "max_top_k"]),
        ("mirostat", ["temp", "mirostat_tau", "mirostat_eta"]),
    ],
)
def test_a_sampler_uses_its_own_numbers(name: str, own: list[str]) -> None:
    assert used(name) == own


def test_what_a_rule_multiplies_by_0_it_does_not_use() -> None:
    whole = set(used("entropix"))
    assert whole >= OF_ATTENTION | THRESHOLDS
    assert set(used("entropix-torch")) == whole
    assert set(used("entropix-logits")) == whole - OF_ATTENTION
    of_logits = {"ada_temp_logits", "ada_min_p"}
    assert set(used("placebo")) == whole - OF_ATTENTION - THRESHOLDS - of_logits | FREQUENCIES


@pytest.mark.parametrize("name", ["entropix-logits", "placebo"])
def test_what_such_a_rule_is_said_to_ignore_changes_nothing_and_the_rest_does(name: str) -> None:
    """Each number alone is doubled, on 64 rows that between them meet every strategy.

    Placebo's draws of equally likely strategies would miss one with odds of 5 · 0.8^64 = 3 in a million.
    """
    rows = 64
    rule, usual = SAMPLERS[name], presets.read_preset(name)[1]
    if name == "placebo":
        usual = dataclasses.replace(usual, **dict.fromkeys(FREQUENCIES, 0.5))
    metrics = Metrics(*(jnp.linspace(0.2, 0.8, rows) for _ in Metrics._fields))._replace(
        logits_entropy=jnp.tile(jnp.array([0.05, 6.0, 4.0, 5.5, 0.2, 0.2, 6.0, 5.5]), rows // 8),
        logits_varentropy=jnp.tile(jnp.array([0.05, 0.05, 6.0, 6.0, 0.1, 0.2, 3.0, 6.0]), rows // 8),
    )
    context = SamplerInputs(jax.random.normal(jax.random.key(0), (rows, 300)), metrics)
    state = rule.init(usual, [[1]] * rows, lambda text: [7])
    key_B = jax.random.split(jax.random.key(1), rows)
    step = jax.jit(rule.step)

    def outcome(cfg: SamplerConfig) -> list[bytes]:
        return [np.asarray(array).tobytes() for array in jax.tree.leaves(step(key_B, state, context, cfg))]

    for knob in OF_ATTENTION | {"ada_temp_logits", "ada_min_p", "ada_score_attn_ent", "temp"}:
        doubled = dataclasses.replace(usual, **{knob: 2 * getattr(usual, knob)})
        assert (outcome(doubled) != outcome(usual)) == knobs.uses(rule, knob), knob


def test_texts_and_shapes_count_too() -> None:
    assert knobs.users("clarifier") == FAMILY
    assert knobs.users("n_adaptive_samples") == FAMILY
    assert knobs.users("max_top_k") == ["top-k", *FAMILY]


def test_every_number_is_used_by_some_sampler_or_by_the_guard() -> None:
    of_guard = {*SWITCHES, *DRY}
    assert not any(knobs.users(name) for name in of_guard)
    fields = {field.name for field in dataclasses.fields(SamplerConfig)}
    assert {name for name in fields if knobs.users(name)} == fields - of_guard


@pytest.mark.parametrize("name", presets.preset_names("samplers"))
def test_no_preset_sets_a_number_that_its_rule_ignores(name: str) -> None:
    knobs.check_preset(name)
    written = files.read_toml(presets.shipped("samplers") / f"{name}.toml")
    rule = written.pop("sampler")
    assert set(written) <= set(used(rule))


def test_a_file_that_sets_one_is_refused_with_the_samplers_that_use_it(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('sampler = "min-p"\nmin_p = 0.2\ntop_k = 7\n')
    with pytest.raises(ValueError) as error:
        knobs.check_preset(str(file))
    assert str(error.value) == (
        f"{file}: top_k has no effect with min-p; it is used by top-k, entropix, entropix-torch and 2 more, "
        "see docs/samplers.md"
    )


@pytest.mark.parametrize(
    ("name", "users"),
    [("xtc_threshold", "xtc"), ("ada_temp_attn", "entropix and entropix-torch")],
)
def test_few_users_are_all_named(name: str, users: str) -> None:
    with pytest.raises(
        ValueError, match=f"^here: {name} has no effect with greedy; it is used by {users}, see "
    ):
        knobs.check_used(["dry_multiplier", name], SAMPLERS["greedy"], SamplerConfig(), "here")


def test_numbers_are_named_as_they_are_typed() -> None:
    for name, message in (
        ("xtc_probability", "flags: --xtc-probability has no effect with min-p; it is used by xtc, see "),
        ("dry_base", "flags: --dry-base has no effect while --dry-multiplier is 0; set that too"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            knobs.check_used([name], SAMPLERS["min-p"], SamplerConfig(), "flags", cli.spelled)


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
