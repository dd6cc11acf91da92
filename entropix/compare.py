"""Samplers side by side: `python -m entropix.compare --prompts FILE --samplers entropix,min-p,greedy --out DIR`.

Every sampler answers every prompt with every seed, in batches, with the same keys: rules that draw alike share
their random numbers (`lab.experiments.engine`). The table, on stdout, says how long, how likely, how varied and how
repetitive the answers are, and how sure the differences to the first sampler are; `lab.experiments.summary` defines
the measures.
`entropix+cot=4`, `top-p+best_of=8+select=borda` or `top-p+self_consistency=5` choose each answer from several paths.
The folder gets `results.jsonl`, an answer a line, and `report.html`.

After an interruption the same command goes on where it ended, and refuses to where anything that matters has changed.

Exit codes: 0 done; 1 bad input; 2 bad flags; 130 Ctrl-C; 143 SIGTERM, after the batch that is being computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from entropix.console import cli
from entropix.console.cli import flag
from entropix.lab.experiments import command

if TYPE_CHECKING:
    from entropix.lab.experiments.engine import Variant

_PROG = "python -m entropix.compare"
_DESCRIPTION = "Let several samplers answer the same prompts, and compare the answers."


@dataclass(frozen=True, kw_only=True)
class Flags(command.Flags):
    """What can be asked for."""

    samplers: Annotated[
        str,
        flag(
            "presets, TOML files or FILE.py:NAME; the first is what the others are compared with. With +cot=4, "
            "+best_of=8+select=borda or +self_consistency=5+extract=number each answer is chosen from several paths",
            "A,B,...",
            None,
        ),
    ]


def main(args: Sequence[str] | None = None, prog: str = _PROG) -> None:
    """Does what the flags (by default those of the process) say. Raises a ValueError for bad input."""
    flags = cli.parse(Flags, args, prog, _DESCRIPTION)
    cli.join(flags, sigterm_ends=False)
    variants = [variant(name.strip()) for name in flags.samplers.split(",")]
    command.perform(flags, variants, "Samplers compared")


def variant(name: str) -> "Variant":
    """What is meant by that name, which is its label too. Raises a ValueError that says what is wrong with it."""
    from entropix.lab.experiments import variants

    return variants.named(name)


if __name__ == "__main__":
    cli.leave(cli.run(main))
