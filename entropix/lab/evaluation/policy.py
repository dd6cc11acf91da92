"""The part policy: every arm answers every item of every task, and each answer is scored.

The items of all tasks are the prompts of a grid (`experiments.engine`), so that rows are full and little is compiled,
and arms that need the same seeds share one. Each grid has a folder, so that whatever ends the work, the same call goes
on with what is there. Random numbers are common to all arms: those of a seed and a prompt.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from entropix import distributed, prompts, sharding
from entropix.checkpoint.loading import Model
from entropix.config import GenerateConfig
from entropix.console import terminal
from entropix.lab.evaluation.protocol import VOTES_APART, Arm, Asked, Protocol, encoded
from entropix.lab.experiments import engine, running
from entropix.lab.experiments.engine import Grid
from entropix.lab.experiments.results import Line
from entropix.lab.tasks import Item

Row = dict[str, Any]
_DIGITS = 6  # of a frequency
CHUNK = 8  # steps on the device at a time: most answers are short, and rows that have ended wait for the rest
POLICY = "policy"


def run(model: Model, protocol: Protocol, folder: Path, max_rows: int, kept: bool = True) -> list[Row]:
    """A row for each answer, in the order of tasks, arms, items and seeds; none in processes but the first.

    kept: whether the folder outlives the process, which notes about going on then tell.
    """
    lines: dict[str, list[Line]] = {}
    groups = _groups(protocol)
    for number, (name, group) in enumerate(groups.items(), start=1):
        arms = [_with_frequencies(arm, lines) for arm in group]
        first = [next(other for other in arms if _same(arm, other)) for arm in arms]
        grid = _grid(
            model, protocol, [arm for arm, other in zip(arms, first, strict=True) if arm is other], max_rows
        )
        engine.check(grid, model)
        terminal.note(f"{number} of {len(groups)} groups of arms: {', '.join(arm.name for arm in arms)}")
        place = str(folder / POLICY / name)
        with running.opened(place, grid, model) as store:
            running.generate(model, grid, store, place if kept else None)
            found = getattr(store, "lines", [])
        for arm, other in zip(arms, first, strict=True):
            lines[arm.name] = _own(arm, protocol, [line for line in found if line["variant"] == other.name])
    return [
        {"part": POLICY, "protocol": protocol.digest, **row}
        for asked in protocol.tasks
        for arm in protocol.arms
        for row in _rows(arm, asked, protocol, lines)
    ]


def _same(arm: Arm, other: Arm) -> bool:
    """Whether two arms of a group have the same answers, of which they make something else."""
    return arm.variant == dataclasses.replace(other.variant, label=arm.name)


def _own(arm: Arm, protocol: Protocol, lines: Sequence[Line]) -> list[Line]:
    """The lines, of an arm or of several that share them, that this one would have asked for alone: where its votes are
    only for want of certainty, not those behind a first vote that was sure. They were drawn independently of that."""
    seeds = _seeds(arm, protocol.seeds)
    own = {each for voters in seeds.values() for each in voters}
    sure = {
        (line["prompt"], seed)
        for line in lines
        for seed in seeds.get(line["seed"], [])[1:]
        if arm.first is None and _is_sure(arm, line)
    }
    return [line for line in lines if line["seed"] in own and (line["prompt"], line["seed"]) not in sure]


def _groups(protocol: Protocol) -> dict[str, list[Arm]]:
    """Arms by the folder of their grid: those of a grid have the same seeds, or some of them, and need nothing of grids
    that come later."""
    groups: dict[str, list[Arm]] = {}
    for arm in protocol.arms:
        most = max((other.votes for other in protocol.arms if _same(arm, other)), default=1)
        votes = f"votes-{most}" if arm.votes > 1 else "single"
        name = votes if arm.draws else "once"
        groups.setdefault(name if arm.frequencies_of is None else f"{name}-placebo", []).append(arm)
    return dict(
        sorted(
            groups.items(), key=lambda group: (group[0].endswith("-placebo"), group[0].startswith("votes"))
        )
    )


def _tasks(arm: Arm, protocol: Protocol) -> list[Asked]:
    """What an arm is asked. A vote needs answers that can be equal, which those of open tasks are not."""
    return [asked for asked in protocol.tasks if asked.task.is_closed or arm.votes == 1]


def _grid(model: Model, protocol: Protocol, arms: Sequence[Arm], max_rows: int) -> Grid:
    """What these arms, whose tasks are alike, have to answer: with the seeds of those that have the most votes."""
    seeds = _seeds(max(arms, key=lambda arm: arm.votes), protocol.seeds)
    asked = [(each, item) for each in _tasks(arms[0], protocol) for item in each.items]
    most = max(each.max_new_tokens for each in protocol.tasks)
    return Grid(
        variants=[arm.variant for arm in arms],
        prompts=[encoded(model, protocol, item) for _, item in asked],
        texts=[prompts.shown(item.prompt) for _, item in asked],
        seeds=[seed for voters in seeds.values() for seed in voters],
        options=GenerateConfig(max_new_tokens=most, chunk_length=CHUNK),
        max_rows=max_rows,
        groups=sharding.groups(model.mesh),
        most_tokens=[each.max_new_tokens for each, _ in asked],
    )


def _seeds(arm: Arm, seeds: Sequence[int]) -> dict[int, list[int]]:
    """By seed of the protocol, the seeds of the answers that are put to the vote; the first one is itself."""
    own = seeds if arm.draws else seeds[:1]
    return {seed: [seed + vote * VOTES_APART for vote in range(arm.votes)] for seed in own}


def _with_frequencies(arm: Arm, lines: Mapping[str, Sequence[Line]]) -> Arm:
    """An arm that draws its strategies draws them as often as another one chose them in these lines."""
    if arm.frequencies_of is None:
        return arm
    source = lines[arm.frequencies_of]

    def measured() -> dict[str, float]:
        counts: Counter[str] = Counter()
        for line in source:
            counts.update(line["strategies"])
        names = arm.variant.sampler.rule.strategies
        return {f"placebo_{name}": round(counts[name] / counts.total(), _DIGITS) for name in names}

    sampler = arm.variant.sampler.changed(distributed.from_first(measured))
    return dataclasses.replace(arm, variant=dataclasses.replace(arm.variant, sampler=sampler))


def _rows(arm: Arm, asked: Asked, protocol: Protocol, lines: Mapping[str, Sequence[Line]]) -> Iterator[Row]:
    """An arm's answers to a task, with their scores. lines: of every arm."""
    own = _by_cell(arm, protocol, lines)
    before = next((other for other in protocol.arms if other.name == arm.first), None)
    firsts = {} if before is None else _by_cell(before, protocol, lines)
    for item in asked.items if asked in _tasks(arm, protocol) else ():
        for seed, all_seeds in _seeds(arm, protocol.seeds).items():
            voters = [own[cell] for each in all_seeds if (cell := (asked.label, item.id, each)) in own]
            if not voters:
                continue
            first = None
            if before is not None:
                first = firsts[asked.label, item.id, seed if before.draws else protocol.seeds[0]]
                if _is_sure(arm, first):
                    voters, first = [first], None
            yield _row(arm, asked, item, seed, voters, first)


def _by_cell(
    arm: Arm, protocol: Protocol, lines: Mapping[str, Sequence[Line]]
) -> dict[tuple[str, str, int], Line]:
    """An arm's lines by task, item and seed."""
    places = [(each.label, item.id) for each in _tasks(arm, protocol) for item in each.items]
    return {(*places[line["prompt"]], line["seed"]): line for line in lines.get(arm.name, ())}


def _row(arm: Arm, asked: Asked, item: Item, seed: int, voters: Sequence[Line], first: Line | None) -> Row:
    """The answer that most of the voters have, of equally many the first; costs are those of all of them, and of a
    first answer that has no vote."""
    answers = [asked.task.extract(item, voter["text"]) for voter in voters]
    costs = [_costs(voter) for voter in voters]
    before = _costs(first) if first is not None else (0, 0)
    place = _winner(answers)
    line = voters[place]
    row: Row = {
        "task": asked.label,
        "item": item.id,
        "kind": item.kind,
        "arm": arm.name,
        "seed": seed,
        "score": asked.task.score(item, line["text"]),
        "answer": answers[place],
        "text": line["text"],
        "finish": line["finish"],
        "new_tokens": line["new_tokens"],
        "forward_passes": before[0] + sum(passes for passes, _ in costs),
        "computed_tokens": before[1] + sum(computed for _, computed in costs),
        "mean_logprob": line["mean_logprob"],
        "strategies": line["strategies"],
        "token_ids": line["token_ids"],
    }
    if arm.votes == 1:
        return row
    winners = [voters[_winner(answers[:n])]["text"] for n in range(1, arm.votes + 1)]
    return row | {
        "votes": answers,
        # Of the first vote, the first two, ...
        "scores_by_votes": [asked.task.score(item, text) for text in winners],
        "passes_by_votes": [
            before[0] + sum(passes for passes, _ in costs[:n]) for n in range(1, arm.votes + 1)
        ],
    }


def _costs(line: Line) -> tuple[int, int]:
    """(forward passes, computed tokens) of an answer."""
    new: int = line["new_tokens"]
    return line.get("forward_passes", new), line.get("computed_tokens", new)


def _is_sure(arm: Arm, line: Line) -> bool:
    """Whether no token of an arm's first answer was unsure enough to ask for more; one that was not finite was."""
    bits = line["logits_entropy"]
    return arm.votes_above > 0 and all(one is not None and one <= arm.votes_above for one in bits)


def _winner(answers: Sequence[str | None]) -> int:
    """The place of the most frequent answer, of equally frequent ones the first; 0 where there is none."""
    counts = Counter(answer for answer in answers if answer is not None)
    return answers.index(max(counts, key=counts.__getitem__)) if counts else 0
