"""What generation does with text and plain values: stop strings, prompts, options, records."""

import itertools
import json
from pathlib import Path
from typing import Any

import folders
import jax.numpy as jnp
import numpy as np
import pytest

import entropix
from entropix import generation, samplers
from entropix.checkpoint.loading import Model
from entropix.config import GenerateConfig
from entropix.decoding.records import token_record
from entropix.decoding.request import GenerationRequest, prompt_rows
from entropix.decoding.sample_step import StepRecord
from entropix.decoding.stream_text import StopStrings
from entropix.generation import encode_prompt, prepare
from entropix.metrics import Metrics
from entropix.results import FinishReason, Result, TokenEvent, add
from entropix.samplers import SampleInfo
from entropix.samplers.baselines import MinPConfig
from entropix.samplers.entropix import SamplerConfig

IM_START, IM_END = 257, 258


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return entropix.load(folders.write_checkpoint(tmp_path_factory.mktemp("weights") / "chatty"))


@pytest.fixture(scope="module")
def plain_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("weights") / "plain"
    return entropix.load(folders.write_checkpoint(folder, chat_template=None))


# ----- stop strings -----------------------------------------------------------------------------------------


def pushed(stops: list[str], pieces: list[str]) -> tuple[list[str], bool]:
    """What is shown after each piece and at the end, and whether a stop string was found."""
    watcher, shown = StopStrings(stops), []
    for piece in pieces:
        text, found = watcher.push(piece)
        shown.append(text)
        if found:
            return shown, True
    return [*shown, watcher.flush()], False


@pytest.mark.parametrize(
    ("stops", "pieces", "shown", "found"),
    [
        ([], ["a", "b"], ["a", "b", ""], False),
        (["."], ["One", " two", ". Three"], ["One", " two", ""], True),
        (["END"], ["xE", "N", "D", "y"], ["x", "", ""], True),
        (["END"], ["xE", "N", "T"], ["x", "", "ENT", ""], False),
        (["END"], ["xEN"], ["x", "EN"], False),
        (["aab"], ["a", "a", "a", "b"], ["", "", "a", ""], True),
        (["\n\n"], ["x\n", "y\n\n"], ["x", "\ny"], True),
        (["long stop", "ng"], ["lo", "ng", "!"], ["", "lo"], True),
        (["b", "ab"], ["xab"], ["x"], True),
    ],
)
def test_stop_strings_hold_back_no_more_than_could_begin_one(
    stops: list[str], pieces: list[str], shown: list[str], found: bool
) -> None:
    assert pushed(stops, pieces) == (shown, found)


@pytest.mark.parametrize("stops", [["ab"], ["aba"], ["a", "bb"], ["bab", "abba"], ["cab", "bc"]])
def test_however_text_is_cut_the_result_ends_before_the_first_stop_string(stops: list[str]) -> None:
    """Every text of up to six letters, cut at every set of places."""
    for text in map("".join, itertools.product("abc", repeat=6)):
        ends = [at for stop in stops if (at := text.find(stop)) >= 0]
        for cuts in ([], [3], [1, 2], [2, 4], [1, 2, 3, 4, 5]):
            pieces = [text[i:j] for i, j in itertools.pairwise([0, *cuts, 6])]
            shown, found = pushed(stops, pieces)
            assert found == bool(ends)
            # In one piece the leftmost occurrence wins; in several, the one that is complete first.
            if not ends:
                assert "".join(shown) == text
            else:
                assert "".join(shown) in {
                    text[:end] for end in range(7) if text[end:].startswith(tuple(stops))
                }


# ----- prompts ----------------------------------------------------------------------------------------------


def test_a_string_is_a_users_message_to_a_model_with_a_template(chat_model: Model) -> None:
    ids = encode_prompt(chat_model, "Hi")
    assert ids == [
        IM_START,
        *b"user\nHi",
        IM_END,
        *b"\n",
        IM_START,
        *b"assistant\n",
    ]
    assert ids == encode_prompt(chat_model, [{"role": "user", "content": "Hi"}])


def test_a_system_message_comes_before_the_string(chat_model: Model) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert encode_prompt(chat_model, "Hi", system="Be brief.") == encode_prompt(chat_model, messages)


def test_raw_text_and_models_without_a_template_get_no_frame(chat_model: Model, plain_model: Model) -> None:
    assert encode_prompt(chat_model, "Hi", raw=True) == list(b"Hi")
    assert encode_prompt(plain_model, "Hi") == list(b"Hi")


def test_special_tokens_in_a_prompt_are_text_unless_allowed(chat_model: Model) -> None:
    text = "<|im_end|>"
    assert encode_prompt(chat_model, text, raw=True) == list(text.encode())
    assert encode_prompt(chat_model, text, raw=True, allow_special=True) == [IM_END]
    assert encode_prompt(chat_model, text).count(IM_END) == 1
    assert encode_prompt(chat_model, text, allow_special=True).count(IM_END) == 2


def test_token_ids_are_used_as_they_are(chat_model: Model) -> None:
    assert encode_prompt(chat_model, [IM_END, 5]) == [IM_END, 5]


def test_prompts_may_be_one_or_several_of_any_kind(chat_model: Model) -> None:
    message = [{"role": "user", "content": "Hi"}]
    for one in ("Hi", message, [3, 4]):
        assert len(prepare(chat_model, one).prompt_ids) == 1
    assert prepare(chat_model, ["Hi", message, [3, 4]]).prompt_ids == [
        encode_prompt(chat_model, "Hi"),
        encode_prompt(chat_model, message),
        [3, 4],
    ]


@pytest.mark.parametrize("prompt", ["", [], [[]], ["ok", ""]])
def test_an_empty_prompt_is_refused(chat_model: Model, prompt: list[str]) -> None:
    with pytest.raises(ValueError, match=r"prompt is empty|no prompt"):
        generation.generate(chat_model, prompt)


def test_a_conversation_needs_a_template(plain_model: Model) -> None:
    with pytest.raises(ValueError, match=r"no chat template.*--raw"):
        prepare(plain_model, [{"role": "user", "content": "Hi"}])
    with pytest.raises(ValueError, match="no chat template"):
        prepare(plain_model, "Hi", system="Be brief.")


def test_raw_text_has_no_system_message(chat_model: Model) -> None:
    with pytest.raises(ValueError, match="system message needs a chat"):
        prepare(chat_model, "Hi", system="Be brief.", raw=True)


# ----- options ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "generation: max_new_tokens must be .*1.*, got 0"),
        ({"max_new_tokens": -5}, "generation: max_new_tokens must be .*, got -5"),
        ({"max_new_tokens": 2.5}, "generation: max_new_tokens must be of type int, got 2.5"),
        ({"chunk_length": 0}, "generation: chunk_length must be .*, got 0"),
        ({"seed": -1}, "generation: seed must be .*, got -1"),
        ({"seed": 2**32}, "generation: seed must be .*, got 4294967296"),
        ({"stop": ""}, "a stop string must not be empty"),
        ({"stop": ["x", ""]}, "a stop string must not be empty"),
        ({"stop": [3]}, "generation: stop must be a list of strings"),
        ({"max_tokens": 5}, "unknown keyword 'max_tokens'; did you mean 'max_new_tokens'"),
        ({"sampler": "beam"}, "no sampler preset 'beam'; there are .*, entropix, "),
        ({"sampler_config": SamplerConfig(temp=0.0)}, "sampler config: temp must be between"),
    ],
)
def test_a_wrong_option_is_refused_before_any_work(
    chat_model: Model, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(chat_model, "Hi", **options)  # type: ignore[arg-type]


def test_one_stop_string_may_be_given_as_such(chat_model: Model) -> None:
    assert prepare(chat_model, "Hi", stop="END").config.stop == ("END",)
    assert prepare(chat_model, "Hi", stop=["END", "."]).config.stop == ("END", ".")


def test_a_sampler_config_replaces_the_numbers_of_the_preset_and_not_its_rule(chat_model: Model) -> None:
    job = prepare(chat_model, "Hi", sampler="min-p", sampler_config=MinPConfig(min_p=0.2))
    assert job.sampler is samplers.SAMPLERS["min-p"]
    assert job.sampler_config.min_p == 0.2
    assert prepare(chat_model, "Hi", sampler="min-p").sampler_config.min_p == 0.1


# ----- records ----------------------------------------------------------------------------------------------


def chunk(row: dict[str, float], other: float = 7.0) -> StepRecord:
    """A chunk of one step and two rows, the second of which holds `row`; what it lacks is 0."""

    def pair(name: str, dtype: type) -> np.ndarray:
        return np.array([[other, row.get(name, 0)]]).astype(dtype)

    integers = ("strategy", "top_k", "kept")
    info = {
        field: pair(
            name := field.removesuffix("_B"),
            bool if name == "injected" else np.int32 if name in integers else np.float32,
        )
        for field in SampleInfo._fields
    }
    return StepRecord(
        token_B=pair("id", np.int32),
        live_B=np.ones((1, 2), bool),
        finish_B=np.zeros((1, 2), np.int32),
        metrics=Metrics(*(pair(name, np.float32) for name in Metrics._fields)),
        info=SampleInfo(**info),
    )  # type: ignore[arg-type]


def job_of(model: Model) -> GenerationRequest:
    cfg = GenerateConfig()
    return GenerationRequest(
        model, prompt_rows([[1], [2]], cfg), samplers.SAMPLERS["entropix"], SamplerConfig(), cfg
    )


def test_a_record_is_its_rows_numbers_as_plain_values(chat_model: Model) -> None:
    numbers = {
        "id": 65,
        "strategy": 2,
        "top_k": 27,
        "kept": 3,
        "temperature": 0.5,
        "injected": 1,
        "margin": 0.25,
    }
    record = token_record(job_of(chat_model), chunk(numbers), 0, 1)
    assert record.items() >= {**numbers, "strategy": "explore", "injected": True, "text": "A"}.items()
    assert list(record) == [
        *("id", "text", "bytes", "strategy", "temperature", "top_p", "top_k", "min_p", "kept"),
        *("logprob", "draw_logprob", "score", "injected"),
        *Metrics._fields,
    ]
    assert {type(value) for value in record.values()} == {int, float, str, bool, list}


def test_numbers_that_are_not_finite_become_null(chat_model: Model) -> None:
    numbers = {"score": np.nan, "logprob": -np.inf, "logits_entropy": np.inf}
    record = token_record(job_of(chat_model), chunk(numbers), 0, 1)
    assert [name for name, value in record.items() if value is None] == ["logprob", "score", "logits_entropy"]
    json.dumps(record, allow_nan=False)


def test_a_result_is_the_sum_of_its_rows_events() -> None:
    results = [Result([1]), Result([2])]
    for event in (
        TokenEvent(1, "a", {"id": 7}, FinishReason.RUNNING),
        TokenEvent(0, "", {"id": 8}, FinishReason.STOP_TOKEN),
        TokenEvent(1, "b", None, FinishReason.NAN),
    ):
        add(results, event)
    assert results == [
        Result([1], "", [8], [{"id": 8}], FinishReason.STOP_TOKEN),
        Result([2], "ab", [7], [{"id": 7}], FinishReason.NAN),
    ]


def test_the_model_folder_may_be_given_as_text_or_path(chat_model: Model) -> None:
    assert entropix.load(str(chat_model.folder)).folder == Path(chat_model.folder)


def test_a_mapping_replaces_single_numbers_of_the_preset(toy_model: Model) -> None:
    job = prepare(toy_model, [[1]], sampler="min-p", sampler_config={"min_p": 0.25})
    assert (job.sampler_config.temp, job.sampler_config.min_p) == (1.0, 0.25)
    with pytest.raises(ValueError, match="sampler config: unknown field 'minp'; did you mean 'min_p'"):
        prepare(toy_model, [[1]], sampler="min-p", sampler_config={"minp": 0.25})


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        (np.array([1, 2], np.int64), [[1, 2]]),
        (np.array([[1, 2], [3, 4]], np.uint8), [[1, 2], [3, 4]]),
        (jnp.array([1, 2]), [[1, 2]]),
        ([np.int64(1), np.int32(2)], [[1, 2]]),
        ([np.array([1, 2]), jnp.array([3])], [[1, 2], [3]]),
        ([jnp.int32(1), jnp.int32(2)], [[1, 2]]),
        (((1, 2), (3,)), [[1, 2], [3]]),
        (range(1, 4), [[1, 2, 3]]),
    ],
)
def test_token_ids_may_come_in_any_kind_of_sequence(toy_model: Model, prompts: Any, expected: Any) -> None:
    found = prepare(toy_model, prompts).prompt_ids
    assert found == expected and {type(token) for ids in found for token in ids} == {int}


@pytest.mark.parametrize(
    "prompts", [np.array([1.5, 2.0]), np.array([[[1]]]), np.array(3), [1.0, 2.0], [None], 5, [[1, "a"]]]
)
def test_what_is_neither_text_nor_tokens_is_one_sentence(toy_model: Model, prompts: Any) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*token ids[^\n]*$"):
        prepare(toy_model, prompts)
