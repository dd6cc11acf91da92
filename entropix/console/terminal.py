"""What the command line shows: the answer on stdout, everything else on stderr."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
from rich.console import Console
from rich.progress import Progress
from rich.style import Style

from entropix import distributed, paths, sharding, tables, trace
from entropix.checkpoint import loading
from entropix.checkpoint.download import download_listed
from entropix.checkpoint.loading import Model
from entropix.config import BATCH_ROWS
from entropix.console import cli, coloring, live, signals
from entropix.console.cli import DeviceFlags
from entropix.console.thinking import Thinking, told
from entropix.decoding import batching
from entropix.decoding.request import GenerationRequest
from entropix.decoding.session import Session
from entropix.prompts import PromptText
from entropix.results import FinishReason, Result, TokenEvent, add
from entropix.trace import run_statistics

_END = 16  # tokens of a prompt, whose text tells whether thinking is open there
STREAM_CHUNK = 4  # tokens printed at once: small enough to look like typing, large enough to cost no speed


@dataclass(frozen=True)
class Show:
    """What to show of a generation, besides its text."""

    color: coloring.Choice = field(default_factory=coloring.Choice)
    live: bool = True  # a line below the answer while it comes, where stderr is a terminal
    as_completed: bool = False  # several answers as they end, and not in the order of the prompts
    stats: bool = False
    json: bool = False
    hide_thinking: bool = False  # of reasoning models, on stdout; JSON, traces and tables have it
    trace: Path | None = None
    table: Path | None = None  # of tokens


def answer(
    request: GenerationRequest, show: Show, session: Session | None = None, most_rows: int = BATCH_ROWS
) -> list[Result]:
    """Generates, at most so many rows at a time, and prints. Of several prompts the results keep no records.

    Ctrl-C, SIGTERM or SIGHUP ends it early: rows that were running get `FinishReason.INTERRUPTED`. Whatever happens,
    what was produced so far is printed and its trace written. Raises a ValueError, after all, for rows whose logits
    were not finite.
    """
    results = [Result(ids) for ids in request.prompt_ids]
    batch = batching.ContinuousBatch(request, most_rows, session)
    bar = _bar(request, show)
    page, clock, totals = _Page(request, show, bar), _Clock(batch), run_statistics.Totals()
    with contextlib.ExitStack() as stack:
        writer = None if show.trace is None else stack.enter_context(trace.Writer(show.trace, request))

        def record(row: int) -> None:
            """Takes from a row that has ended what is wanted of its records, before printing can fail."""
            totals.add(results[row])
            if writer is not None:
                writer.add(row, results[row])

        try:
            for event in signals.until_signal(_after_wait(batch.run(), "compiling and reading the prompt")):
                add(results, event)
                clock.tick(event)
                page.stream(event, results[event.row])
                while (row := page.next_row(event, results)) is not None:
                    record(row)
                    page.print_row(row, results[row])
                    if len(results) > 1 and show.table is None:
                        results[row].records = []
                bar.draw(clock.tokens_per_second)
        finally:
            bar.erase()
            for result in results:
                if result.finish == FinishReason.RUNNING:
                    result.finish = FinishReason.INTERRUPTED
            for row in page.left:
                record(row)
            if show.table is not None:
                tables.write(show.table, tables.tokens(results))
            for row in [*page.left]:
                page.print_row(row, results[row])
            _report(request, show, results, totals, clock.timing())
    for row, result in enumerate(results):
        if result.finish == FinishReason.NAN:
            raise ValueError(f"prompt {row + 1}: {FinishReason.NAN.sentence}")
    return results


def note(text: str) -> None:
    """A line on stderr."""
    print(text, file=sys.stderr, flush=True)


def note_thinking(text: str, show: Show, which: str = "") -> None:
    """A dim line on stderr about thinking that is not shown, if there is any. which: what it begins with."""
    if text:
        colors = coloring.color_system(show.color.when, sys.stderr, os.environ)
        note(which + coloring.paint(text, Style(dim=True), colors))


def thinking_of(request: GenerationRequest, row: int) -> Thinking:
    """What leaves the thinking out of a row's answer, from its beginning on."""
    return Thinking(request.model.tokenizer.decode(request.prompt_ids[row][-_END:]))


def note_devices(model: Model) -> None:
    """A line for `--stats`: on how many devices the model is, if on several."""
    if (mesh := model.mesh) is not None:
        shape = ",".join(f"{axis}={n}" for axis, n in mesh.shape.items())
        processes = f", in {n} processes" if (n := jax.process_count()) > 1 else ""
        note(f"{'devices':30}{mesh.size:>10}  {mesh.devices.flat[0].device_kind}, as {shape}{processes}")


def status(text: str) -> contextlib.AbstractContextManager[Any]:
    """A moving sign of life on stderr, if that is a terminal."""
    return Console(stderr=True).status(text) if sys.stderr.isatty() else contextlib.nullcontext()


@contextlib.contextmanager
def progress(text: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar with the time left on stderr, if that is a terminal; what is yielded moves it on. Where
    stdout is a terminal too, the lines themselves tell, and a sign of life is there until the first."""
    if sys.stdout.isatty() or not sys.stderr.isatty():
        with status(text) as spinner:
            yield lambda n: None if spinner is None else spinner.stop()
        return
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(text, total=total)
        yield lambda n: bar.advance(task, n)


def load(
    weights: str | None,
    dtype: str | None,
    devices: DeviceFlags,
    template_args: Mapping[str, Any] = MappingProxyType({}),
    adapter: str | None = None,
) -> Model:
    """The model that a command's flags ask for.

    template_args: see `Model.with_template_args`. Raises its ValueErrors and those of `loading.load`, and one for a bad
    mesh.
    """
    shape = sharding.read_shape(devices.mesh)
    if weights is None and not distributed.is_joined():
        _offer_default()
    with status("loading the weights"):
        model = loading.load(loading.DEFAULT_MODEL if weights is None else weights, dtype, shape, adapter)
    if model.config.rope_long_divisors:
        original = model.config.rope_original_length
        note(
            f"an answer ends where its text would be longer than {original} tokens, unless the prompt is so already "
            "(LongRoPE, docs/models.md)"
        )
    return model.with_template_args(template_args)


def _offer_default() -> None:
    """Asks whether to fetch the default model, where it is missing and there is somebody to answer."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()) or any(
        paths.is_complete(root / loading.DEFAULT_MODEL) for root in paths.weights_roots()
    ):
        return
    folder = paths.weights_root() / loading.DEFAULT_MODEL
    question = (
        f"the default model, {loading.DEFAULT_MODEL}, is not there; fetch it (93 MB) into {folder}? [Y/n] "
    )
    print(question, end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline()
    if not answer:  # Ctrl-D, or the terminal is gone: nobody has said yes
        note("")
    elif answer.strip().lower() in ("", "y", "yes"):
        download_listed(loading.DEFAULT_MODEL, folder)


def note_beginning(model: Model, texts: Iterable[PromptText]) -> None:
    """A line where plain texts, in which special tokens are read, spell out the beginning that every text gets."""
    if any(isinstance(text, str) and model.tokenizer.begins_itself(text) for text in texts):
        beginning = model.tokenizer.decode(model.tokenizer.bos_ids)
        note(f"the text begins with {beginning} itself, which every text begins with: it is there once")


class _Page:
    """The answers on stdout. One is streamed; several come whole, in the order of the prompts unless told otherwise.

    left: the rows that are not printed, in order.
    """

    def __init__(self, request: GenerationRequest, show: Show, bar: live.StatusLine) -> None:
        self._job, self._json, self._bar = request, show.json, bar
        n_rows = len(request.prompt_ids)
        self._streams = n_rows == 1 and not show.json
        self._in_order = not show.as_completed
        self._painted = [""] * n_rows
        self.left = dict.fromkeys(range(n_rows))
        self._show, self._what = show, show.color.what
        hides = show.hide_thinking and not show.json
        self._thinking = {row: thinking_of(request, row) for row in range(n_rows if hides else 0)}
        self._untold = dict(self._thinking)
        self._colors = coloring.color_system(show.color.when, sys.stdout, os.environ)

    def stream(self, event: TokenEvent, result: Result) -> None:
        """Paints what an event adds to the result, and prints it where the answer is streamed."""
        answer = event.text
        if thinking := self._thinking.get(event.row):
            answer = thinking.push(event.text)
            if thinking.is_closed and self._streams:
                self._tell_thinking(event.row, result)
        text = plain = coloring.visible(answer) if sys.stdout.isatty() else answer
        if event.record is not None:
            self._bar.count(event.record["strategy"])
            style = coloring.token_style(event.record, self._what, self._job.sampler.strategies, self._colors)
            text = coloring.paint(text, style, self._colors)
        if self._streams:
            self._print(text, plain)
        else:
            self._painted[event.row] += text

    def next_row(self, event: TokenEvent, results: Sequence[Result]) -> int | None:
        """The row that is to be printed next, after this event; None if there is none yet."""
        if self._streams:
            return None
        row = next(iter(self.left), None) if self._in_order else event.row
        return row if row in self.left and results[row].finish != FinishReason.RUNNING else None

    def print_row(self, row: int, result: Result) -> None:
        """Prints the answer of a row, or ends it where it was streamed."""
        is_first = len(self.left) == len(self._painted)
        del self.left[row]
        self._tell_thinking(row, result)
        rest = self._thinking[row].flush() if row in self._thinking else ""
        self._painted[row] += rest
        if self._streams:
            self._print(f"{rest}\n", f"{rest}\n")
            return
        text = f"{'' if is_first else chr(10)}==> prompt {row + 1} <==\n{self._painted[row]}\n"
        if self._json:
            text = cli.json_line(json_object(self._job, row, result)) + "\n"
        self._painted[row] = ""
        self._print(text, "\n")

    def _tell_thinking(self, row: int, result: Result) -> None:
        """Says how much of a row is not shown, if anything and if that was not said yet."""
        if (thinking := self._untold.pop(row, None)) is not None:
            self._bar.erase()
            which = f"prompt {row + 1}: " if len(self._painted) > 1 else ""
            note_thinking(told(thinking, result.records), self._show, which)

    def _print(self, painted: str, text: str) -> None:
        """`text` is what moves the cursor, or the end of it from a line's end on."""
        if not painted:
            return
        if not sys.stdout.isatty():
            _write(painted)
            return
        self._bar.erase()
        _write(painted)
        self._bar.moved(text)


def _bar(request: GenerationRequest, show: Show) -> live.StatusLine:
    """Lives only on terminals that understand its codes."""
    wanted = show.live and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
    colors = coloring.color_system("never" if show.color.when == "never" else "auto", sys.stderr, os.environ)
    return live.StatusLine(sys.stderr if wanted else None, request.sampler.strategies, colors)


def json_object(request: GenerationRequest, row: int, result: Result) -> dict[str, Any]:
    """A result as `--json` prints it; the names are those of a trace."""
    return {
        "row": row,
        "text": result.text,
        "token_ids": result.token_ids,
        "finish": result.finish.name.lower(),
        "reason": result.finish.sentence,
        "seed": request.config.seed,
        "prompt_tokens": len(result.prompt_ids),
        "new_tokens": len(result.token_ids),
        "strategies": run_statistics.strategy_counts([result], request.sampler.strategies),
    }


class _Clock:
    """When tokens arrived. Those of a chunk come together: speed is measured from the end of the first."""

    def __init__(self, batches: batching.ContinuousBatch) -> None:
        self._start = time.perf_counter()
        self._batches = batches
        self._first_chunk: int | None = None  # the number of forward passes after it
        self._early: list[float] = []
        self._late: list[float] = []

    def tick(self, event: TokenEvent) -> None:
        """Notes an event that has just come."""
        if event.record is not None:
            if self._first_chunk is None:
                self._first_chunk = self._batches.n_passes
            in_first = self._batches.n_passes == self._first_chunk
            (self._early if in_first else self._late).append(time.perf_counter() - self._start)

    @property
    def tokens_per_second(self) -> float | None:
        """Of the steady state so far."""
        return len(self._late) / (self._late[-1] - self._early[-1]) if self._late else None

    def timing(self) -> run_statistics.Timing:
        """How long it took until now."""
        return run_statistics.Timing(
            first_token=self._early[0] if self._early else None,
            total=time.perf_counter() - self._start,
            tokens_per_second=self.tokens_per_second,
            computed_tokens=self._batches.n_computed,
            forward_passes=self._batches.n_passes,
        )


def _report(
    request: GenerationRequest,
    show: Show,
    results: Sequence[Result],
    totals: run_statistics.Totals,
    timing: run_statistics.Timing,
) -> None:
    """Endings other than the model's own, the legend and the statistics, on stderr."""
    for row, result in enumerate(results):
        if result.finish not in (FinishReason.STOP_TOKEN, FinishReason.NAN):
            which = f"prompt {row + 1}: " if len(results) > 1 else ""
            note(f"{which}{result.stopped}")
    if not show.json and coloring.color_system(show.color.when, sys.stdout, os.environ):
        colors = coloring.color_system(show.color.when, sys.stderr, os.environ)
        counts = totals.strategies(request.sampler.strategies)
        note(coloring.legend(show.color.what, counts, colors, totals.injected > 0))
    if show.stats:
        note(run_statistics.stats(totals, request.sampler.strategies, timing, request.config))
        note_devices(request.model)


def _after_wait(events: Iterator[TokenEvent], text: str) -> Iterator[TokenEvent]:
    """The same events, with a sign of life until the first."""
    with status(text):
        first = next(events)
    yield first
    yield from events


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
