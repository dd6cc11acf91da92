"""The flags that ask for several paths, and the plan they amount to. Nothing here needs JAX: flags are read first."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated

from entropix.console.cli import Text, flag
from entropix.cot import answers, selection
from entropix.cot.plan import EXPLORE, MAX_PATHS, NONE, START, VOTE, Plan

_RANGE = f"[1 to {MAX_PATHS}]"


@dataclass(frozen=True)
class PathFlags:
    """Several answers to one prompt, computed as one batch, of which the chosen one is printed."""

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
    numbers = {"cot": START, "best_of": NONE, "self_consistency": NONE}
    given = [name for name in numbers if name in asked]
    typed = {name: "--" + name.replace("_", "-") for name in dataclasses.asdict(flags)}
    if not given:
        if asked:
            raise ValueError(
                f"{typed[next(iter(asked))]} is about several paths; give --cot, --best-of or --self-consistency too"
            )
        return None
    if len(given) > 1:
        raise ValueError(f"{typed[given[0]]} and {typed[given[1]]} contradict each other; drop one of them")
    [name] = given
    if name != "cot" and "cot_at" in asked:
        raise ValueError(
            f"--cot-at says where the paths of --cot part; those of {typed[name]} are independent"
        )
    fork = asked.get("cot_at", numbers[name])
    if "cot_at" in asked and fork not in (START, EXPLORE):
        raise ValueError(f"--cot-at must be {START} or {EXPLORE}, got {fork!r}")
    if "cot_entropy" in asked and fork != EXPLORE:
        raise ValueError("--cot-entropy is for --cot-at explore; give that too")
    if name == "self_consistency" and asked.get("select", VOTE) != VOTE:
        raise ValueError(
            f"--self-consistency is a majority vote; --select {asked['select']} goes with --best-of"
        )
    if not 1 <= asked[name] <= MAX_PATHS:
        raise ValueError(f"{typed[name]} must be between 1 and {MAX_PATHS}, got {asked[name]}")
    if not asked.get("cot_entropy", 0.0) >= 0:
        raise ValueError(f"--cot-entropy must be at least 0, got {asked['cot_entropy']}")
    default = {"cot": Plan.select, "best_of": "borda", "self_consistency": VOTE}[name]
    return Plan(
        paths=asked[name],
        fork=fork,
        select=asked.get("select", default),
        extract=asked.get("extract", Plan.extract),
        entropy=asked.get("cot_entropy", Plan.entropy),
    )
