"""Metrics of one's own: functions of the logits and of what attention saw, in every record beside the built-in ones.

    import entropix
    import jax

    def two_likeliest(logits_BTV, attention):
        \"\"\"Probability of the two likeliest tokens together.\"\"\"
        p_BTV = jax.nn.softmax(logits_BTV, axis=-1)
        return jax.lax.top_k(p_BTV, 2)[0].sum(axis=-1)

    entropix.register_metric(entropix.Metric("two_likeliest", two_likeliest))

From then on (until `entropix.unregister_metric`) every generation computes it, whatever the sampler; it is in records,
traces, colours, statistics and reports, and a rule finds it as `seen.own["two_likeliest"]`. Installed packages may
offer metrics through the entry point `entropix.metrics`, whose objects are `Metric`s.
"""

import functools
import importlib.metadata
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from entropix.showing import shown

# Names and labels are asked for before anything is computed: `--help` does not wait for JAX.
if TYPE_CHECKING:
    from jax import Array

    from entropix.metrics import AttentionScores

ENTRY_POINT = "entropix.metrics"
# What a record has besides metrics.
# fmt: off
_TAKEN = frozenset((
    "row", "step", "id", "text", "bytes", "strategy", "temperature", "top_p", "top_k", "min_p", "kept", "logprob",
    "draw_logprob", "score", "injected", "alternatives", "head_entropies", "branches", "taken_back", "finish",
))
# fmt: on


class Metric(NamedTuple):
    """One number at each position.

    compute: (logits_BTV float32, `AttentionScores`) -> `[B, T]` float32; pure, module-level, traced under `jit`, with
        rows that do not mix. The first line of its docstring says what it means, unless `meaning` does.
    low, high: the ends of its scale in colours.
    """

    name: str
    compute: "Callable[[Array, AttentionScores], Array]"
    unit: str = ""
    low: float = 0.0
    high: float = 1.0
    title: str = ""
    meaning: str = ""


_registered: dict[str, Metric] = {}


def register(metric: Metric) -> Metric:
    """Adds a metric to all that is generated from now on; returns it with its title and meaning.

    Raises a ValueError for a name that is taken or cannot be a field's, and for a scale without extent. Registering the
    same metric again changes nothing.
    """
    from entropix.metrics import Metrics

    if not isinstance(metric, Metric) or not isinstance(metric.name, str) or not callable(metric.compute):
        raise ValueError(
            f"expected a Metric, of a name and a function of logits and attention; got {shown(metric)}"
        )
    for name in ("low", "high"):
        if not isinstance(getattr(metric, name), int | float):
            raise ValueError(
                f"metric {metric.name!r}: {name} must be a number, got {shown(getattr(metric, name))}"
            )
    if not metric.name.isidentifier():
        raise ValueError(
            f"metric {metric.name!r}: the name must be a word that Python could take as a variable's"
        )
    summary = (inspect.getdoc(metric.compute) or "").partition("\n")[0]
    whole = metric._replace(
        title=metric.title or metric.name.replace("_", " "), meaning=metric.meaning or summary
    )
    if _registered.get(metric.name, whole) != whole or metric.name in _TAKEN.union(Metrics._fields):
        raise ValueError(f"metric {metric.name!r}: this name is taken; choose another one")
    if not metric.low < metric.high:
        raise ValueError(f"metric {metric.name!r}: low ({metric.low}) must be below high ({metric.high})")
    _registered[metric.name] = whole
    return whole


def unregister(name: str) -> None:
    """Takes a metric out again. Raises a ValueError where there is none of that name."""
    if _registered.pop(name, None) is None:
        raise ValueError(
            f"there is no metric {name!r} of one's own; registered: {', '.join(_registered) or 'none'}"
        )


def registered() -> tuple[Metric, ...]:
    """All metrics of one's own, in the order in which they were registered."""
    _load_installed()
    return tuple(_registered.values())


@functools.cache
def _load_installed() -> None:
    """Once: registers what installed packages offer."""
    for point in importlib.metadata.entry_points(group=ENTRY_POINT):
        found = point.load()
        if not isinstance(found, Metric):
            raise ValueError(f"entry point {point.name} of {ENTRY_POINT}: expected a Metric, got {found!r}")
        register(found)
