"""Scoring: what reading finds at every position is what decoding finds there."""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import toy

import entropix
from entropix import score, scoring
from entropix.checkpoint import loading
from entropix.checkpoint.loading import Model
from entropix.decoding import loop
from entropix.generation import generate
from entropix.metrics import Metrics
from entropix.scoring import Record, Scored

# Around the ends of pieces and of capacities.
LENGTHS = (1, 2, 127, 128, 129, 256, 257, 400)


def texts(*lengths: int) -> list[list[int]]:
    return [toy.random_tokens(toy.config(), length, seed=length).tolist() for length in lengths]


def assert_close(
    ours: Record, theirs: Record, names: tuple[str, ...] = ("logprob", *Metrics._fields)
) -> None:
    for name in names:
        expected = theirs[name]
        if expected is not None:
            expected = pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert ours[name] == expected, (name, ours["position"])


@pytest.fixture(scope="module")
def alone(toy_model: Model) -> list[Scored]:
    """Every text on its own."""
    return [scoring.score(toy_model, [text])[0] for text in texts(*LENGTHS)]


@pytest.mark.slow
def test_every_position_has_the_numbers_that_decoding_found_there(toy_model: Model) -> None:
    """300 steps from a prompt of one token, past the first capacity."""
    [result] = generate(toy_model, [[65]], sampler="temperature", max_new_tokens=300, seed=3)
    [scored] = scoring.score(toy_model, [[65, *result.token_ids]])
    assert len(scored.records) == 301
    for read, drawn in zip(scored.records[:-1], result.records, strict=True):
        assert (read["next_id"], read["next_text"]) == (drawn["id"], drawn["text"])
        assert_close(read, drawn)


@pytest.mark.slow
def test_a_window_bounds_what_is_seen_by_decoding_forks_and_scoring() -> None:
    """The metrics of all are those of the keys in the window, the one before the query's own among them."""
    model, window = toy.model_of(sliding_window=7, n_layers=1), 7
    wish = {"paths": 2, "depth": 2, "entropy": 1.0}
    [result] = generate(model, [[65, 66]], sampler="temperature", branching=wish, max_new_tokens=40, seed=3)
    ids = [65, 66, *result.token_ids]
    assert sum("branches" in record for record in result.records) > 5
    [scored] = scoring.score(model, [ids])
    for read, drawn in zip(scored.records[1:-1], result.records, strict=True):
        assert_close(read, drawn)
    seen = entropix.forward(model, ids)
    n = len(ids)
    np.testing.assert_array_equal(seen.visible_TT, np.tri(n, dtype=bool) & ~np.tri(n, k=-window, dtype=bool))
    previous_T = np.diagonal(seen.attention(), offset=-1, axis1=2, axis2=3).mean(axis=(0, 1))
    found = [record["previous_token_attention"] for record in scored.records]
    np.testing.assert_allclose(found, [0, *previous_T], atol=1e-5)


@pytest.mark.slow
def test_a_text_scores_the_same_among_others_in_any_order(toy_model: Model, alone: list[Scored]) -> None:
    order = np.random.default_rng(0).permutation(len(LENGTHS))
    together = scoring.score(toy_model, [texts(*LENGTHS)[i] for i in order])
    for i, scored in zip(order, together, strict=True):
        assert scored.token_ids == alone[i].token_ids
        for ours, theirs in zip(scored.records, alone[i].records, strict=True):
            assert_close(ours, theirs)


def test_the_width_of_a_pass_changes_nothing(
    toy_model: Model, alone: list[Scored], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As little memory as can be: one text a pass, eight positions."""
    shapes = set()

    def read(weights: Any, text_BX: jax.Array, *args: Any) -> Any:
        shapes.add(text_BX.shape)
        return original(weights, text_BX, *args)

    original = loop.score_tokens
    monkeypatch.setattr(loop, "score_tokens", read)
    monkeypatch.setattr(scoring, "PASS_BYTES", 1)
    for scored, wide in zip(scoring.score(toy_model, texts(*LENGTHS[:5])), alone, strict=False):
        for ours, theirs in zip(scored.records, wide.records, strict=True):
            assert_close(ours, theirs)
    assert shapes == {(1, 8 + 1)}  # and the token behind them


def test_a_new_length_compiles_nothing(toy_model: Model, alone: list[Scored]) -> None:
    programs = loop.score_tokens._cache_size()
    scoring.score(toy_model, texts(200))
    scoring.score(toy_model, texts(300))
    assert loop.score_tokens._cache_size() == programs


def test_what_follows_does_not_change_what_came_before(toy_model: Model) -> None:
    [text] = texts(200)
    [whole], [part] = scoring.score(toy_model, [text]), scoring.score(toy_model, [text[:150]])
    for ours, theirs in zip(part.records[:-1], whole.records, strict=False):
        assert_close(ours, theirs)
    assert_close(part.records[-1], whole.records[149], Metrics._fields)


def test_records_name_the_token_and_its_follower(toy_model: Model) -> None:
    [scored] = scoring.score(toy_model, "abc")
    assert [(r["position"], r["id"], r["text"], r["next_id"], r["next_text"]) for r in scored.records] == [
        (0, 97, "a", 98, "b"),
        (1, 98, "b", 99, "c"),
        (2, 99, "c", None, None),
    ]
    assert scored.records[2]["logprob"] is None


def test_the_perplexity_of_a_model_that_knows_nothing_is_its_vocabulary(toy_model: Model) -> None:
    """All weights 0, all 259 tokens equally likely."""
    blank = dataclasses.replace(toy_model, weights=jax.tree.map(lambda leaf: 0 * leaf, toy_model.weights))
    [scored] = scoring.score(blank, "any text at all")
    assert scored.perplexity == pytest.approx(259, rel=1e-5)
    assert scored.records[3]["logits_entropy"] == pytest.approx(math.log2(259), rel=1e-5)


@pytest.mark.parametrize(
    ("logprobs", "perplexity"),
    [
        ([math.log(1 / 2), math.log(1 / 8), None], 4.0),  # the geometric mean of 2 and 8
        ([0.0, None], 1.0),
        ([None], None),  # nothing was predicted
        ([-1.0, None, None], None),  # something that was predicted was not finite
        ([-1e30, None], math.exp(700)),  # as large as it gets
    ],
)
def test_perplexity_is_the_geometric_mean_of_one_over_the_probabilities(
    logprobs: list[float | None], perplexity: float | None
) -> None:
    scored = Scored([0] * len(logprobs), [{"logprob": logprob} for logprob in logprobs])
    assert scored.perplexity == (None if perplexity is None else pytest.approx(perplexity))


def test_logits_that_are_not_finite_leave_none(toy_model: Model) -> None:
    broken = dataclasses.replace(
        toy_model, weights=jax.tree.map(lambda leaf: leaf * float("nan"), toy_model.weights)
    )
    [scored] = scoring.score(broken, "ab")
    assert scored.records[0]["logprob"] is None and scored.records[1]["logits_entropy"] is None
    assert scored.perplexity is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "text 1 is empty"),
        (["a", ""], "text 2 is empty"),
        ([], "no text"),
        (["a" * 513], "text 1 has 513 tokens, but the model's context holds 512"),
        ([[1, 259]], "text 1 has token ids outside 0 to 258"),
    ],
)
def test_texts_that_cannot_be_scored_are_refused(toy_model: Model, given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scoring.score(toy_model, given)


# ----- the command ------------------------------------------------------------------------------------------

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(run_command: Command) -> Command:
    return partial(run_command, score.main)


def test_json_lines_are_the_records_and_the_perplexity(
    command: Command, toy_folder: str, tmp_path: Path
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xef\xbb\xbfOne line\r\nand \xc3\xa9\n")
    code, out, errors = command("--text", str(path), "--weights", toy_folder, "--format", "jsonl")
    assert (code, errors) == (0, "")
    [scored] = scoring.score(loading.load(toy_folder), "One line\r\nand é\n")
    *records, summary = map(json.loads, out.splitlines())
    assert records == scored.records
    assert summary == {
        "tokens": 17,
        "mean_logprob": scored.mean_logprob,
        "perplexity": scored.perplexity,
    }


@pytest.mark.slow
def test_several_texts_come_whole_and_in_their_order_whatever_is_read_first(
    command: Command, toy_folder: str, tmp_path: Path
) -> None:
    (tmp_path / "long.txt").write_text("a longer text" * 20)
    (tmp_path / "more.jsonl").write_text('{"text": "b"}\n\n{"text": "cd"}\n')
    files = str(tmp_path / "long.txt"), str(tmp_path / "more.jsonl")
    flags = ("--text", *files, "--weights", toy_folder, "--format")
    scored = scoring.score(loading.load(toy_folder), ["a longer text" * 20, "b", "cd"])
    code, out, errors = command(*flags, "jsonl")
    expected = []
    for number, one in enumerate(scored):
        expected += [{"document": number} | record for record in one.records]
        expected.append(
            {"document": number, "tokens": len(one.token_ids)}
            | {"mean_logprob": one.mean_logprob, "perplexity": one.perplexity}
        )
    assert (code, errors, list(map(json.loads, out.splitlines()))) == (0, "", expected)

    code, out, errors = command(*flags, "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert (code, len(rows), errors.count("\n")) == (0, 263, 3)
    assert list(rows[0]) == ["document", *scored[0].records[0]]
    assert [row["logprob"] for row in rows[-2:]] == [str(scored[2].records[0]["logprob"]), ""]
    code, out, _ = command(*flags, "table")
    assert [line for line in out.splitlines() if line.startswith("==>")] == [
        f"==> text {n} <==" for n in (1, 2, 3)
    ]


def test_what_was_read_before_a_signal_is_printed(
    command: Command, toy_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third pass of the second text is interrupted; the first, which is longer, has not begun."""
    usual, passes = loop.score_tokens, 0

    def interrupted(*args: Any) -> Any:
        nonlocal passes
        passes += 1
        if passes == 3:
            raise KeyboardInterrupt
        return usual(*args)

    monkeypatch.setattr(loop, "score_tokens", interrupted)
    monkeypatch.setattr(scoring, "PASS_BYTES", 1)
    (tmp_path / "both.jsonl").write_text(
        '{"text": "abcdefghijklmnopqrstuvwxyz!"}\n{"text": "abcdefghijklmnopqrstuvwxyz"}\n'
    )
    code, out, errors = command(
        "--text", str(tmp_path / "both.jsonl"), "--weights", toy_folder, "--format", "jsonl"
    )
    *records, summary = map(json.loads, out.splitlines())
    assert (code, errors) == (130, "interrupted\n")
    assert [record["position"] for record in records] == list(range(16))
    assert summary["document"] == 1 and (summary["tokens"], summary["read"]) == (26, 16)


def test_a_table_has_a_line_a_position_and_the_perplexity(
    command: Command, toy_folder: str, tmp_path: Path
) -> None:
    path = tmp_path / "text.txt"
    path.write_text("a\nb")
    code, out, _ = command("--text", str(path), "--weights", toy_folder)
    assert code == 0
    head, first, second, last, summary = out.splitlines()
    assert head.split() == ["position", "token", "next", "logprob", *Metrics._fields]
    [scored] = scoring.score(loading.load(toy_folder), "a\nb")
    cells = [f"{scored.records[0][name]:.4f}" for name in ("logprob", *Metrics._fields)]
    assert first.split() == ["0", '"a"', r'"\n"', *cells]
    assert second.split()[:3] == ["1", r'"\n"', '"b"']
    assert last.split()[:3] == ["2", '"b"', "-"]
    assert len({len(line) for line in (head, first, second, last)}) == 1
    assert summary.endswith(f"perplexity {scored.perplexity:.4f}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "text.txt: no such file"),
        (b" \n", "text.txt: there is no text in this file"),
        (b"ab\xff", "text.txt: line 1 is not UTF-8 (its byte 3 is 0xff)"),
        (b"a" * 600, "text 1 has 600 tokens, but the model's context holds 512"),
    ],
)
def test_bad_input_is_one_line(
    command: Command, toy_folder: str, tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    code, out, errors = command("--text", str(path), "--weights", toy_folder)
    assert (code, out) == (1, "")
    assert errors.startswith("error: ") and message in errors and errors.count("\n") == 1


def test_a_broken_token_spoils_what_follows_it_and_nothing_before(toy_model: Model) -> None:
    """In one pass, where 0 times its NaN would reach all positions."""
    weights = toy_model.weights
    broken = dataclasses.replace(
        toy_model, weights=weights.replace(embed_VD=weights.embed_VD.at[40].set(np.nan))
    )
    [sound] = scoring.score(toy_model, [[1, 2, 3, 4, 5]])
    [scored] = scoring.score(broken, [[1, 2, 3, 4, 5, 40, 8, 9]])
    # A tied model has the broken token among those that it predicts, hence no finite logits: attention tells.
    for record, expected in zip(scored.records, sound.records, strict=False):
        assert record["attn_entropy"] == pytest.approx(expected["attn_entropy"], abs=1e-6)
    assert [record["attn_entropy"] is None for record in scored.records] == [False] * 5 + [True] * 3
