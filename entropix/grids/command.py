"""What `entropix.compare` and `entropix.sweep` share: flags, and the way from a grid to its table and page."""

import contextlib
import importlib.util
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from entropix import config
from entropix.cli import Dtype, Text, Weights, flag
from entropix.config import GenerateConfig
from entropix.main import Flags as MainFlags
from entropix.main import read_prompts

if TYPE_CHECKING:
    from entropix.grids.engine import Grid, Variant
    from entropix.grids.results import Store
    from entropix.loading import Model

PAGE = "report.html"


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What can be asked of any grid."""

    prompts: Annotated[str, flag("the prompts, as for --prompt-file of entropix.main", "FILE", None)]
    seeds: Annotated[int, flag("answers of each variant to each prompt", "N", None)] = 4
    seed: Annotated[int, flag("the first seed; the others follow it", "N", None)] = 0
    max_new_tokens: Annotated[int, flag("most tokens of an answer", "N", None)] = 128
    batch: Annotated[int, flag("most answers to generate together", "N", None)] = 16
    weights: Weights = None
    dtype: Dtype = None
    system: Annotated[Text, flag("a system message before every prompt")] = None
    raw: Annotated[bool, flag("continue the prompts as plain text, without a chat template")] = False
    out: Annotated[
        Text, flag("keep results.jsonl and report.html here; the same command resumes what is there", "DIR")
    ] = None
    json: Annotated[bool, flag("print the table as one JSON object")] = False


def perform(flags: Flags, variants: "Sequence[Variant]", title: str, fields: Sequence[str] = ()) -> None:
    """Generates what is missing, then prints the table and writes the page. Raises a ValueError for bad input.

    fields: the fields of the config that are varied, for the plots of a sweep.
    """
    texts = read_prompts(MainFlags(prompt_file=flags.prompts, system=flags.system, raw=flags.raw))
    seeds = range(flags.seed, flags.seed + flags.seeds)
    options = config.from_mapping(
        GenerateConfig, {"max_new_tokens": flags.max_new_tokens, "seeds": seeds}, "flags"
    )

    # These take their time to import; bad flags do not wait for them.
    from entropix import backend, loading, terminal
    from entropix.generation import encode_prompt
    from entropix.grids import engine, summary
    from entropix.grids.results import Store
    from entropix.report import comparison

    backend.use_compilation_cache()
    with terminal.status("loading the weights"):
        model = loading.load(loading.DEFAULT_MODEL if flags.weights is None else flags.weights, flags.dtype)
    whole = engine.Grid(
        variants=variants,
        prompts=[encode_prompt(model, text, system=flags.system, raw=flags.raw) for text in texts],
        texts=[text if isinstance(text, str) else text[-1]["content"] for text in texts],
        seeds=seeds,
        options=options,
        max_rows=flags.batch,
    )
    engine.check(whole, model)
    with contextlib.ExitStack() as stack:
        folder = flags.out or stack.enter_context(tempfile.TemporaryDirectory())
        store = stack.enter_context(Store(folder, engine.manifest(whole, model), engine.keys(whole)))
        generate(model, whole, store, flags.out)
        summaries = summary.summarize([v.label for v in variants], store.lines, store.timings)
        if flags.json:
            print(json.dumps({"variants": [found.as_json() for found in summaries]}, ensure_ascii=False))
        else:
            print("\n".join(summary.tables(summaries)))
        page = None if flags.out is None else Path(flags.out) / PAGE
        if page is not None and importlib.util.find_spec("plotly") is None:
            terminal.note(
                f"no {page}: it needs plotly (pip install 'entropix[plot]'), then the same command again"
            )
        elif page is not None:
            comparison.write(page, title, whole, model, summaries, store.lines, fields)
            terminal.note(f"{page}: the same with plots, and all answers side by side")


def generate(model: "Model", whole: "Grid", store: "Store", out: str | None) -> None:
    """Fills the store, with progress on stderr; after Ctrl-C a sentence tells how to go on."""
    from entropix import terminal
    from entropix.grids import engine

    batches = engine.plan(whole)
    if store.lines:
        terminal.note(f"{out}: {len(store.lines)} answers are there already")
    n_answers = sum(len(batch.cells) for batch in batches)
    try:
        with _progress(n_answers, len(store.lines)) as advance:
            for batch in engine.run(model, whole, store):
                advance(len(batch.cells), whole.variants[batch.variant].label)
    except KeyboardInterrupt:
        kept = f"{len(store.lines)} of {n_answers} answers are in {out}; the same command goes on from there"
        terminal.note(kept if out else "nothing was kept; with --out DIR the same command could go on")
        raise


@contextlib.contextmanager
def _progress(total: int, done: int) -> Iterator[Callable[[int, str], None]]:
    """A function to call with how many more answers there are, and of which variant.

    On a terminal it moves a bar, with the time that is left; elsewhere it writes a line.
    """
    if not sys.stderr.isatty():
        count = done

        def write(n: int, label: str) -> None:
            nonlocal count
            count += n
            print(f"{count}/{total} answers ({label})", file=sys.stderr, flush=True)

        yield write
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("answers, left:"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("compiling", total=total, completed=done)
        yield lambda n, label: progress.update(task, advance=n, description=label)
