"""Entropy-based sampling for language models, in pure JAX.

    import entropix

    model = entropix.load()
    [result] = entropix.generate(model, "Why is the sky blue?", seed=1)
    print(result.text)

`stream` yields the same tokens one by one, each with its record. `forward` gives logits, raw attention scores and all
metrics of a text.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from entropix.checkpoint.loading import Model, load
    from entropix.config import GenerateConfig
    from entropix.generation import generate, stream
    from entropix.inspection import Forward, forward
    from entropix.own_metrics import Metric
    from entropix.own_metrics import register as register_metric
    from entropix.own_metrics import unregister as unregister_metric
    from entropix.results import FinishReason, Result, TokenEvent
    from entropix.samplers.entropix import SamplerConfig

__version__ = "0.1.0"
__all__ = [
    "FinishReason",
    "Forward",
    "GenerateConfig",
    "Metric",
    "Model",
    "Result",
    "SamplerConfig",
    "TokenEvent",
    "forward",
    "generate",
    "load",
    "register_metric",
    "stream",
    "unregister_metric",
]

PACKAGE_ROOT = Path(__file__).parent

_HOME = {
    "GenerateConfig": "config",
    "SamplerConfig": "samplers.entropix",
    "FinishReason": "results",
    "TokenEvent": "results",
    "Result": "results",
    "generate": "generation",
    "stream": "generation",
    "Model": "checkpoint.loading",
    "load": "checkpoint.loading",
    "Forward": "inspection",
    "forward": "inspection",
    "Metric": "own_metrics",
    "register_metric": "own_metrics:register",
    "unregister_metric": "own_metrics:unregister",
}


def __dir__() -> list[str]:
    """What there is to use, before anything of it is imported."""
    return [*__all__, "__version__"]


def __getattr__(name: str) -> Any:
    """Imports JAX only when something that needs it is asked for: `--help` and the download stay quick."""
    if name in _HOME:
        module, _, there = _HOME[name].partition(":")
        return getattr(importlib.import_module(f"entropix.{module}"), there or name)
    raise AttributeError(f"module 'entropix' has no attribute {name!r}")


importlib.import_module("entropix.environment").tell_refusals()
