"""The command line: `python -m entropix.main --prompt "Why is the sky blue?"`.

The answer goes to stdout, everything else to stderr. With several prompts, each answer comes whole after a
line `==> prompt 1 <==`; scripts take `--json`, one object a prompt. Both are in the order of the prompts.

Exit codes: 0 all prompts were answered; 1 bad input, or logits that were not finite; 2 bad flags; 130 Ctrl-C,
after printing what there was.
"""

import codecs
import dataclasses
import json
import math
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_type_hints

import tyro
from tyro.conf import UseAppendAction, arg

from entropix import cli, config
from entropix.config import GenerateConfig, SamplerConfig

_PROG = "python -m entropix.main"
_DESCRIPTION = "Answer prompts with a language model, each token chosen by how uncertain the model is."
_DEFAULT_SAMPLER = "entropix"

# Text as it is typed. (For an optional string tyro would take the word None to mean no string.)
_TEXT = tyro.constructors.PrimitiveConstructorSpec(
    nargs=1,
    metavar="TEXT",
    instance_from_str=lambda words: words[0],
    is_instance=lambda value: value is None or isinstance(value, str),
    str_from_instance=lambda value: [str(value)],
)
_Text = Annotated[str | None, _TEXT]
_SOURCE = tyro.conf.create_mutex_group(required=True)


def _flag(help: str, metavar: str | None = None, hint: str | None = "") -> Any:
    """Documentation of a flag. `hint` tells its default: None for the value itself, nothing by default."""
    return arg(help=help, metavar=metavar, help_behavior_hint=hint)


@dataclass(frozen=True)
class Flags:
    """What can be asked for, except of the sampler."""

    prompt: Annotated[_Text, _SOURCE, _flag("the prompt; - reads it from standard input", "TEXT|-")] = None
    prompt_file: Annotated[
        _Text,
        _SOURCE,
        _flag(
            'a file with one prompt a line or, if its name ends in .jsonl, {"prompt": "..."} or '
            '{"messages": [...]} a line; all are answered in one batch',
            "FILE",
        ),
    ] = None
    chat: Annotated[bool, _SOURCE, _flag("talk with the model, line by line; /exit ends")] = False

    weights: Annotated[
        _Text,
        _flag("a name below weights/ or a checkpoint folder", "NAME|DIR", "(default: smollm2-135m-instruct)"),
    ] = None
    dtype: Annotated[
        _Text,
        _flag("of the weights", "float32|bfloat16|float16", "(default: float32 on CPU, else bfloat16)"),
    ] = None
    seed: Annotated[int, _flag("repeats a generation; always printed", "N", "(default: a random one)")] = (
        field(default_factory=lambda: secrets.randbits(32))
    )
    max_new_tokens: Annotated[int, _flag("most tokens to generate for one prompt, at least 1", "N", None)] = (
        GenerateConfig.max_new_tokens
    )
    stop: Annotated[
        UseAppendAction[tuple[str, ...]],
        _flag("end where this text appears, and leave it out", "TEXT", "(repeatable)"),
    ] = ()
    speculate: Annotated[
        int,
        _flag(
            "draft this many tokens from the text itself, 0 to 15; changes the speed, not the text", "K", None
        ),
    ] = GenerateConfig.speculate
    system: Annotated[_Text, _flag("a system message before the prompt")] = None
    raw: Annotated[bool, _flag("continue the prompt as plain text, without a chat template")] = False
    allow_special: Annotated[bool, _flag("names of special tokens in the prompt become these tokens")] = False

    color: Annotated[
        Literal["auto", "always", "never"],
        _flag("colour tokens by strategy; auto: on a terminal, unless NO_COLOR is set", hint=None),
    ] = "auto"
    stats: Annotated[bool, _flag("print speed, strategy counts and mean metrics on stderr")] = False
    trace: Annotated[
        _Text,
        _flag("write every token with all its metrics to this file (see docs/trace.md)", "FILE.jsonl"),
    ] = None
    alternatives: Annotated[
        int,
        _flag("into the trace: the likeliest tokens at every step, before and after filtering", "N", None),
    ] = GenerateConfig.alternatives
    head_entropies: Annotated[bool, _flag("into the trace: the attention entropy of every head")] = False
    json: Annotated[bool, _flag("print one JSON object a prompt on stdout")] = False


@dataclass(frozen=True)
class Preset:
    """Which rule, and where its numbers come from."""

    sampler: Annotated[
        _Text,
        _flag(
            f"a rule with its preset: {', '.join(config.preset_names('samplers'))}; help describes them",
            "NAME|help",
            f"(default: {_DEFAULT_SAMPLER})",
        ),
    ] = None
    sampler_config: Annotated[_Text, _flag("take both from this file instead", "FILE.toml")] = None


class Command(NamedTuple):
    """A command line, understood."""

    flags: Flags
    sampler: str  # a preset or a TOML file
    sampler_config: SamplerConfig


def main(args: Sequence[str] | None = None) -> None:
    """Does what the flags (by default those of the process) say. Raises a ValueError for bad input."""
    flags, sampler, sampler_config = parse(sys.argv[1:] if args is None else args)
    prompts = read_prompts(flags)
    options: dict[str, Any] = {
        "sampler": sampler,
        "sampler_config": sampler_config,
        "allow_special": flags.allow_special,
        "max_new_tokens": flags.max_new_tokens,
        "seed": flags.seed,
        "stop": flags.stop,
        "speculate": flags.speculate,
        "alternatives": flags.alternatives,
        "head_entropies": flags.head_entropies,
    }

    # These compile and load; what is wrong so far was said without waiting for them.
    from entropix import backend, generation, loading, samplers, terminal, trace

    try:
        samplers.get(config.read_preset(sampler)[0])
    except ValueError as error:
        raise ValueError(f"{sampler}: {error}") from None
    backend.use_compilation_cache()
    if not flags.json and len(prompts) < 2:
        options["chunk_length"] = terminal.STREAM_CHUNK
    show = terminal.Show(
        flags.color, flags.stats, flags.json, None if flags.trace is None else Path(flags.trace)
    )
    if show.trace is not None:
        trace.check_writable(show.trace)
    with terminal.status("loading the weights"):
        model = loading.load(loading.DEFAULT_MODEL if flags.weights is None else flags.weights, flags.dtype)
    terminal.note(f"seed: {flags.seed}")
    if flags.chat:
        terminal.chat(model, flags.system, options, show)
        return
    results = terminal.answer(
        generation.prepare(model, prompts, system=flags.system, raw=flags.raw, **options), show
    )
    if any(result.finish.name == "INTERRUPTED" for result in results):
        raise KeyboardInterrupt


# ----- flags ------------------------------------------------------------------------------------------------


def parse(args: Sequence[str]) -> Command:
    """All flags, read twice: first the preset, which has the sampler's defaults; then everything.

    Raises a ValueError for values out of range and for flags that contradict each other. Ends the process
    with 2 for unknown flags and values of the wrong type, with 0 after --help and --sampler help.
    """
    preset, _ = tyro.cli(Preset, prog=_PROG, args=args, add_help=False, return_unknown_args=True)
    if preset.sampler == "help":
        print(_describe_samplers())
        sys.exit(0)
    source = choose_preset(preset)
    _, defaults = config.read_preset(source)
    flags: Any = tyro.cli(
        _all_flags(source, defaults),
        prog=_PROG,
        description=_DESCRIPTION,
        args=args,
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
    )
    numbers = {f.name: getattr(flags.sampler, f.name) for f in dataclasses.fields(SamplerConfig)}
    command = Command(flags, source, config.from_mapping(SamplerConfig, numbers, "flags"))
    _check(flags)
    return command


def choose_preset(preset: Preset) -> str:
    """The preset or TOML file that is meant; a ValueError if the two flags contradict each other."""
    if preset.sampler_config is None:
        return _DEFAULT_SAMPLER if preset.sampler is None else preset.sampler
    if not preset.sampler_config.endswith(".toml"):
        raise ValueError(
            f"--sampler-config takes a .toml file, got {preset.sampler_config!r}; presets go to --sampler"
        )
    if preset.sampler is not None:
        wanted, found = (config.read_preset(name)[0] for name in (preset.sampler, preset.sampler_config))
        if wanted != found:
            raise ValueError(
                f"--sampler {preset.sampler} contradicts {preset.sampler_config}, whose rule is {found!r}; "
                "drop one of them"
            )
    return preset.sampler_config


def _all_flags(source: str, defaults: SamplerConfig) -> type:
    """`Flags` with one more group: the preset, and one flag for each field of `SamplerConfig`."""
    hints = get_type_hints(SamplerConfig)
    numbers: list[Any] = [
        (f.name, Annotated[hints[f.name], arg(help=_describe(f.metadata))], getattr(defaults, f.name))
        for f in dataclasses.fields(SamplerConfig)
    ]
    group = dataclasses.make_dataclass("SamplerFlags", numbers, bases=(Preset,), frozen=True)
    about = (
        f"Defaults are those of {source!r}. Filters apply in the order temperature, min-p, top-k, top-p. "
        "A sampler ignores the numbers it has no use for."
    )
    sampler = ("sampler", Annotated[group, arg(help=about)], field(default_factory=group))
    return dataclasses.make_dataclass("AllFlags", [sampler], bases=(Flags,), frozen=True)


def _describe_samplers() -> str:
    """A line for each preset, with the rule's own summary."""
    from entropix import samplers

    names = config.preset_names("samplers")
    width = max(map(len, names))
    return "\n".join(f"{name:{width}}  {samplers.get(config.read_preset(name)[0]).summary}" for name in names)


def _describe(metadata: Mapping[str, Any]) -> str:
    """Help, unit and range of a field."""
    low, high, unit = metadata["low"], metadata["high"], metadata["unit"]
    extent = f"at least {low:g}" if high >= 2**31 - 1 else f"{low:g} to {high:g}"
    facts = ([unit] if unit else []) + ([] if math.isinf(low) else [extent])
    return metadata["help"] + (f" [{', '.join(facts)}]" if facts else "")


def _check(flags: Flags) -> None:
    """Raises a ValueError for values that no model and no prompt could make right."""
    shared = [f.name for f in dataclasses.fields(GenerateConfig) if hasattr(flags, f.name)]
    config.from_mapping(GenerateConfig, {name: getattr(flags, name) for name in shared}, "flags")
    for name in ("alternatives", "head_entropies"):
        if getattr(flags, name) and flags.trace is None:
            raise ValueError(f"--{name.replace('_', '-')} goes into the trace; give --trace FILE.jsonl too")
    for name in ("prompt", "system", "stop"):
        text = getattr(flags, name) or ""
        try:
            "".join(text).encode()
        except UnicodeEncodeError:
            raise ValueError(f"--{name} is not valid UTF-8; check the encoding of your terminal") from None
    if flags.raw and flags.chat:
        raise ValueError("--raw completes plain text, but --chat is a conversation; drop one of them")
    if flags.raw and flags.system is not None:
        raise ValueError("--raw completes plain text, which has no --system message; drop one of them")


# ----- prompts ----------------------------------------------------------------------------------------------


def read_prompts(flags: Flags) -> list[Any]:
    """The prompts that the flags name, each a text or a list of messages; none for a chat."""
    if flags.chat:
        return []
    if flags.prompt == "-":
        return [_decode(sys.stdin.buffer.read(), "standard input").removesuffix("\n").removesuffix("\r")]
    if flags.prompt is not None:
        return [flags.prompt]
    assert flags.prompt_file is not None
    path = Path(flags.prompt_file)
    try:
        text = _decode(path.read_bytes(), str(path))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    lines = [
        (number, line.rstrip("\r")) for number, line in enumerate(text.split("\n"), start=1) if line.strip()
    ]
    if not lines:
        raise ValueError(f"{path}: there is no prompt in this file")
    if path.suffix != ".jsonl":
        return [line for _, line in lines]
    prompts = [_parse_line(line, f"{path}: line {number}") for number, line in lines]
    for (number, _), prompt in zip(lines, prompts, strict=True):
        if not isinstance(prompt, str) and (flags.raw or flags.system is not None):
            raise ValueError(
                f"{path}: line {number} is a conversation, to which --raw and --system do not apply"
            )
    return prompts


def _decode(data: bytes, where: str) -> str:
    """Strictly UTF-8, without a byte order mark."""
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        raise ValueError(
            f"{where}: line {line} is not UTF-8 (its byte {column} is 0x{data[error.start]:02x}); "
            "save it as UTF-8"
        ) from None


def _parse_line(line: str, where: str) -> str | list[dict[str, str]]:
    """The prompt in a line of a .jsonl file."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error})") from None
    found = [key for key in ("prompt", "messages") if isinstance(value, dict) and key in value]
    if len(found) != 1:
        raise ValueError(f'{where}: expected {{"prompt": "..."}} or {{"messages": [...]}}, got {line[:80]}')
    prompt = value[found[0]]
    if found == ["prompt"] and not isinstance(prompt, str):
        raise ValueError(f"{where}: prompt must be a string, got {prompt!r}")
    if found == ["messages"] and not _is_conversation(prompt):
        raise ValueError(f'{where}: messages must be a list of {{"role": "...", "content": "..."}}')
    if not prompt:
        raise ValueError(f"{where}: the prompt is empty")
    return prompt


def _is_conversation(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))
        for message in value
    )


if __name__ == "__main__":
    sys.exit(cli.run(main))
