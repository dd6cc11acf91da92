"""The rules by name, and what a user names resolved. A new rule is a module with a `Sampler` in it and a line in
`registry.py`."""

from entropix.samplers.base import Candidates, SampleInfo, Sampler, SamplerInputs
from entropix.samplers.numbers import RuleConfig
from entropix.samplers.registry import (
    SAMPLERS,
    check_guard,
    check_names,
    get,
    parameters,
    register,
    summaries,
    users,
)
from entropix.samplers.repetition import guarded
from entropix.samplers.resolution import ResolvedSampler, about, common, names, recorded, resolve

__all__ = [
    "SAMPLERS",
    "Candidates",
    "ResolvedSampler",
    "RuleConfig",
    "SampleInfo",
    "Sampler",
    "SamplerInputs",
    "about",
    "check_guard",
    "check_names",
    "common",
    "get",
    "guarded",
    "names",
    "parameters",
    "recorded",
    "register",
    "resolve",
    "summaries",
    "users",
]
