"""Configurations: the reference defaults, what is refused and how, and what is traced."""

import dataclasses
import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import pytest

from entropix import PACKAGE_ROOT, config, files, presets, samplers
from entropix.checkpoint.loading import Model
from entropix.config import BacktrackConfig, BranchConfig, GenerateConfig, ModelConfig, RopeScaling
from entropix.generation import prepare
from entropix.samplers.entropix import SamplerConfig

TOY = files.read_toml(PACKAGE_ROOT.parent / "configs" / "models" / "toy.toml")

REFERENCE = """
temp = 0.666
top_p = 0.90
top_k = 27
min_p = 0.03
low_ent_thresh = 0.1
low_vent_thresh = 0.1
med_ent_thresh = 3.0
high_ent_thresh = 5.0
high_vent_thresh = 5.0
clarifier = " ..."
helv_attn_ent_offset = 1.3
helv_attn_ent_coef = 0.2
lehv_interaction_strength_offset = 1.2
lehv_interaction_strength_coef = 0.3
hehv_attn_ent_coef = 0.2
hehv_attn_vent_offset = 2.0
hehv_attn_vent_coef = 0.5
n_adaptive_samples = 5
ada_temp_logits = 0.3
ada_temp_attn = 0.2
ada_temp_agree = 0.2
ada_top_p = 0.1
ada_top_k_int = 0.3
ada_top_k_agree = 0.2
ada_min_p = 0.5
ada_score_logits_ent = 0.1
ada_score_attn_ent = 0.2
ada_score_logits_vent = 0.3
ada_score_attn_vent = 0.4
ada_score_agree = 0.5
ada_score_int = 0.6
"""


def refusal(cls: type, values: Mapping[str, Any]) -> str:
    """The message with which these values are refused."""
    with pytest.raises(ValueError) as raised:
        config.from_mapping(cls, values, "file.toml")
    return str(raised.value)


# ----- defaults and presets ---------------------------------------------------------------------------------


def test_the_defaults_are_the_reference_values() -> None:
    expected = tomllib.loads(REFERENCE)
    actual = dataclasses.asdict(SamplerConfig())
    assert {name: actual[name] for name in expected} == expected
    of_guard = {field.name for field in dataclasses.fields(samplers.RuleConfig)}
    assert set(actual) - set(expected) == {"max_top_k", *of_guard}


def test_the_entropix_presets_are_the_reference_values() -> None:
    for name in ("entropix", "entropix-torch"):
        found = samplers.resolve(name)
        assert (found.name, found.numbers) == (name, SamplerConfig())


@pytest.mark.parametrize("name", presets.preset_names("samplers"))
def test_every_sampler_preset_holds_only_what_it_changes_or_states(name: str) -> None:
    """Read and checked, it is the defaults with the file's numbers in them."""
    found = samplers.resolve(name)
    written = files.read_toml(PACKAGE_ROOT.parent / "configs" / "samplers" / f"{name}.toml")
    assert written.pop("sampler") == found.name
    assert found.numbers == dataclasses.replace(found.rule.config(), **written)
    if name == found.name:
        assert found.numbers == found.rule.config()


@pytest.mark.parametrize("name", presets.preset_names("models"))
def test_every_model_preset_is_an_architecture(name: str) -> None:
    assert isinstance(presets.read_model(name), ModelConfig)


@pytest.mark.parametrize("cls", [SamplerConfig, GenerateConfig])
def test_a_config_survives_being_written_and_read(cls: type) -> None:
    cfg = cls()
    values = {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(cfg).items()}
    assert config.from_mapping(cls, values, "file.toml") == cfg


def test_a_file_replaces_single_numbers_of_its_rules_own_preset(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('sampler = "top-p"\ntop_p = 0.5\n')
    own = samplers.resolve("top-p").numbers
    assert own.temp == 1.0 != SamplerConfig().temp
    expected = dataclasses.replace(own, top_p=0.5)
    found = samplers.resolve(str(file))
    assert (found.name, found.numbers) == ("top-p", expected)


def test_a_file_says_how_to_look_ahead_and_back_where_nobody_else_does(
    tmp_path: Path, toy_model: Model
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        'sampler = "entropix"\ntop_p = 0.5\n[branching]\npaths = 3\nentropy = 2\n[backtracking]\ntokens = 2\n'
    )
    found = samplers.resolve(str(file))
    assert found.branching == BranchConfig(paths=3, entropy=2.0)
    assert found.backtracking == BacktrackConfig(tokens=2)

    def looking(**asked: Any) -> tuple[BranchConfig, BacktrackConfig]:
        cfg = prepare(toy_model, "Why?", sampler=found, **asked).config
        return cfg.branching, cfg.backtracking

    assert looking() == looking(temp=0.5) == (found.branching, found.backtracking)
    other = BranchConfig(paths=2)
    assert looking(branching=other) == looking(branching={"paths": 2}) == (other, found.backtracking)
    assert looking(branching={}, backtracking={}) == (BranchConfig(), BacktrackConfig())

    again = tmp_path / "again.toml"
    again.write_text("\n".join(found.changed({"temp": 0.5}).as_toml()))
    read = samplers.resolve(str(again))
    assert (read.numbers.temp, read.branching, read.backtracking) == (
        0.5,
        found.branching,
        found.backtracking,
    )


def test_every_field_of_the_sampler_and_of_generation_explains_itself() -> None:
    for cls in (SamplerConfig, GenerateConfig):
        for field in dataclasses.fields(cls):
            assert len(field.metadata["help"]) > 10, field.name
            assert field.metadata["low"] < field.metadata["high"], field.name


# ----- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (SamplerConfig, {"tempp": 1.0}, "file.toml: unknown field 'tempp'; did you mean 'temp'?"),
        (SamplerConfig, {"top_pp": 0.5}, "file.toml: unknown field 'top_pp'; did you mean 'top_p'?"),
        (
            GenerateConfig,
            {"zzz": 1},
            "file.toml: unknown field 'zzz'; known: alternatives, backtracking, branching, ",
        ),
        (SamplerConfig, {"temp": "hot"}, "file.toml: temp must be of type float, got 'hot'"),
        (SamplerConfig, {"temp": True}, "file.toml: temp must be of type float, got True"),
        (SamplerConfig, {"top_k": 27.0}, "file.toml: top_k must be of type int, got 27.0"),
        (SamplerConfig, {"top_k": True}, "file.toml: top_k must be of type int, got True"),
        (SamplerConfig, {"clarifier": 2564}, "file.toml: clarifier must be of type str, got 2564"),
        (GenerateConfig, {"stop": "."}, "file.toml: stop must be a list of strings, got '.'"),
        (GenerateConfig, {"stop": [1]}, "file.toml: stop must be a list of strings, got (1,)"),
        (
            GenerateConfig,
            {"ignore_stop_tokens": 1},
            "file.toml: ignore_stop_tokens must be of type bool, got 1",
        ),
        (SamplerConfig, {"temp": 0.0}, "file.toml: temp must be between 0.001 and 100.0, got 0.0"),
        (SamplerConfig, {"temp": -1}, "file.toml: temp must be between 0.001 and 100.0, got -1.0"),
        (SamplerConfig, {"temp": math.nan}, "file.toml: temp must be between 0.001 and 100.0, got nan"),
        (SamplerConfig, {"top_p": 1.01}, "file.toml: top_p must be between 0.0 and 1.0, got 1.01"),
        (SamplerConfig, {"min_p": -0.1}, "file.toml: min_p must be between 0.0 and 1.0, got -0.1"),
        (SamplerConfig, {"top_k": 0}, "file.toml: top_k must be between 1 and 2147483647, got 0"),
        (
            SamplerConfig,
            {"top_k": 2**31},
            "file.toml: top_k must be between 1 and 2147483647, got 2147483648",
        ),
        (SamplerConfig, {"n_adaptive_samples": 65}, "n_adaptive_samples must be between 1 and 64, got 65"),
        (
            SamplerConfig,
            {"med_ent_thresh": -1.0},
            "med_ent_thresh must be a finite number of at least 0.0, got -1.0",
        ),
        (SamplerConfig, {"ada_top_p": math.inf}, "file.toml: ada_top_p must be a finite number, got inf"),
        (
            SamplerConfig,
            {"ada_top_p": 10**400},
            "file.toml: ada_top_p must be a finite number, got a number of some 401 digits",
        ),
        (
            SamplerConfig,
            {"top_k": 500},
            "file.toml: top_k must be at most max_top_k (128), got 500; raise max_top_k",
        ),
        (GenerateConfig, {"max_new_tokens": 0}, "max_new_tokens must be between 1 and 2147483647, got 0"),
        (GenerateConfig, {"max_new_tokens": -3}, "max_new_tokens must be between 1 and 2147483647, got -3"),
        (GenerateConfig, {"chunk_length": 0}, "chunk_length must be between 1 and 2147483647, got 0"),
        (GenerateConfig, {"seed": -1}, "seed must be between 0 and 4294967295, got -1"),
        (GenerateConfig, {"seed": 2**32}, "seed must be between 0 and 4294967295, got 4294967296"),
    ],
)
def test_a_wrong_field_is_refused_by_name_value_and_range(
    cls: type, values: dict[str, Any], message: str
) -> None:
    assert message in refusal(cls, values)


@pytest.mark.parametrize("field", dataclasses.fields(SamplerConfig), ids=lambda field: field.name)
def test_the_ends_of_every_range_are_allowed_and_nothing_beyond(field: dataclasses.Field) -> None:
    spare = {"max_top_k": 2**31 - 1} if field.name == "top_k" else {"top_k": 1}
    for bound, outwards in ((field.metadata["low"], -1), (field.metadata["high"], 1)):
        if math.isfinite(bound):
            value = type(field.default)(bound)
            assert (
                getattr(config.from_mapping(SamplerConfig, spare | {field.name: value}, ""), field.name)
                == value
            )
            beyond = (
                value + outwards if isinstance(value, int) else math.nextafter(value, outwards * math.inf)
            )
            assert field.name in refusal(SamplerConfig, spare | {field.name: beyond})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_heads": 0}, "n_heads must be a finite number of at least 1, got 0"),
        ({"n_kv_heads": 3}, "n_heads (4) must be a multiple of n_kv_heads (3)"),
        ({"head_dim": 7}, "head_dim must be even for the rotary embedding, got 7"),
        ({"norm_eps": "1e-5"}, "norm_eps must be of type float, got '1e-5'"),
        ({"tied_embeddings": 1}, "tied_embeddings must be of type bool, got 1"),
        ({"rope_scaling": 8.0}, "rope_scaling must be of type"),
        ({"rope_scaling": {"factr": 8.0}}, "rope_scaling: unknown field 'factr'; did you mean 'factor'?"),
        (
            {"rope_scaling": {"factor": 0.5}},
            "rope_scaling: factor must be a finite number of at least 1.0, got 0.5",
        ),
        (
            {"rope_scaling": {"low_freq_factor": 4.0, "high_freq_factor": 4.0}},
            "rope_scaling: high_freq_factor (4.0) must be above low_freq_factor (4.0)",
        ),
    ],
)
def test_a_wrong_architecture_is_refused(changes: dict[str, Any], message: str) -> None:
    assert message in refusal(ModelConfig, TOY | changes)


def test_missing_fields_are_all_named() -> None:
    partial = {name: value for name, value in TOY.items() if name not in ("dim", "norm_eps")}
    assert refusal(ModelConfig, partial) == "file.toml: missing fields dim, norm_eps"
    assert refusal(ModelConfig, partial | {"dim": 32}) == "file.toml: missing field norm_eps"


def test_the_architecture_is_checked_however_it_is_made() -> None:
    with pytest.raises(ValueError, match="vocab_size must be a finite number of at least 1, got 0"):
        ModelConfig(**TOY | {"vocab_size": 0})
    with pytest.raises(ValueError, match=r"factor must be a finite number of at least 1\.0, got 0\.0"):
        RopeScaling(factor=0.0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        (b"temp = \n", "not a readable TOML file"),
        (b'clarifier = "\xff"\n', "line 1 is not UTF-8"),
        (b"temp = 1.0\n", 'expected an entry like sampler = "entropix", got None'),
        (b"sampler = 3\n", 'expected an entry like sampler = "entropix", got 3'),
        (b'sampler = "entropix"\ntmp = 1.0\n', "unknown field 'tmp'; did you mean 'temp'?"),
        (b'sampler = "entropix"\nbranching = 4\n', "branching: expected names with values, got 4"),
        (
            b'sampler = "entropix"\n[branching]\npath = 2\n',
            "branching: unknown field 'path'; did you mean 'paths'",
        ),
        (
            b'sampler = "entropix"\n[backtracking]\ntokens = 99\n',
            "backtracking: tokens must be between 0 and 16",
        ),
    ],
)
def test_an_unusable_preset_file_is_refused_by_its_name(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    file = tmp_path / "mine.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(file))) as raised:
        samplers.resolve(str(file))
    assert message in str(raised.value)


def test_an_unknown_preset_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(
        ValueError,
        match=r"no sampler preset 'entropy'; did you mean 'entropix'\? There are .*, top-p, .*or give",
    ):
        samplers.resolve("entropy")
    with pytest.raises(ValueError, match=r"no model preset 'gpt'; there are .*toy, or give"):
        presets.read_model("gpt")


# ----- as a pytree ------------------------------------------------------------------------------------------


def test_every_number_is_a_traced_leaf_except_what_fixes_a_shape() -> None:
    leaves, structure = jax.tree.flatten_with_path(SamplerConfig())
    names = {jax.tree_util.keystr(path).lstrip(".") for path, _ in leaves}
    everything = {field.name for field in dataclasses.fields(SamplerConfig)}
    assert everything - names == {"n_adaptive_samples", "max_top_k", "clarifier"}
    rebuilt = jax.tree.unflatten(structure, [leaf for _, leaf in leaves])
    assert rebuilt == SamplerConfig()


def test_only_what_fixes_a_shape_changes_the_structure() -> None:
    """And so the program: text and numbers do not."""
    plain = SamplerConfig()
    same = dataclasses.replace(plain, temp=1.0, top_k=3, high_ent_thresh=0.0, clarifier="[CLARIFY]")
    assert jax.tree.structure(same) == jax.tree.structure(plain)
    for change in ({"n_adaptive_samples": 4}, {"max_top_k": 64}):
        assert jax.tree.structure(dataclasses.replace(plain, **change)) != jax.tree.structure(plain)


def test_every_leaf_reaches_the_program_as_the_number_it_is() -> None:
    cfg = dataclasses.replace(SamplerConfig(), temp=0.25, top_k=9)
    seen = jax.jit(lambda cfg: (cfg.temp, cfg.top_k, cfg.n_adaptive_samples))(cfg)
    assert [float(value) for value in seen] == [0.25, 9.0, 5.0]


def test_whole_numbers_for_decimal_fields_become_decimal() -> None:
    cfg = config.from_mapping(SamplerConfig, {"temp": 1, "med_ent_thresh": 3}, "file.toml")
    assert (type(cfg.temp), type(cfg.med_ent_thresh), type(cfg.top_k)) == (float, float, int)
