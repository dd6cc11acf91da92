"""The flags of `entropix.main`, in the order of use."""

import dataclasses
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Annotated, Any, get_type_hints

import tyro
from tyro.conf import UseAppendAction, arg

from entropix import config, presets, samplers
from entropix.config import GenerateConfig
from entropix.console import cli, words
from entropix.console.cli import Adapter, DeviceFlags, Dtype, TemplateArg, Text, Weights, flag
from entropix.console.path_flags import PathFlags
from entropix.console.search_flags import BacktrackFlags, BranchFlags, backtrack_flags, branch_flags
from entropix.samplers import ResolvedSampler

_SOURCE = tyro.conf.create_mutex_group(required=True, title="what is asked")


def _help(name: str) -> str:
    """Help, unit and range of a field of `GenerateConfig`."""
    return cli.describe(GenerateConfig.__dataclass_fields__[name].metadata)


@dataclass(frozen=True)
class AskFlags:
    """How it is read."""

    prompt: Annotated[Text, _SOURCE, flag("the prompt; - reads it from standard input", "TEXT|-")] = None
    prompt_file: Annotated[
        Text,
        _SOURCE,
        flag(
            'a file with one prompt a line or, if its name ends in .jsonl, {"prompt": "..."} or '
            '{"messages": [...]} a line; an answer that has ended makes room for the next',
            "FILE",
        ),
    ] = None
    chat: Annotated[bool, _SOURCE, flag("talk with the model, line by line; /exit ends")] = False
    system: Annotated[Text, flag("a system message before the prompt")] = None
    raw: Annotated[bool, flag("continue the prompt as plain text, without a chat template")] = False
    allow_special: Annotated[bool, flag("names of special tokens in the prompt become these tokens")] = False
    template_arg: TemplateArg = ()
    batch_size: Annotated[
        int,
        flag(
            "most answers to compute together: prompts of the file or, where each has several paths, these; changes "
            "memory and speed alone",
            "N",
            None,
        ),
    ] = config.BATCH_ROWS
    as_completed: Annotated[
        bool, flag("print the answers to a file's prompts as they end, and not in the order of the prompts")
    ] = False


@dataclass(frozen=True)
class Preset:
    """Which rule, and where its numbers come from."""

    sampler: Annotated[
        Text,
        flag(
            f"a rule with its preset: {', '.join(sorted({*presets.preset_names('samplers'), *samplers.SAMPLERS}))}; "
            "help describes them; or a rule in a Python file of yours",
            "NAME|FILE.py:NAME|help",
            f"(default: what was chosen for the model, else {presets.PUBLISHED}, the published numbers)",
        ),
    ] = None
    sampler_config: Annotated[Text, flag("take both from this file instead", "FILE.toml")] = None


@dataclass(frozen=True)
class LengthFlags:
    """How far an answer goes, and by which random numbers."""

    max_new_tokens: Annotated[int, flag(_help("max_new_tokens"), "N", None)] = GenerateConfig.max_new_tokens
    stop: Annotated[
        UseAppendAction[tuple[str, ...]],
        flag("end where this text appears, and leave it out", "TEXT", "(repeatable)"),
    ] = ()
    ignore_stop_tokens: Annotated[bool, flag(_help("ignore_stop_tokens"))] = False
    seed: Annotated[int, flag(_help("seed"), "N", "(default: a random one, printed)")] = field(
        default_factory=lambda: secrets.randbits(32)
    )


@dataclass(frozen=True)
class OutputFlags:
    """What is shown and written."""

    color: Annotated[
        str,
        flag(
            "what a token's colour shows: strategy, or a metric as named in traces, like logits_entropy; when there "
            "are colours: auto (on a terminal, unless NO_COLOR is set), always or never; both as in always,top_prob",
            "WHAT|WHEN",
            "(default: strategy,auto)",
        ),
    ] = "auto"
    live: Annotated[
        bool, flag("no line of strategies and speed below the answer while it comes (only on terminals)")
    ] = True
    json: Annotated[bool, flag("print one JSON object a prompt on stdout")] = False
    hide_thinking: Annotated[
        bool,
        flag(
            "leave the thinking (<think> ... </think>) with which a reasoning model begins out of the printed answer; "
            "--json, traces and tables have it"
        ),
    ] = False
    stats: Annotated[bool, flag("print cost, strategy counts and mean metrics on stderr")] = False
    trace: Annotated[
        Text,
        flag("write every token with all its metrics to this file (see docs/trace.md)", "FILE.jsonl"),
    ] = None
    table: Annotated[
        Text,
        flag(
            "write the same tokens as a table, a row each, CSV or Parquet by the ending",
            "FILE.csv|FILE.parquet",
        ),
    ] = None
    dump_config: Annotated[
        Text,
        flag(
            "write the rule and all its numbers that are in force as a preset, for --sampler-config",
            "FILE.toml",
        ),
    ] = None
    alternatives: Annotated[
        int, flag(f"into the trace: {_help('alternatives')}, before and after filtering", "N", None)
    ] = GenerateConfig.alternatives
    head_entropies: Annotated[bool, flag(f"into the trace: {_help('head_entropies')}")] = False


@dataclass(frozen=True)
class ModelFlags:
    """Which model, and how it is run."""

    weights: Weights = None
    adapter: Adapter = None
    dtype: Dtype = None
    speculate: Annotated[int, flag(_help("speculate"), "K", None)] = GenerateConfig.speculate
    profile: Annotated[
        Text,
        flag(
            "generate once unseen, so that all is compiled, then again with a trace for XProf in here", "DIR"
        ),
    ] = None


@dataclass(frozen=True)
class Flags:
    """All groups but that of the sampler, whose numbers are flags too. The later ones are told by --help-all alone."""

    ask: Annotated[AskFlags, arg(name="reading of the prompt")] = field(default_factory=AskFlags)
    length: Annotated[LengthFlags, arg(name="length and seed")] = field(default_factory=LengthFlags)
    output: Annotated[OutputFlags, arg(name="output")] = field(default_factory=OutputFlags)
    model: Annotated[ModelFlags, arg(name="model")] = field(default_factory=ModelFlags)
    paths: Annotated[PathFlags, arg(name="parallel paths")] = field(default_factory=PathFlags)
    branches: Annotated[BranchFlags, arg(name="branching")] = field(default_factory=BranchFlags)
    backtracks: Annotated[BacktrackFlags, arg(name="backtracking")] = field(default_factory=BacktrackFlags)
    devices: Annotated[DeviceFlags, arg(name="devices")] = field(default_factory=DeviceFlags)


_PLAIN, _LATER = ("ask", "length", "output", "model"), ("paths", "branches", "backtracks", "devices")
GENERAL = frozenset(name for flags in (Flags, Preset) for name in words.known(flags))


def flat(flags: Any) -> Any:
    """The flags by name; those of the sampler, of paths, branching, backtracking and devices stay groups."""
    together = {name: value for group in _PLAIN for name, value in vars(getattr(flags, group)).items()}
    return SimpleNamespace(**together, **{name: getattr(flags, name) for name in ("sampler", *_LATER)})


def all_flags(chosen: ResolvedSampler, brief: bool) -> type:
    """`Flags` with the preset and one flag for each number of the rule behind what is asked, whose defaults are the
    preset's, as are those of branching and backtracking; brief: for a help without the later groups."""
    fields, hints = samplers.parameters(chosen.rule.config), get_type_hints(chosen.rule.config)
    if taken := [field.name for field in fields if cli.spelled(field.name) in GENERAL]:
        raise ValueError(
            f"{chosen.label}: there is a flag {cli.spelled(taken[0])} already; rename that number"
        )
    numbers: list[Any] = [
        (
            f.name,
            Annotated[hints[f.name], arg(help=cli.describe(f.metadata))],
            getattr(chosen.numbers, f.name),
        )
        for f in fields
    ]
    group = dataclasses.make_dataclass("SamplerFlags", numbers, bases=(Preset,), frozen=True)
    about = (
        f"Defaults are those of {chosen.label!r}, whose numbers these are; another --sampler has others. Filters apply "
        "in the order temperature, min-p, top-k, top-p."
    )
    kinds: Any = get_type_hints(Flags, include_extras=True)
    hidden: Any = tyro.conf.Suppress
    looking: dict[str, Callable[[], Any]] = {
        "branches": lambda: branch_flags(chosen.branching),
        "backtracks": lambda: backtrack_flags(chosen.backtracking),
    }
    groups: list[Any] = [
        (
            own.name,
            hidden[kinds[own.name]] if brief and own.name in _LATER else kinds[own.name],
            field(default_factory=looking.get(own.name, own.default_factory)),
        )
        for own in dataclasses.fields(Flags)
    ]
    sampler = ("sampler", Annotated[group, arg(name="sampler", help=about)], field(default_factory=group))
    return dataclasses.make_dataclass("AllFlags", [groups[0], sampler, *groups[1:]], frozen=True)
