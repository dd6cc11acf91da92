"""Which numbers of the config a sampler uses, read off its computation, so that no list of them can go stale."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from entropix import config, samplers
from entropix.config import SamplerConfig
from entropix.metrics import Metrics
from entropix.samplers.base import Context, Sampler

_VOCABULARY = 200  # more than any `max_top_k` that is tried
SWITCHES = ("repetition_penalty", "dry_multiplier")  # of the guard, which any sampler may have
_DRY = ("dry_base", "dry_allowed_length")  # what these two say where `dry_multiplier` is not 0
_OTHER_SHAPES = {
    "n_adaptive_samples": 2,
    "max_top_k": 50,
}  # the static fields, and values that are no defaults


def traced(sampler: Sampler) -> list[str]:
    """The fields that are data of the compiled program and reach anything a step returns, in the config's order."""
    jaxpr = _jaxpr(sampler, SamplerConfig())
    needed = set(map(id, jaxpr.outvars))
    for equation in reversed(jaxpr.eqns):
        if any(id(variable) in needed for variable in equation.outvars):
            needed |= set(map(id, equation.invars))
    paths = jax.tree_util.tree_leaves_with_path(SamplerConfig())
    names = [jax.tree_util.keystr(path, simple=True) for path, _ in paths]
    return [name for name, variable in zip(names, jaxpr.invars, strict=True) if id(variable) in needed]


def used(sampler: Sampler, cfg: SamplerConfig) -> list[str]:
    """The fields that change what this sampler does, those of the guard around it included, in the config's order."""
    found = {*traced(sampler), *_shapes(sampler), *SWITCHES}
    if cfg.dry_multiplier > 0:
        found |= set(_DRY)
    if _reads_clarifier(sampler):
        found.add("clarifier")
    return [field.name for field in dataclasses.fields(cfg) if field.name in found]


def changed(cfg: SamplerConfig, before: SamplerConfig) -> list[str]:
    """The fields in which two configs differ."""
    return [
        field.name for field in dataclasses.fields(cfg) if vars(cfg)[field.name] != vars(before)[field.name]
    ]


def check_used(names: Iterable[str], sampler: Sampler, cfg: SamplerConfig, source: str) -> None:
    """Raises a ValueError for the first of these fields that changes nothing; it lists those that do."""
    names = list(names)
    effective = used(sampler, cfg) if names else []
    for name in names:
        if name in _DRY and name not in effective:
            raise ValueError(f"{source}: {name} has no effect while dry_multiplier is 0; set that too")
        if name not in effective:
            own = ", ".join(knob for knob in effective if knob not in (*SWITCHES, *_DRY)) or "no number"
            raise ValueError(
                f"{source}: {name} has no effect, because {sampler.name} does not use it; it uses {own}, and like "
                f"any sampler {' and '.join(SWITCHES)}"
            )


def check_preset(name: str) -> None:
    """Raises a ValueError for a preset or TOML file that sets a number its rule ignores."""
    rule, cfg = config.read_preset(name)
    has_own = rule in config.preset_names("samplers")
    own = config.read_preset(rule)[1] if has_own else SamplerConfig()
    check_used(changed(cfg, own), samplers.get(rule), cfg, name)


def _reads_clarifier(sampler: Sampler) -> bool:
    """Whether it asks for that text's tokens."""
    texts = []

    def encode(text: str) -> list[int]:
        texts.append(text)
        return [1]

    sampler.init(SamplerConfig(clarifier="a text of its own"), [[1]], encode)
    return "a text of its own" in texts


def _jaxpr(sampler: Sampler, cfg: SamplerConfig) -> Any:
    """One step of one row, as a function of the config's numbers."""
    context = Context(jnp.zeros((1, _VOCABULARY)), Metrics(*(jnp.zeros(1) for _ in Metrics._fields)))
    leaves, tree = jax.tree.flatten(cfg)
    state = sampler.init(cfg, [[1]], lambda text: [1])
    key_B = jax.random.split(jax.random.key(0), 1)

    def step(numbers: list[Any]) -> Any:
        return sampler.step(key_B, state, context, jax.tree.unflatten(tree, numbers))

    return jax.make_jaxpr(step)([jnp.asarray(leaf) for leaf in leaves]).jaxpr


def _shapes(sampler: Sampler) -> list[str]:
    """The static fields that it uses: another value is another program."""
    usual = str(_jaxpr(sampler, SamplerConfig()))
    return [
        name
        for name, value in _OTHER_SHAPES.items()
        if str(_jaxpr(sampler, dataclasses.replace(SamplerConfig(), **{name: value}))) != usual  # type: ignore[arg-type]
    ]
