"""The page of a calibration for answers: right answers against what is sought beside them, every candidate a point."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from entropix.lab import plots
from entropix.lab.calibration.answers import Outcome, findings, shown
from entropix.lab.calibration.objective import MEASURES
from entropix.lab.calibration.search import Trial
from entropix.lab.statistics import mean_interval
from entropix.lab.tasks import DEV, HELD_OUT
from entropix.lab.telling import Table, Told, numbers
from entropix.report import looks

if TYPE_CHECKING:
    import plotly.graph_objects as go


def about(outcome: Outcome) -> str:
    """What was run, in a sentence."""
    plan, model = outcome.plan, outcome.model
    return (
        f"{model.name}, {model.precision}. {outcome.chosen.label}: {', '.join(task.name for task in plan.tasks)}, "
        f"{len(plan.seeds)} seeds, {plan.budget} {plan.unit} for each rule that was tuned."
    )


def told(outcome: Outcome) -> Told:
    """Figures of both splits, and the table of the arms. Where tasks have neither sets nor open texts, points lie on a
    line."""
    rules = list(outcome.trials)
    against = f" against {sought}" if (sought := _sought(outcome)) else ""
    key = looks.marks([arm.label for arm in outcome.arms])
    sections = [
        plots.Section(
            "Every candidate, on the development items",
            "Filled points answered all items, hollow ones left the race before, so theirs are of fewer. A line joins "
            "those of a rule that no other of it beats in both. The vertical line is the least share of right answers "
            "that costs nothing. Point at one for its numbers.",
            [key[_arm(outcome, name)]._replace(name=name) for name in rules],
            [
                plots.Plot(
                    "front",
                    "",
                    f"right answers{against} of every candidate",
                    26,
                    _front(outcome),
                )
            ],
        ),
        plots.Section(
            "What was chosen, on the held-out items",
            "With intervals of 95 % over items. What is lost from one split to the other is the luck of the search.",
            key,
            [
                plots.Plot(
                    "held-out",
                    "",
                    f"right answers{against} of each arm",
                    22,
                    _held_out(outcome),
                )
            ],
        ),
    ]
    return Told("calibration for answers", ". ".join(findings(outcome)), [_table(outcome)], sections, {})


def _table(outcome: Outcome) -> Table:
    whats = list(outcome.arms[0].dev.measures)
    heads = ["", "tried", *(f"{what}, {split}" for what in whats for split in (DEV, HELD_OUT))]
    heads += ["cut off", "computed tokens"]
    rows = [
        [
            arm.label,
            str(arm.n_candidates or "-"),
            *(
                told
                for what in whats
                for told in (
                    shown(arm.dev.measures[what]),
                    numbers(mean_interval(getattr(arm.held_out, what))),
                )
            ),
            shown(arm.held_out.cut_off),
            f"{arm.held_out.computed:.1f}",
        ]
        for arm in outcome.arms
    ]
    return Table("All arms on both splits", "Shares; 95 % intervals over items.", heads, rows)


def _front(outcome: Outcome) -> "go.Figure":
    figure: Any = plots.new_figure()
    n_items = max(trial.n_items for trials in outcome.trials.values() for trial in trials)
    for name, trials in outcome.trials.items():
        look = looks.look(_arm(outcome, name))
        whole = [trial for trial in trials if trial.n_items == n_items]
        for some, filled in ((whole, True), ([t for t in trials if t.n_items < n_items], False)):
            figure.add_scatter(
                x=[trial.right for trial in some],
                y=[_height(trial) for trial in some],
                mode="markers",
                marker={
                    "color": look.color,
                    "size": 9 if filled else 6,
                    "symbol": look.mark if filled else f"{look.mark}-open",
                    "opacity": 1.0 if filled else 0.6,
                },
                text=[_numbers(name, trial) for trial in some],
                hovertemplate="%{text}<extra></extra>",
            )
        front = unbeaten(whole)
        figure.add_scatter(
            x=[trial.right for trial in front],
            y=[_height(trial) for trial in front],
            mode="lines",
            line={"color": look.color, "width": 1, "dash": look.dash},
            hoverinfo="skip",
        )
    least = outcome.arms[0].dev.share_right - outcome.plan.loss
    figure.add_vline(x=least, line={"color": "var(--muted)", "width": 1, "dash": "dot"})
    return _with_axes(figure, outcome)


def _held_out(outcome: Outcome) -> "go.Figure":
    figure: Any = plots.new_figure()
    for number, arm in enumerate(outcome.arms):
        look = looks.look(number)
        right, gain = mean_interval(arm.held_out.right), mean_interval(arm.held_out.gain)
        gained = f"<br>{sought} {numbers(gain)}" if (sought := _sought(outcome)) else ""
        height = 0.0 if gain is None else gain.mean
        figure.add_scatter(
            x=[right and right.mean],
            y=[height],
            error_x=plots.bars([right], look.color),
            error_y=plots.bars([gain], look.color),
            mode="markers",
            marker={"color": look.color, "size": 10, "symbol": look.mark},
            hovertemplate=f"{plots.plain(arm.label)}<br>right {numbers(right)}{gained}<extra></extra>",
        )
    return _with_axes(figure, outcome)


def _with_axes(figure: Any, outcome: Outcome) -> "go.Figure":
    sought = _sought(outcome)
    figure.update_layout(xaxis={"title": "right answers (share)"}, yaxis={"title": sought})
    return figure


def _sought(outcome: Outcome) -> str:
    """What the heights of points are; "" where tasks have nothing of it."""
    return " and ".join(MEASURES[what] for what in outcome.arms[0].dev.measures if what != "right")


def _arm(outcome: Outcome, rule: str) -> int:
    """The place of the arm that a rule's search led to: the rule that was asked for is the last."""
    labels = [arm.label for arm in outcome.arms]
    return labels.index(rule) if rule in labels else len(labels) - 1


def unbeaten(trials: Sequence[Trial]) -> list[Trial]:
    """Those than which no other is at least as good in both and better in one, by right answers, ascending."""
    found: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (-t.right, -_height(t))):
        if not found or _height(trial) > _height(found[-1]):
            found.append(trial)
    return found[::-1]


def _height(trial: Trial) -> float:
    """Its gain, 0 where there is none."""
    return 0.0 if trial.gain != trial.gain else trial.gain


def _numbers(name: str, trial: Trial) -> str:
    lines = [
        plots.plain(name),
        f"{trial.n_items} items: "
        + ", ".join(f"{what} {share:.3f}" for what, share in trial.measures.items()),
    ]
    shares = [f"{strategy} {share:.1%}" for strategy, share in trial.strategies.items()]
    return "<br>".join([*lines, *(f"{key} = {value:.4g}" for key, value in trial.params.items()), *shares])
