"""The samplers by name. A new one is a module with a `Sampler` in it, a line here, and a preset in configs/samplers."""

import difflib

from entropix import presets
from entropix.config import SamplerConfig
from entropix.samplers import repetition
from entropix.samplers.adaptive import DYNAMIC_TEMPERATURE, EDT, GREEDY_THRESHOLD, MIROSTAT, XTC
from entropix.samplers.base import Candidates, SampleInfo, Sampler, SamplerInputs
from entropix.samplers.baselines import GREEDY, MIN_P, TEMPERATURE, TOP_K, TOP_P
from entropix.samplers.controls import ENTROPIX_LOGITS, PLACEBO
from entropix.samplers.entropix import ENTROPIX, ENTROPIX_TORCH
from entropix.samplers.repetition import guarded
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
    """The sampler of that name; a ValueError suggests the nearest known one and lists all."""
    if name not in SAMPLERS:
        near = difflib.get_close_matches(name, SAMPLERS, n=1)
        hint = f"did you mean {near[0]!r}? There are" if near else "there are"
        raise ValueError(f"unknown sampler {name!r}; {hint} {', '.join(SAMPLERS)}")
    return SAMPLERS[name]


def configured(name: str, cfg: SamplerConfig) -> Sampler:
    """The sampler of that name, guarded against repetition if the config asks for it."""
    return guarded(get(name)) if repetition.is_on(cfg) else get(name)


def about(preset: str) -> str:
    """A line about a preset: what its rule does or, where several presets share that rule, what sets this one apart."""
    rule = get(presets.read_preset(preset)[0])
    return rule.summary if preset == rule.name else presets.preset_comment(preset)


def list() -> dict[str, str]:
    """A line about each sampler, by name."""
    return {name: sampler.summary for name, sampler in SAMPLERS.items()}


__all__ = [
    "SAMPLERS",
    "Candidates",
    "SampleInfo",
    "Sampler",
    "SamplerInputs",
    "about",
    "configured",
    "get",
    "guarded",
    "list",
]
