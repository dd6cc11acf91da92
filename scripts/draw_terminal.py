"""Draws what the command line prints on a terminal with colours, as an SVG: an answer, its legend and how to get it."""

import argparse
import io
import os
import re
from pathlib import Path

from rich.color import ColorSystem
from rich.console import Console
from rich.text import Text

import entropix
from entropix import backend, samplers
from entropix.console import cli, coloring
from entropix.trace import run_statistics

COLORS = ColorSystem.TRUECOLOR


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="picture to write, .svg")
    parser.add_argument("--prompt", default="Why is the sky blue?")
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument("--max-new-tokens", type=int, default=120)
    parser.add_argument("--color", default="logits_entropy", help="strategy or a metric")
    parser.add_argument("--columns", type=int, default=92)
    args = parser.parse_args(argv)
    if args.out.suffix != ".svg":
        raise ValueError(f"--out takes the name of an .svg file, got {str(args.out)!r}")
    what = coloring.read_choice(args.color).what

    backend.use_compilation_cache()
    options = {"seed": args.seed, "max_new_tokens": args.max_new_tokens}
    [result] = entropix.generate(entropix.load(), args.prompt, **options)
    picture = svg(result, what, command(args.prompt, what, options), args.columns)
    temporary = args.out.with_name(f".{args.out.stem}.{os.getpid()}.svg")
    try:
        temporary.write_text(picture, encoding="utf-8")
        temporary.replace(args.out)
    finally:
        temporary.unlink(missing_ok=True)


def command(prompt: str, what: str, options: dict[str, int]) -> str:
    """What to type for the same."""
    flags = "".join(f" --{name.replace('_', '-')} {value}" for name, value in options.items())
    return f'python -m entropix.main --prompt "{prompt}"{flags} --color {what}'


def svg(result: entropix.Result, what: str, title: str, columns: int) -> str:
    """A terminal's window with the result's tokens, coloured, and the legend."""
    strategies = samplers.SAMPLERS["entropix"].strategies
    tokens = (
        coloring.paint(record["text"], coloring.token_style(record, what, strategies, COLORS), COLORS)
        for record in result.records
        if result.finish != entropix.FinishReason.STOP_TOKEN or record is not result.records[-1]
    )
    inserted = any(record["injected"] for record in result.records)
    legend = coloring.legend(what, run_statistics.strategy_counts([result], strategies), COLORS, inserted)
    console = Console(record=True, width=columns, file=io.StringIO())
    console.print(Text.from_ansi(f"$ {title}\n\n{''.join(tokens)}\n\n{legend}"))
    picture = console.export_svg(title="entropix", unique_id="entropix")
    # No fonts from the network: the reader's own monospaced one is stretched to the same width.
    return re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)


if __name__ == "__main__":
    cli.leave(cli.run(main))
