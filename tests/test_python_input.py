"""What Python callers give by mistake: one clear ValueError, and nothing taken for what it is not."""

from typing import Any

import numpy as np
import pandas
import pytest
import toy

import entropix
from entropix import own_metrics, scoring
from entropix.checkpoint.loading import Model
from entropix.generation import prepare
from entropix.inspection import forward
from entropix.showing import shown, visible


@pytest.fixture(scope="module")
def model() -> Model:
    return toy.model_of()


FRAME = pandas.DataFrame({"a": [65, 66], "b": [67, 68]})


@pytest.mark.parametrize(
    "prompt", [[True, False], [[True]], memoryview(b"ab"), FRAME], ids=["mask", "masks", "bytes", "table"]
)
def test_what_only_looks_like_token_ids_is_refused(model: Model, prompt: Any) -> None:
    """A mask, bytes, and a table whose items are the names of its columns."""
    with pytest.raises(
        ValueError, match=r"^a prompt must be a text, a list of messages, or a sequence of token ids"
    ):
        prepare(model, prompt)
    with pytest.raises(
        ValueError, match=r"^texts must be a text, or a list|^a text must be a string or a sequence"
    ):
        scoring.encode(model, prompt)
    with pytest.raises(ValueError, match=r"^a text must be a string or a sequence of token ids"):
        forward(model, prompt)


@pytest.mark.parametrize(
    ("several", "expected"),
    [
        (np.array(["ab", "c"]), [[97, 98], [99]]),
        (pandas.Series(["ab", "c"]), [[97, 98], [99]]),
        ([pandas.Series([65, 66], index=[5, 6])], [[65, 66]]),
        ([iter([65, 66]), range(67, 69)], [[65, 66], [67, 68]]),
        (np.array([[65, 66]]), [[65, 66]]),
    ],
)
def test_generate_and_score_take_the_same_lists(model: Model, several: Any, expected: Any) -> None:
    is_spent = isinstance(several, list) and not hasattr(several[0], "__len__")
    assert scoring.encode(model, several) == expected
    assert is_spent or prepare(model, several).prompt_ids == expected


@pytest.mark.parametrize("ids", [[np.int64(65)], [np.array(65)], np.array([65])], ids=repr)
def test_one_text_of_ids_is_no_list_of_texts_in_any_type(model: Model, ids: Any) -> None:
    with pytest.raises(ValueError, match=r"\[ids\] for one; got"):
        scoring.score(model, ids)


def test_numbers_of_numpy_are_numbers(model: Model) -> None:
    given = prepare(model, [[65], [66]], seeds=np.array([3, 4]), top_k=np.int32(5), top_p=np.float32(0.5))
    assert (given.config.seeds, given.sampler_config.top_k, given.sampler_config.top_p) == ((3, 4), 5, 0.5)
    assert prepare(model, [[65]], seeds=[np.int64(7)], seed=np.uint8(1)).config.seeds == (7,)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"raw": "no"}, "raw must be True or False, got 'no'"),
        ({"allow_special": 1}, "allow_special must be True or False, got 1"),
        ({"system": 5}, "system must be a text, got 5"),
        ({"seed": np.bool_(True)}, "generation: seed must be of type int, got True"),
        (
            {"max_new_tokens": 10**5000},
            "max_new_tokens must be between 1 and 2147483647, got a number of some 5001",
        ),
        ({"branching": 5}, "branching must be of type BranchConfig, got 5"),
    ],
)
def test_a_keyword_of_another_type_is_named(model: Model, keywords: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prepare(model, [[65]], **keywords)


def test_what_is_for_texts_alone_is_not_taken_for_others_in_silence(model: Model) -> None:
    turn = [{"role": "user", "content": "a"}]
    for prompt, keywords, message in (
        (
            turn,
            {"system": "b"},
            "system is for prompts that are texts, not for conversations; a system message is",
        ),
        (turn, {"raw": True}, "raw is for prompts that are texts, not for conversations"),
        ([65], {"system": "b"}, "system is for prompts that are texts, not for token ids"),
    ):
        with pytest.raises(ValueError, match=message):
            prepare(model, [prompt], **keywords)  # type: ignore[arg-type]
    assert prepare(model, [[65]], raw=True).prompt_ids == [[65]]  # which no template changes anyway


@pytest.mark.parametrize("rows", [None, "8", [8], 8.5, float("nan"), True], ids=repr)
def test_rows_of_a_batch_are_a_whole_number(model: Model, rows: Any) -> None:
    with pytest.raises(ValueError, match="batch_size must be a whole number, got"):
        entropix.generate(model, [[65]], batch_size=rows)


@pytest.mark.parametrize("what", ["smollm2", None, 5], ids=repr)
def test_a_model_is_what_load_returns(what: Any) -> None:
    for use in (entropix.generate, entropix.forward, scoring.score):
        with pytest.raises(ValueError, match=r"model must be what entropix\.load returns, got"):
            use(what, "a")


def test_other_arguments_of_other_types_are_named(model: Model) -> None:
    for name in (None, 5, b"x", ["x"]):
        with pytest.raises(ValueError, match="expected the name of weights or a folder, got"):
            entropix.load(name)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match='mesh must be sizes like "data=2,model=4"'):
        entropix.load("nowhere", mesh=(1, 2))  # type: ignore[arg-type]
    for most in ("x", None, float("nan"), True):
        with pytest.raises(ValueError, match="max_bytes must be a number above 0, got"):
            forward(model, "a", max_bytes=most)  # type: ignore[arg-type]
    for flag in (scoring.score, forward):
        with pytest.raises(ValueError, match="allow_special must be True or False, got 'no'"):
            flag(model, "a", allow_special="no")  # type: ignore[operator]


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (5, "expected a Metric, of a name and a function"),
        (own_metrics.Metric("x", None), "expected a Metric, of a name and a function"),  # type: ignore[arg-type]
        (own_metrics.Metric("x", max, low="0"), "metric 'x': low must be a number, got '0'"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_metric_is_not_registered(metric: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        entropix.register_metric(metric)
    assert own_metrics.registered() == ()


def test_values_are_shown_in_few_words_on_one_line() -> None:
    assert shown(10**5000) == "a number of some 5001 digits" and shown([1] * 9) == "[1, 1, 1, 1, 1, 1, ...]"
    assert len(shown("x" * 10_000)) < 130 and "\n" not in shown(np.zeros((3, 3)))
    assert visible("a\x1b[31mb\r\n") == "a\\x1b[31mb\\r\n"
