"""What an evaluation says of answers, readings and rollouts: exact numbers, without a model."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from entropix.config import BacktrackConfig, BranchConfig
from entropix.lab.evaluation import forks_told, policy_figures, policy_told, protocol, signal_figures
from entropix.lab.evaluation.forks import RANDOM, STRATIFIED, Place, choose
from entropix.lab.evaluation.forks_plan import ForksPlan
from entropix.metrics import Metrics
from entropix.presets import shipped
from entropix.samplers.entropix import SamplerConfig

HEAD = """
[[tasks]]
task = "questions"
n = 4

[[arms]]
name = "greedy"
sampler = "greedy"

[[arms]]
name = "mine"
sampler = "entropix"
"""
VOTED = "votes = 2\nvotes_above = 2.0\n"
ARM = '[[arms]]\nname = "same"\nsampler = "entropix"\n'
PLACEBO = '[[arms]]\nname = "p"\nsampler = "placebo"\nfrequencies_of = "mine"\n'
CONTRAST = '[[contrasts]]\narm = "mine"\nminus = "greedy"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "protocol.toml"


# ----- protocols --------------------------------------------------------------------------------------------


def test_a_protocol_says_what_is_asked_of_whom(file: Path) -> None:
    file.write_text(
        "seeds = 3\n"
        + HEAD
        + CONTRAST
        + '[[arms]]\nname = "vote"\nsampler = "min-p"\ntemp = 0.4\nvotes = 5\n'
        + "branching = { paths = 2, entropy = 1.0 }\nbacktracking = { tokens = 3 }\n"
        + '[[arms]]\nname = "placebo"\nsampler = "placebo"\nfrequencies_of = "mine"\n'
    )
    found = protocol.read(file)
    assert (found.seeds, found.contrasts, len(found.tasks[0].items)) == ((0, 1, 2), (("mine", "greedy"),), 4)
    assert [(arm.name, arm.votes, arm.draws) for arm in found.arms] == [
        ("greedy", 1, False),
        ("mine", 1, True),
        ("vote", 5, True),
        ("placebo", 1, True),
    ]
    vote = found.arms[2].variant
    assert vote.sampler.branching == BranchConfig(paths=2, entropy=1.0)
    assert (vote.sampler.backtracking, vote.sampler.numbers.temp) == (BacktrackConfig(tokens=3), 0.4)
    forking = file.read_text().replace('name = "mine"\n', 'name = "mine"\nbranching = { paths = 3 }\n')
    file.write_text(forking)
    mine, placebo = (protocol.read(file).arms[number].variant.sampler for number in (1, 3))
    assert placebo.branching == mine.branching == BranchConfig(paths=3)
    mine, placebo = (found.arms[number].variant.sampler.numbers for number in (1, 3))
    assert (placebo.temp, placebo.top_k) == (mine.temp, mine.top_k)


def test_a_digest_is_that_of_what_is_asked_and_not_of_how_it_is_written(file: Path) -> None:
    file.write_text(HEAD)
    first = protocol.read(file).digest
    file.write_text("# said otherwise\n" + HEAD)
    assert protocol.read(file).digest == first
    file.write_text(HEAD.replace("n = 4", "n = 5"))
    assert protocol.read(file).digest != first


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected tasks as tables, [[tasks]]"),
        ("seed = 1\n" + HEAD, "unknown key 'seed'; did you mean 'seeds'?"),
        ("seeds = [1, 1]\n" + HEAD, "seeds must be at least one, all different, below 1000003"),
        (HEAD.replace("n = 4", "n = 0"), "tasks, number 1: n must be a whole number of at least 1, got 0"),
        (HEAD.replace('"questions"', '"question"'), "number 1: unknown task 'question'; did you mean 'questions'?"),
        (HEAD.replace('"mine"', '"greedy"'), "two arms are called 'greedy'; give one of them another name"),
        (HEAD + "tempo = 1", "arms, number 2: sampler config: unknown field 'tempo'; did you mean"),
        (HEAD + "votes = 0", "arms, number 2: votes must be between 1 and 64, got 0"),
        (HEAD + "votes_above = 2.0", "votes_above must be bits of entropy, at least 0, beside votes of at least 2"),
        (HEAD + 'first = "greedy"', "first must be the name of an arm, beside votes_above; got 'greedy'"),
        (HEAD.replace('"greedy"\n\n', '"greedy"\nvotes = 2\n\n'), "greedy draws nothing, so that its votes are all"),
        (HEAD + VOTED + 'first = "same"\n' + ARM, "an answer of 'same' is its own first vote already; leave out first"),
        (HEAD + VOTED + 'first = "greedy"\n' + PLACEBO, "only some answers of 'mine' are its own; name an arm without"),
        (HEAD.replace('"questions"', '"open"') + VOTED, "arm 'mine' votes among right answers, but no task has any"),
        (HEAD + VOTED + 'first = "gready"', "there is no arm 'gready'; did you mean 'greedy'?"),
        (HEAD + VOTED + 'first = "mine"', "'mine' is a vote or a placebo; name an arm of single answers"),
        (HEAD + 'frequencies_of = "greedy"', "arm 'mine': frequencies_of is for the sampler placebo, not for entropix"),
        (HEAD + CONTRAST.replace('"mine"', '"main"'), "number 1: there is no arm 'main'; did you mean 'mine'?"),
        (HEAD + CONTRAST.replace('"mine"', '"greedy"'), "'greedy' minus itself is nothing; name two arms"),
        (HEAD.replace('"questions"', '"open"') + CONTRAST, "contrasts are of right answers, but no task has any"),
        (HEAD + "[forks]\ntokens = 1", "forks: tokens must be between 2 and 16, got 1"),
        (HEAD.replace('"questions"', '["questions"]'), "tasks, number 1: unknown task ['questions']; there are"),
        (HEAD.replace("n = 4", "n = 0x" + "f" * 5000), "a whole number of TOML has at most 64 bits, got a number of"),
        (HEAD.replace("n = 4", 'kinds = "capitals"'), "task questions: kinds must be a list of texts, got 'capitals'"),
        (HEAD.replace("n = 4", "name = { a = 1 }"), "number 1: expected an entry like name = "),
        (HEAD.replace('"mine"', '"mi\\u001b[31mne"'), r"at most 100 characters, got 'mi\x1b[31mne'"),
        (HEAD + "branching = 5", "arms, number 2: branching: expected names with values, got 5"),
        (HEAD + "backtracking = { token = 5 }", "arms, number 2: backtracking: unknown"),
        (HEAD + 'cot = 2\ncot_at = "explore"\ncot_entropy = inf', "cot_entropy must be at least 0, got inf"),
        (HEAD + "system" + ".a" * 900 + " = 1", "it has a key of more than 50 parts"),
        (HEAD + '[signal]\ntexts = ["nowhere.txt"]', "nowhere.txt: no such file"),
    ],
)  # fmt: skip
def test_a_bad_protocol_is_one_sentence(file: Path, text: str, message: str) -> None:
    file.write_text(text)
    with pytest.raises(ValueError) as error:
        protocol.read(file)
    assert message in str(error.value) and str(file.parent) in str(error.value)


@pytest.mark.parametrize("name", ["default", "quick", "pauses", "branching", "paths", "unsure"])
def test_shipped_protocols_declare_contrasts_and_only_the_quick_one_spares_held_out_items(name: str) -> None:
    found = protocol.read(shipped(f"evaluation/{name}.toml"))
    splits = {"quick": {"dev"}, "unsure": {"dev", "held-out"}}.get(name, {"held-out"})
    assert found.contrasts and {asked.split for asked in found.tasks} == splits
    if name == "unsure":  # of questions that nothing was chosen on, all
        assert {asked.task.name for asked in found.tasks} == {"fresh-questions"}
    if name == "pauses":  # arms that shall differ in their pauses alone do
        numbers = {arm.name: dataclasses.asdict(arm.variant.sampler.numbers) for arm in found.arms}
        for base in ("calibrated", "fitted"):
            assert numbers[f"{base}-chance-pauses"].items() >= numbers[base].items()
        assert numbers["fitted-no-pauses"] == numbers["fitted-chance-pauses"] | {"pause_probability": 0.0}
    if name == "default":  # what its comment says
        singles = 1 + 2 * sum(arm.draws and arm.votes == 1 for arm in found.arms)
        n, most = (
            singles * sum(len(each.items) * times(each) for each in found.tasks)
            + 2 * 8 * sum(len(each.items) * times(each) for each in found.tasks if each.task.is_closed)
            for times in (lambda each: 1, lambda each: each.max_new_tokens)
        )
        assert f"{n:,} answers, at most {most:,} tokens" in shipped("evaluation/default.toml").read_text()


# ----- policy -----------------------------------------------------------------------------------------------


def _row(arm: str, item: str, seed: int, score: float, passes: int = 4) -> dict[str, Any]:
    return {
        "arm": arm,
        "task": "questions",
        "item": item,
        "seed": seed,
        "score": score,
        "forward_passes": passes,
        "computed_tokens": 2 * passes,
        "strategies": {"flow": 3, "explore": 1},
        "text": "",
        "token_ids": [1, 2],
        "finish": "stop_token",
    }


def test_shares_differences_and_costs_are_over_items(file: Path) -> None:
    """Two seeds on four items: greedy has one item right; mine has two right, one of them for one seed."""
    file.write_text("seeds = 2\n" + HEAD + CONTRAST)
    asked = protocol.read(file)
    items = [item.id for item in asked.tasks[0].items]
    rows = [_row("greedy", item, 0, float(number == 0)) for number, item in enumerate(items)]
    right = {(0, 0), (0, 1), (1, 0)}
    rows += [
        _row("mine", item, seed, float((number, seed) in right), passes=6 + 2 * seed)
        for number, item in enumerate(items)
        for seed in (0, 1)
    ]
    found = policy_figures.figures(asked, rows)
    greedy, mine = found.arms
    assert greedy.right is not None and mine.right is not None and mine.spread is not None
    assert (greedy.right.mean, mine.right.mean) == (0.25, 0.375)
    assert greedy.right.low == pytest.approx(0.0456, abs=1e-4)  # Wilson's of one in four
    assert (mine.passes, mine.computed, mine.strategies) == (7.0, 14.0, {"flow": 0.75, "explore": 0.25})
    assert mine.spread.within == pytest.approx(0.125)  # one of four items was right for one of two seeds
    [declared] = found.declared
    assert declared.found is not None
    assert declared.found.difference.mean == pytest.approx(0.125)
    assert declared.p_corrected == declared.found.p
    told = policy_told.told(asked, found)
    assert told.draw is not None
    right, difference = told.draw().axes
    assert [label.get_text() for label in right.get_yticklabels()] == ["greedy", "mine"]
    assert [label.get_text() for label in difference.get_yticklabels()] == ["mine − greedy"]
    centre = difference.containers[0].lines[0]  # type: ignore[attr-defined]
    assert list(centre.get_xdata()) == [pytest.approx(0.125)]
    assert "mine minus greedy: +12.5 [-27.3, +52.3] points, no difference shown" in told.said
    assert (
        f"one below {100 * declared.found.detectable:.1f} points would mostly have gone unseen" in told.said
    )


# ----- signal -----------------------------------------------------------------------------------------------


def test_a_metric_that_decides_what_is_right_ranks_perfectly_and_nothing_adds_to_true_chances() -> None:
    """The margin gives away what is right; the top probability, as for answers that are drawn, is its chance."""
    rng = np.random.default_rng(0)
    lines = []
    for document in range(10):
        top_T = rng.uniform(0.05, 0.95, 24)
        columns = {name: rng.uniform(0, 1, 24).tolist() for name in Metrics._fields}
        rank_T = np.where(rng.uniform(0, 1, 24) < top_T, 1, 2)
        columns["margin"] = (2 - rank_T).tolist()
        columns |= {"top_prob": top_T.tolist(), "rank": rank_T.tolist(), "logprob": [-0.5] * 24}
        lines.append(
            {"kind": "texts", "document": str(document), "positions": list(range(1, 25)), "columns": columns}
        )
    found = signal_figures.of_positions("texts", lines, 2, SamplerConfig())
    assert found is not None
    assert (found.documents, found.positions, found.loss and found.loss.mean) == (10, 240, 0.5)
    rankings = {ranking.metric: ranking for ranking in found.rankings}
    assert rankings["margin"].auroc.mean == 1.0 and [each.mean for each in rankings["margin"].bins] == [
        1.0,
        1.0,
    ]
    assert abs(rankings["logits_entropy"].auroc.mean - 0.5) < 0.15
    assert [gain.name for gain in found.gains] == [
        *("top probability", "+ entropy", "+ varentropy", "+ attention", "+ position")
    ]
    for gain in found.gains[1:]:
        assert gain.gain is not None and gain.gain.low is not None and gain.gain.low < 0
    assert sum(region.share for region in found.regions) == pytest.approx(1)


# ----- forks ------------------------------------------------------------------------------------------------


def _place(number: int, entropy: float, varentropy: float) -> Place:
    metrics = dict.fromkeys(Metrics._fields, 0.0) | {
        "logits_entropy": entropy,
        "logits_varentropy": varentropy,
    }
    return Place("", number, 0, (1, 2), (0.6, 0.3), metrics)


def test_places_are_spread_over_the_plane_and_others_come_by_chance() -> None:
    """Nine cells with two places each, but for one with thirty."""
    plane = [(x, y) for x in range(3) for y in range(3)]
    crowd = [_place(number, 0.0, 0.0) for number in range(28)]
    found = [_place(100 + n, *plane[n % 9]) for n in range(18)]
    plan = ForksPlan(stratified=9, random=5)
    # quantiles are those of all places: a crowd in one corner moves them, so it is asked for cells without it too
    chosen = choose(found, plan)
    spread = [place for place in chosen if place.chosen == STRATIFIED]
    assert {(p.metrics["logits_entropy"], p.metrics["logits_varentropy"]) for p in spread} == {*plane}
    assert sum(place.chosen == RANDOM for place in chosen) == 5
    assert len({place.answer for place in chosen}) == 14
    assert choose(found, plan) == chosen
    assert choose(found, dataclasses.replace(plan, seed=1)) != chosen
    assert len(choose([*found, *crowd], plan)) == 14 and choose([], plan) == []


def test_forks_are_found_by_the_metric_that_knows_them(toy_model: Any, file: Path) -> None:
    file.write_text(HEAD)
    rows = [
        {
            "answer": number,
            "chosen": STRATIFIED if number % 2 else RANDOM,
            "computed_tokens": 10,
            "answers": [["a"] * 8, (["b"] if number >= 6 else ["a"]) * 8],
            "scores": [[1.0] * 8, [0.0 if number >= 6 else 1.0] * 8],
            "metrics": dict.fromkeys(Metrics._fields, 0.0)
            | {"logits_varentropy": float(number), "margin": 1.0},
        }
        for number in range(12)
    ]
    told = forks_told.told(toy_model, protocol.read(file), rows)
    finders = {each["metric"]: each for each in told.summary["finders"]}
    assert finders["logits_varentropy"]["auroc"]["mean"] == 1.0
    assert finders["margin"]["correlation"]["mean"] is None
    groups = {each["name"]: each for each in told.summary["groups"]}
    assert groups["all"]["cautious"]["mean"] == groups["all"]["gain"]["mean"] == 0.5
    assert told.summary["computed_tokens"] == 120
