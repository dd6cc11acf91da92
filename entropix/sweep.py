"""One sampler with many numbers: `python -m entropix.sweep --sampler min-p --grid min_p=0.02,0.05,0.1 --prompts FILE`.

`--grid FIELD=VALUES` varies a field of the sampler's config; several of them give every combination. VALUES is

    a,b,c            these values
    low:high:n       n values at equal distances, both ends included
    low:high:n:log   n values at equal ratios

Numbers of a config are data of the compiled program, so a whole sweep compiles once. Exceptions: a repetition guard
that is on for some values and off for others makes two programs, and each value of n_adaptive_samples and of max_top_k,
which are shapes, makes its own.

Everything else, the outputs and going on after an interruption, is as in `entropix.compare`. Differences are those to
the first combination.

Exit codes: 0 done; 1 bad input; 2 bad flags; 130 Ctrl-C; 143 SIGTERM, after the batch that is being computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, get_type_hints

import numpy as np
from tyro.conf import UseAppendAction

from entropix import config, presets, samplers
from entropix.console import cli
from entropix.console.cli import Text, flag
from entropix.lab.experiments import command
from entropix.lab.experiments.variants import MOST_VARIANTS, expand
from entropix.paths import DEFAULT_MODEL
from entropix.samplers import Sampler

_PROG = "python -m entropix.sweep"
_DESCRIPTION = (
    "Let one sampler answer prompts with every combination of some of its numbers, and compare the answers."
)
_FORMS = "FIELD=a,b,c or FIELD=low:high:n or FIELD=low:high:n:log"
_DIGITS = 6  # of a number in a range: 0.1:0.5:5 gives 0.3 and not 0.30000000000000004


@dataclass(frozen=True, kw_only=True)
class Flags(command.Flags):
    """What can be asked for."""

    sampler: Annotated[
        Text,
        flag(
            "a preset, a TOML file or a rule of yours",
            "NAME|FILE.toml|FILE.py:NAME",
            "(default: what was chosen for the model, else entropix)",
        ),
    ] = None
    grid: Annotated[
        UseAppendAction[tuple[str, ...]],
        flag(f"a field and its values, {_FORMS}", "FIELD=VALUES", "(repeatable)"),
    ] = ()


def main(args: Sequence[str] | None = None, prog: str = _PROG) -> None:
    """Does what the flags (by default those of the process) say. Raises a ValueError for bad input."""
    flags = cli.parse(Flags, args, prog, _DESCRIPTION)
    cli.join(flags, sigterm_ends=False)
    name = flags.sampler or presets.for_model(flags.weights or DEFAULT_MODEL)
    sampler = samplers.resolve(name)
    axes = parse_axes(flags.grid, sampler.rule)
    command.perform(flags, expand(sampler, axes), f"Sweep of {name}", list(axes))


def parse_axes(specifications: Sequence[str], rule: Sampler) -> dict[str, list[Any]]:
    """The values of each number of the rule that is varied, by name."""
    if not specifications:
        raise ValueError(f"nothing to vary: give --grid {_FORMS}")
    axes: dict[str, list[Any]] = {}
    for text in specifications:
        name, equals, values = text.partition("=")
        if not equals or not values:
            raise ValueError(f"--grid {text}: expected {_FORMS}")
        if name in axes:
            raise ValueError(f"--grid {text}: {name} is varied already; give all its values at once")
        axes[name] = parse_values(name, values, rule)
    return axes


def parse_values(name: str, text: str, rule: Sampler) -> list[Any]:
    """The values of one number of a rule, of its type."""
    samplers.check_names([name], rule, "--grid")
    config.from_mapping(rule.config, {name: getattr(rule.config, name, None)}, "--grid")
    kind = get_type_hints(rule.config)[name]
    if kind is str:
        return text.split(",")
    where = f"--grid {name}={text}"
    try:
        if ":" not in text:
            return [kind(item) for item in text.split(",")]
        low, high, n, *scale = text.split(":")
        ends = float(low), float(high)
        if scale not in ([], ["log"]) or not 2 <= int(n) <= MOST_VARIANTS or (scale and min(ends) <= 0):
            raise ValueError
        spaced = (np.geomspace if scale else np.linspace)(*ends, int(n))
        values = [float(f"{value:.{_DIGITS}g}") for value in spaced]
    except ValueError:
        raise ValueError(
            f"{where}: expected {_FORMS}, with n of at least 2 and, for log, positive ends"
        ) from None
    if kind is int and not all(value.is_integer() for value in values):
        raise ValueError(
            f"{where}: {name} takes whole numbers, but this range has {values}; list them instead"
        )
    return [kind(value) for value in values]


if __name__ == "__main__":
    cli.leave(cli.run(main))
