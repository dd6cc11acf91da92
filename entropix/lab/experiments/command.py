"""What `entropix.compare` and `entropix.sweep` share: flags, and the way from a grid to its table and page."""

import contextlib
import importlib.util
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

from tyro.conf import arg

from entropix import config, distributed, prompts, tables
from entropix.config import GenerateConfig
from entropix.console import cli
from entropix.console.cli import Adapter, DeviceFlags, Dtype, TableFile, TemplateArg, Text, Weights, flag

if TYPE_CHECKING:
    from entropix.checkpoint.loading import Model
    from entropix.lab.experiments.engine import Grid, Variant
    from entropix.lab.experiments.summary import Summary

PAGE = "report.html"
MOST_SEEDS = 1_000_000  # each is a row for every prompt
_CHUNKS = 4  # of an answer that is as long as it may be, at least


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What can be asked of any grid."""

    prompts: Annotated[str, flag("the prompts, as for --prompt-file of entropix.main", "FILE", None)]
    seeds: Annotated[int, flag("answers of each variant to each prompt", "N", None)] = 4
    seed: Annotated[int, flag("the first seed; the others follow it", "N", None)] = 0
    max_new_tokens: Annotated[int, flag("most tokens of an answer", "N", None)] = 128
    batch: Annotated[int, flag("most answers to generate together", "N", None)] = 16
    weights: Weights = None
    adapter: Adapter = None
    dtype: Dtype = None
    devices: Annotated[DeviceFlags, arg(name="devices")] = field(default_factory=DeviceFlags)
    system: Annotated[Text, flag("a system message before every prompt")] = None
    raw: Annotated[bool, flag("continue the prompts as plain text, without a chat template")] = False
    template_arg: TemplateArg = ()
    out: Annotated[
        Text, flag("keep results.jsonl and report.html here; the same command resumes what is there", "DIR")
    ] = None
    json: Annotated[bool, flag("print the table as one JSON object")] = False
    table: TableFile = None
    answers: Annotated[Text, flag("write a row for each answer here", "FILE.csv|FILE.parquet")] = None
    plot: Annotated[
        Text, flag("draw the measures with their intervals here", "FILE.svg|FILE.pdf|FILE.png")
    ] = None


class Written(NamedTuple):
    """Where what a grid says goes, besides stdout. None: it is not written."""

    page: Path | None = None
    table: str | None = None
    answers: str | None = None
    plot: str | None = None

    def check(self) -> None:
        """Raises a ValueError where something could not be written in the end."""
        from entropix.report import figures

        tables.check(self.table)
        tables.check(self.answers)
        figures.check(self.plot)


def perform(flags: Flags, variants: "Sequence[Variant]", title: str, fields: Sequence[str] = ()) -> None:
    """Generates what is missing, then prints the table and writes the page. Raises a ValueError for bad input.

    fields: the fields of the config that are varied, for the plots of a sweep.
    """
    texts = distributed.from_first(lambda: prompts.from_file(flags.prompts, flags.system, flags.raw))
    if flags.seeds > MOST_SEEDS:
        raise ValueError(f"--seeds must be at most {MOST_SEEDS}, got {flags.seeds}")
    page = None if flags.out is None else Path(flags.out) / PAGE
    written = Written(page, flags.table, flags.answers, flags.plot)
    distributed.from_first(written.check)
    arguments = cli.template_args(flags.template_arg)
    seeds = range(flags.seed, flags.seed + flags.seeds)
    most = flags.max_new_tokens
    wanted = {"max_new_tokens": most, "seeds": seeds, "chunk_length": chunk_length(most)}
    options = config.from_mapping(GenerateConfig, wanted, "flags", {"seeds": "seed"})

    # These take their time to import; bad flags do not wait for them.
    from entropix import backend, sharding
    from entropix.console import terminal
    from entropix.generation import encode_prompt
    from entropix.lab.experiments import engine, running

    backend.use_compilation_cache()
    model = running.dated(
        terminal.load(flags.weights, flags.dtype, flags.devices, arguments, flags.adapter), flags.out
    )
    whole = engine.Grid(
        variants=variants,
        prompts=[encode_prompt(model, text, system=flags.system, raw=flags.raw) for text in texts],
        texts=[prompts.shown(text) for text in texts],
        seeds=seeds,
        options=options,
        max_rows=flags.batch,
        groups=sharding.groups(model.mesh),
    )
    complete(model, whole, flags.out, written, title, fields, flags.json)


def complete(
    model: "Model",
    whole: "Grid",
    out: str | None,
    written: Written,
    title: str,
    fields: Sequence[str] = (),
    as_json: bool = False,
) -> None:
    """Generates what is missing in the folder `out`, prints the table and writes what has a place."""
    from entropix.console import terminal
    from entropix.lab import comparison_page, static_figures
    from entropix.lab.experiments import engine, running, summary
    from entropix.lab.experiments.results import Follower

    engine.check(whole, model)
    with contextlib.ExitStack() as stack:
        folder = out or stack.enter_context(tempfile.TemporaryDirectory())
        store = stack.enter_context(running.opened(folder, whole, model))
        running.generate(model, whole, store, out)
        if isinstance(store, Follower):
            return
        summaries = summary.summarize([v.label for v in whole.variants], store.lines, store.timings)
        if written.table is not None:
            tables.write(written.table, summary.rows(summaries, whole.variants, fields))
        if written.answers is not None:
            prompt_texts = [{"prompt_text": whole.texts[line["prompt"]]} for line in store.lines]
            tables.write(
                written.answers, (line | text for line, text in zip(store.lines, prompt_texts, strict=True))
            )
        if written.plot is not None:
            static_figures.write(written.plot, whole, summaries, fields)
        page, note = written.page, ""
        if page is not None and importlib.util.find_spec("plotly") is None:
            note = f"no {page}: it needs plotly (pip install plotly), then the same command again"
        elif page is not None:
            comparison_page.write(page, title, whole, model, summaries, store.lines, fields)
            note = f"{page}: the same with plots, and all answers side by side"
        # After all files: whoever reads it may go, like `head`, which ends the process.
        show(summaries, as_json)
        if note:
            terminal.note(note)


def show(summaries: "Sequence[Summary]", as_json: bool = False) -> None:
    """Prints the table, or one JSON object."""
    from entropix.lab.experiments import summary

    if as_json:
        print(cli.json_line({"variants": [found.as_json() for found in summaries]}))
    else:
        print("\n".join(summary.tables(summaries)))


def chunk_length(max_new_tokens: int) -> int:
    """Steps on the device at a time: fewer for short answers, since speed is counted after the first chunk."""
    return max(1, min(GenerateConfig.chunk_length, max_new_tokens // _CHUNKS))
