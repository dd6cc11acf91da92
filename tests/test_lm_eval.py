"""The model class for lm-evaluation-harness, with the harness itself where it is installed."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from entropix import generation, paths, scoring
from entropix.checkpoint import loading

pytestmark = pytest.mark.filterwarnings("default")  # the harness's own and its packages'


@pytest.fixture(scope="module")
def harness() -> Any:
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
    from entropix.lab import harness

    return harness


@pytest.fixture
def ours(harness: Any, toy_folder: str) -> Callable[..., Any]:
    return lambda **given: harness.Harness(**{"weights": toy_folder, "sampler": "temperature"} | given)


def request(*arguments: Any, doc: int = 0, place: int = 0, task: str = "t") -> Any:
    return SimpleNamespace(args=arguments, doc_id=doc, idx=place, task_name=task)


def test_log_likelihoods_are_those_of_the_whole_text(ours: Callable[..., Any], toy_folder: str) -> None:
    """White space at a context's end belongs to the continuation; order and batch change nothing."""
    lm, model = ours(), loading.load(toy_folder)
    pairs = [("The sky is ", "blue"), ("One, two,", " three"), ("", "Alone"), ("The sky is", " green or so")]
    found = lm.loglikelihood([request(*pair) for pair in pairs])
    for (context, continuation), (value, is_greedy) in zip(pairs, found, strict=True):
        ids = (
            lm.tok_encode(context + continuation)
            if context
            else [lm.prefix_token_id, *lm.tok_encode(continuation)]
        )
        [scored] = scoring.score(model, [ids])
        start = len(lm.tok_encode(context.rstrip())) if context else 1
        counted = scored.records[start - 1 : -1]
        assert value == pytest.approx(sum(record["logprob"] for record in counted), abs=1e-4)
        best = all(record["logprob"] >= math.log(record["top_prob"]) - 1e-6 for record in counted)
        assert is_greedy == best
    turned = lm.loglikelihood([request(*pair) for pair in reversed(pairs)])
    assert [value for value, _ in reversed(turned)] == pytest.approx([value for value, _ in found], abs=1e-5)


def test_a_context_is_cut_on_the_left_and_the_last_token_need_not_fit(ours: Callable[..., Any]) -> None:
    lm = ours(max_length=8)
    context, continuation = list(range(10, 20)), [20, 21, 22]
    [whole] = lm._loglikelihood_tokens([(None, context, continuation)])
    [cut] = lm._loglikelihood_tokens([(None, context[-6:], continuation)])
    assert whole == cut  # 9 tokens, of which the model reads 8
    assert whole != lm._loglikelihood_tokens([(None, context[-5:], continuation)])[0]
    with pytest.raises(ValueError, match="a continuation of 9 tokens does not fit"):
        lm._loglikelihood_tokens([(None, [1], list(range(1, 10)))])


def test_a_long_text_is_rolled_over_once(ours: Callable[..., Any], harness: Any) -> None:
    lm = ours(max_length=8)
    text = "A text that is longer than the context."
    [value] = lm.loglikelihood_rolling([request(text)])
    ids = [lm.prefix_token_id, *lm.tok_encode(text)]
    counted = 0.0
    for start in range(1, len(ids), 8):
        piece = ids[start : start + 8]
        row = ids[max(0, start + len(piece) - 9) : start + len(piece)]
        counted += lm._loglikelihood_tokens([(None, row[: -len(piece)], piece)])[0][0]
    assert value == pytest.approx(counted, abs=1e-4)


def test_answers_depend_on_task_document_and_repetition_alone(ours: Callable[..., Any]) -> None:
    lm = ours(seed=3, batch_size=2)
    limits = {"until": ["\n\n"], "max_gen_toks": 6, "do_sample": False}
    asked = [request("Hi", limits, doc=doc) for doc in (0, 1, 0, 1)]  # each twice, as `repeats: 2` has them
    found = lm.generate_until(asked)
    assert len(set(found)) == 4
    assert lm.generate_until([asked[1], asked[3], asked[0]]) == [found[1], found[3], found[0]]
    assert ours(seed=3, batch_size="auto").generate_until(asked) == found
    assert ours(seed=4).generate_until(asked) != found
    other = ours(seed=3, temp=1.9).generate_until(asked)
    assert other != found and lm.generate_until([request("Hi", limits, task="u")]) != found[:1]


def test_greedy_answers_are_those_of_generate_and_end_at_stop_strings(
    ours: Callable[..., Any], toy_folder: str
) -> None:
    lm, model = ours(sampler="greedy"), loading.load(toy_folder)
    [text] = lm.generate_until([request("Hello", {"max_new_tokens": 12})])
    [result] = generation.generate(model, [lm.tok_encode("Hello")], sampler="greedy", max_new_tokens=12)
    assert text == result.text and len(text) > 4
    [cut] = lm.generate_until([request("Hello", {"until": text[2:4], "max_gen_toks": 12})])
    assert cut == text[: text.index(text[2:4])]
    with pytest.raises(ValueError, match="generation argument 'num_beams' is not known"):
        lm.generate_until([request("Hello", {"num_beams": 4})])
    with pytest.raises(ValueError, match="leaves no room for a prompt"):
        lm.generate_until([request("Hello", {"max_gen_toks": 10**6})])


def test_unknown_arguments_are_refused(ours: Callable[..., Any]) -> None:
    for given, message in (
        ({"smpler": "greedy"}, "smpler"),
        ({"max_length": 10**9}, "max_length must be from 2 to the model's context"),
        ({"batch_size": 0}, "batch_size must be at least 1 or auto"),
        ({"batch_size": "many"}, "batch_size must be a whole number, got 'many'"),
        ({"max_length": "x"}, "max_length must be a whole number, got 'x'"),
        ({"max_gen_toks": "1e3"}, "max_gen_toks must be a whole number, got '1e3'"),
        ({"max_gen_toks": 0}, "max_gen_toks must be at least 1, got 0"),
        ({"seed": 1.5}, "seed must be a whole number, got 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            ours(**given)


@pytest.mark.real
def test_numbers_and_greedy_texts_are_those_of_the_harness_own_model_class(harness: Any) -> None:
    for needed in ("torch", "accelerate"):
        pytest.importorskip(needed, reason="what the harness's class needs is not installed")
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    def asked(kind: str, *pairs: tuple[Any, ...]) -> list[Any]:
        return [
            Instance(request_type=kind, doc={}, arguments=pair, idx=0, metadata=("t", i, 1))
            for i, pair in enumerate(pairs)
        ]

    ours = harness.Harness(dtype="float32", sampler="greedy")
    folder = str(paths.weights_folder(loading.DEFAULT_MODEL))
    theirs = HFLM(pretrained=folder, dtype="float32", device="cpu", batch_size=1)
    facts = ("The capital of France is", "Water boils at", "Two and two are", "The sky is ")
    ends = (" Paris", " a hundred degrees", " four", "blue")
    known = asked("loglikelihood", *[(fact, end) for fact in facts for end in ends])
    for (value, is_greedy), (their_value, their_greedy) in zip(
        ours.loglikelihood(known), theirs.loglikelihood(known), strict=True
    ):
        assert value == pytest.approx(their_value, abs=1e-4)
        assert is_greedy == their_greedy
    open_ended = asked(
        "generate_until",
        *[(fact, {"until": ["\n"], "max_gen_toks": 12, "do_sample": False}) for fact in facts],
    )
    assert ours.generate_until(open_ended) == theirs.generate_until(open_ended)


def test_the_cache_is_keyed_with_sampler_and_repetition(
    ours: Callable[..., Any], harness: Any, tmp_path: Path
) -> None:
    asked = [request("Hi", {"max_gen_toks": 6}, doc=doc) for doc in (0, 0, 1)]
    plain = ours().generate_until(asked)
    cached = harness.Cache(ours(), str(tmp_path / "c.db"))
    assert cached.generate_until(asked[:1]) == plain[:1]
    assert cached.generate_until(asked) == plain  # of which the first is known
    again = harness.Cache(ours(), str(tmp_path / "c.db"))
    again.lm.generate_until = None  # nothing is left to be asked
    assert again.generate_until(asked) == plain
    other = harness.Cache(ours(temp=1.9), str(tmp_path / "c.db"))
    assert other.generate_until(asked) == ours(temp=1.9).generate_until(asked) != plain
    pair = [request("Hi", " you")]
    assert cached.loglikelihood(pair) == again.loglikelihood(pair) == ours().loglikelihood(pair)


def test_the_command_runs_tasks_of_both_kinds(
    harness: Any, toy_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the harness's own command line, which gives its models a device and a batch size unasked."""
    import lm_eval.api.model

    from entropix.lm_eval import main

    for name in ("HF_HOME", "HF_DATASETS_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "hf"))
    monkeypatch.setattr(lm_eval.api.model, "CachingLM", lm_eval.api.model.CachingLM)
    monkeypatch.setattr(sys, "argv", ["entropix"])
    (tmp_path / "d.jsonl").write_text(
        "".join(json.dumps({"q": f"{i}?", "choices": ["yes", "no"], "gold": i % 2}) + "\n" for i in range(4))
    )
    common = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/d.jsonl}}}}\ntest_split: test\n"
    (tmp_path / "choice.yaml").write_text(
        f'task: our_choice\n{common}output_type: multiple_choice\ndoc_to_text: "{{{{q}}}}"\n'
        "doc_to_choice: choices\ndoc_to_target: gold\nmetric_list: [{metric: acc}]\n"
    )
    (tmp_path / "text.yaml").write_text(
        f'task: our_text\n{common}output_type: generate_until\ndoc_to_text: "{{{{q}}}}"\n'
        'doc_to_target: "{{gold}}"\n'
        "repeats: 2\ngeneration_kwargs: {until: [], max_gen_toks: 4, do_sample: false}\n"
        "metric_list: [{metric: exact_match}]\n"
        "filter_list: [{name: all, filter: [{function: take_first}]}]\n"
    )
    flags = ["run", "--model", "entropix", "--tasks", "our_choice,our_text", "--include_path", str(tmp_path)]
    flags += ["--model_args", f"weights={toy_folder},sampler=temperature,temp=0.9", "--log_samples"]
    main([*flags, "--output_path", str(tmp_path / "out"), "--use_cache", str(tmp_path / "cache")])
    samples = {}
    for path in (tmp_path / "out").rglob("samples_*.jsonl"):
        name = "our_text" if "our_text" in path.name else "our_choice"
        samples[name] = [json.loads(line) for line in path.read_text().splitlines()]
    assert {name: len(rows) for name, rows in samples.items()} == {"our_choice": 4, "our_text": 4}
    for row in samples["our_text"]:
        [[first, second]] = row["resps"]
        assert first != second  # repeats differ, with the cache too
    assert list(tmp_path.glob("cache*.db"))


def test_without_the_harness_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from entropix import lm_eval

    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ValueError, match=r"pip install 'entropix-jax\[lm-eval\]'"):
        lm_eval.main([])
