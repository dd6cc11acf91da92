"""Does a trace repeat? `python -m entropix.replay trace.jsonl` generates it anew from its header and compares.

Tokens, strategies, counts and endings must be the same, every other number within 10⁻³ (absolute or relative,
whichever is wider). Prompts are repeated in batches, a chat turn by turn on one cache, as it was.

Exit codes: 0 equal, with one line on stdout; 1 bad input, or a difference, the first of which is shown on stderr with
both records. Another backend, or another release of JAX, may round otherwise and so draw another token.
"""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import jax
import tyro

import entropix
from entropix import backend, sharding, trace
from entropix.checkpoint import loading
from entropix.checkpoint.loading import Model
from entropix.console import cli
from entropix.decoding.batching import ContinuousBatch
from entropix.decoding.session import Session
from entropix.generation import prepare
from entropix.results import FinishReason, Result, TokenEvent, add
from entropix.trace import Trace, schema

TOLERANCE = 1e-3


class Difference(NamedTuple):
    """A line of a trace that came out otherwise."""

    row: int
    step: int  # the number of tokens, where the row's end differs
    field: str
    recorded: dict[str, Any]
    repeated: dict[str, Any]

    def __str__(self) -> str:
        was, now = (_shown(record.get(self.field)) for record in (self.recorded, self.repeated))
        return (
            f"row {self.row}, step {self.step}: {self.field} is {was} in the trace, {now} now\n"
            f"  trace: {_shown(self.recorded)}\n"
            f"  now:   {_shown(self.repeated)}"
        )


@dataclass(frozen=True)
class Flags:
    """The command line."""

    trace: Annotated[tyro.conf.Positional[str], tyro.conf.arg(help="the trace", metavar="TRACE")]
    weights: Annotated[
        str | None,
        tyro.conf.arg(
            help="a name below weights/ or a checkpoint folder",
            metavar="NAME|DIR",
            help_behavior_hint="(default: the name in the trace)",
        ),
    ] = None
    adapter: cli.Adapter = None


def main(args: Sequence[str] | None = None, prog: str = "python -m entropix.replay") -> None:
    """Does what the flags (by default those of the process) say. Raises a ValueError for a difference."""
    flags = cli.parse(Flags, args, prog, __doc__)
    recorded = trace.read(flags.trace)
    if any(path["given"] for path in recorded.header["paths"]):
        raise ValueError(
            f"{flags.trace}: its rows are paths that were given their first tokens (--cot), which do not follow from "
            "the prompt alone; such a trace cannot be repeated"
        )
    try:
        _ = recorded.options
    except ValueError as error:
        raise ValueError(f"{flags.trace}: {error}") from None
    backend.use_compilation_cache()
    model = load_model(recorded, flags.weights, flags.adapter)
    if difference := first_difference(model, recorded):
        raise ValueError(f"{flags.trace}: {difference}{_elsewhere(recorded, model)}")
    n_tokens = sum(len(result.records) for result in recorded.results)
    counts = _counted(n_tokens, "token"), _counted(len(recorded.results), "row")
    print(f"{flags.trace}: equal, {' in '.join(counts)}")


def load_model(recorded: Trace, weights: str | None = None, adapter: str | None = None) -> Model:
    """The model that a trace was made with; a ValueError if the weights, or the adapter, are others."""
    wanted = recorded.header["model"]
    merged = wanted.get("adapter")
    if merged is not None and adapter is None:
        raise ValueError(
            f"the model of the trace has the adapter {merged['name']!r} merged in; give its folder with --adapter"
        )
    model = loading.load(wanted["name"] if weights is None else weights, wanted["dtype"], adapter=adapter)
    if trace.fingerprint(model.folder) != wanted["fingerprint"]:
        raise ValueError(
            f"{model.folder}: not the weights of the trace ({wanted['name']}, fingerprint "
            f"{wanted['fingerprint'][:12]}); give theirs with --weights"
        )
    if merged is None and adapter is not None:
        raise ValueError("the model of the trace has no adapter; leave --adapter out")
    if merged is not None and merged["fingerprint"] != trace.adapter_of(model)["adapter"]["fingerprint"]:
        raise ValueError(
            f"{adapter}: not the adapter of the trace ({merged['name']}, fingerprint {merged['fingerprint'][:12]})"
        )
    return model


def first_difference(model: Model, recorded: Trace) -> Difference | None:
    """The first line that differs when a trace is generated anew; None when there is none.

    Of a row that was interrupted only the tokens that it has are repeated.
    """
    rows = range(len(recorded.results))
    is_chat = recorded.header["rows"] == schema.TURNS
    groups = [[row] for row in rows] if is_chat else [list(rows)]
    session = Session(model, 1) if is_chat else None
    for group in groups:
        expected = [recorded.results[row] for row in group]
        if difference := _repeat(model, session, expected, recorded.options):
            return difference._replace(row=group[difference.row])
        if is_chat and expected[0].finish == FinishReason.INTERRUPTED:
            session = Session(model, 1)
    return None


def _repeat(
    model: Model, session: Session | None, expected: Sequence[Result], options: dict[str, Any]
) -> Difference | None:
    """The first difference of rows that were generated together."""
    request = prepare(model, [result.prompt_ids for result in expected], **options)
    repeated = [Result(result.prompt_ids) for result in expected]
    events = ContinuousBatch(request, session=session).run()
    while not all(map(_is_complete, expected, repeated)):
        event = next(events)
        row = event.row
        if _is_complete(expected[row], repeated[row]):
            continue
        add(repeated, event)
        if difference := _compare(event, expected[row], repeated[row]):
            return difference
    return None


def _is_complete(expected: Result, repeated: Result) -> bool:
    """Whether all of a row has been compared."""
    cut_short = expected.finish == FinishReason.INTERRUPTED and len(repeated.records) == len(expected.records)
    return cut_short or repeated.finish != FinishReason.RUNNING


def _compare(event: TokenEvent, expected: Result, repeated: Result) -> Difference | None:
    """How a row's newest event, which `repeated` has already, differs from the trace."""
    n_tokens = len(repeated.records)
    if event.record is not None:
        if n_tokens > len(expected.records):
            return Difference(event.row, n_tokens - 1, "id", _end(expected), event.record)
        before = expected.records[n_tokens - 1]
        if field := _first_unequal(before, event.record):
            return Difference(event.row, n_tokens - 1, field, before, event.record)
    was_cut_here = expected.finish == FinishReason.INTERRUPTED and n_tokens == len(expected.records)
    if event.finish == FinishReason.RUNNING or was_cut_here:
        return None
    before, after = _end(expected), _end(repeated)
    field = _first_unequal(before, after)
    return Difference(event.row, n_tokens, field, before, after) if field else None


def _end(result: Result) -> dict[str, Any]:
    return {
        "new_tokens": len(result.records),
        "finish": result.finish.name.lower(),
        "text": result.text,
    }


def _first_unequal(before: dict[str, Any], after: dict[str, Any]) -> str | None:
    """The first field that both have and that differs."""
    return next((name for name in after if name in before and not _equal(before[name], after[name])), None)


def _equal(before: Any, after: Any) -> bool:
    if isinstance(before, float) and isinstance(after, float):
        return math.isclose(before, after, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    if isinstance(before, list) and isinstance(after, list):
        return len(before) == len(after) and all(map(_equal, before, after))
    if isinstance(before, dict) and isinstance(after, dict):
        return _first_unequal(before, after) is None
    return bool(before == after)


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _elsewhere(recorded: Trace, model: Model) -> str:
    """What may explain a difference: that the trace was made elsewhere."""
    here = {
        "entropix": entropix.__version__,
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "mesh": sharding.as_text(model.mesh),
        "matmul_precision": backend.matmul_precision(),
    }
    there = {name: recorded.header.get(name, value) for name, value in here.items()}
    other: Iterable[str] = [
        f"{name} {there[name] or 'none'}, here {value or 'none'}"
        for name, value in here.items()
        if there[name] != value
    ]
    return "".join(f"\n  the trace was made with {text}" for text in other)


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


if __name__ == "__main__":
    cli.leave(cli.run(main))
