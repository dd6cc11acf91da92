"""The flags that ask for branching and backtracking, and the configurations they amount to."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from entropix import config
from entropix.config import BacktrackConfig, BranchConfig, Config
from entropix.console import cli
from entropix.console.cli import Text, flag


def _help(name: str, config_type: type = BranchConfig) -> str:
    return cli.describe(config_type.__dataclass_fields__[name].metadata)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class BranchFlags:
    """Where the next token is in doubt, try several, see how each goes on, and keep the best."""

    branch: Annotated[int, flag(_help("paths"), "C", None)] = BranchConfig.paths
    branch_depth: Annotated[int, flag(_help("depth"), "D", None)] = BranchConfig.depth
    branch_on: Annotated[tuple[str, ...], flag(_help("strategies"), "NAME", None)] = BranchConfig.strategies
    branch_entropy: Annotated[float, flag(_help("entropy"), "BITS", None)] = BranchConfig.entropy
    branch_margin: Annotated[float, flag(_help("margin"), "P", None)] = BranchConfig.margin
    branch_budget: Annotated[int, flag(_help("budget"), "N", None)] = BranchConfig.budget
    branch_distance: Annotated[int, flag(_help("distance"), "N", None)] = BranchConfig.distance
    branch_growth: Annotated[float, flag(_help("growth"), "BITS", None)] = BranchConfig.growth
    branch_score: Annotated[Text, flag(_help("score"), "NAME", None)] = BranchConfig.score
    branch_penalty: Annotated[float, flag(_help("penalty"), "X", None)] = BranchConfig.penalty
    branch_keep: Annotated[Text, flag(_help("keep"), "path|token", None)] = BranchConfig.keep
    branch_among: Annotated[Text, flag(_help("among"), "kept|all", None)] = BranchConfig.among


_OWN = {"branch": "paths", "branch_on": "strategies"}
_BRANCH = {name: _OWN.get(name, name.removeprefix("branch_")) for name in BranchFlags.__dataclass_fields__}


def branch_flags(wish: BranchConfig | None) -> BranchFlags:
    """The flags that a preset's branching amounts to, which are their defaults where it is chosen."""
    return BranchFlags(**{name: getattr(wish or BranchConfig(), field) for name, field in _BRANCH.items()})


def read_branching(flags: BranchFlags, preset: BranchConfig | None = None) -> BranchConfig:
    """What the flags say about branching. Raises a ValueError for bad values, and for flags that change nothing.

    preset: what the chosen preset says of it. `--branch 1` switches that off.
    """
    wish = _read(BranchConfig, flags, _BRANCH)
    usual = branch_flags(preset)
    given = [name for name, value in vars(flags).items() if value != getattr(usual, name)]
    switched_off = usual.branch > 1 and given in (["branch"], ["branch_depth"])
    if given and not wish.is_on and not switched_off:
        [*_, name] = [name for name in given if name != "branch"] or given
        raise ValueError(
            f"{cli.spelled(name)} changes nothing without branching, which takes --branch C with C of at "
            "least 2 and a depth of at least 1"
        )
    return wish


@dataclass(frozen=True)
class BacktrackFlags:
    """Where the model has lost its way, take the newest tokens back and forbid the choice they began with."""

    backtrack: Annotated[int, flag(_help("tokens", BacktrackConfig), "M", None)] = BacktrackConfig.tokens
    backtrack_on: Annotated[tuple[str, ...], flag(_help("strategies", BacktrackConfig), "NAME", None)] = (
        BacktrackConfig.strategies
    )
    backtrack_budget: Annotated[int, flag(_help("budget", BacktrackConfig), "N", None)] = (
        BacktrackConfig.budget
    )


_BACKTRACK = {"backtrack": "tokens", "backtrack_on": "strategies", "backtrack_budget": "budget"}


def backtrack_flags(wish: BacktrackConfig | None) -> BacktrackFlags:
    """The flags that a preset's backtracking amounts to."""
    return BacktrackFlags(
        **{name: getattr(wish or BacktrackConfig(), field) for name, field in _BACKTRACK.items()}
    )


def read_backtracking(flags: BacktrackFlags, preset: BacktrackConfig | None = None) -> BacktrackConfig:
    """What the flags say about backtracking. Raises a ValueError for bad values, and for flags that change nothing.

    preset: what the chosen preset says of it. `--backtrack 0` switches that off.
    """
    wish = _read(BacktrackConfig, flags, _BACKTRACK)
    usual = backtrack_flags(preset)
    given = [name for name, value in vars(flags).items() if value != getattr(usual, name)]
    if wish.tokens == 0 and given and not (usual.backtrack and given == ["backtrack"]):
        raise ValueError(
            "flags of --backtrack change nothing without it; give --backtrack M too, M at least 1"
        )
    return wish


def _read(cls: type[Config], flags: Any, fields: Mapping[str, str]) -> Config:
    """The config whose fields these flags are."""
    values = {fields[name]: value for name, value in vars(flags).items()}
    return config.from_mapping(cls, values, "flags", {field: name for name, field in fields.items()})
