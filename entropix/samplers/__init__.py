"""The samplers by name. A new one is a module with a `Sampler` in it, a line here, and a preset in configs/samplers."""

from entropix.config import SamplerConfig
from entropix.samplers import guard
from entropix.samplers.adaptive import DYNAMIC_TEMPERATURE, EDT, GREEDY_THRESHOLD, MIROSTAT, XTC
from entropix.samplers.base import Candidates, Context, SampleInfo, Sampler
from entropix.samplers.baselines import GREEDY, MIN_P, TEMPERATURE, TOP_K, TOP_P
from entropix.samplers.controls import ENTROPIX_LOGITS, PLACEBO
from entropix.samplers.entropix import ENTROPIX, ENTROPIX_TORCH
from entropix.samplers.guard import guarded
from entropix.samplers.truncation import EPSILON, ETA, P_LESS, TOP_H, TOP_N_SIGMA, TYPICAL

# fmt: off
SAMPLERS = {s.name: s for s in (
    ENTROPIX, ENTROPIX_TORCH, ENTROPIX_LOGITS, PLACEBO,
    GREEDY, TEMPERATURE, TOP_K, TOP_P, MIN_P,
    TYPICAL, EPSILON, ETA, TOP_N_SIGMA, P_LESS, TOP_H,
    DYNAMIC_TEMPERATURE, EDT, MIROSTAT, XTC, GREEDY_THRESHOLD,
)}
# fmt: on


def get(name: str) -> Sampler:
    """The sampler of that name; a ValueError lists the known ones."""
    if name not in SAMPLERS:
        raise ValueError(f"unknown sampler {name!r}; there are {', '.join(SAMPLERS)}")
    return SAMPLERS[name]


def configured(name: str, cfg: SamplerConfig) -> Sampler:
    """The sampler of that name, guarded against repetition if the config asks for it."""
    return guarded(get(name)) if guard.is_on(cfg) else get(name)


def list() -> dict[str, str]:
    """A line about each sampler, by name."""
    return {name: sampler.summary for name, sampler in SAMPLERS.items()}


__all__ = [
    "SAMPLERS",
    "Candidates",
    "Context",
    "SampleInfo",
    "Sampler",
    "configured",
    "get",
    "guarded",
    "list",
]
