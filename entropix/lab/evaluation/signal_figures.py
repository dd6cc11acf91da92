"""What the metrics know of right tokens and right answers: ranking, refusing, and models of nested knowledge.

Positions of a document are not independent, so all intervals are over documents. Metrics depend on the position
(attention has more keys to spread over), and so does how hard a token is: what holds over all positions is looked at
within bins of position too.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from entropix.lab.evaluation.documents import COLUMNS, GREEDY
from entropix.lab.experiments.results import Line
from entropix.lab.statistics import Gain, Interval, auroc, bends, cluster_mean, nested_gains, prr
from entropix.metrics import Metrics
from entropix.samplers.entropix import STRATEGIES, LogitsConfig, choose

ATTENTION = (
    "attn_entropy",
    "attn_varentropy",
    "agreement",
    "interaction_strength",
    "attn_entropy_normalized",
    "head_agreement",
    "previous_token_attention",
)
# More of these is expected to go with right tokens; of the others less is.
UPWARDS = ("top_prob", "margin", "self_certainty", "head_agreement", "previous_token_attention")
RANKS = (1, 2, 3)
FOLDS = 10
_RESAMPLES = 500
_CLIP = 1e-6  # of a probability whose odds are taken


class Ranking(NamedTuple):
    """How well a metric tells right from wrong; below 0.5 it does so the other way round than expected."""

    metric: str
    auroc: Interval
    prr: Interval
    bins: list[Interval]  # AUROC within bins of position, from the beginning


class Region(NamedTuple):
    """Where the rule does one thing."""

    strategy: str
    share: float  # of the positions
    ranks: list[Interval | None]  # how often the next token is the likeliest, the second, the third


class Signal(NamedTuple):
    """One kind of documents."""

    kind: str
    documents: int
    positions: int
    right: Interval | None  # share of positions whose next token is the likeliest; of answers that are right
    loss: Interval | None  # nats a token
    rankings: list[Ranking]
    gains: list[Gain]
    regions: list[Region]


def of_positions(kind: str, lines: Sequence[Line], bins: int, cfg: LogitsConfig) -> Signal | None:
    """Of the documents of one kind, position by position; None where there are none."""
    mine = [line for line in lines if line["kind"] == kind and line["positions"]]
    if not mine:
        return None
    columns = {name: np.concatenate([line["columns"][name] for line in mine]) for name in COLUMNS}
    position_N = np.concatenate([line["positions"] for line in mine])
    document_N = np.repeat(np.arange(len(mine)), [len(line["positions"]) for line in mine])
    right_N = (columns["rank"] == 1).astype(np.float64)
    return Signal(
        kind=kind,
        documents=len(mine),
        positions=len(right_N),
        right=cluster_mean(right_N, document_N),
        loss=cluster_mean(-columns["logprob"], document_N),
        rankings=_rankings(columns, right_N, document_N, _bins(position_N, bins)),
        gains=_gains(columns, position_N, right_N, document_N),
        regions=_regions(columns, document_N, cfg),
    )


def of_answers(lines: Sequence[Line]) -> Signal | None:
    """Of the greedy answers as wholes: does the mean of a metric over an answer tell that it is right?"""
    mine = [
        line for line in lines if line["kind"] == GREEDY and line["positions"] and line["score"] is not None
    ]
    if not mine:
        return None
    columns = {name: np.array([np.mean(line["columns"][name]) for line in mine]) for name in COLUMNS}
    right_N = np.array([float(line["score"] >= 1) for line in mine])
    document_N = np.arange(len(mine))
    return Signal(
        kind=GREEDY,
        documents=len(mine),
        positions=len(mine),
        right=cluster_mean(right_N, document_N),
        loss=None,
        rankings=_rankings(columns, right_N, document_N, []),
        gains=[],
        regions=[],
    )


def _bins(position_N: np.ndarray, n: int) -> list[np.ndarray]:
    """Which items are in each of n bins of position that are about equally full."""
    edges = np.unique(np.quantile(position_N, np.arange(1, n) / n))
    number_N = np.searchsorted(edges, position_N, side="right")
    return [number_N == number for number in range(len(edges) + 1) if np.any(number_N == number)]


def _rankings(
    columns: Mapping[str, np.ndarray], right_N: np.ndarray, document_N: np.ndarray, bins: Sequence[np.ndarray]
) -> list[Ranking]:
    found = []
    for name in Metrics._fields:
        score_N = columns[name] if name in UPWARDS else -columns[name]
        given: Any = (score_N, right_N, document_N)
        inside = [
            auroc(*(values[there] for values in given), resamples=_RESAMPLES)
            for there in bins
            if len(bins) > 1
        ]
        found.append(
            Ranking(name, auroc(*given, resamples=_RESAMPLES), prr(*given, resamples=_RESAMPLES), inside)
        )
    return found


def _gains(
    columns: Mapping[str, np.ndarray], position_N: np.ndarray, right_N: np.ndarray, document_N: np.ndarray
) -> list[Gain]:
    """Each model has what those before it have, as curves; the first has the exact odds of the likeliest token."""
    n = len(np.unique(document_N))
    if n < FOLDS:
        return []
    top_N = np.clip(columns["top_prob"], _CLIP, 1 - _CLIP)
    features = {
        "top probability": bends(np.log(top_N / (1 - top_N))),
        "+ entropy": bends(columns["logits_entropy"]),
        "+ varentropy": bends(columns["logits_varentropy"]),
        "+ attention": np.concatenate([bends(columns[name]) for name in ATTENTION], axis=1),
        "+ position": bends(np.log1p(position_N)),
    }
    return nested_gains(features, right_N, document_N, folds=FOLDS)


def _regions(columns: Mapping[str, np.ndarray], document_N: np.ndarray, cfg: LogitsConfig) -> list[Region]:
    metrics = Metrics(*(jnp.asarray(columns[name], jnp.float32) for name in Metrics._fields))
    strategy_N = np.asarray(choose(metrics, cfg))
    found = []
    for number, name in enumerate(STRATEGIES):
        there = strategy_N == number
        ranks = [
            cluster_mean(columns["rank"][there] == rank, document_N[there]) if there.any() else None
            for rank in RANKS
        ]
        found.append(Region(name, float(there.mean()), ranks))
    return found
