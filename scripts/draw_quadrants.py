"""Draws which strategy the entropix rule picks for every pair of entropy and varentropy, by asking the rule itself.

With `--trace`, the tokens of a real run are dots on top, so that one sees how often each region is visited.
"""

import argparse
from pathlib import Path

import jax.numpy as jnp
import matplotlib
import numpy as np

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.colors import ListedColormap

from entropix import trace
from entropix.console import cli
from entropix.metrics import Metrics
from entropix.samplers import resolve
from entropix.samplers.entropix import STRATEGIES, SWAPPED, choose

COLORS = ("#6baed6", "#fdd0a2", "#a1d99b", "#fb9a99", "#d9d9d9")
LABELS = {
    "flow": "flow\nargmax",
    "clarify": "clarify\npause",
    "explore": "explore\nwarmer and wider",
    "resample": "resample\nhot",
    "adaptive": "adaptive\nbest of several draws",
}
LABEL_BOX = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 2}
ENTROPY = (1e-3, 16.0)  # bits; log2 of a vocabulary of 50,000 is 15.6
VARENTROPY = (1e-3, 60.0)  # bits²


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="picture to write, .png or .svg")
    parser.add_argument("--sampler", default="entropix", choices=SWAPPED, help="which of the two rules")
    parser.add_argument("--trace", type=Path, help="trace whose tokens are drawn as dots")
    args = parser.parse_args(argv)

    cfg = resolve(args.sampler).numbers
    entropy, varentropy = np.geomspace(*ENTROPY, 801), np.geomspace(*VARENTROPY, 601)
    grid_entropy, grid_varentropy = (
        jnp.asarray(g.ravel(), jnp.float32) for g in np.meshgrid(entropy, varentropy)
    )
    nothing = jnp.zeros_like(grid_entropy)
    metrics = Metrics(*[nothing] * len(Metrics._fields))
    metrics = metrics._replace(logits_entropy=grid_entropy, logits_varentropy=grid_varentropy)
    chosen = choose(metrics, cfg, SWAPPED[args.sampler])
    strategy = np.asarray(chosen).reshape(len(varentropy), len(entropy))

    figure, axes = plt.subplots(figsize=(7.5, 5), layout="constrained")
    axes.pcolormesh(
        entropy, varentropy, strategy, cmap=ListedColormap(COLORS), vmin=-0.5, vmax=4.5, rasterized=True
    )
    for number, name in enumerate(STRATEGIES):
        rows, columns = np.nonzero(strategy == number)
        if rows.size:
            x, y = entropy[int(np.median(columns))], varentropy[int(np.median(rows))]
            axes.text(x, y, LABELS[name], ha="center", va="center", fontsize=8, bbox=LABEL_BOX)
    if args.trace:
        records = [record for result in trace.read(args.trace).results for record in result.records]
        x = np.clip([record["logits_entropy"] for record in records], *ENTROPY)
        y = np.clip([record["logits_varentropy"] for record in records], *VARENTROPY)
        label = f"{len(records):,} tokens of a real run"
        axes.scatter(x, y, s=5, color="black", alpha=0.35, linewidths=0, label=label)
        axes.legend(loc="lower center", fontsize=8)
    axes.set(
        xscale="log", yscale="log", xlabel="entropy of the next token (bits)", ylabel="varentropy (bits²)"
    )
    axes.set_title(f"What the sampler does: preset {args.sampler}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=110)


if __name__ == "__main__":
    cli.leave(cli.run(main))
