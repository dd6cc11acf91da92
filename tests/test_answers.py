"""Calibration for answers: what may be searched, which candidates go on, what a journal keeps."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import entropix
from entropix import samplers
from entropix.checkpoint.loading import Model
from entropix.config import BacktrackConfig, BranchConfig
from entropix.lab.calibration import ablation, answers, front, objective, search
from entropix.lab.calibration.answers import Arm, Outcome
from entropix.lab.calibration.objective import Answer, Asked, Figures, answer, figures
from entropix.lab.calibration.plan import Plan
from entropix.lab.calibration.search import GENERATION, LEFT, Journal, Search, Trial
from entropix.lab.calibration.space import Range, ranges, values, with_values
from entropix.lab.tasks import Item, resolve
from entropix.report import figures as figures_of_page
from entropix.results import FinishReason
from entropix.samplers import ResolvedSampler

BEST = 0.6  # the temperature whose answers are right


@dataclasses.dataclass(frozen=True)
class Near:
    """A task whose answers are right where the temperature that is their text is near the best."""

    name: str = "near"
    max_new_tokens: int = 4
    is_closed: bool = True

    def items(self, seed: int, n: int | None, split: str = "dev") -> list[Item]:
        return [Item(f"{split}{i}", [i + 1, 5], data={"width": 0.02 * (i + 1)}) for i in range(n or 12)]  # type: ignore[arg-type]

    def extract(self, item: Item, text: str) -> str | None:
        return text

    def score(self, item: Item, text: str) -> float:
        return float(abs(float(text) - BEST) < item.data["width"])


ASKED = [Asked(Near(), item) for item in Near().items(0, 12)]


PASSES = 3  # that each answer takes


@pytest.fixture
def asked_of(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(candidates, items) of every question from now on, which are answered by the candidate's temperature."""
    seen = []

    def answered(
        model: Any,
        candidates: Sequence[ResolvedSampler],
        asked: Sequence[Asked],
        seeds: Any,
        batch: int,
        advance: objective.Advance = objective.nothing_told,
    ) -> list[list[list[Answer]]]:
        seen.append((len(candidates), len(asked)))
        n = len(candidates) * len(asked) * len(seeds)
        advance(n, PASSES * n)

        def answer(one: ResolvedSampler) -> Answer:
            text = str(getattr(one.numbers, "temp", 0))
            return Answer(text, FinishReason.STOP_TOKEN, passes=PASSES, token_ids=(1,))

        return [[[answer(one) for _ in seeds] for _ in asked] for one in candidates]

    monkeypatch.setattr(search, "answered", answered)
    monkeypatch.setattr(objective, "answer", answered)
    return seen


def searched(seed: int = 1) -> Search:
    model: Any = None
    rule = samplers.resolve("temperature")
    return Search(model, rule, ranges(rule), ASKED, [0, 1], 4, 0.0, seed)


def test_ranges_come_from_the_rule_and_from_what_its_numbers_are() -> None:
    found = {one.name: one for one in ranges(samplers.resolve("entropix"))}
    assert found["temp"] == Range("temp", 0.1, 2.0, is_log=True)
    assert found["low_ent_thresh"] == Range("low_ent_thresh", 0.05, 12.0, is_log=True)
    assert found["high_vent_thresh"].high == 20.0 and found["top_p"] == Range("top_p", 0.0, 1.0)
    assert found["top_k"] == Range("top_k", 1.0, 128, is_int=True, is_log=True)
    assert found["n_adaptive_samples"] == Range("n_adaptive_samples", 1.0, 10.0, is_int=True, is_log=True)
    assert not {"repetition_penalty", "max_top_k", "clarifier", "branching.paths"} & found.keys()
    [guard] = ranges(samplers.resolve("greedy"), ["repetition_penalty"])
    assert (guard.low, guard.high) == (0.01, 2.0)
    with pytest.raises(ValueError, match="greedy has no number to choose"):
        ranges(samplers.resolve("greedy"))
    with pytest.raises(ValueError, match="--free tempo: min-p has no such number"):
        ranges(samplers.resolve("min-p"), ["tempo"])
    with pytest.raises(ValueError, match="--free backtracking: min-p never does resample"):
        ranges(samplers.resolve("min-p"), ["backtracking"])
    with pytest.raises(
        ValueError, match=r"--free branching\.paths: min-p never does explore, where it would fork"
    ):
        ranges(samplers.resolve("min-p"), ["branching.paths"])
    with pytest.raises(ValueError, match=r"--free branching\.depth changes nothing without branching"):
        ranges(samplers.resolve("entropix"), ["branching.depth"])


def test_looking_ahead_and_back_is_searched_where_that_is_asked_for() -> None:
    rule = samplers.resolve("entropix")
    space = ranges(rule, ["numbers", "branching", "backtracking.tokens", "temp"])
    assert [one.name for one in space] == [
        *(one.name for one in ranges(rule)),
        *("branching.paths", "branching.depth", "branching.entropy", "backtracking.tokens"),
    ]
    usual = values(rule, space)
    assert (usual["branching.paths"], usual["branching.entropy"], usual["backtracking.tokens"]) == (
        1,
        12.0,
        0,
    )
    assert with_values(rule, space, usual) == rule  # what is off is what was not there

    tried = usual | {"branching.paths": 3.0, "branching.entropy": 2.5, "backtracking.tokens": 2.0}
    found = with_values(rule, space, tried)
    assert found.branching == BranchConfig(paths=3, depth=4, entropy=2.5)
    assert found.backtracking == BacktrackConfig(tokens=2) and found.numbers == rule.numbers
    assert values(found, space) == tried
    for table in (
        {"paths": 4},
        {"paths": 3, "depth": 2, "entropy": 1.5},
        {"paths": 2, "strategies": ("flow",)},
    ):
        preset = dataclasses.replace(rule, branching=BranchConfig(**table))
        assert with_values(preset, space, values(preset, space)) == preset
    never = dataclasses.replace(rule, branching=BranchConfig(paths=4, depth=0))
    assert with_values(never, space, values(never, space)).branching == BranchConfig()
    off = with_values(found, space, tried | {"branching.paths": 1.0})
    assert off.branching == BranchConfig()  # not None, which would leave the file's own


def test_a_race_asks_the_better_ones_more_and_the_search_comes_near(asked_of: list[tuple[int, int]]) -> None:
    found = searched()
    trials = found.race([{"temp": 1.9}])
    assert asked_of == [(GENERATION, 2), (LEFT[0], 4), (LEFT[1], 6)]
    assert trials[0].params == {"temp": 1.9} and len(trials) == GENERATION
    assert search.generation_answers(12, 2) == (2 * GENERATION + 4 * LEFT[0] + 6 * LEFT[1]) * 2
    for _ in range(4):
        found.race()
    assert found.best is not None and found.best.n_items == 12
    assert abs(found.best.params["temp"] - BEST) < 0.1


def test_a_journal_goes_on_where_it_ended(asked_of: list[tuple[int, int]], tmp_path: Path) -> None:
    """The same candidates as those of a search that was not interrupted; the journal of another one is refused."""
    whole = searched()
    for _ in range(3):
        whole.race()
    told = {"seeds": (0, 1)}
    first, path = searched(), tmp_path / "journal.jsonl"
    Journal(path, told).add("temperature", first.race())
    path.write_text(path.read_text() + '{"sampler": "temp')  # the power failed here
    second, journal = searched(), Journal(path, told)
    second.trials += journal.trials["temperature"]
    for _ in range(2):
        journal.add("temperature", second.race())
    assert [t.as_json() for t in second.trials] == [t.as_json() for t in whole.trials]
    assert len(Journal(path, told).trials["temperature"]) == 3 * GENERATION
    with pytest.raises(ValueError, match="the journal of another search"):
        Journal(path, {"seeds": (0, 2)})


def test_all_answers_are_counted_beforehand(asked_of: list[tuple[int, int]], tmp_path: Path) -> None:
    """Also those that a journal spares; and the rule itself is not tuned a second time as its own opponent."""
    model: Any = None
    plan = Plan([Near()], 12, [0, 1], 170, 4, 0.0, opponents=("temperature", "min-p", "min-p"))  # type: ignore[list-item]
    came: list[int] = []
    for rounds in range(2):
        journal, rule = Journal(tmp_path / "journal.jsonl", {}), samplers.resolve("min-p")
        expected = plan.total(rule, journal)
        outcome = answers.calibrate(
            model, rule, plan, journal, lambda text: None, lambda n, what: came.append(n)
        )
        assert sum(came) == expected and [arm.n_candidates for arm in outcome.arms] == [0, 24, 0, 24]
        assert expected == 24 * 7 + (0 if rounds else 4 * search.generation_answers(12, 2))
        came.clear()
    assert {name: len(trials) for name, trials in outcome.trials.items()} == {"temperature": 24, "min-p": 24}
    assert front.unbeaten(outcome.trials["min-p"]) != [] and front.told(outcome).tables[0].rows[1][1] == "24"


def test_a_budget_of_passes_is_what_answers_took(asked_of: list[tuple[int, int]], tmp_path: Path) -> None:
    """A generation is begun where half of it can be paid; a journal's are paid for already."""
    model: Any = None
    one = PASSES * search.generation_answers(12, 2)
    came: list[int] = []
    for name, n_generations in (("whole", 3), ("parts", 2), ("parts", 3)):
        plan = Plan(
            [Near()],  # type: ignore[list-item]
            12,
            [0, 1],
            round((n_generations + 0.4) * one),
            4,
            0.0,
            opponents=(),
            in_passes=True,
        )
        journal, rule = Journal(tmp_path / name, {}), samplers.resolve("temperature")
        before = len(journal.trials.get("temperature", []))
        total = plan.total(rule, journal)
        outcome = answers.calibrate(
            model, rule, plan, journal, lambda text: None, lambda n, what: came.append(n)
        )
        assert outcome.arms[-1].n_candidates == n_generations * GENERATION
        spent = sum(trial.passes for trial in outcome.trials["temperature"])
        assert spent == n_generations * one <= plan.budget
        assert plan.unit == "forward passes" and sum(came) <= total
        assert sum(came) - spent + before // GENERATION * one == PASSES * 24 * (1 + 2 + 2)
        came.clear()


def test_the_front_is_what_nothing_beats_in_both() -> None:
    points = [(0.5, 0.5), (0.6, 0.3), (0.4, 0.5), (0.6, 0.2), (0.3, 0.9), (0.5, 0.4)]
    found = front.unbeaten(
        [search.Trial({}, 1, right, coverage, 0.0, gain=coverage) for right, coverage in points]
    )
    assert [(trial.right, trial.coverage) for trial in found] == [(0.3, 0.9), (0.5, 0.5), (0.6, 0.3)]


def test_coverage_counts_as_far_as_right_answers_are_kept() -> None:
    whole = Figures(right=[1.0, 0.5], valid=[0.1], coverage=[0.8], cut_off=0.0, tokens=1.0)
    often = dataclasses.replace(whole, strategies={"flow": 0.9, "clarify": 0.1})
    assert often.score(0.75, {"clarify": 0.1, "resample": 0.0}) == 0.8
    assert often.score(0.75, {"clarify": 0.05}) < often.score(0.75, {"clarify": 0.09}) < -9
    assert whole.score(0.75) == 0.8 and whole.score(0.85) == pytest.approx(0.8 - 4 * 0.1)
    assert Figures([1.0, 0.0], [], [], 0.0, 1.0).score(0.9) == 0.5
    ending = dataclasses.replace(whole, finished=[0.2, 0.5])  # an entry an item, as coverage has
    assert ending.score(0.85) == pytest.approx(0.5 - 4 * 0.1)
    assert dataclasses.replace(ending, coverage=[]).score(0.75) == pytest.approx(0.35)


def test_figures_are_of_each_item_and_its_seeds() -> None:
    sets = resolve("sets")
    [item] = sets.items(0, 1)
    member = item.answers[0].split("/")[0]
    given = [
        Answer(text, end, counts, token_ids=range(n))
        for text, n, end, counts in (
            (member, 2, FinishReason.STOP_TOKEN, {"flow": 2}),
            (f"{member}.", 3, FinishReason.STOP_TOKEN, {"flow": 1, "explore": 2}),
            ("none of them at all", 7, FinishReason.LENGTH, {"flow": 6, "explore": 1}),
            ("", 0, FinishReason.STOP_TOKEN, {}),
        )
    ]
    found = figures([Asked(sets, item)], [given])
    assert (found.right, found.coverage, found.cut_off, found.tokens) == ([0.5], [0.25], 0.25, 3.0)
    assert found.strategies == {"flow": 0.75, "explore": 0.25}
    beside = Asked(Near(), Near().items(0, 1)[0])
    both = figures([beside, Asked(sets, item)], [[given[0]._replace(text="0.6")], given])
    assert (both.share_right, both.share_valid) == (1.0, 0.5)


def test_a_text_is_finished_that_the_model_ended_without_a_loop() -> None:
    """A loop: at least half of its 4-grams were there before; the end itself is no part of the text."""
    [item] = resolve("open").items(0, 1)
    ids, looping = [1, 2, 3, 4, 5, 6, 7, 8], [1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3]  # 4 of 8 4-grams are new
    stop, length = FinishReason.STOP_TOKEN, FinishReason.LENGTH
    ends = [(ids, stop), (ids, length), (looping, stop), (looping[:-1], stop), ([1], stop), ([], length)]
    ends += [([1, 2, 3, 4], stop)]
    given = [Answer("", end, token_ids=[*some, 0] if end == stop else some) for some, end in ends]
    assert [one.is_finished for one in given] == [True, False, False, True, False, False, True]
    beside = Asked(Near(), Near().items(0, 1)[0])
    right = Answer("0.6", stop, token_ids=[1, 0])
    found = figures([Asked(resolve("open"), item), beside], [given, [right]])
    assert found.measures == {"right": 1.0, "finished": 3 / 7} and found.gain == [3 / 7]


@pytest.mark.slow
def test_candidates_side_by_side_are_those_alone(toy_model: Model) -> None:
    plain = samplers.resolve("temperature")
    several = [plain.changed({"temp": temp}) for temp in (0.3, 1.0, 3.0)]
    text = [Asked(resolve("open"), Item(str(i), [i + 1, 7])) for i in range(3)]  # type: ignore[arg-type]
    short = [one._replace(task=dataclasses.replace(one.task, max_new_tokens=5)) for one in text]  # type: ignore[type-var]
    forking = dataclasses.replace(several[1], branching=BranchConfig(paths=2, depth=2, entropy=0.01))
    several.insert(1, forking)  # of another program, between those of one
    together = answer(toy_model, several, short, [0, 1], 4)
    assert together == [answer(toy_model, [one], short, [0, 1], 4)[0] for one in several]
    assert len({given.text for of_one in together for of_item in of_one for given in of_item}) > 6
    computed = [figures(short, of_one).computed for of_one in together]
    assert computed[0] == computed[2] == 5.0 < computed[1]


def test_a_preset_says_what_it_is_worth(toy_folder: str) -> None:
    """Not better than a tuned temperature, and worse than greedy: both are said."""
    model, rule = entropix.load(toy_folder), samplers.resolve("min-p", {"min_p": 0.25})
    plan = Plan([Near()], 6, [0, 1], 100, 4, 0.03)  # type: ignore[list-item]
    good, bad = Figures([1.0] * 5 + [0.5], [], [], 0.0, 1.0), Figures([0.0] * 5 + [0.5], [], [], 0.5, 2.0)
    arms = [
        Arm("greedy", samplers.resolve("greedy"), good, good),
        Arm("temperature", samplers.resolve("temperature"), good, good, 12),
        Arm("min-p, calibrated", rule, good, bad, 12),
    ]
    text = "\n".join(answers.preset(Outcome(plan, model, arms)))
    assert "# On held-out items it answers worse than greedily." in text
    assert "# On held-out items it is not better than a tuned temperature." in text
    assert 'sampler = "min-p"' in text and "min_p = 0.25" in text
    row = list(answers.rows(Outcome(plan, model, arms)))[-1]
    assert (row["dev_right"], row["held_out_coverage"]) == (pytest.approx(5.5 / 6), None)


@pytest.mark.slow
def test_each_part_of_the_rule_is_left_out_alone(toy_model: Model) -> None:
    """Where the rule would have flowed it is adaptive then; what does nothing with these numbers is left alone."""
    rule = samplers.resolve("entropix", {"low_ent_thresh": 20.0, "low_vent_thresh": 9.0, "clarifier": ""})
    found, idle = ablation.variants(rule)
    assert idle == ["pauses"] and list(found)[:4] == ["flow", "clarify", "explore", "resample"]
    assert found["top-k"].numbers.top_k == rule.numbers.max_top_k
    assert found["attention"].numbers.lehv_interaction_strength_coef == 0.0
    assert ablation.variants(samplers.resolve("min-p"))[0].keys() == {"min-p"}

    def strategies(one: ResolvedSampler) -> list[str]:
        [result] = entropix.generate(toy_model, [3, 5], sampler=one, seed=1, max_new_tokens=24, raw=True)
        return [record["strategy"] for record in result.records]

    assert [set(strategies(one)) for one in (rule, found["flow"])] == [{"flow"}, {"adaptive"}]

    short = dataclasses.replace(resolve("open"), max_new_tokens=4)  # type: ignore[type-var]
    asked = [Asked(short, Item(str(i), [i + 1, 7])) for i in range(2)]  # type: ignore[arg-type]
    came: list[int] = []
    plain = samplers.resolve("min-p", {"min_p": 0.2})
    told = ablation.ablate(toy_model, plain, asked, [0, 1], 4, lambda n, what: came.append(n))
    assert sum(came) == 8 and [part.name for part in told.parts] == ["min-p"]
    assert list(told.whole.measures) == ["finished"] and told.parts[0].brought["right"] is None
    assert told.parts[0].brought["finished"] is not None


def test_what_a_part_brings_is_said_with_its_interval(tmp_path: Path) -> None:
    whole = Figures([1.0] * 30 + [0.0] * 10, [], [], 0.0, 1.0)
    worse = Figures([1.0] * 10 + [0.0] * 30, [], [], 0.0, 1.0)
    rule = samplers.resolve("min-p")
    part = ablation.Part("min-p", worse, objective.differences(whole, worse))
    found = ablation.Ablation(rule, whole, [part], ["top-k"])
    _, row = ablation.rows(found)
    assert row["right_brought"] == 0.5 and 0.3 < row["right_low"] < 0.4 and row["right_p"] < 1e-4
    text = "\n".join(ablation.report(found))
    assert "+0.500 [+0.3" in text and "left alone, as they do nothing with these numbers: top-k" in text
    figures_of_page.save(ablation.draw(found), tmp_path / "parts.svg")
    assert "right answers that the part brings" in (tmp_path / "parts.svg").read_text()


# ----- what a journal is not ------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["my notes\nthe last line", "notes", '{"seeds": [0, 2]}', "[1]\n"])
def test_a_file_that_is_no_journal_is_refused_and_stays_as_it_is(tmp_path: Path, text: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(text)
    with pytest.raises(
        ValueError, match=r"notes\.txt: (the journal of another search|line 1 is not a JSON object)"
    ):
        Journal(path, {"seeds": (0, 1)})
    assert path.read_text() == text


def test_a_journal_that_was_hardly_begun_is_begun_again(tmp_path: Path) -> None:
    for number, text in enumerate(("", '{"seeds": [0')):
        path = tmp_path / f"{number}.jsonl"
        path.write_text(text)
        assert Journal(path, {"seeds": (0, 1)}).trials == {} and path.read_text() == '{"seeds": [0, 1]}\n'


def trials(n: int) -> list[Trial]:
    return [Trial({"temp": 1.0 + i}, 12, 0.5, float("nan"), 0.5, {"flow": 0.25}) for i in range(n)]


def test_of_a_generation_that_was_written_in_part_nothing_is_kept(tmp_path: Path) -> None:
    """The next one would be proposed from other candidates than without the interruption."""
    path = tmp_path / "journal.jsonl"
    journal = Journal(path, {})
    journal.add("min-p", trials(GENERATION))
    whole = path.read_text()
    journal.add("top-p", trials(GENERATION))
    path.write_text("".join(path.read_text().splitlines(keepends=True)[: 1 + GENERATION + 5]))
    found = Journal(path, {})
    assert {name: len(of_rule) for name, of_rule in found.trials.items()} == {"min-p": GENERATION}
    assert path.read_text() == whole and found.trials["min-p"][1].strategies == {"flow": 0.25}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{}", "field 'sampler' is missing"),
        ('{"sampler": "a", "trial": 5}', "field 'trial' must be of type object, got 5"),
        ('{"sampler": "a", "trial": {"params": {"temp": "x"}, "n_items": 1, "right": 0, "coverage": 0, "score": 0}}',
         "field 'trial.params.temp' must be of type number"),
        ('{"sampler": "a", "trial": {"params": {}, "n_items": 1, "right": "0", "coverage": 0, "score": 0}}',
         "field 'trial.right' must be of type number or null"),
    ],
)  # fmt: skip
def test_a_line_that_is_no_trial_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text(f"{{}}\n{line}\n")
    with pytest.raises(ValueError, match=rf"journal\.jsonl: line 2: {message}"):
        Journal(path, {})


def test_two_searches_do_not_write_to_one_journal(tmp_path: Path) -> None:
    first, second = (Journal(tmp_path / "journal.jsonl", {}) for _ in range(2))
    first.add("min-p", trials(GENERATION))
    with pytest.raises(ValueError, match="another process has written to this journal"):
        second.add("min-p", trials(GENERATION))
    assert len(Journal(tmp_path / "journal.jsonl", {}).trials["min-p"]) == GENERATION


def test_a_plan_that_would_fail_later_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"prompt": "a?", "answers": ["a"]}\n')
    same = tmp_path / "same.toml"
    same.write_text('sampler = "min-p"\n')
    for changes, message in (
        ({"tasks": [resolve("open")]}, "task open has no right answers, and nonsense ends and does not loop"),
        ({"tasks": [resolve(f"questions:{tmp_path}/one.jsonl")]}, "has no item in the split held-out"),
        ({"opponents": ["nope"]}, "no sampler preset 'nope'"),
        ({"opponents": ["min-p", str(same)]}, "min-p is searched already"),
        ({"free": ["nope"]}, "--free nope: entropix has no such number"),
    ):
        plan = Plan([resolve("questions")], 4, (0, 1), 9, 8, 0.1)
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(plan, **changes).check(samplers.resolve("entropix"))
