"""Fit the entropix rule's thresholds to a model: `python -m entropix.calibrate --out FILE.toml`.

The model reads a text and, at temperature 1 with nothing filtered, answers prompts; the metrics of both are the
observations. By default these are the corpus and the prompts that come with this package; `--text` uses only a text of
yours, `--prompts` only the model's answers to prompts of yours. `calibration.thresholds` says how the five thresholds
follow from the wished frequencies.

Frequencies are those on the observations. A generation with the new thresholds walks its own way through a model: where
there are prompts, the rule answers them too, with the reference and with the fitted thresholds, and its own frequencies
are reported beside the others.

Exit codes: 0 done; 1 bad input; 2 bad flags.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from entropix import config, distributed, presets, prompts, samplers
from entropix.console import cli
from entropix.console.cli import DeviceFlags, Dtype, Text, Weights, flag
from entropix.lab.calibration.targets import Targets, check_targets, check_thresholds

_PROG = "python -m entropix.calibrate"
_DESCRIPTION = "Fit the thresholds of an entropix rule to a model, by how often each strategy shall be used."
TEXT, PROMPTS = "calibration.txt", "calibration-prompts.txt"  # in configs/: what is observed by default


@dataclass(frozen=True)
class Flags:
    """What can be asked for."""

    sampler: Annotated[str, flag("a rule with the five thresholds", "NAME|FILE.toml|FILE.py:NAME", None)] = (
        "entropix"
    )
    weights: Weights = None
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
    out: Annotated[Text, flag("write the preset here", "FILE.toml")] = None
    plot: Annotated[Text, flag("draw the observations and the strategies here", "FILE.png")] = None


def main(args: Sequence[str] | None = None, prog: str = _PROG) -> None:
    """Does what the flags (by default those of the process) say. Raises a ValueError for bad input."""
    flags = cli.parse(Flags, args, prog, _DESCRIPTION)
    cli.join(flags)
    _perform(flags)


def _perform(flags: Flags) -> None:
    targets = Targets(flags.flow, flags.clarify, flags.explore, flags.resample)
    distributed.from_first(lambda: check(flags, targets))
    sampler = samplers.resolve(flags.sampler)
    check_thresholds(sampler)
    both = flags.text is None and flags.prompts is None
    text_file = presets.shipped(TEXT) if both else flags.text
    prompts_file = presets.shipped(PROMPTS) if both else flags.prompts

    # These take their time to import; --help and bad flags do not wait for them.
    from entropix import backend, files
    from entropix.console import terminal
    from entropix.lab.calibration import fitting

    text = None if text_file is None else distributed.from_first(lambda: prompts.text_from_file(text_file))
    asked = None
    if prompts_file is not None:
        asked = distributed.from_first(lambda: prompts.from_file(prompts_file))
    backend.use_compilation_cache()
    model = terminal.load(flags.weights, flags.dtype, flags.devices)
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
        with files.replacing(flags.plot) as temporary:
            fitting.draw(result, model, temporary)
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
    for name, path, ending in (("--out", flags.out, ".toml"), ("--plot", flags.plot, ".png")):
        if path is not None and not path.endswith(ending):
            raise ValueError(f"{name} takes the name of a {ending} file, got {path!r}")
        if path is not None and not Path(path).resolve().parent.is_dir():
            raise ValueError(f"{name} {path}: the folder {Path(path).resolve().parent} does not exist")
    if flags.plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib: pip install matplotlib")


if __name__ == "__main__":
    cli.leave(cli.run(main))
