"""The command line: `python -m entropix.main --prompt "Why is the sky blue?"`.

The answer goes to stdout, everything else to stderr. With several prompts, each answer comes whole after a
line `==> prompt 1 <==`; scripts take `--json`, one object a prompt. Both come in the order of the prompts; with
`--as-completed`, as they end. With `--cot`, `--best-of` or `--self-consistency` each prompt's answer is chosen from
several paths.

Exit codes: 0 all prompts were answered; 1 bad input, or logits that were not finite; 2 flags that cannot be parsed;
128 + n after signal n (130 for Ctrl-C), once what there was is printed.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from entropix import config, distributed, files, presets, prompts, samplers, tables
from entropix.config import GenerateConfig
from entropix.console import cli, coloring, signals
from entropix.console.cli import Weights
from entropix.console.main_flags import GENERAL, Preset, all_flags, flat
from entropix.console.path_flags import read_plan
from entropix.console.search_flags import read_backtracking, read_branching
from entropix.cot.plan import Plan
from entropix.paths import DEFAULT_MODEL
from entropix.results import FinishReason
from entropix.samplers import ResolvedSampler

if TYPE_CHECKING:
    from entropix.decoding.request import GenerationRequest

_PROG = "python -m entropix.main"
_DESCRIPTION = """Answer prompts with a language model, each token chosen by how uncertain the model is.

  entropix --prompt "Why is the sky blue?" --stats
  entropix --prompt "Why is the sky blue?" --sampler min-p --min-p 0.05 --seed 1 --trace sky.jsonl
  entropix --prompt-file prompts.txt --json

Numbers of other rules: --sampler NAME --help; what each rule does: --sampler help."""
_MORE = "\n\n--help-all tells of several paths, branching, backtracking and devices too."
ALL_HELP = "--help-all"


@dataclass(frozen=True)
class _First(Preset):
    """What must be known before the other flags can be read."""

    weights: Weights = None


class Command(NamedTuple):
    """A command line, understood."""

    flags: Any  # `main_flags.flat`
    sampler: ResolvedSampler  # with the numbers that flags gave
    given: tuple[str, ...]  # flags that are no general ones, as fields
    generation: GenerateConfig
    plan: Plan | None  # of several paths
    color: coloring.Choice

    def as_toml(self) -> Iterator[str]:
        """The lines of a preset that does the same without flags."""
        asked = {name: getattr(self.generation, name) for name in config.LOOKING}
        looking: dict[str, Any] = {
            name: None if own == config.LOOKING[name]() else own for name, own in asked.items()
        }
        return dataclasses.replace(self.sampler, **looking).as_toml()

    def note_default(self, note: Callable[[str], None]) -> None:
        """A line about numbers that were chosen for the model, where nobody has named any."""
        preset = self.flags.sampler
        label = self.sampler.label
        if preset.sampler is None and preset.sampler_config is None and label != presets.PUBLISHED:
            note(
                f"sampler: {label}, chosen for this model; --sampler {presets.PUBLISHED} has the published numbers"
            )


def main(args: Sequence[str] | None = None, prog: str = _PROG) -> None:
    """Does what the flags (by default those of the process) say. Raises a ValueError for bad input.

    prog: what is typed to start the command.
    """
    command = parse(sys.argv[1:] if args is None else args, prog)
    flags, plan = command.flags, command.plan
    samplers.check_guard(command.given, command.sampler.numbers, "flags", cli.spelled)
    arguments = cli.template_args(flags.template_arg)
    cli.join(flags, apart=["seed"])
    seed = distributed.from_first(lambda: flags.seed)
    asked = distributed.from_first(lambda: _read_prompts(flags))
    options: dict[str, Any] = {
        "sampler": command.sampler,
        "allow_special": flags.allow_special,
        **vars(command.generation),
        "seed": seed,
    }

    # These compile and load; what is wrong so far was said without waiting for them.
    from entropix import backend, generation
    from entropix.console import chat, terminal

    backend.use_compilation_cache()
    if not flags.json and len(asked) < 2 and plan is None:
        options["chunk_length"] = terminal.STREAM_CHUNK
    show = terminal.Show(
        color=command.color,
        live=flags.live,
        stats=flags.stats,
        json=flags.json,
        hide_thinking=flags.hide_thinking,
        as_completed=flags.as_completed,
        trace=None if flags.trace is None else Path(flags.trace),
        table=None if flags.table is None else Path(flags.table),
    )
    distributed.from_first(lambda: _check_outputs(flags))
    if flags.dump_config is not None:
        files.write_text(flags.dump_config, [f"{line}\n" for line in command.as_toml()], "a preset")
    model = terminal.load(flags.weights, flags.dtype, flags.devices, arguments, flags.adapter)
    command.note_default(terminal.note)
    if flags.chat:
        chat.chat(model, flags.system, options, show)
        return
    if flags.allow_special and (flags.raw or model.chat_template is None):
        terminal.note_beginning(model, asked)
    job = generation.prepare(model, asked, system=flags.system, raw=flags.raw, **options)
    terminal.note(f"seed: {seed}")
    if flags.profile is not None:
        with terminal.status("compiling"):
            _generate_unseen(job, command)
    with backend.profile(flags.profile):
        if plan is None:
            interrupted = any(
                result.finish == FinishReason.INTERRUPTED
                for result in terminal.answer(job, show, most_rows=flags.batch_size)
            )
        else:
            from entropix.console import paths

            interrupted = any(
                result.interrupted for result in paths.answer(job, plan, show, flags.batch_size)
            )
    if interrupted:
        raise signals.ended()


def _read_prompts(flags: Any) -> list[prompts.PromptText]:
    """The prompts that the flags name; none for a chat."""
    if flags.chat:
        return []
    if flags.prompt_file is not None:
        return prompts.from_file(flags.prompt_file, flags.system, flags.raw)
    assert flags.prompt is not None
    return [prompts.from_stdin() if flags.prompt == "-" else flags.prompt]


def _generate_unseen(job: "GenerationRequest", command: Command) -> None:
    """Compiles everything that the generation needs."""
    from entropix.cot import parallel
    from entropix.decoding import batching

    if command.plan is not None:
        for _ in parallel.run_all(job, command.plan, most_rows=command.flags.batch_size):
            pass
        return
    for _ in batching.ContinuousBatch(job, command.flags.batch_size).run():
        pass


def _check_outputs(flags: Any) -> None:
    """Raises a ValueError where something could not be written in the end, or would replace what is read."""
    from entropix import backend

    if flags.dump_config is not None and not flags.dump_config.endswith(".toml"):
        raise ValueError(f"--dump-config takes the name of a .toml file, got {flags.dump_config!r}")
    if flags.trace is not None:
        files.check_writable(flags.trace, "a trace")
        files.check_not_read(flags.trace, [flags.prompt_file] if flags.prompt_file else [])
    tables.check(flags.table)
    if flags.profile is not None:
        backend.make_profile_folder(flags.profile)


# ----- flags ------------------------------------------------------------------------------------------------


def parse(args: Sequence[str], prog: str = _PROG) -> Command:
    """All flags, read twice: first the preset, which has the sampler's defaults; then everything.

    Raises a ValueError for values out of range and for flags that contradict each other. Ends the process
    with 2 for unknown flags and values of the wrong type, with 0 after --help and --sampler help.
    """
    preset, _ = cli.read_words(_First, prog=prog, args=args, add_help=False, return_unknown_args=True)
    if preset.sampler == "help":
        print(_describe_samplers())
        sys.exit(0)
    sampler = choose_preset(preset, DEFAULT_MODEL if preset.weights is None else preset.weights)
    given = [arg.partition("=")[0] for arg in args if arg.startswith("--")]
    of_rules = [
        name.removeprefix("--").replace("-", "_") for name in given if name not in {ALL_HELP, *GENERAL}
    ]
    samplers.check_names(of_rules, sampler.rule, "flags", cli.spelled)
    brief = ALL_HELP not in args and bool({"--help", "-h"} & {*args})
    words = ["--help" if word == ALL_HELP else word for word in args]
    flags = flat(
        cli.parse(all_flags(sampler, brief), words, prog, _DESCRIPTION + (_MORE if brief else ""), True)
    )
    numbers = {name: getattr(flags.sampler, name) for name in vars(sampler.numbers)}
    sampler = sampler.changed(numbers, "flags")
    plan = read_plan(flags.paths)
    _check(flags, plan)
    return Command(
        flags=flags,
        sampler=sampler,
        given=tuple(of_rules),
        generation=_generation(flags, sampler),
        plan=plan,
        color=coloring.read_choice(flags.color),
    )


def choose_preset(preset: Preset, weights: str = "") -> ResolvedSampler:
    """The rule that is meant, with the numbers of its preset, by default those chosen for these weights.

    Raises a ValueError if the two flags contradict each other.
    """
    if preset.sampler_config is None:
        return samplers.resolve(presets.for_model(weights) if preset.sampler is None else preset.sampler)
    if not preset.sampler_config.endswith(".toml"):
        raise ValueError(
            f"--sampler-config takes a .toml file, got {preset.sampler_config!r}; presets go to --sampler"
        )
    if preset.sampler is not None:
        wanted, found = map(samplers.resolve, (preset.sampler, preset.sampler_config))
        if wanted.rule != found.rule:
            raise ValueError(
                f"--sampler {preset.sampler} contradicts {preset.sampler_config}, whose rule is {found.name!r}; "
                "drop one of them"
            )
        return found
    return samplers.resolve(preset.sampler_config)


def _describe_samplers() -> str:
    """A line for each preset, and where to read more."""
    names = samplers.names()
    width = max(map(len, names))
    lines = [f"{name:{width}}  {samplers.about(name)}" for name in names]
    return "\n".join([*lines, "", "Formulas, numbers and sources: docs/samplers.md"])


def _generation(flags: Any, sampler: ResolvedSampler) -> GenerateConfig:
    """What the flags say about generation; those named like its fields, and the groups that are its parts."""
    named = [f.name for f in dataclasses.fields(GenerateConfig) if hasattr(flags, f.name)]
    values = {name: getattr(flags, name) for name in named}
    parts = {
        "branching": read_branching(flags.branches, sampler.branching),
        "backtracking": read_backtracking(flags.backtracks, sampler.backtracking),
    }
    return config.from_mapping(GenerateConfig, values | parts, "flags")


def _check(flags: Any, plan: Plan | None) -> None:
    """Raises a ValueError for flags that no model and no prompt could make right."""
    if plan is not None and flags.chat:
        raise ValueError(
            "--chat is a conversation, but several paths start from one prompt; drop one of them"
        )
    if flags.batch_size < 1:
        raise ValueError(f"--batch-size must be at least 1, got {flags.batch_size}")
    if flags.batch_size != config.BATCH_ROWS and flags.prompt_file is None:
        raise ValueError("--batch-size changes nothing without --prompt-file, which has several prompts")
    if flags.as_completed and (flags.prompt_file is None or plan is not None):
        raise ValueError(
            "--as-completed is for a --prompt-file with one answer a prompt; paths are chosen from in order"
        )
    for name in ("alternatives", "head_entropies"):
        if getattr(flags, name) and flags.trace is None:
            raise ValueError(f"{cli.spelled(name)} goes into the trace; give --trace FILE.jsonl too")
    for name in ("prompt", "system", "stop"):
        text = getattr(flags, name) or ""
        try:
            "".join(text).encode()
        except UnicodeEncodeError:
            raise ValueError(f"--{name} is not valid UTF-8; check the encoding of your terminal") from None
    for name, given in (("--distributed", flags.devices.distributed), ("--profile", flags.profile)):
        if given and flags.chat:
            raise ValueError(f"{name} does not go together with --chat; give a --prompt or a --prompt-file")
    if flags.raw and flags.chat:
        raise ValueError("--raw completes plain text, but --chat is a conversation; drop one of them")
    if flags.raw and flags.system is not None:
        raise ValueError("--raw completes plain text, which has no --system message; drop one of them")


if __name__ == "__main__":
    cli.leave(cli.run(main))
