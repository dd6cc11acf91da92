"""`entropix.evaluate` on the toy: what its folder holds, that nothing is lost, and what it refuses."""

import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropix import evaluate, generation, scoring
from entropix.checkpoint.loading import Model
from entropix.console import cli
from entropix.decoding import inputs, loop
from entropix.lab.evaluation.protocol import VOTES_APART

Command = Callable[..., tuple[int, str, str]]
TASK = """
from entropix.lab.tasks import Item


class Letters:
    name = "letters"
    max_new_tokens = 6
    is_closed = True

    def items(self, seed, n, split="dev"):
        return [Item(str(i), f"Say {i}", answers=("e",)) for i in range(n)]

    def extract(self, item, text):
        return text[:1].casefold() or None

    def score(self, item, text):
        return float(self.extract(item, text) in ("e", "\\ufffd"))


TASK = Letters()
"""
PROTOCOL = """
seeds = [3, 5]

[[tasks]]
task = "letters.py:TASK"
n = 4

[[arms]]
name = "greedy"
sampler = "greedy"

[[arms]]
name = "published"
sampler = "entropix"
n_adaptive_samples = 2

[[arms]]
name = "vote"
sampler = "temperature"
votes = 3

[[arms]]
name = "vote if unsure"
sampler = "temperature"
votes = 3
votes_above = 7.36

[[arms]]
name = "vote if greedy is unsure"
sampler = "temperature"
votes = 3
votes_above = 7.31
first = "greedy"

[[arms]]
name = "vote of two"
sampler = "temperature"
votes = 2

[[contrasts]]
arm = "published"
minus = "greedy"

[signal]
texts = ["texts.txt"]
answers = 2
max_new_tokens = 6

[forks]
stratified = 2
random = 1
rollouts = 2
least_prob = 0.0
answers = 2
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "letters.py").write_text(TASK)
    (folder / "texts.txt").write_text("One text.\n\nAnother one.\n")
    (folder / "protocol.toml").write_text(PROTOCOL)
    return folder


@pytest.fixture(scope="module")
def done(folder: Path, toy_folder: str) -> Path:
    """The folder of a run of all three parts."""
    parts = ("--part", "policy", "--part", "signal", "--part", "forks")
    words = (
        str(folder / "protocol.toml"),
        "--weights",
        toy_folder,
        "--batch",
        "8",
        "--out",
        str(folder / "out"),
    )
    assert cli.run(lambda: evaluate.main([*words, *parts])) == 0
    return folder / "out"


@pytest.fixture
def command(run_command: Command, toy_folder: str, folder: Path) -> Command:
    words = (str(folder / "protocol.toml"), "--weights", toy_folder, "--batch", "8")
    return partial(run_command, evaluate.main, *words)


def _rows(out: Path, part: str) -> list[dict[str, Any]]:
    rows = map(json.loads, (out / "results.jsonl").read_text().splitlines())
    return [row for row in rows if row["part"] == part]


def test_every_answer_is_a_row_with_its_score_its_cost_and_the_protocols_digest(done: Path) -> None:
    rows = _rows(done, "policy")
    wanted = {
        "greedy": 4,
        "published": 8,
        "vote": 8,
        "vote if unsure": 8,
        "vote if greedy is unsure": 8,
        "vote of two": 8,
    }
    assert Counter(row["arm"] for row in rows) == wanted
    digest = json.loads((done / "manifest.json").read_text())["digest"]
    assert {row["protocol"] for row in rows} == {digest}
    for row in rows:
        assert row["score"] == float(row["text"][:1].casefold() in ("e", "\ufffd"))
        if row["arm"] == "vote":
            assert row["computed_tokens"] == row["forward_passes"] > row["new_tokens"]
            there = [answer for answer in row["votes"] if answer is not None]
            assert there.count(row["answer"]) == max(map(there.count, there))
            assert len(row["scores_by_votes"]) == 3 and row["scores_by_votes"][-1] == row["score"]
            passes = row["passes_by_votes"]
            assert 0 < passes[0] < passes[1] < passes[2] == row["forward_passes"]
        elif "votes" not in row:
            assert row["computed_tokens"] == row["new_tokens"] == len(row["token_ids"])
    summary = json.loads((done / "summary.json").read_text())
    assert summary["protocol"] == digest
    greedy = summary["policy"]["arms"][0]
    [*_, vote, _, _, _] = summary["policy"]["arms"]
    assert [each["n"] for each in vote["votes"]] == [1, 2, 3] and not greedy["votes"]
    assert vote["votes"][-1]["right"]["mean"] == vote["right"]["mean"]
    assert vote["votes"][-1]["passes"] == vote["passes"]
    assert greedy["right"]["mean"] == np.mean([row["score"] for row in rows if row["arm"] == "greedy"])


def test_a_vote_has_the_answer_of_the_seed_itself_among_its_voters(done: Path) -> None:
    lines = [json.loads(line) for line in (done / "policy/votes-3/results.jsonl").read_text().splitlines()]
    assert {line["seed"] for line in lines} == {s + v * VOTES_APART for s in (3, 5) for v in range(3)}


def test_a_vote_for_want_of_certainty_is_the_vote_or_the_first_answer_alone(done: Path) -> None:
    """Of answers that arms have in common, which are generated once."""
    lines = [json.loads(line) for line in (done / "policy/votes-3/results.jsonl").read_text().splitlines()]
    assert {line["variant"] for line in lines} == {"vote"}
    rows = _rows(done, "policy")
    names = ("vote", "vote if unsure", "vote of two")
    vote, unsure, two = ([row for row in rows if row["arm"] == name] for name in names)
    for whole, fewer in zip(vote, two, strict=True):
        assert (fewer["votes"], fewer["passes_by_votes"]) == (
            whole["votes"][:2],
            whole["passes_by_votes"][:2],
        )
    n_sure = 0
    for whole, some in zip(vote, unsure, strict=True):
        [first] = [
            line for line in lines if (str(line["prompt"]), line["seed"]) == (whole["item"], whole["seed"])
        ]
        if max(first["logits_entropy"]) > 7.36:
            assert some == whole | {"arm": "vote if unsure"}
            continue
        n_sure += 1
        assert (some["text"], some["forward_passes"]) == (first["text"], first["new_tokens"])
        assert some["passes_by_votes"] == [first["new_tokens"]] * 3 and len(some["votes"]) == 1
    assert 0 < n_sure < len(vote)


def test_a_first_answer_of_another_arm_stands_where_it_was_sure_and_costs_where_it_was_not(
    done: Path,
) -> None:
    lines = [json.loads(line) for line in (done / "policy/once/results.jsonl").read_text().splitlines()]
    greedy = {str(line["prompt"]): line for line in lines if line["variant"] == "greedy"}
    rows = _rows(done, "policy")
    vote, mixed = (
        [row for row in rows if row["arm"] == name] for name in ("vote", "vote if greedy is unsure")
    )
    n_sure = 0
    for whole, row in zip(vote, mixed, strict=True):
        first, costs = greedy[row["item"]], ("forward_passes", "computed_tokens")
        if max(first["logits_entropy"]) > 7.31:
            assert {**row, **dict.fromkeys(costs), "arm": "vote", "passes_by_votes": None} == {
                **whole,
                **dict.fromkeys(costs),
                "passes_by_votes": None,
            }
            assert [row[name] - whole[name] for name in costs] == [first["new_tokens"]] * 2
            assert (
                np.subtract(row["passes_by_votes"], whole["passes_by_votes"]).tolist()
                == [first["new_tokens"]] * 3
            )
            continue
        n_sure += 1
        assert (row["text"], row["votes"]) == (first["text"], [row["answer"]])
        assert [row[name] for name in costs] == [first["new_tokens"]] * 2
    assert 0 < n_sure < len(mixed)


@pytest.mark.slow
def test_what_was_lost_is_made_again_and_what_is_there_is_not(done: Path, command: Command) -> None:
    before, answers = (done / "results.jsonl").read_bytes(), done / "policy" / "single" / "results.jsonl"
    whole = answers.read_bytes().splitlines(keepends=True)
    answers.write_bytes(b"".join(whole[:-2]) + whole[-2][:20])
    parts = ("--part", "policy", "--part", "signal", "--part", "forks")
    code, out, notes = command("--out", str(done), *parts)
    assert code == 0 and f"single: {len(whole) - 2} answers are there already" in notes
    assert (done / "results.jsonl").read_bytes() == before
    assert "== policy ==" in out and "published minus greedy" in out and "== forks ==" in out


def test_readings_have_ranks_and_forks_have_rollouts(done: Path) -> None:
    read = _rows(done, "signal")
    assert Counter(row["kind"] for row in read) == {"texts": 2, "drawn": 2, "greedy": 2}
    for row in read:
        rank_T, top_T = (np.array(row["columns"][name]) for name in ("rank", "top_prob"))
        logprob_T = np.array(row["columns"]["logprob"])
        np.testing.assert_array_equal(rank_T == 1, np.isclose(logprob_T, np.log(top_T), atol=1e-4))
        if row["kind"] == "greedy":
            assert (rank_T == 1).all()
    places = _rows(done, "forks")
    assert [place["chosen"] for place in places] == ["stratified", "stratified", "random"]
    assert all([len(answers) for answers in place["answers"]] == [2, 2] for place in places)
    page = (done / "report.html").read_text()
    assert 'id="contrasts"' in page and 'id="plane"' in page and "http-equiv" in page


def test_a_folder_of_another_protocol_is_refused(
    done: Path, run_command: Command, toy_folder: str, folder: Path
) -> None:
    other = folder / "other.toml"
    other.write_text(PROTOCOL.replace("n = 4", "n = 3"))
    code, out, errors = run_command(evaluate.main, str(other), "--weights", toy_folder, "--out", str(done))
    assert (code, out, errors.count("\n")) == (1, "", 1)
    assert f"{done} holds results of another protocol: tasks[0].n is 4 there, 3 now" in errors


@pytest.mark.parametrize("name", ["report.html", "results.jsonl", "summary.json"])
def test_a_file_of_somebody_else_is_not_replaced(
    run_command: Command, toy_folder: str, folder: Path, tmp_path: Path, name: str
) -> None:
    protocol_file, theirs = folder / "theirs.toml", tmp_path / name
    protocol_file.write_text(PROTOCOL)
    theirs.write_text("theirs")
    code, out, errors = run_command(
        evaluate.main, str(protocol_file), "--weights", toy_folder, "--out", str(tmp_path)
    )
    assert (code, out, errors.count("\n")) == (1, "", 1) and f"{theirs} is not of an evaluation" in errors
    assert theirs.read_text() == "theirs" and [*tmp_path.iterdir()] == [theirs]


def test_a_quick_look_is_a_protocol_of_its_own(command: Command) -> None:
    code, out, errors = command("--quick")
    assert (code, out, errors) == (
        1,
        "",
        "error: --quick is a protocol of its own; give it or a file, not both\n",
    )


def test_forced_tokens_can_leave_the_random_numbers_alone(toy_model: Model) -> None:
    request = generation.prepare(toy_model, [[1, 2, 3], [1, 2, 4]], sampler="temperature", occurrences=[0, 0])
    apart, alike = (
        np.asarray(jax.random.key_data(inputs.batch_inputs(request.with_each(n_unkeyed=n)).key_B))
        for n in ((0, 0), (1, 1))
    )
    assert not np.array_equal(apart[0], apart[1]) and np.array_equal(alike[0], alike[1])


def test_a_rank_counts_likelier_tokens(toy_model: Model) -> None:
    ids = [5, 9, 17, 33, 65]
    [found] = scoring.score(toy_model, [ids])
    tokens = jnp.asarray([ids], jnp.int32)
    seen, _ = loop.forward(toy_model.weights, tokens, toy_model.config)
    [logits_TV] = np.asarray(seen.logits_BV)
    for position, record in enumerate(found.records[:-1]):
        logits_V = logits_TV[position]
        assert record["rank"] == 1 + np.sum(logits_V > logits_V[ids[position + 1]])
    assert found.records[-1]["rank"] is None
