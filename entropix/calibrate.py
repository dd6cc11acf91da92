"""Fit the entropix rule's thresholds to a model: `python -m entropix.calibrate --out FILE.toml`.

The model reads a text and, at temperature 1 with nothing filtered, answers prompts; the metrics of both are the
observations. By default these are the corpus and the prompts that come with this package; `--text` uses only a text of
yours, `--prompts` only the model's answers to prompts of yours. `calibration.thresholds` says how the five thresholds
follow from the wished frequencies.

Frequencies are those on the observations. A generation with the new thresholds walks its own way through a model, and
its own frequencies differ somewhat.

Exit codes: 0 done; 1 bad input; 2 bad flags.
"""

import contextlib
import hashlib
import importlib.util
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
import tyro
from tyro.conf import arg

from entropix import PACKAGE_ROOT, calibration, cli, config, palette, scoring, trace
from entropix.calibration import QUANTILES, Targets
from entropix.config import SamplerConfig
from entropix.generation import generate
from entropix.loading import DEFAULT_MODEL, Model
from entropix.main import Flags as MainFlags
from entropix.main import read_prompts
from entropix.metrics import Metrics
from entropix.samplers.entropix import STRATEGIES, choose

_PROG = "python -m entropix.calibrate"
_DESCRIPTION = "Fit the thresholds of the entropix rule to a model, by how often each strategy shall be used."
RULE = "entropix"
WINDOW = 512  # tokens of the text that the model reads from an empty context
MAX_ROWS = 16  # prompts answered in one batch


@dataclass(frozen=True)
class Flags:
    """What can be asked for."""

    weights: Annotated[str, arg(help="a name below weights/ or a checkpoint folder", metavar="NAME|DIR")] = (
        DEFAULT_MODEL
    )
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        arg(help="of the weights; auto is float32 on CPU, else bfloat16"),
    ] = "auto"
    text: Annotated[
        str | None, arg(help="observe the model reading this text, and nothing else", metavar="FILE")
    ] = None
    prompts: Annotated[
        str | None,
        arg(
            help="observe the model answering these prompts (as for --prompt-file), nothing else",
            metavar="FILE",
        ),
    ] = None
    flow: Annotated[float, arg(help="wished share of flow", metavar="SHARE")] = Targets().flow
    clarify: Annotated[float, arg(help="wished share of clarify", metavar="SHARE")] = Targets().clarify
    explore: Annotated[float, arg(help="wished share of explore", metavar="SHARE")] = Targets().explore
    resample: Annotated[float, arg(help="wished share of resample", metavar="SHARE")] = Targets().resample
    max_new_tokens: Annotated[int, arg(help="most tokens of an answer", metavar="N")] = 128
    seed: Annotated[int, arg(help="of the answers", metavar="N")] = 0
    out: Annotated[str | None, arg(help="write the preset here", metavar="FILE.toml")] = None
    plot: Annotated[
        str | None, arg(help="draw the observations and the strategies here", metavar="FILE.png")
    ] = None


class Source(NamedTuple):
    """Where observations came from, in words, and what they are: arrays `[n]`."""

    description: str
    metrics: Metrics


class Fit(NamedTuple):
    """What came out."""

    sources: list[Source]
    metrics: Metrics  # of all sources together
    targets: Targets
    before: SamplerConfig
    after: SamplerConfig


def main(args: Sequence[str] | None = None) -> None:
    """Does what the flags (by default those of the process) say. Raises a ValueError for bad input."""
    flags = tyro.cli(
        Flags, prog=_PROG, description=_DESCRIPTION, args=args, config=(tyro.conf.FlagCreatePairsOff,)
    )
    targets = Targets(flags.flow, flags.clarify, flags.explore, flags.resample)
    check(flags, targets)
    both = flags.text is None and flags.prompts is None
    text_file = shipped("calibration.txt") if both else flags.text
    prompts_file = shipped("calibration-prompts.txt") if both else flags.prompts
    text = None if text_file is None else scoring.read_text(text_file)
    prompts = None if prompts_file is None else read_prompts(MainFlags(prompt_file=str(prompts_file)))

    from entropix import backend, loading, terminal

    backend.use_compilation_cache()
    with terminal.status("loading the weights"):
        model = loading.load(flags.weights, None if flags.dtype == "auto" else flags.dtype)
    sources = []
    if text is not None and text_file is not None:
        with terminal.status("reading the text"):
            sources.append(observe_text(model, text, file_note(text_file)))
    if prompts is not None and prompts_file is not None:
        with terminal.status("answering the prompts"):
            sources.append(
                observe_answers(model, prompts, file_note(prompts_file), flags.max_new_tokens, flags.seed)
            )
    result = fit(sources, targets)
    print("\n".join(report(result)))
    if flags.plot is not None:
        with replacing(Path(flags.plot)) as temporary:
            draw(result, temporary)
    if flags.out is not None:
        with replacing(Path(flags.out)) as temporary:
            temporary.write_text("\n".join(preset(result, model)) + "\n", encoding="utf-8")


def check(flags: Flags, targets: Targets) -> None:
    """Raises a ValueError for what no model could make right."""
    if flags.text is not None and flags.prompts is not None:
        raise ValueError("--text and --prompts each say what alone to observe; drop one of them, or both")
    calibration.check_targets(targets)
    config.from_mapping(
        config.GenerateConfig, {"max_new_tokens": flags.max_new_tokens, "seed": flags.seed}, "flags"
    )
    for flag, path, ending in (("--out", flags.out, ".toml"), ("--plot", flags.plot, ".png")):
        if path is not None and not path.endswith(ending):
            raise ValueError(f"{flag} takes the name of a {ending} file, got {path!r}")
        if path is not None and not Path(path).resolve().parent.is_dir():
            raise ValueError(f"{flag} {path}: the folder {Path(path).resolve().parent} does not exist")
    if flags.plot is not None and importlib.util.find_spec("matplotlib") is None:
        raise ValueError("--plot needs matplotlib: pip install 'entropix[plot]'")


def shipped(name: str) -> Path:
    """A file of `configs/`, which stands beside the package in a checkout and inside it in an installed wheel."""
    installed = PACKAGE_ROOT / "configs"
    return (installed if installed.is_dir() else PACKAGE_ROOT.parent / "configs") / name


# ----- observing --------------------------------------------------------------------------------------------


def observe_text(model: Model, text: str, note: str) -> Source:
    """The model reading the text, in windows of `WINDOW` tokens: shorter than any context, and quick."""
    tokens = [*model.tokenizer.bos_ids, *model.tokenizer.encode(text)]
    width = min(WINDOW, model.config.context_length)
    windows = [tokens[start : start + width] for start in range(0, len(tokens), width)]
    records = [record for scored in scoring.score(model, windows) for record in scored.records]
    return Source(f"text {note}, {len(records)} positions in windows of {width}", _gather(records))


def observe_answers(
    model: Model, prompts: Sequence[Any], note: str, max_new_tokens: int, seed: int
) -> Source:
    """The model's own answers, drawn from its whole distribution."""
    records = []
    for start in range(0, len(prompts), MAX_ROWS):
        batch = prompts[start : start + MAX_ROWS]
        for result in generate(model, batch, sampler="temperature", max_new_tokens=max_new_tokens, seed=seed):
            records += result.records
    return Source(
        f"answers to the {len(prompts)} prompts of {note}, {len(records)} tokens drawn at temperature 1, at most "
        f"{max_new_tokens} an answer, seed {seed}",
        _gather(records),
    )


def file_note(path: str | Path) -> str:
    """The name of a file, quoted, and the SHA-256 of what is in it."""
    return f"{json.dumps(Path(path).name)} (sha256 {hashlib.sha256(Path(path).read_bytes()).hexdigest()})"


def _gather(records: Sequence[Mapping[str, Any]]) -> Metrics:
    """Arrays `[n]` from n records. Raises a ValueError if the model's logits went wrong somewhere."""
    metrics = Metrics(
        *(jnp.asarray([_number(record[name]) for record in records], jnp.float32) for name in Metrics._fields)
    )
    if not all(jnp.isfinite(values).all() for values in metrics):
        raise ValueError(
            "the model's metrics are not finite everywhere; try --dtype float32, or other weights"
        )
    return metrics


def _number(value: float | None) -> float:
    """What a record has: None stands for what is not finite."""
    return math.nan if value is None else value


# ----- fitting and telling ----------------------------------------------------------------------------------


def fit(sources: Sequence[Source], targets: Targets) -> Fit:
    """The thresholds of the reference preset, and those fitted to all sources together."""
    metrics = Metrics(*(jnp.concatenate(parts) for parts in zip(*(s.metrics for s in sources), strict=True)))
    before = config.read_preset(RULE)[1]
    observed = (np.asarray(metrics.logits_entropy), np.asarray(metrics.logits_varentropy))
    fitted = calibration.thresholds(*observed, targets)
    return Fit(list(sources), metrics, targets, before, calibration.apply(fitted, before))


def report(result: Fit) -> Iterator[str]:
    """Where the numbers come from, thresholds and occupancy before and after, quantiles."""
    yield from (f"observed: {source.description}" for source in result.sources)
    yield ""
    yield from _before_and_after(result)
    yield ""
    yield from _notes(result)
    for source in result.sources if len(result.sources) > 1 else ():
        yield f"strategies in the {source.description.split()[0]} alone:"
        yield from _occupancies(source.metrics, result)
        yield ""
    yield f"{'quantile':26}" + "".join(f"{quantile:>9g}" for quantile in QUANTILES)
    for name, values in calibration.quantiles(result.metrics).items():
        yield f"{name:26}" + "".join(f"{value:9.4f}" for value in values)


def preset(result: Fit, model: Model) -> Iterator[str]:
    """The lines of a TOML file: the fitted thresholds, and what they were fitted to."""
    yield "# The entropix rule with thresholds fitted to one model by `python -m entropix.calibrate`."
    yield "# Entropies in bits, varentropies in bits². Every other number is that of the entropix preset."
    yield "#"
    yield f"# model: {json.dumps(model.folder.resolve().name)}, {model.dtype.name}"
    yield f"# fingerprint, as in a trace: {trace.fingerprint(model.folder)}"
    yield from (f"# observed: {source.description}" for source in result.sources)
    yield "#"
    yield from (f"# {line}".rstrip() for line in _before_and_after(result))
    yield from (f"# {line}" for line in _notes(result))
    yield f'sampler = "{RULE}"'
    yield ""
    yield from (f"{name} = {value!r}" for name, value in _thresholds(result.after).items())


def _thresholds(cfg: SamplerConfig) -> dict[str, float]:
    return {name: getattr(cfg, name) for name in calibration.Thresholds._fields}


def _before_and_after(result: Fit) -> Iterator[str]:
    yield f"{'threshold':18}{'reference':>10}{'fitted':>10}"
    after = _thresholds(result.after)
    for name, value in _thresholds(result.before).items():
        yield f"{name:18}{value:10g}{after[name]:10g}"
    yield ""
    yield from _occupancies(result.metrics, result)


def _occupancies(metrics: Metrics, result: Fit) -> Iterator[str]:
    wished = result.targets._asdict()
    wished["adaptive"] = 1 - sum(wished.values())
    before, after = (calibration.occupancy(metrics, cfg) for cfg in (result.before, result.after))
    yield f"{'strategy':18}{'reference':>10}{'fitted':>10}{'wished':>10}"
    for name in STRATEGIES:
        yield f"{name:18}{before[name]:10.2%}{after[name]:10.2%}{wished[name]:10.2%}"


def _notes(result: Fit) -> Iterator[str]:
    """What was not reached, each with its reason."""
    achieved = calibration.occupancy(result.metrics, result.after)
    for sentence in calibration.notes(achieved, result.targets, len(result.metrics.logits_entropy)):
        yield f"note: {sentence}"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside the file, to be written to; it becomes the file when all went well."""
    target = path.resolve()
    temporary = target.with_name(f".{target.stem}.{os.getpid()}{target.suffix}")
    try:
        yield temporary
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def draw(result: Fit, path: Path) -> None:
    """A PNG: every observation by entropy and varentropy, over the regions of the strategies, before and after."""
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    entropy_n, varentropy_n = result.metrics.logits_entropy, result.metrics.logits_varentropy
    right, top = (1.05 * max(float(values.max()), 1.0) for values in (entropy_n, varentropy_n))
    entropy_XX, varentropy_XX = np.meshgrid(
        np.linspace(0, right, 500, dtype=np.float32), np.linspace(0, top, 500, dtype=np.float32)
    )
    grid = result.metrics._replace(
        logits_entropy=jnp.asarray(entropy_XX), logits_varentropy=jnp.asarray(varentropy_XX)
    )
    figure = Figure(figsize=(12, 5.5), layout="constrained")
    for axes, cfg, title in zip(
        figure.subplots(1, 2, sharey=True),
        (result.before, result.after),
        ("reference", "fitted"),
        strict=True,
    ):
        region_XX = np.asarray(choose(grid, cfg.high_ent_thresh, cfg.med_ent_thresh, cfg))
        axes.imshow(
            region_XX,
            cmap=ListedColormap(palette.STRATEGIES),
            vmin=0,
            vmax=len(STRATEGIES) - 1,
            alpha=0.35,
            origin="lower",
            extent=(0, right, 0, top),
            aspect="auto",
            interpolation="nearest",
        )
        axes.scatter(entropy_n, varentropy_n, s=3, color="black", alpha=0.4, linewidths=0)
        shares = calibration.occupancy(result.metrics, cfg)
        axes.legend(
            handles=[
                Patch(color=color, alpha=0.35, label=f"{name} {shares[name]:.1%}")
                for name, color in zip(STRATEGIES, palette.STRATEGIES, strict=True)
            ],
            loc="upper right",
        )
        axes.set(
            title=f"{title} thresholds", xlabel="logits entropy (bits)", ylabel="logits varentropy (bits²)"
        )
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    sys.exit(cli.run(main))
