"""Choose a rule's numbers for a model: `python -m entropix.calibrate --out FILE.toml`.

`--by answers` chooses the numbers of any rule by what the answers to tasks are worth, on development items, and says
what they are worth on held-out ones, beside plain rules that were tuned with the same budget (`calibration.answers`).

Without it, thresholds of an entropix rule are fitted to how often each strategy shall be used. The model reads a text
and, at temperature 1 with nothing filtered, answers prompts; the metrics of both are the observations. By default these
are the corpus and the prompts that come with this package; `--text` uses only a text of yours, `--prompts` only the
model's answers to prompts of yours. `calibration.thresholds` says how the five thresholds follow from the wished
frequencies.

Frequencies are those on the observations. A generation with the new thresholds walks its own way through a model: where
there are prompts, the rule answers them too, with the reference and with the fitted thresholds, and its own frequencies
are reported beside the others.

Exit codes: 0 done; 1 bad input; 2 bad flags.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import arg

from entropix import config, distributed, files, presets, prompts, samplers, tables
from entropix.console import cli
from entropix.console.cli import Adapter, DeviceFlags, Dtype, TableFile, TemplateArg, Text, Weights, flag
from entropix.lab.calibration.targets import Targets, check_targets, check_thresholds
from entropix.showing import suggestion

if TYPE_CHECKING:
    from entropix.checkpoint.loading import Model
    from entropix.lab.calibration.answers import Outcome
    from entropix.lab.calibration.plan import Plan
    from entropix.samplers import ResolvedSampler

_PROG = "python -m entropix.calibrate"
_DESCRIPTION = (
    "Choose a rule's numbers for a model: by what its answers are worth (--by answers), or the thresholds of an "
    "entropix rule by how often each strategy shall be used."
)
_QUICK: dict[str, Any] = {"items": 12, "budget": 300, "opponents": "temperature"}  # what --quick asks for
_MOST = {"items": 100_000, "seeds": 1_000, "budget": 10**9, "passes": 10**12, "batch": 10_000}
_LAST_SEED = 2**32 - 1
_NOT_KEPT = "nothing was kept; with --journal FILE the same command could go on"
TEXT, PROMPTS = "calibration.txt", "calibration-prompts.txt"  # in configs/: what is observed by default


@dataclass(frozen=True)
class AnswerFlags:
    """What --by answers asks, and how much of it."""

    tasks: Annotated[str, flag("tasks, as in docs/tasks.md, with commas between", "NAMES", None)] = (
        "questions,sets"
    )
    items: Annotated[int, flag("items of each task, in each split", "N", None)] = 60
    seeds: Annotated[int, flag("answers to each item", "N", None)] = 3
    budget: Annotated[int, flag("answers for each rule that is tuned", "N", None)] = 3_000
    passes: Annotated[
        int | None, flag("forward passes for each rule that is tuned, instead of --budget answers", "N")
    ] = None
    loss: Annotated[
        float,
        flag(
            "right answers that coverage, and texts that end, may cost, as a share, against greedy ones [0 to 1]",
            "SHARE",
            None,
        ),
    ] = 0.03
    opponents: Annotated[str, flag("rules that are tuned too, with commas between", "NAMES", None)] = (
        "temperature,min-p,top-p"
    )
    free: Annotated[
        Text,
        flag(
            "what to choose: numbers of the rule, branching.paths, .depth or .entropy, backtracking.tokens, or all of "
            "numbers, branching, backtracking (default: numbers, which are the rule's but those of the guard)",
            "NAMES",
        ),
    ] = None
    at_most: Annotated[
        Text, flag("the largest shares of tokens that strategies may have, as clarify=0.01", "NAME=SHARE,...")
    ] = None
    batch: Annotated[int, flag("most answers to compute together", "N", None)] = 32
    quick: Annotated[bool, flag("a ninth of it, beside temperature alone, to see how it goes")] = False
    ablate: Annotated[
        bool,
        flag("search nothing: say on held-out items what each part of the rule brings (--plot draws it)"),
    ] = False
    page: Annotated[Text, flag("show every candidate on a page here", "FILE.html")] = None
    journal: Annotated[
        Text, flag("keep what was tried; the same command goes on from there", "FILE.jsonl")
    ] = None


@dataclass(frozen=True)
class Flags:
    """What can be asked for."""

    sampler: Annotated[
        str,
        flag("a rule; for frequencies, one with the five thresholds", "NAME|FILE.toml|FILE.py:NAME", None),
    ] = "entropix"
    by: Annotated[str, flag("what numbers are chosen by", "frequencies|answers", None)] = "frequencies"
    answers: Annotated[AnswerFlags, arg(name="by answers")] = field(default_factory=AnswerFlags)
    weights: Weights = None
    adapter: Adapter = None
    dtype: Dtype = None
    devices: Annotated[DeviceFlags, arg(name="devices")] = field(default_factory=DeviceFlags)
    text: Annotated[Text, flag("observe the model reading this text, and nothing else", "FILE")] = None
    prompts: Annotated[
        Text,
        flag(
            "observe the model answering these prompts (as for --prompt-file), nothing else",
            "FILE",
        ),
    ] = None
    flow: Annotated[float, flag("wished share of flow [0 to 1]", "SHARE", None)] = Targets().flow
    clarify: Annotated[float, flag("wished share of clarify [0 to 1]", "SHARE", None)] = Targets().clarify
    explore: Annotated[float, flag("wished share of explore [0 to 1]", "SHARE", None)] = Targets().explore
    resample: Annotated[float, flag("wished share of resample [0 to 1]", "SHARE", None)] = Targets().resample
    max_new_tokens: Annotated[int, flag("most tokens of an answer [tokens, at least 1]", "N", None)] = 128
    seed: Annotated[int, flag("of the answers [0 to 4294967295]", "N", None)] = 0
    template_arg: TemplateArg = ()
    out: Annotated[Text, flag("write the preset here", "FILE.toml")] = None
    plot: Annotated[
        Text, flag("draw the observations and the strategies here", "FILE.png|FILE.svg|FILE.pdf")
    ] = None
    table: TableFile = None


def main(args: Sequence[str] | None = None, prog: str = _PROG) -> None:
    """Does what the flags (by default those of the process) say. Raises a ValueError for bad input."""
    flags = cli.parse(Flags, args, prog, _DESCRIPTION)
    cli.join(flags)
    if flags.by not in ("frequencies", "answers"):
        raise ValueError(f"--by takes frequencies or answers, got {flags.by!r}")
    cli.template_args(flags.template_arg)  # what is wrong with them is said before all else
    if flags.by == "answers":
        _by_answers(flags)
        return
    for one in fields(AnswerFlags):
        if getattr(flags.answers, one.name) != one.default:
            raise ValueError(f"--{one.name.replace('_', '-')} is for --by answers; add that, or leave it out")
    _perform(flags)


def _load(flags: Flags) -> "Model":
    from entropix.console import terminal

    arguments = cli.template_args(flags.template_arg)
    return terminal.load(flags.weights, flags.dtype, flags.devices, arguments, flags.adapter)


def _by_answers(flags: Flags) -> None:
    asked = flags.answers
    unused = {"text": flags.text, "prompts": flags.prompts}
    unused |= (
        {"out": flags.out, "journal": asked.journal, "page": asked.page, "at-most": asked.at_most}
        if asked.ablate
        else {"plot": flags.plot}
    )
    for name, found in unused.items():
        if found is not None:
            raise ValueError(
                f"--{name} is not for --ablate, which chooses no numbers; --table and --plot keep what it finds"
                if name in ("out", "journal", "page", "at-most")
                else f"--{name} is for frequencies; --by answers asks the items of --tasks"
            )
    for name, most in _MOST.items():
        number = getattr(asked, name)
        if number is not None and not 1 <= number <= most:
            raise ValueError(f"--{name} must be between 1 and {most}, got {number}")
    if not 0 <= flags.seed <= _LAST_SEED - asked.seeds + 1:
        raise ValueError(
            f"--seed and --seeds must give seeds from 0 to {_LAST_SEED}, got {flags.seed} and {asked.seeds}"
        )
    if not 0 <= asked.loss <= 1:
        raise ValueError(f"--loss must be between 0 and 1, got {asked.loss}")
    distributed.from_first(lambda: _check_outputs(flags))
    sampler = samplers.resolve(flags.sampler)

    from entropix.lab import tasks
    from entropix.lab.calibration.plan import Plan

    if asked.quick:
        asked = replace(asked, **_QUICK)
    plan = Plan(
        tasks=[tasks.resolve(name) for name in asked.tasks.split(",")],
        n_items=asked.items,
        seeds=range(flags.seed, flags.seed + asked.seeds),
        budget=asked.budget if asked.passes is None else asked.passes,
        in_passes=asked.passes is not None,
        batch=asked.batch,
        loss=asked.loss,
        seed=flags.seed,
        opponents=[name for name in asked.opponents.split(",") if name],
        free=[name.replace("-", "_") for name in (asked.free or "").split(",") if name],
        limits=_limits(asked.at_most, sampler),
    )
    plan.check(sampler)
    (_ablate if asked.ablate else _search)(flags, sampler, plan)


def _limits(told: str | None, sampler: "ResolvedSampler") -> dict[str, float]:
    """The largest shares of strategies. Raises a ValueError for what is none."""
    found = {}
    for one in (told or "").split(",") if told else ():
        name, _, share = one.partition("=")
        if name not in sampler.rule.strategies:
            hint = suggestion(name, sampler.rule.strategies)
            raise ValueError(f"--at-most: {sampler.name} has no strategy {name!r}{hint}")
        try:
            found[name] = float(share)
        except ValueError:
            found[name] = math.nan
        if not 0 <= found[name] <= 1:
            raise ValueError(f"--at-most {one}: write a share from 0 to 1 behind the =, as {name}=0.01")
    return found


def _search(flags: Flags, sampler: "ResolvedSampler", plan: "Plan") -> None:
    from entropix import backend
    from entropix.console import terminal
    from entropix.lab.calibration import answers
    from entropix.lab.calibration.search import Journal

    backend.use_compilation_cache()
    model = _load(flags)
    kept = flags.answers.journal
    journal = None if kept is None else Journal(kept, plan.told(model, sampler))
    with _progress(plan.total(sampler, journal), plan.batch, plan.unit) as advance:
        try:
            outcome = answers.calibrate(model, sampler, plan, journal, terminal.note, advance)
        except KeyboardInterrupt:
            goes_on = "the same command goes on from there"
            terminal.note(f"what was answered is in {kept}; {goes_on}" if kept else _NOT_KEPT)
            raise
    print("\n".join(answers.report(outcome)))
    if flags.table is not None:
        tables.write(flags.table, answers.rows(outcome))
    if flags.answers.page is not None:
        _show(outcome, flags.answers.page)
    if flags.out is not None:
        files.write_text(flags.out, [f"{line}\n" for line in answers.preset(outcome)], "a preset")
        terminal.note(f"preset: {flags.out}; use it with --sampler {flags.out}")


def _show(outcome: "Outcome", path: str) -> None:
    from entropix.lab import page
    from entropix.lab.calibration import front

    title = f"Calibration of {outcome.chosen.sampler.name}"
    page.write(Path(path), title, front.about(outcome), [front.told(outcome)])


def _ablate(flags: Flags, sampler: "ResolvedSampler", plan: "Plan") -> None:
    from entropix import backend
    from entropix.lab.calibration import ablation
    from entropix.lab.tasks import HELD_OUT
    from entropix.report import figures

    items = plan.items(HELD_OUT)
    without, _ = ablation.variants(sampler)
    backend.use_compilation_cache()
    model = _load(flags)
    with _progress((1 + len(without)) * len(items) * len(plan.seeds), plan.batch) as advance:
        found = ablation.ablate(model, sampler, items, plan.seeds, plan.batch, advance)
    print("\n".join(ablation.report(found)))
    if flags.table is not None:
        tables.write(flags.table, ablation.rows(found))
    if flags.plot is not None:
        figures.save(ablation.draw(found), flags.plot)


@contextlib.contextmanager
def _progress(total: int, at_once: int, unit: str = "answers") -> Iterator[Callable[[int, str], None]]:
    """A function to call with how many more have come, and of what; stderr is told, and the time left."""
    from entropix.lab.experiments import running

    n_done, pace = 0, running.Pace(at_once)
    with running.progress(total, 0, unit) as write:

        def advance(n: int, what: str) -> None:
            nonlocal n_done
            n_done += n
            pace.add(unit, n, 0)
            write(n, what, pace.tell(max(0, total - n_done)))

        yield advance


def _perform(flags: Flags) -> None:
    targets = Targets(flags.flow, flags.clarify, flags.explore, flags.resample)
    distributed.from_first(lambda: check(flags, targets))
    sampler = samplers.resolve(flags.sampler)
    check_thresholds(sampler)
    both = flags.text is None and flags.prompts is None
    text_file = presets.shipped(TEXT) if both else flags.text
    prompts_file = presets.shipped(PROMPTS) if both else flags.prompts

    # These take their time to import; --help and bad flags do not wait for them.
    from entropix import backend
    from entropix.console import terminal
    from entropix.lab.calibration import fitting

    text = None if text_file is None else distributed.from_first(lambda: prompts.text_from_file(text_file))
    asked = None
    if prompts_file is not None:
        asked = distributed.from_first(lambda: prompts.from_file(prompts_file))
    backend.use_compilation_cache()
    model = _load(flags)
    sources = []
    if text is not None and text_file is not None:
        with terminal.status("reading the text"):
            note = distributed.from_first(lambda: fitting.file_note(text_file))
            sources.append(fitting.observe_text(model, text, note))
    if asked is not None and prompts_file is not None:
        with terminal.status("answering the prompts"):
            note = distributed.from_first(lambda: fitting.file_note(prompts_file))
            sources.append(fitting.observe_answers(model, asked, note, flags.max_new_tokens, flags.seed))
    result = fitting.fit(sources, targets, sampler)
    if asked is not None:
        with terminal.status("answering the prompts with the rule"):
            loop = fitting.observe_rule(model, asked, result, flags.max_new_tokens, flags.seed)
        result = result._replace(loop=loop)
    print("\n".join(fitting.report(result)))
    if not distributed.is_first():
        return
    if flags.plot is not None:
        fitting.draw(result, model, flags.plot)
    if flags.table is not None:
        tables.write(flags.table, fitting.rows(result))
    if flags.out is not None:
        with files.replacing(flags.out) as temporary:
            temporary.write_text("\n".join(fitting.preset(result, model)) + "\n", encoding="utf-8")


def check(flags: Flags, targets: Targets) -> None:
    """Raises a ValueError for what no model could make right."""
    if flags.text is not None and flags.prompts is not None:
        raise ValueError("--text and --prompts each say what alone to observe; drop one of them, or both")
    check_targets(targets)
    config.from_mapping(
        config.GenerateConfig, {"max_new_tokens": flags.max_new_tokens, "seed": flags.seed}, "flags"
    )
    _check_outputs(flags)


def _check_outputs(flags: Flags) -> None:
    from entropix.report import figures

    figures.check(flags.plot)
    if flags.answers.page is not None:
        files.check_writable(flags.answers.page, "a page")
    if flags.answers.journal is not None:
        files.check_writable(flags.answers.journal, "a journal")
        written = [flags.out, flags.plot, flags.table, flags.answers.page]
        files.check_not_read(flags.answers.journal, [name for name in written if name is not None])
    if flags.out is not None:
        if not flags.out.endswith(".toml"):
            raise ValueError(f"--out takes the name of a .toml file, got {flags.out!r}")
        files.check_writable(flags.out, "a preset")
    tables.check(flags.table)


if __name__ == "__main__":
    cli.leave(cli.run(main))
