"""Does a way of choosing tokens give better answers? `python -m entropix.evaluate PROTOCOL.toml --out DIR`.

The protocol says beforehand what is asked, of which arms (samplers with their numbers), with which seeds, and which
differences shall count; docs/evaluation.md tells how to write and to read one. Without a file it is
configs/evaluation/default.toml, with --quick the small one beside it. DIR gets results.jsonl (a row an answer, with its
score), summary.json and report.html; whatever ends the work, the same command goes on from there.

--part policy lets every arm answer; signal reads texts and asks which metric knows where the model is wrong; forks
forces tokens and watches where answers go. Several may be given; by default it is policy.

Exit codes: 0 done; 1 bad input; 2 bad flags; 130 Ctrl-C; 143 SIGTERM, after the answers that are being computed.
"""

import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import UseAppendAction, arg

from entropix import distributed, presets, tables
from entropix.console import cli
from entropix.console.cli import Adapter, DeviceFlags, Dtype, TableFile, TemplateArg, Text, Weights, flag

_PROG = "python -m entropix.evaluate"


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What can be asked for."""

    protocol: Annotated[tyro.conf.Positional[Path | None], flag("what is evaluated", "PROTOCOL.toml")] = None
    out: Annotated[
        Text, flag("keep results.jsonl, summary.json and report.html here; the same command goes on", "DIR")
    ] = None
    quick: Annotated[
        bool, flag("the small protocol: minutes, and differences that it says it cannot see")
    ] = False
    part: Annotated[
        UseAppendAction[tuple[Literal["policy", "signal", "forks"], ...]],
        flag("what to do", hint="(repeatable; default: policy)"),
    ] = ()
    batch: Annotated[int, flag("most answers to generate together", "N", None)] = 32
    weights: Weights = None
    adapter: Adapter = None
    dtype: Dtype = None
    devices: Annotated[DeviceFlags, arg(name="devices")] = field(default_factory=DeviceFlags)
    template_arg: TemplateArg = ()
    table: TableFile = None
    plot: Annotated[Text, flag("draw the part policy here", "FILE.png|FILE.svg|FILE.pdf")] = None


def main(args: Sequence[str] | None = None, prog: str = _PROG) -> None:
    """Does what the flags (by default those of the process) say. Raises a ValueError for bad input."""
    flags = cli.parse(Flags, args, prog, __doc__)
    if flags.quick and flags.protocol is not None:
        raise ValueError("--quick is a protocol of its own; give it or a file, not both")
    arguments = cli.template_args(flags.template_arg)
    cli.join(flags, sigterm_ends=False)
    parts = list(dict.fromkeys(flags.part)) or ["policy"]
    if flags.plot is not None and "policy" not in parts:
        raise ValueError("--plot draws the part policy; add --part policy, or leave it out")
    distributed.from_first(lambda: _check_outputs(flags))
    from entropix import backend
    from entropix.console import terminal
    from entropix.lab.evaluation import protocol, work
    from entropix.lab.experiments import running

    name = "quick" if flags.quick else "default"
    path = flags.protocol or presets.shipped(f"evaluation/{name}.toml")
    asked = protocol.read(path)
    backend.use_compilation_cache()
    model = running.dated(
        terminal.load(flags.weights, flags.dtype, flags.devices, arguments, flags.adapter), flags.out
    )
    with contextlib.ExitStack() as stack:
        folder = Path(flags.out or stack.enter_context(tempfile.TemporaryDirectory()))
        run = work.Run(model, asked, folder, flags.batch, flags.out is not None)
        work.perform(run, parts, f"Evaluation: {path.stem}", flags.table, flags.plot)


def _check_outputs(flags: Flags) -> None:
    from entropix.report import figures

    tables.check(flags.table)
    figures.check(flags.plot)


if __name__ == "__main__":
    cli.leave(cli.run(main))
