"""Pictures of traces: a page to explore, figures for papers.

    python -m entropix.report trace.jsonl -o report.html
    python -m entropix.report entropix.jsonl min-p.jsonl -o report.html     side by side
    python -m entropix.report trace.jsonl --png figures/

The page needs nothing but itself: it opens offline. Record traces with `--alternatives 5 --head-entropies` to see the
alternatives of every token and the attention entropy of every head.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro
from tyro.conf import arg

from entropix import files, tables
from entropix.console import cli
from entropix.console.cli import flag
from entropix.console.terminal import note
from entropix.report import figures, page


@dataclass(frozen=True)
class Flags:
    """The command line."""

    traces: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        flag("traces, the first of which the others are compared with", "TRACE..."),
    ]
    out: Annotated[
        str | None,
        arg(aliases=["-o"], help="write the page here", metavar="FILE.html", help_behavior_hint=""),
    ] = None
    png: Annotated[str | None, flag("write PNG figures into this folder", "DIR")] = None
    pdf: Annotated[str | None, flag("write the same figures as PDF", "DIR")] = None
    svg: Annotated[str | None, flag("write the same figures as SVG", "DIR")] = None
    table: Annotated[
        str | None,
        flag(
            "write every token of the traces as a row, CSV or Parquet by the ending", "FILE.csv|FILE.parquet"
        ),
    ] = None


def main(args: Sequence[str] | None = None, prog: str = "python -m entropix.report") -> None:
    """Does what the flags (by default those of the process) say. Raises a ValueError for bad input."""
    flags = cli.parse(Flags, args, prog, __doc__)
    if not flags.traces:
        raise ValueError("give at least one trace, as `python -m entropix.main --trace FILE.jsonl` writes it")
    if all(wanted is None for name, wanted in vars(flags).items() if name != "traces"):
        raise ValueError(
            "say what to make: -o FILE.html for a page, --png, --svg or --pdf DIR for figures, --table FILE for rows"
        )
    tables.check(flags.table)
    if flags.table is not None:
        files.check_not_read(flags.table, flags.traces)
    if flags.out is not None:
        files.check_writable(flags.out, "a page")
        files.check_not_read(flags.out, flags.traces)
    traces = page.read(flags.traces)
    if flags.out is not None:
        files.write_text(flags.out, [page.page(traces)], "a page")
        note(f"{flags.out}: a page of {' and '.join(flags.traces)}")
    if flags.table is not None:
        named = [(each.name, result) for each in traces for result in each.trace.results]
        tables.write(
            flags.table, tables.tokens([r for _, r in named], [{"trace": name} for name, _ in named])
        )
        note(f"{flags.table}: a row for each token")
    for folder, kind in ((flags.png, "png"), (flags.svg, "svg"), (flags.pdf, "pdf")):
        if folder is not None:
            note(f"{folder}: {len(figures.write(traces, folder, kind))} figures as {kind.upper()}")


if __name__ == "__main__":
    cli.leave(cli.run(main))
