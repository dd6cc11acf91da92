"""Calibration for answers: a rule's numbers are chosen on the development split, and what they are worth is measured
once on the held-out one, beside greedy answers and the plain rules that were given the same budget.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from entropix import samplers, trace
from entropix.checkpoint.loading import Model
from entropix.lab.calibration import objective
from entropix.lab.calibration.objective import Asked, Figures
from entropix.lab.calibration.plan import TEMPERATURE, Plan, digest_of
from entropix.lab.calibration.search import GENERATION, Journal, Search, Trial
from entropix.lab.calibration.space import ranges, values
from entropix.lab.statistics import Contrast, mean_interval
from entropix.lab.tasks import DEV, HELD_OUT
from entropix.samplers import ResolvedSampler

GREEDY = "greedy"
Note = Callable[[str], None]
Advance = Callable[[int, str], None]


class Arm(NamedTuple):
    """Numbers, and what they are worth on both splits."""

    label: str
    sampler: ResolvedSampler
    dev: Figures
    held_out: Figures
    n_candidates: int = 0  # among which they were chosen


@dataclass(frozen=True)
class Outcome:
    """The chosen numbers and those beside them; the first arm is greedy, the last the calibrated one."""

    plan: Plan
    model: Model
    arms: list[Arm] = field(default_factory=list)
    trials: dict[str, list[Trial]] = field(default_factory=dict)  # of each rule that was searched

    @property
    def chosen(self) -> Arm:
        return self.arms[-1]

    def arm(self, label: str) -> Arm:
        return next(arm for arm in self.arms if arm.label == label)


def calibrate(
    model: Model,
    sampler: ResolvedSampler,
    plan: Plan,
    journal: Journal | None,
    note: Note,
    advance: Advance = lambda n, what: None,
) -> Outcome:
    """Tunes the opponents and the rule, each with the same budget, and measures all on the held-out split.

    note: is told what each generation found. advance: how much more of `Plan.total` has come, and of what.
    """
    dev, held_out = plan.items(DEV), plan.items(HELD_OUT)
    outcome = Outcome(plan, model)
    greedy = samplers.resolve(GREEDY)

    def measured(label: str, chosen: ResolvedSampler, n_candidates: int = 0) -> None:
        on_dev, on_held_out = (
            _measured(model, chosen, asked, plan, lambda *n: advance(plan.cost(*n), label))
            for asked in (dev, held_out)
        )
        outcome.arms.append(Arm(label, chosen, on_dev, on_held_out, n_candidates))

    measured(GREEDY, greedy)
    least = outcome.arms[0].dev.share_right - plan.loss
    note(f"greedy has {outcome.arms[0].dev.share_right:.3f} of the development answers right")

    def tuned(rule: ResolvedSampler, is_opponent: bool = True) -> tuple[ResolvedSampler, int]:
        space, limits = (ranges(rule), {}) if is_opponent else (ranges(rule, plan.free), plan.limits)
        search = Search(model, rule, space, dev, plan.seeds, plan.batch, least, plan.seed, limits)
        _run(search, plan, journal, note, lambda *n: advance(plan.cost(*n), rule.name))
        assert search.best is not None
        outcome.trials[rule.name] = search.trials
        return search.with_params(search.best.params), len(search.trials)

    for label in plan.tuned_beside(sampler):
        found, n = tuned(samplers.resolve(label))
        measured(label, found, n)
    measured(f"{Path(sampler.label).name}, as it was", sampler)
    found, n = tuned(sampler, is_opponent=False)
    if found == sampler:  # nothing better was found, and what this is worth is known
        outcome.arms.append(outcome.arms[-1]._replace(label=f"{sampler.name}, calibrated", n_candidates=n))
        advance(plan.measured(len(plan.seeds)), sampler.name)
    else:
        measured(f"{sampler.name}, calibrated", found, n)
    return outcome


def _measured(
    model: Model,
    sampler: ResolvedSampler,
    asked: Sequence[Asked],
    plan: Plan,
    advance: objective.Advance,
) -> Figures:
    """The figures of one sampler. Greedy answers are the same with every seed, and computed once."""
    seeds = plan.seeds[:1] if sampler.name == GREEDY else plan.seeds
    [given] = objective.answer(model, [sampler], asked, seeds, plan.batch, advance)
    return objective.figures(asked, [answers * (len(plan.seeds) // len(seeds)) for answers in given])


def _run(search: Search, plan: Plan, journal: Journal | None, note: Note, advance: objective.Advance) -> None:
    """Goes on until the budget is spent, on the generations of the journal among others."""
    sampler = search.sampler
    if journal is not None:
        search.trials += journal.trials.get(sampler.name, [])
    usual = values(sampler, search.space)
    while not plan.is_spent(search.trials):
        trials = search.race([] if search.trials else [usual], advance)
        if journal is not None:
            journal.add(sampler.name, trials)
        best = search.best
        assert best is not None
        note(
            f"{sampler.name}: {len(search.trials)} candidates, best score {best.score:.3f}, "
            + ", ".join(f"{what} {share:.3f}" for what, share in best.measures.items())
        )


# ----- what is said -----------------------------------------------------------------------------------------------


def against(outcome: Outcome, label: str) -> dict[str, Contrast | None]:
    """The measures of the calibrated arm less those of another, item by item of the held-out split."""
    return objective.differences(outcome.chosen.held_out, outcome.arm(label).held_out)


def report(outcome: Outcome) -> Iterator[str]:
    """Lines of text: a table of all arms on both splits, then the differences that matter, with their intervals."""
    plan = outcome.plan
    width = max(len(arm.label) for arm in outcome.arms)
    n = [len(plan.items(split)) for split in (DEV, HELD_OUT)]
    each = f"{n_seeds} answers" if (n_seeds := len(plan.seeds)) > 1 else "one answer"
    yield f"{n[0]} development and {n[1]} held-out items, {each} to each"
    whats = list(outcome.arms[0].dev.measures)
    yield f"{'':{width}}  tried   {''.join(f'{what:16}' for what in whats)}valid     cut off   computed"
    yield f"{'':{width}}          {'dev  held-out   ' * len(whats)}held-out  held-out  tokens"
    for arm in outcome.arms:
        of_both = [on.measures[what] for what in whats for on in (arm.dev, arm.held_out)]
        yield (
            f"{arm.label:{width}}  {arm.n_candidates or '-':>5}  "
            + "  ".join(f"{shown(value):>6}" for value in (*of_both, arm.held_out.share_valid))
            + f"  {arm.held_out.cut_off:7.3f}  {arm.held_out.computed:8.1f}"
        )
    yield ""
    yield from findings(outcome)
    if len(shares := outcome.chosen.held_out.strategies) > 1:
        told = ", ".join(f"{name} {share:.1%}" for name, share in sorted(shares.items(), key=lambda s: -s[1]))
        yield f"Strategies of the chosen numbers on held-out items: {told}."


def findings(outcome: Outcome) -> Iterator[str]:
    """The differences that matter, with their intervals, and what follows from them."""
    for label in (GREEDY, TEMPERATURE):
        if label not in [arm.label for arm in outcome.arms]:
            continue
        for what, found in against(outcome, label).items():
            if found is not None:
                yield f"{objective.MEASURES[what].capitalize()} less that of {label}: {_difference(found)}"
    if outcome.chosen.sampler == outcome.arms[-2].sampler:
        yield "The search found nothing better than the numbers that it began with."
    yield from verdict(outcome)


def verdict(outcome: Outcome) -> Iterator[str]:
    """What follows from it, in a sentence or two."""
    right = against(outcome, GREEDY)["right"]
    if right is not None and right.difference.high is not None and right.difference.high < 0:
        yield "On held-out items it answers worse than greedily."
    if TEMPERATURE in [arm.label for arm in outcome.arms]:
        plain = outcome.arm(TEMPERATURE)
        least = outcome.arms[0].held_out.share_right - outcome.plan.loss
        if outcome.chosen.held_out.score(least) <= plain.held_out.score(least):
            yield "On held-out items it is not better than a tuned temperature."


def preset(outcome: Outcome) -> Iterator[str]:
    """The lines of a TOML file: the numbers, what they were chosen by and what they are worth."""
    arm, plan, model = outcome.chosen, outcome.plan, outcome.model
    yield f"# {arm.sampler.name} with numbers chosen for {model.name} by its answers"
    yield "# (python -m entropix.calibrate --by answers)"
    yield "#"
    yield from trace.comments(model)
    yield f"# tasks: {', '.join(task.name for task in plan.tasks)}; seeds {plan.seeds[0]} to {plan.seeds[-1]}"
    yield from (f"# {split} items, sha256: {digest_of(plan.items(split))}" for split in (DEV, HELD_OUT))
    yield f"# budget: {plan.budget} {plan.unit} for each rule, in rounds of {GENERATION} candidates"
    yield f"# right answers may be {plan.loss} less than greedy ones"
    yield "#"
    yield from (f"# {line}".rstrip() for line in report(outcome))
    yield from arm.sampler.as_toml()


def rows(outcome: Outcome) -> Iterator[dict[str, Any]]:
    """A row an arm, for a table."""
    for arm in outcome.arms:
        right = mean_interval(arm.held_out.right)
        assert right is not None
        yield {
            "arm": arm.label,
            "candidates": arm.n_candidates,
            "dev_right": arm.dev.share_right,
            "dev_coverage": _plain(arm.dev.mean_coverage),
            "dev_finished": _plain(arm.dev.share_finished),
            "held_out_right": right.mean,
            "held_out_right_low": right.low,
            "held_out_right_high": right.high,
            "held_out_valid": _plain(arm.held_out.share_valid),
            "held_out_coverage": _plain(arm.held_out.mean_coverage),
            "held_out_finished": _plain(arm.held_out.share_finished),
            "held_out_cut_off": arm.held_out.cut_off,
            "held_out_tokens": arm.held_out.tokens,
            "held_out_computed": arm.held_out.computed,
        }


def _difference(found: Contrast) -> str:
    mean, low, high = found.difference
    if low is None or high is None:
        return f"{mean:+.3f}"
    told = f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"
    if not low <= 0 <= high:
        return told
    if found.detectable is None or found.detectable > 1:
        return f"{told}, none that is shown; so few items could hardly show one"
    return f"{told}, none that is shown; {found.detectable:.3f} would have been seen four times out of five"


def shown(value: float) -> str:
    """A share, or a dash."""
    return "-" if math.isnan(value) else f"{value:.3f}"


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else value
