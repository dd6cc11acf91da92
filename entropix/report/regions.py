"""Which strategy the entropix rule picks where, as areas of the plane of entropy and varentropy."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from entropix import config
from entropix.metrics import Metrics
from entropix.results import Result
from entropix.samplers.entropix import SWAPPED, LogitsConfig, SamplerConfig, choose

# The samplers that choose by the two numbers, and the rule whose order of thresholds they use.
RULES = {**{name: name for name in SWAPPED}, "entropix-logits": "entropix"}
_FAR = 4  # times the largest observation: thresholds beyond are not shown


class Regions(NamedTuple):
    """A grid of rectangles, in each of which one strategy is picked."""

    entropy_edges: np.ndarray  # `[X + 1]` float64, bits, ascending from 0
    varentropy_edges: np.ndarray  # `[Y + 1]` float64, bits²
    strategy_YX: np.ndarray  # int32, indices into `samplers.entropix.STRATEGIES`


def regions(sampler: str, cfg: LogitsConfig, right: float, top: float) -> Regions:
    """What a sampler of `RULES` does at entropies up to `right` and varentropies up to `top`.

    The rule only compares with its thresholds. So these are the edges, and inside of a rectangle it is asked once.
    """
    entropy_edges = _edges((cfg.low_ent_thresh, cfg.med_ent_thresh, cfg.high_ent_thresh), right)
    varentropy_edges = _edges((cfg.low_vent_thresh, cfg.high_vent_thresh), top)
    entropy_YX, varentropy_YX = np.meshgrid(_middles(entropy_edges), _middles(varentropy_edges))
    nothing_YX = jnp.zeros(entropy_YX.shape, jnp.float32)
    metrics = Metrics(*[nothing_YX] * len(Metrics._fields))._replace(
        logits_entropy=jnp.asarray(entropy_YX, jnp.float32),
        logits_varentropy=jnp.asarray(varentropy_YX, jnp.float32),
    )
    chosen = choose(metrics, cfg, swapped=SWAPPED[RULES[sampler]])
    return Regions(entropy_edges, varentropy_edges, np.asarray(chosen))


def limits(headers: Sequence[Mapping[str, Any]], results: Iterable[Result]) -> tuple[float, float]:
    """The largest entropy and varentropy to show: a little more than every observation and every threshold, but for
    thresholds that are far out of reach, as those are by which a preset turns a strategy off."""
    records = [record for result in results for record in result.records]
    configs = [sampler_config(header) for header in headers if header["sampler"] in RULES]
    ends = []
    for metric, threshold in (
        ("logits_entropy", "high_ent_thresh"),
        ("logits_varentropy", "high_vent_thresh"),
    ):
        observed = max([1.0, *(r[metric] for r in records if r[metric] is not None)])
        near = [getattr(cfg, threshold) for cfg in configs if getattr(cfg, threshold) <= _FAR * observed]
        ends.append(1.05 * max([observed, *(1.1 * value for value in near)]))
    return ends[0], ends[1]


def sampler_config(header: Mapping[str, Any]) -> SamplerConfig:
    """The config in a trace's header, without fields that a later release may have added."""
    known = {field.name for field in dataclasses.fields(SamplerConfig)}
    values = {name: value for name, value in header["sampler_config"].items() if name in known}
    return config.from_mapping(SamplerConfig, values, "sampler_config")


def _edges(thresholds: tuple[float, ...], end: float) -> np.ndarray:
    return np.unique([0.0, *(t for t in thresholds if 0 < t < end), end])


def _middles(edges: np.ndarray) -> np.ndarray:
    return (edges[1:] + edges[:-1]) / 2
