"""The part policy in tables and figures."""

from collections.abc import Sequence
from functools import partial

from entropix.lab import plots
from entropix.lab.evaluation import policy_plot
from entropix.lab.evaluation.policy_figures import OPEN, Declared, Figures
from entropix.lab.evaluation.protocol import Protocol
from entropix.lab.plots import Plot, Section
from entropix.lab.statistics import Contrast, Interval
from entropix.lab.telling import Table, Told, as_json, numbers, percent, percents
from entropix.report import looks

_ALARM = 0.05  # of p-values


def told(protocol: Protocol, found: Figures) -> Told:
    """Everything that there is to say."""
    closed = [asked.label for asked in protocol.tasks if asked.task.is_closed]
    tables = [_shares(found, closed)] if closed else []
    if any(arm.votes for arm in found.arms):
        tables.append(_votes(found))
    if any(arm.coverage is not None for arm in found.arms):
        tables.append(_coverage(found))
    if any(arm.open for arm in found.arms):
        tables.append(_open(found))
    if found.declared:
        tables.append(_contrasts(found))
    if any(arm.spread is not None for arm in found.arms):
        tables.append(_spread(found))
    chosen = list(
        dict.fromkeys(name for arm in found.arms if len(arm.strategies) > 1 for name in arm.strategies)
    )
    if chosen:
        tables.append(_strategies(found, chosen))
    sections = [_cost(found)] if closed else []
    if found.declared:
        sections.insert(0, _differences(found.declared))
    draw = partial(policy_plot.draw, found)
    return Told("policy", _said(protocol, found), tables, sections, as_json(found), draw)


def _said(protocol: Protocol, found: Figures) -> str:
    """What can be concluded, in words."""
    n = found.n_items
    seeds = f"{len(protocol.seeds)} seed{'s' * (len(protocol.seeds) != 1)}"
    sentences = [f"{len(found.arms)} arms, {n} items with right answers, {seeds}."]
    sentences += [_sentence(each) for each in found.declared]
    return " ".join(sentences)


def _sentence(each: Declared) -> str:
    pair = f"{each.arm} minus {each.minus}"
    if each.found is None:
        return f"{pair}: no item has both."
    seen = f"{percents(each.found.difference, '+')} points"
    if each.p_corrected is not None and each.p_corrected < _ALARM:
        return f"{pair}: {seen}, a difference (p {each.p_corrected:.3f} by Holm)."
    return f"{pair}: {seen}, no difference shown; {_unseen(each.found)}."


def _unseen(found: Contrast) -> str:
    """What would have been seen, had it been there."""
    if found.detectable is None:
        return f"{found.n} items whose scores are all alike tell nothing of what could have been seen"
    return f"one below {percent(found.detectable)} points would mostly have gone unseen with these {found.n} items"


def _shares(found: Figures, closed: Sequence[str]) -> Table:
    rows = [
        [
            arm.name,
            *(percents(arm.by_task.get(label)) for label in closed),
            *[percents(arm.right)] * (len(closed) > 1),
            f"{arm.passes:.1f}",
            f"{arm.computed:.1f}",
        ]
        for arm in found.arms
    ]
    heads = ["arm", *closed, *["all"] * (len(closed) > 1), "passes", "computed"]
    note = (
        "95 % intervals over items (of one answer each Wilson's, else the bootstrap-t over items). Passes: forward "
        "passes of an answer, its prompt not counted; computed: tokens, those of discarded paths and votes too."
    )
    return Table("Right answers (%)", note, heads, rows)


def _votes(found: Figures) -> Table:
    rows = [
        [f"{arm.name}, {votes.n}", percents(votes.right), f"{votes.passes:.1f}"]
        for arm in found.arms
        for votes in arm.votes
    ]
    note = "The most frequent of the first so many answers, and what these cost. Exploratory."
    return Table("Right answers by votes (%)", note, ["arm, votes", "all", "passes"], rows)


def _coverage(found: Figures) -> Table:
    rows = [[arm.name, percents(arm.coverage)] for arm in found.arms]
    note = "Different valid members over the seeds, as a share of what could be found. Exploratory."
    return Table("Coverage of valid sets (%)", note, ["arm", "coverage"], rows)


def _open(found: Figures) -> Table:
    rows = [
        [arm.name, *(numbers(arm.open.get(name), 1 if name == "length" else 2) for name in OPEN)]
        for arm in found.arms
        if arm.open
    ]
    note = (
        "Length in tokens; shares of texts that the model ended and that are in a loop; share of repeated 4-grams; "
        "different pairs of tokens and self-BLEU over the seeds. Means over items, Student's intervals. Exploratory."
    )
    return Table("Open texts", note, ["arm", *(name.replace("_", "-") for name in OPEN)], rows)


def _contrasts(found: Figures) -> Table:
    rows = [_contrast_row(f"{each.arm} - {each.minus}", each) for each in found.declared]
    if len(found.by_task) > 1:
        rows += [
            _contrast_row(f"  {label}: {each.arm} - {each.minus}", each)
            for label, several in found.by_task.items()
            for each in several
        ]
    note = (
        f"Paired by item. p: corrected for the {len(found.declared)} declared contrasts (Holm); rows of single tasks "
        "are exploratory and have none. Detectable: the smallest difference that so many items show 4 times of 5."
    )
    heads = ["declared contrasts", "items", "points", "effect (d)", "p", "detectable"]
    return Table("Differences (points of right answers)", note, heads, rows)


def _contrast_row(name: str, each: Declared) -> list[str]:
    if each.found is None:
        return [name, "0", "-", "-", "-", "-"]
    effect = "-" if each.found.effect is None else numbers(each.found.effect, 2, "+")
    p = "-" if each.p_corrected is None else f"{each.p_corrected:.3f}"
    least = percent(each.found.detectable)
    return [name, str(each.found.n), percents(each.found.difference, "+"), effect, p, least]


def _spread(found: Figures) -> Table:
    rows = []
    for arm in found.arms:
        if arm.spread is not None:
            part = arm.spread
            cells = [part.between, part.within, 100 * part.error, 100 * part.error_with_more_seeds]
            enough = "-" if part.enough_seeds is None else str(part.enough_seeds)
            rows.append([arm.name, *(f"{cell:.3f}" for cell in cells), enough])
    heads = ["arm", "between", "within", "error", "error, more seeds", "enough seeds"]
    note = (
        "Variance of scores between and within items; standard error of the share in points, as it is and with any "
        "number of seeds; the fewest seeds that add at most a twentieth to it."
    )
    return Table("Were the seeds enough?", note, heads, rows)


def _strategies(found: Figures, chosen: Sequence[str]) -> Table:
    rows = [
        [arm.name, *(percent(arm.strategies.get(name)) for name in chosen)]
        for arm in found.arms
        if len(arm.strategies) > 1
    ]
    return Table("Strategies (% of tokens)", "", ["arm", *chosen], rows)


# ----- figures ----------------------------------------------------------------------------------------------


def _differences(declared: Sequence[Declared]) -> Section:
    """A lane for each declared contrast, with its interval and, hollow, what could not have been seen."""
    figure = plots.new_figure()
    names = [f"{each.arm} - {each.minus}" for each in declared]
    for lane, each in enumerate(declared):
        if each.found is None:
            continue
        if each.found.detectable is not None:
            ends = [-100 * each.found.detectable, 100 * each.found.detectable]
            figure.add_scatter(
                x=ends, y=[lane, lane], mode="lines", line={"color": "var(--line)", "width": 10},
                hovertemplate=f"within ±{ends[1]:.1f} points mostly unseen<extra></extra>",
            )  # fmt: skip
        hover = f"{plots.plain(names[lane])}<br>{percents(each.found.difference, '+')}"
        plots.add_difference(figure, lane, _scaled(each.found.difference), hover)
    figure.update_layout(
        xaxis=plots.from_zero("difference (points of right answers)"),
        yaxis=plots.lanes(names),
    )
    said = "; ".join(_sentence(each) for each in declared)
    note = "Paired by item, 95 % intervals. Grey: differences that so many items would mostly not have shown."
    return Section(
        "Declared contrasts", note, [], [Plot("contrasts", "", said, 5.5 + 2.5 * len(declared), figure)]
    )


def _cost(found: Figures) -> Section:
    """Share right against what an answer costs, a point for each arm."""
    figure = plots.new_figure()
    for i, arm in enumerate(found.arms):
        if arm.right is None:
            continue
        seen, scaled = looks.look(i), _scaled(arm.right)
        figure.add_scatter(
            x=[arm.passes],
            y=[scaled.mean],
            error_y=plots.bars([scaled], seen.color),
            mode="markers",
            marker={"size": 11, "color": seen.color, "symbol": seen.mark},
            hovertemplate=f"{plots.plain(arm.name)}<br>{percents(arm.right)} %, %{{x:.1f}} passes<extra></extra>",
        )
        if arm.votes:
            figure.add_scatter(
                x=[votes.passes for votes in arm.votes],
                y=[100 * votes.right.mean for votes in arm.votes],
                mode="lines+markers",
                line={"color": seen.color, "width": 1, "dash": "dot"},
                marker={"size": 5, "color": seen.color},
                text=[
                    f"{plots.plain(arm.name)}, {votes.n} votes<br>{percents(votes.right)} %"
                    for votes in arm.votes
                ],
                hovertemplate="%{text}, %{x:.1f} passes<extra></extra>",
            )
    figure.update_layout(
        xaxis={"title": "forward passes of an answer", "type": "log"},
        yaxis={"title": "right answers (%)", "zeroline": False},
    )
    said = "; ".join(f"{arm.name}: {percents(arm.right)} %, {arm.passes:.1f} passes" for arm in found.arms)
    note = (
        "Bars: 95 % intervals over items. Arms share their items, so bars that overlap may well differ. A dotted line "
        "is an arm of votes with fewer of them, down to one."
    )
    key = looks.marks([arm.name for arm in found.arms])
    return Section("What right answers cost", note, key, [Plot("cost", "", said, 26, figure)])


def _scaled(found: Interval) -> Interval:
    low, high = (None if end is None else 100 * end for end in (found.low, found.high))
    return Interval(100 * found.mean, low, high)
