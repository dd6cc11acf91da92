"""The part forks: at places of the model's own answers, each of the likeliest tokens is forced and rolled out many
times from there, with the same random numbers, to see how far the distribution of final answers moves.

A place where it moves is a fork. Places are spread over the plane of entropy and varentropy, and others are chosen by
chance, which says how many forks there are anyway.
"""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from entropix import generation, trace
from entropix.checkpoint.loading import Model
from entropix.lab.evaluation.forks_plan import ForksPlan
from entropix.lab.evaluation.protocol import Asked, Protocol, encoded
from entropix.lab.experiments import running
from entropix.lab.experiments.results import UNTIMED, Line
from entropix.lab.tasks import Item
from entropix.metrics import Metrics
from entropix.results import Result

FORKS = "forks"
STRATIFIED, RANDOM = "stratified", "random"
_CUTS = 3  # parts into which entropy and varentropy are cut


class Place(NamedTuple):
    """A position of an answer, and what is forced there."""

    chosen: str  # how: STRATIFIED or RANDOM
    answer: int  # number of the answer
    position: int  # of the token in the answer, from 0
    tokens: tuple[int, ...]  # the likeliest first
    probs: tuple[float, ...]
    metrics: dict[str, float]

    @property
    def key(self) -> dict[str, Any]:
        """What names its line."""
        return {"answer": self.answer, "position": self.position}


def run(model: Model, protocol: Protocol, folder: Path, max_rows: int) -> list[dict[str, Any]]:
    """A row for each place."""
    asked = _asked(protocol)
    results = _greedy(model, protocol, asked, max_rows)
    places = choose(candidates(results, model, protocol, asked), protocol.forks)
    if not places:
        raise ValueError(
            "forks: no place where several tokens are likely enough; lower least_prob of [forks]"
        )
    keys = [place.key for place in places]
    manifest = {
        "format": "entropix-forks",
        **trace.circumstances(model),
        "digest": protocol.digest,
        "answers": [result.token_ids for result in results],
    }
    with running.kept(
        str(folder / FORKS), manifest, keys, {"answers": "list of lists of strings or nulls"}
    ) as store:
        done = store.n_lines
        pace = running.Pace()
        with running.progress(len(places), done, "places") as advance:
            for place in places[done:]:
                task, item = asked[place.answer]
                line = _rolled_out(model, protocol, (task, item, results[place.answer], place), max_rows)
                store.append([line], UNTIMED)
                done += 1
                pace.add(FORKS, 1, line["computed_tokens"])
                advance(1, place.chosen, pace.tell(len(places) - done))
        lines: list[Line] = list(getattr(store, "lines", []))
    return [{"part": FORKS, "protocol": protocol.digest, **line} for line in lines]


def _asked(protocol: Protocol) -> list[tuple[Asked, Item]]:
    """The questions whose answers have the places; tasks take turns. Raises a ValueError where there are none."""
    closed = [asked for asked in protocol.tasks if asked.task.is_closed]
    if not closed:
        raise ValueError(
            "forks: needs a task whose answers can be told apart; the protocol has open ones alone"
        )
    most = max(len(asked.items) for asked in closed)
    turns = [(asked, asked.items[i]) for i in range(most) for asked in closed if i < len(asked.items)]
    return turns[: protocol.forks.answers]


def _greedy(
    model: Model, protocol: Protocol, asked: Sequence[tuple[Asked, Item]], max_rows: int
) -> list[Result]:
    """Greedy answers with the likeliest tokens at every position. They are the same whenever they are made, so that
    they need not be kept."""
    request = generation.prepare(
        model,
        [encoded(model, protocol, item) for _, item in asked],
        sampler="greedy",
        max_new_tokens=max(each.max_new_tokens for each, _ in asked),
        alternatives=protocol.forks.tokens + len(model.stop_ids),
        occurrences=[0] * len(asked),
    )
    request = request.with_each(most_tokens=[each.max_new_tokens for each, _ in asked])
    return generation.collect(request, generation.run(request, most_rows=max_rows))


def candidates(
    results: Sequence[Result], model: Model, protocol: Protocol, asked: Sequence[tuple[Asked, Item]]
) -> list[Place]:
    """Every position at which so many tokens are likely enough, none of which ends the answer, and after which there is
    room."""
    plan, found = protocol.forks, []
    for number, (result, (task, _)) in enumerate(zip(results, asked, strict=True)):
        n_read = len(result.prompt_ids)
        room = min(task.max_new_tokens, model.config.longest_text(n_read) - n_read) - 1
        for position, record in enumerate(result.records[:room]):
            going_on = [each for each in record["alternatives"] if each["id"] not in model.stop_ids][
                : plan.tokens
            ]
            probs = tuple(float(np.exp(each["logprob"])) for each in going_on)
            metrics = {name: record[name] for name in Metrics._fields}
            if len(probs) == plan.tokens and min(probs) >= plan.least_prob and None not in metrics.values():
                tokens = tuple(each["id"] for each in going_on)
                found.append(Place("", number, position, tokens, probs, metrics))
    return found


def choose(found: Sequence[Place], plan: ForksPlan) -> list[Place]:
    """Some of these: cells of the plane of entropy and varentropy take turns; then others by chance."""
    rng = random.Random(f"entropix forks {plan.seed}")
    cells: dict[tuple[int, ...], list[Place]] = defaultdict(list)
    names = ("logits_entropy", "logits_varentropy")
    cuts = {
        name: np.quantile([place.metrics[name] for place in found], np.arange(1, _CUTS) / _CUTS)
        if found
        else ()
        for name in names
    }
    for place in found:
        cells[tuple(int(np.searchsorted(cuts[name], place.metrics[name])) for name in names)].append(place)
    for cell in sorted(cells):
        rng.shuffle(cells[cell])
    turns = [
        cells[cell][turn] for turn in range(len(found)) for cell in sorted(cells) if turn < len(cells[cell])
    ]
    spread = turns[: plan.stratified]
    rest = [place for place in found if place not in spread]
    by_chance = rng.sample(rest, min(plan.random, len(rest)))
    return [
        place._replace(chosen=chosen)
        for chosen, places in ((STRATIFIED, spread), (RANDOM, by_chance))
        for place in places
    ]


def _rolled_out(
    model: Model, protocol: Protocol, what: tuple[Asked, Item, Result, Place], max_rows: int
) -> Line:
    """The answers after each of the tokens; the i-th of each have the same random numbers."""
    asked, item, result, place = what
    plan = protocol.forks
    before = [*result.prompt_ids, *result.token_ids[: place.position]]
    prompts = [[*before, token] for token in place.tokens for _ in range(plan.rollouts)]
    n = len(prompts)
    request = generation.prepare(
        model,
        prompts,
        sampler="temperature",
        temp=plan.temp,
        max_new_tokens=asked.max_new_tokens,
        seeds=list(range(plan.rollouts)) * plan.tokens,
        occurrences=[0] * n,
    )
    request = request.with_each(n_forced=[place.position + 1] * n, n_unkeyed=[1] * n)
    rolled = generation.collect(request, generation.run(request, most_rows=max_rows))
    groups = list(_groups(rolled, plan.rollouts))
    return {
        **place.key,
        "chosen": place.chosen,
        "task": asked.label,
        "item": item.id,
        "before": model.tokenizer.decode(result.token_ids[: place.position]),
        "tokens": [model.tokenizer.decode([token]) for token in place.tokens],
        "probs": [round(prob, 6) for prob in place.probs],
        "metrics": place.metrics,
        "answers": [[asked.task.extract(item, each.text) for each in group] for group in groups],
        "scores": [[asked.task.score(item, each.text) for each in group] for group in groups],
        "computed_tokens": sum(len(each.token_ids) for each in rolled),
    }


def _groups(rolled: Sequence[Result], n: int) -> Iterator[Sequence[Result]]:
    for start in range(0, len(rolled), n):
        yield rolled[start : start + n]
