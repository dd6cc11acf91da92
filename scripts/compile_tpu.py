"""Compiles the programs of generation for TPUs that are not there, and tells what they would take.

The real TPU compiler (libtpu, of the extra `tpu`) builds prefill, decode chunk, commit and cache growth for the given
topology, in bfloat16, with all metrics and the sampler. No TPU is needed and none is touched. What is printed is of one
device where nothing else is said. The last line is JSON.

--context is the capacity of the cache, in slots a row: texts of that length less 32 tokens fit into it, and a step
reads all of it, however short they are.

With --table, the same goes into a Markdown page: into the table between `<!-- table: compiled -->` and `<!-- end -->`,
in place of the row with the same model, chips, mesh, batch and context. Without --model, every configuration that
has a row there is compiled again.
"""

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from entropix.console import cli
from entropix.tpu import ahead, roofline
from entropix.tpu.hlo import Collective
from entropix.tpu.roofline import Report

# Heads, and how the first five are found again in a row.
HEADS = (
    "model", "chips", "mesh", "batch", "context", "weights", "cache", "at once", "of",
    "GFLOP", "GB moved", "/ least", "tokens/s ≤", "collectives", "MB",
)  # fmt: skip
KEYS = 5
BLOCK = re.compile(r"(<!-- table: compiled -->\n)(.*?)(<!-- end -->)", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Args:
    """What to compile."""

    model: str | None = None
    """A name in configs/models or a TOML file."""
    topology: str = "v5e:2x4"
    """Kind of chip and how many: v5e:2x4, v5p:2x2x1, v6e:2x2, ..."""
    batch: int = 8
    """Rows."""
    context: int = 8192
    """Slots of the cache a row, one of the sizes to which it grows."""
    mesh: str = "auto"
    """How the chips are used, like data=2,model=4; auto is what a program on these chips would choose."""
    sampler: str = "entropix"
    """A preset."""
    int8: bool = False
    """Matrices in int8, as --dtype int8 has them, instead of bfloat16."""
    table: Path | None = None
    """A Markdown page that gets the result as a row of its table."""


# ----- on the screen ----------------------------------------------------------------------------------------


def lines(report: Report) -> Iterator[str]:
    """The whole report."""
    yield (
        f"{report.model} on {report.topology} ({report.n_devices} devices, {report.mesh}), batch {report.batch}, "
        f"{report.context} slots a row, bfloat16, sampler {report.sampler}"
    )
    yield from ("", *memory_lines(report), "", *speed_lines(report))
    for name, what in (("decode", "a decode step"), ("prefill", "a prefill")):
        yield from ("", f"collectives of {what}, with the bytes that a device has of each:")
        yield from collective_lines(report.programs[name].collectives)


def memory_lines(report: Report) -> Iterator[str]:
    """What is in a chip's memory."""
    yield f"memory of a device, of {report.hbm_bytes / 1e9:g} GB:"
    yield f"  {'weights':12}{report.weights_bytes / 1e9:9.3f} GB"
    yield f"  {'cache':12}{report.cache_bytes / 1e9:9.3f} GB"
    for name, usage in report.programs.items():
        yield (
            f"  {name:12}{usage.peak_bytes / 1e9:9.3f} GB at once: temporaries {usage.temporary_bytes / 1e9:.3f}, "
            f"outputs {usage.output_bytes / 1e9:.3f} ({usage.aliased_bytes / 1e9:.3f} in place of arguments); "
            f"code {usage.code_bytes / 1e6:.1f} MB; compiled in {usage.compile_seconds:.0f} s"
        )
    yield (
        f"  {'at most':12}{report.peak_bytes / 1e9:9.3f} GB with the code of all: "
        + ("fits" if report.fits else "DOES NOT FIT")
    )


def speed_lines(report: Report) -> Iterator[str]:
    """What bounds the speed."""
    peak = f"{report.flops_per_second / 1e12:g} TFLOP/s and {report.bytes_per_second / 1e9:g} GB/s"
    yield f"roofline of a device with {peak}; time for exchanges between chips is not in it:"
    speeds = {"decode": report.decode_tokens_per_second, "prefill": report.prefill_tokens_per_second}
    for name, speed in speeds.items():
        usage = report.programs[name]
        by_flops, by_bytes = (
            usage.flops / report.flops_per_second,
            usage.moved_bytes / report.bytes_per_second,
        )
        yield (
            f"  {name:12}{usage.flops / 1e9:.4g} GFLOP: {by_flops * 1e3:.3g} ms; {usage.moved_bytes / 1e9:.4g} GB: "
            f"{by_bytes * 1e3:.3g} ms; hence at most {speed:,.0f} tokens/s in all"
        )
    moved, least = report.programs["decode"].moved_bytes, report.least_bytes
    yield f"  a decode step moves {moved / least:.3f} × its weights and the cache ({least / 1e9:.4g} GB)"


def collective_lines(collectives: Sequence[Collective]) -> Iterator[str]:
    """One line each, and the sum."""
    for each in collectives:
        yield f"  {each.times:4} × {each.kind:20}{each.nbytes:12,} B  {each.arrays}  {place(each.origin)}"
    yield f"  {sum(each.times for each in collectives):4} in all, {total_bytes(collectives):,} B"


def place(origin: str) -> str:
    """The end of an operation's path, without the machinery around it."""
    parts = [
        part for part in re.sub(r"jit\((\w+)\)", r"\1", origin).split("/") if part not in ("while", "body")
    ]
    return "/".join(part for part in parts[1:] if part != "closed_call")


def total_bytes(collectives: Sequence[Collective]) -> int:
    """Of all of them, one device's."""
    return sum(each.times * each.nbytes for each in collectives)


def as_json(report: Report) -> str:
    """Everything, in one line."""
    found = dataclasses.asdict(report)
    for program in found["programs"].values():
        program["collectives"] = [each._asdict() for each in program["collectives"]]
    derived = (
        "peak_bytes",
        "fits",
        "decode_tokens_per_second",
        "prefill_tokens_per_second",
    )
    return json.dumps(found | {name: getattr(report, name) for name in derived})


# ----- in a page --------------------------------------------------------------------------------------------


def row(report: Report) -> str:
    """A line of the table."""
    step = report.programs["decode"]
    kind, _, layout = report.topology.partition(":")
    cells = (
        report.model, f"{kind} {layout}", report.mesh, report.batch, report.context,
        f"{report.weights_bytes / 1e9:.2f}", f"{report.cache_bytes / 1e9:.2f}",
        f"{report.peak_bytes / 1e9:.2f}", f"{report.hbm_bytes / 1e9:g}{'' if report.fits else ', does not fit'}",
        f"{step.flops / 1e9:.1f}", f"{step.moved_bytes / 1e9:.2f}", f"{step.moved_bytes / report.least_bytes:.2f}",
        f"{report.decode_tokens_per_second:,.0f}",
        sum(each.times for each in step.collectives), f"{total_bytes(step.collectives) / 1e6:.1f}",
    )  # fmt: skip
    return f"| {' | '.join(map(str, cells))} |"


def rows_of(page: str) -> list[list[str]]:
    """The cells of every row that the page's table has."""
    found = BLOCK.search(page)
    if found is None:
        raise ValueError("table: the page has no <!-- table: compiled --> with an <!-- end --> behind it")
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found[2].splitlines()[2:]]


def with_row(page: str, new: str) -> str:
    """The page with this row in the table, in place of the one for the same configuration or at the end."""
    shown = {tuple(cells[:KEYS]): f"| {' | '.join(cells)} |" for cells in rows_of(page)}
    shown[tuple(cell.strip() for cell in new.strip("|").split("|"))[:KEYS]] = new
    table = "\n".join((f"| {' | '.join(HEADS)} |", "|" + "---|" * len(HEADS), *shown.values(), ""))
    return BLOCK.sub(lambda block: block[1] + table + block[3], page)


_INT8 = ", int8"  # behind the name of a model whose matrices are


def of_row(cells: Sequence[str], args: Args) -> Args:
    """What to compile for a row of the table."""
    model, chips, mesh, batch, context = cells[:KEYS]
    return dataclasses.replace(
        args,
        model=model.removesuffix(_INT8),
        int8=model.endswith(_INT8),
        topology=chips.replace(" ", ":"),
        mesh=mesh,
        batch=int(batch),
        context=int(context),
    )


# ----- the command ------------------------------------------------------------------------------------------


def compile_one(args: Args) -> Report:
    """Prints the report of one configuration and puts it into the page."""
    assert args.model is not None
    target = ahead.target(
        args.model, args.topology, args.mesh, args.batch, args.context, args.sampler, args.int8
    )
    report = roofline.measure(target, args.model + _INT8 * args.int8, args.topology)
    print("\n".join(lines(report)), flush=True)
    if args.table is not None:
        partial = args.table.with_name(f".{args.table.name}.partial")
        partial.write_text(with_row(args.table.read_text(encoding="utf-8"), row(report)), encoding="utf-8")
        partial.replace(args.table)
    print(as_json(report), flush=True)
    return report


def main(words: Sequence[str] | None = None) -> None:
    """Compiles, prints and, if asked, writes the table."""
    args = cli.parse(Args, words, None, __doc__)
    rows = [] if args.table is None else rows_of(args.table.read_text(encoding="utf-8"))
    if args.model is None and not rows:
        why = "" if args.table is None else f", since the table of {args.table} has no row"
        raise ValueError(f"model: expected a name in configs/models, like --model llama-3.1-8b{why}")
    for each in [args] if args.model is not None else [of_row(cells, args) for cells in rows]:
        compile_one(each)


if __name__ == "__main__":
    cli.leave(cli.run(main))
