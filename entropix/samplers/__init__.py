"""The samplers by name. A new one is a module with a `Sampler` in it, a line here, and a preset in configs/samplers."""

from entropix.samplers.base import Candidates, Context, SampleInfo, Sampler
from entropix.samplers.baselines import GREEDY, MIN_P, TEMPERATURE, TOP_K, TOP_P
from entropix.samplers.entropix import ENTROPIX, ENTROPIX_TORCH

SAMPLERS = {s.name: s for s in (ENTROPIX, ENTROPIX_TORCH, GREEDY, TEMPERATURE, TOP_K, TOP_P, MIN_P)}


def get(name: str) -> Sampler:
    """The sampler of that name; a ValueError lists the known ones."""
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}; there are {', '.join(SAMPLERS)}")
    return SAMPLERS[name]


__all__ = ["SAMPLERS", "Candidates", "Context", "SampleInfo", "Sampler", "get"]
