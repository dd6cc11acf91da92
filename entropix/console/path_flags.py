"""The flags that ask for several paths, and the plan they amount to."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated

from entropix.console.cli import Text, flag, spelled
from entropix.cot import answers, plan, selection
from entropix.cot.plan import MAX_PATHS, START, Plan

_RANGE = f"[1 to {MAX_PATHS}]"


@dataclass(frozen=True)
class PathFlags:
    """Several answers to each prompt, computed as one batch, of which the chosen one is printed."""

    cot: Annotated[
        int | None, flag(f"decode this many paths that part at uncertain tokens {_RANGE}", "C")
    ] = None
    cot_at: Annotated[
        Text,
        flag(
            "where they part: at the first token, the C most likely ones (start), or at the first C - 1 uncertain "
            "positions of a first answer (explore): those of that strategy, or above --cot-entropy without one",
            "start|explore",
            f"(default: {START})",
        ),
    ] = None
    cot_entropy: Annotated[
        float | None,
        flag("for --cot-at explore [bits, at least 0]", "BITS", f"(default: {Plan.entropy})"),
    ] = None
    best_of: Annotated[int | None, flag(f"draw this many independent samples instead {_RANGE}", "N")] = None
    self_consistency: Annotated[
        int | None,
        flag(f"as --best-of with --select majority; ends when the vote is decided {_RANGE}", "N"),
    ] = None
    sample_above: Annotated[
        float | None,
        flag(
            "for these two: draw more than the first sample only where one of its tokens had more entropy than this "
            "[bits, at least 0]",
            "BITS",
            "(default: 0, always)",
        ),
    ] = None
    select: Annotated[
        Text,
        flag(
            "how to choose: "
            + "; ".join(f"{name}: {kind.summary}" for name, kind in selection.SELECTORS.items()),
            "NAME",
            "(default: answer-margin for --cot, borda for --best-of)",
        ),
    ] = None
    extract: Annotated[
        Text,
        flag(
            "what the answer in a path is: "
            + "; ".join(f"{name}: {kind.summary}" for name, kind in answers.EXTRACTORS.items()),
            "NAME[:ARGUMENT]",
            "(default: number)",
        ),
    ] = None


def read_plan(flags: PathFlags) -> Plan | None:
    """What the flags say about several paths; None for a single answer. Raises a ValueError for contradictions."""
    asked = {name: value for name, value in dataclasses.asdict(flags).items() if value is not None}
    return plan.read(asked, spelled)
