"""Runs a grid of prompts, samplers, numbers and seeds, in batches over the devices of this machine.

    python scripts/run_grid.py configs/grids/thresholds.toml -o results/
    python scripts/run_grid.py GRID.toml -o part-1/ --part 1/4      on one of four machines
    python scripts/run_grid.py --merge part-*/ -o results/          the four parts as one

The head of entropix/lab/experiments/file.py says what GRID.toml holds. The folder gets results.jsonl, an answer a
line, a batch at a time. Whenever and however the process ends, the same command goes on after the last whole batch,
and in the end the file is that of a run that was never interrupted, to the byte. What an answer is depends on its
prompt, seed and sampler, not on batches, parts or interruptions.

Exit codes: 0 done; 1 bad input; 2 bad flags; 130 Ctrl-C, at once; 143 SIGTERM, after the batch that is being computed.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from tyro.conf import arg

from entropix.console import cli
from entropix.console.cli import Adapter, DeviceFlags, Dtype, Weights, flag


@dataclasses.dataclass(frozen=True)
class Args:
    out: Annotated[
        str,
        arg(aliases=["-o"], metavar="DIR", help="keep the results here, and resume what is there"),
    ]
    grid: Annotated[tyro.conf.Positional[Path | None], flag("what to compute", "GRID.toml")] = None
    batch: Annotated[
        int | None,
        flag("most answers to generate together, a multiple of data", "N", "(default: 16 times data)"),
    ] = None
    part: Annotated[str, flag("compute the I-th of N parts of the grid", "I/N", None)] = "1/1"
    merge: Annotated[tuple[str, ...], flag("compute nothing: put these parts together", "DIR...")] = ()
    weights: Weights = None
    adapter: Adapter = None
    dtype: Dtype = None
    devices: Annotated[DeviceFlags, arg(name="devices")] = dataclasses.field(default_factory=DeviceFlags)
    report: Annotated[bool, flag("write report.html as well: plots, and all answers side by side")] = False


def main(words: Sequence[str] | None = None) -> None:
    """Does what the flags (by default those of the process) say. Raises a ValueError for bad input."""
    args = cli.parse(Args, words, None, __doc__)
    if (args.grid is None) == (not args.merge):
        raise ValueError("give a GRID.toml to compute, or --merge with the folders of all parts of one")
    for name, value in vars(args).items():
        if args.merge and name not in ("merge", "out") and value != getattr(Args(args.out), name):
            raise ValueError(f"{cli.spelled(name)} changes nothing with --merge, which computes nothing")
    part = read_part(args.part)
    cli.join(args, sigterm_ends=False)
    from entropix import backend
    from entropix.console import terminal
    from entropix.lab.experiments import command, file, merging, running

    if args.grid is None:
        command.show(merging.merge(args.merge, args.out))
        return
    asked = file.read(args.grid)
    backend.use_compilation_cache()
    model = running.dated(
        terminal.load(args.weights, args.dtype, args.devices, asked.template_args, args.adapter), args.out
    )
    whole = file.grid(asked, model, args.batch, part)
    page = Path(args.out) / command.PAGE if args.report else None
    command.complete(model, whole, args.out, command.Written(page), args.grid.stem)


def read_part(text: str) -> tuple[int, int]:
    """(which, of how many), from 1, of a text like 2/4."""
    number, _, parts = text.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise ValueError(f"--part: expected I/N like 2/4, I from 1 to N, got {text!r}")
    return int(number), int(parts)


if __name__ == "__main__":
    cli.leave(cli.run(main))
