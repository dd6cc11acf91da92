"""The keywords of `generate`: typed, shown, and checked as on the command line."""

import dataclasses
import inspect
from typing import Any, get_type_hints

import pytest

import entropix
from entropix import options, presets
from entropix.checkpoint.loading import Model
from entropix.config import GenerateConfig
from entropix.generation import prepare
from entropix.options import Options

DEFAULTS = {name: p.default for name, p in inspect.signature(entropix.generate).parameters.items()}


def test_every_field_of_the_config_is_a_keyword_with_its_default() -> None:
    assert get_type_hints(Options).keys() >= {field.name for field in dataclasses.fields(GenerateConfig)}
    for field in dataclasses.fields(GenerateConfig):
        assert DEFAULTS[field.name] == field.default
    assert str(DEFAULTS["temp"]) == "<the rule's>"


def test_numbers_of_the_rule_are_keywords(toy_model: Model) -> None:
    request = prepare(toy_model, "Hi", sampler="min-p", min_p=0.05, temp=0.8, seed=1)
    assert (request.sampler.name, request.sampler_config.min_p, request.sampler_config.temp) == (
        "min-p",
        0.05,
        0.8,
    )
    assert request.config.seed == 1
    again = prepare(toy_model, "Hi", sampler="min-p", sampler_config={"min_p": 0.05}, temp=0.8, seed=1)
    assert again.sampler_config == request.sampler_config


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": 0.5}, "unknown keyword 'temperature'; did you mean 'temp'?"),
        ({"max_tokens": 5}, "unknown keyword 'max_tokens'; did you mean 'max_new_tokens'?"),
        ({"top_kk": 5}, "unknown keyword 'top_kk'; did you mean 'top_k'?"),
        ({"sampler": "min-p", "top_p": 0.5}, "sampler: top_p has no effect with min-p; it is used by top-p"),
        ({"top_p": 1.5}, "sampler: top_p must be between 0.0 and 1.0, got 1.5"),
        ({"dry_base": 2.0}, "sampler: dry_base has no effect while dry_multiplier is 0; set that too"),
        (
            {"zzzz": 1, "sampler": "greedy"},
            "unknown keyword 'zzzz'; the numbers of greedy are repetition_penalty",
        ),
    ],
)
def test_a_keyword_that_means_nothing_is_refused(toy_model: Model, given: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        entropix.generate(toy_model, "Hi", **given)
    assert str(error.value).startswith(message)


def test_what_others_call_it_is_a_keyword_here() -> None:
    assert set(options.ELSEWHERE.values()) <= get_type_hints(Options).keys()


def test_a_model_has_the_preset_that_was_chosen_for_it_and_others_the_published_numbers(
    toy_model: Model,
) -> None:
    for weights in ("smollm2-135m-instruct", "/any/where/smollm2-135m-instruct"):
        assert presets.for_model(weights) == "entropix-smollm2-135m-instruct"
    assert presets.for_model("/weights/logits") == presets.PUBLISHED
    assert set(presets.FOR_MODELS.values()) <= set(presets.preset_names("samplers"))
    assert prepare(toy_model, "Hi").sampler_config == entropix.SamplerConfig()


def test_a_model_says_in_three_lines_what_it_is(toy_model: Model) -> None:
    lines = repr(toy_model).splitlines()
    assert lines[0] == "Model 'toy': 2 layers of 4 heads (2 of keys), 32 wide, 259 tokens, context 512"
    assert len(lines) == 3 and "float32" in lines[1] and "one device (cpu)" in lines[1]


def test_the_package_lists_what_there_is_to_use() -> None:
    assert {"generate", "load", "forward", "Result", "register_metric"} <= set(dir(entropix))
