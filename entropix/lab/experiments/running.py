"""The work of a grid, with its progress on stderr, and ends that lose nothing.

Where several processes run one program over their devices (`entropix.distributed`), all of them compute every answer;
the first alone opens the folder and writes.
"""

import contextlib
import dataclasses
import itertools
import json
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from datetime import date, datetime, timedelta
from datetime import time as clock
from pathlib import Path
from typing import Any

import jax
from jax.experimental import multihost_utils
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from entropix import distributed
from entropix.checkpoint.loading import Model
from entropix.console import terminal
from entropix.lab.experiments import engine
from entropix.lab.experiments.engine import Grid
from entropix.lab.experiments.results import (
    ANSWER,
    ELSEWHERE,
    MANIFEST,
    Follower,
    Store,
    difference,
    read_manifest,
)

TERMINATED = 128 + signal.SIGTERM  # the exit code after SIGTERM, as shells count it
_RECENT = 30.0  # seconds, at least, whose answers tell speed and time left
_ENOUGH = 3.0  # seconds: answers of one batch end together, and of the second none has a time of its own

_SECONDS_A_LINE = 2.0  # of progress, at least, where it is no terminal


def dated(model: Model, folder: str | None) -> Model:
    """The model; where its chat template writes the date, it writes that of the day on which the folder was begun, or
    else of today, whenever it is asked: a folder goes on after midnight with the prompts that it has."""
    template = model.chat_template
    if template is None or not template.has_date:
        return model

    def begun() -> str:
        if folder is not None and (Path(folder) / MANIFEST).is_file():
            return str(read_manifest(Path(folder)).get("date"))
        return today().isoformat()

    day = distributed.from_first(begun)
    try:
        midnight = datetime.combine(date.fromisoformat(day), clock())
    except ValueError:
        raise ValueError(
            f"{folder}: its manifest does not tell the day that stands in its prompts; {ELSEWHERE}"
        ) from None
    return dataclasses.replace(model, chat_template=dataclasses.replace(template, now=midnight))


def today() -> date:
    """Where this machine is."""
    return date.today()


@contextlib.contextmanager
def opened(folder: str, whole: Grid, model: Model) -> Iterator[Store | Follower]:
    """The folder of a grid, in the first process; in the others what follows it.

    Raises a ValueError, in all of them, where the folder cannot be used, and in those that have another grid.
    """
    with kept(folder, engine.manifest(whole, model), engine.keys(whole)) as store:
        yield store


@contextlib.contextmanager
def kept(
    folder: str,
    manifest: dict[str, Any],
    keys: Sequence[Mapping[str, Any]],
    kinds: Mapping[str, str] = ANSWER,
) -> Iterator[Store | Follower]:
    """The same for any work whose lines are planned; see `Store`."""
    stores: list[Store] = []
    with contextlib.ExitStack() as stack:

        def find() -> tuple[int, dict[str, Any]]:
            stores.append(stack.enter_context(Store(folder, manifest, keys, kinds)))
            return stores[0].n_lines, manifest

        n_lines, of_first = distributed.from_first(find)
        if stores:
            yield stores[0]
            return
        if change := difference(of_first, json.loads(json.dumps(manifest))):
            raise ValueError(f"not the work of the first process: {change}; give all of them the same files")
        yield Follower(n_lines)


def generate(model: Model, whole: Grid, store: Store | Follower, out: str | None) -> None:
    """Fills the store. After Ctrl-C, or SIGTERM and the end of an answer, a sentence tells how to go on.

    SIGTERM is what a machine sends that is about to be taken away. It ends the process with the exit code `TERMINATED`
    unless that answer was the last.
    """
    n_answers = sum(map(len, engine.plan(whole)))
    done = store.n_lines

    def leave(why: str) -> None:
        kept = f"{why}{done} of {n_answers} answers are in {out}; the same command goes on from there"
        terminal.note(kept if out else f"{why}nothing was kept; with --out DIR the same command could go on")

    if done:
        terminal.note(f"{out}: {done} answers are there already")
    pace = Pace(whole.max_rows)
    try:
        with _notice() as stopping, progress(n_answers, done) as advance:
            programs = {variant.label: engine.program(variant) for variant in whole.variants}
            for lines in engine.run(model, whole, store):
                done += len(lines)
                label = lines[-1]["variant"]
                pace.add(programs[label], len(lines), sum(line["new_tokens"] for line in lines))
                advance(len(lines), label, pace.tell(n_answers - done))
                if stopping():
                    break
    except KeyboardInterrupt:
        leave("")
        raise
    if done < n_answers:
        leave("stopped by SIGTERM: ")
        sys.exit(TERMINATED)


class Pace:
    """How fast the newest answers were, without the first of each program: these wait for the compiler, and what is
    under way beside them comes soon after, of work that was done meanwhile."""

    def __init__(self, at_once: int = 1, clock: Callable[[], float] = time.perf_counter) -> None:
        """Time is counted from now. at_once: how many answers are under way side by side."""
        self._at_once, self._clock, self._now = at_once, clock, clock()
        self._begun: Counter[Hashable] = Counter()  # answers of each program
        self._done: deque[tuple[float, int, int]] = deque()  # seconds, answers, tokens

    def add(self, program: Hashable, answers: int, tokens: int) -> None:
        """So many more answers have come, of so many tokens; 0 where nobody counts them."""
        began, self._now = self._now, self._clock()
        if self._begun[program] >= self._at_once:
            self._done.append((self._now - began, answers, tokens))
            while sum(seconds for seconds, *_ in self._done) - self._done[0][0] >= _RECENT:
                self._done.popleft()
        self._begun[program] += answers

    def tell(self, answers_left: int) -> str:
        """Speed, and how long the rest takes at that speed; nothing as long as there are none to go by."""
        seconds, answers, tokens = map(sum, zip(*self._done, strict=True)) if self._done else (0.0, 0, 0)
        if seconds < _ENOUGH:
            return ""
        left = f"{timedelta(seconds=round(answers_left * seconds / answers))} left"
        return f"{tokens / seconds:.1f} tokens/s, {left}" if tokens else left


@contextlib.contextmanager
def _notice() -> Iterator[Callable[[], bool]]:
    """Within it SIGTERM ends nothing by itself; the function, to be called whenever answers have come, says whether to
    end.

    Several processes come to the same end after the same answers, whichever of them got the signal: JAX sees to that.
    """
    if jax.process_count() > 1:
        number = itertools.count()
        yield lambda: multihost_utils.reached_preemption_sync_point(next(number))
        return
    received: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    try:
        yield lambda: bool(received)
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def progress(total: int, done: int, what: str = "answers") -> Iterator[Callable[[int, str, str], None]]:
    """A function to call with how many more answers, or what else there is, there are, of which variant, and the pace.

    On a terminal it moves a bar; elsewhere it writes a line now and then.
    """
    if not sys.stderr.isatty():
        count, next_line = done, 0.0

        def write(n: int, label: str, pace: str) -> None:
            nonlocal count, next_line
            count += n
            if time.monotonic() < next_line and count < total:
                return
            next_line = time.monotonic() + _SECONDS_A_LINE
            line = f"{count}/{total} {what} ({label})"
            print(f"{line}, {pace}" if pace else line, file=sys.stderr, flush=True)

        yield write
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(what),
        TextColumn("{task.fields[pace]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("compiling", total=total, completed=done, pace="")
        yield lambda n, label, pace: progress.update(task, advance=n, description=label, pace=pace)
