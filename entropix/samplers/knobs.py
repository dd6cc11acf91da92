"""Which numbers of the config a sampler uses, read off its computation, so that no list of them can go stale."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.extend.core import Jaxpr, Literal, Var, primitives

from entropix import presets, samplers
from entropix.config import SamplerConfig
from entropix.metrics import Metrics
from entropix.samplers.base import Sampler, SamplerInputs

_VOCABULARY = 200  # more than any `max_top_k` that is tried
SWITCHES = ("repetition_penalty", "dry_multiplier")  # of the guard, which any sampler may have
_DRY = ("dry_base", "dry_allowed_length")  # what these two say where `dry_multiplier` is not 0
_OTHER_SHAPES = {
    "n_adaptive_samples": 2,
    "max_top_k": 50,
}  # the static fields, and values that are no defaults
_NAMED = 3  # samplers in an error: enough to show where a number belongs
# Whether any operand or all of them must be 0 for the result to be.
_ZERO_IF = {primitives.mul_p: any, primitives.add_p: all, primitives.broadcast_in_dim_p: all}


@functools.cache
def traced(sampler: Sampler) -> tuple[str, ...]:
    """The fields that are data of the compiled program and reach anything a step returns, in the config's order.

    What is multiplied by a 0 that the rule itself puts in place of a metric reaches nothing.
    """
    jaxpr = _jaxpr(sampler, SamplerConfig())
    zeros, needed = _zeros(jaxpr), set(jaxpr.outvars)
    for equation in reversed(jaxpr.eqns):
        if any(variable in needed and variable not in zeros for variable in equation.outvars):
            needed |= {atom for atom in equation.invars if isinstance(atom, Var)}
    paths = jax.tree_util.tree_leaves_with_path(SamplerConfig())
    names = [jax.tree_util.keystr(path, simple=True) for path, _ in paths]
    return tuple(name for name, variable in zip(names, jaxpr.invars, strict=False) if variable in needed)


def uses(sampler: Sampler, name: str) -> bool:
    """Whether a field of the config changes what this sampler does."""
    if name == "clarifier":
        return _reads_clarifier(sampler)
    return _fixes_shape(sampler, name) if name in _OTHER_SHAPES else name in traced(sampler)


def users(name: str) -> list[str]:
    """The samplers that use a field, those with the fewest strategies first."""
    simplest_first = sorted(samplers.SAMPLERS.values(), key=lambda sampler: len(sampler.strategies))
    return [sampler.name for sampler in simplest_first if uses(sampler, name)]


def changed(cfg: SamplerConfig, before: SamplerConfig) -> list[str]:
    """The fields in which two configs differ."""
    return [
        field.name for field in dataclasses.fields(cfg) if vars(cfg)[field.name] != vars(before)[field.name]
    ]


def check_used(
    names: Iterable[str],
    sampler: Sampler,
    cfg: SamplerConfig,
    source: str,
    spell: Callable[[str], str] = str,
) -> None:
    """Raises a ValueError for the first of these fields that changes nothing; it says which samplers use that field.

    source: how the error begins. spell: a field's name as users type it there.
    """
    for name in names:
        if name in _DRY and cfg.dry_multiplier == 0:
            needed = spell("dry_multiplier")
            raise ValueError(f"{source}: {spell(name)} has no effect while {needed} is 0; set that too")
        if name not in (*SWITCHES, *_DRY) and not uses(sampler, name):
            raise ValueError(
                f"{source}: {spell(name)} has no effect with {sampler.name}; it is used by {_few(users(name))}, "
                "see docs/samplers.md"
            )


def check_preset(name: str) -> None:
    """Raises a ValueError for a preset or TOML file that sets a number its rule ignores."""
    rule, cfg = presets.read_preset(name)
    has_own = rule in presets.preset_names("samplers")
    own = presets.read_preset(rule)[1] if has_own else SamplerConfig()
    check_used(changed(cfg, own), samplers.get(rule), cfg, name)


def _reads_clarifier(sampler: Sampler) -> bool:
    """Whether it asks for that text's tokens."""
    texts = []

    def encode(text: str) -> list[int]:
        texts.append(text)
        return [1]

    sampler.init(SamplerConfig(clarifier="a text of its own"), [[1]], encode)
    return "a text of its own" in texts


def _few(names: list[str]) -> str:
    """A sentence's list of the first names, and how many more there are."""
    shown, more = names[:_NAMED], len(names) - _NAMED
    *some, last = [*shown, f"{more} more"] if more > 0 else shown
    return f"{', '.join(some)} and {last}" if some else last


def _zeros(jaxpr: Jaxpr) -> set[Var]:
    """What is 0 whatever goes in: a product with a 0, a sum or copy of nothing else. What goes in is finite."""
    found: set[Var] = set()

    def is_zero(atom: Any) -> bool:
        return not np.any(atom.val) if isinstance(atom, Literal) else atom in found

    for equation in jaxpr.eqns:
        enough = _ZERO_IF.get(equation.primitive)
        if enough is not None and enough(map(is_zero, equation.invars)):
            found |= set(equation.outvars)
    return found


def _jaxpr(sampler: Sampler, cfg: SamplerConfig) -> Jaxpr:
    """One step of one row, as a function of the config's numbers and then of all else, lest any of it be constant."""
    context = SamplerInputs(jnp.zeros((1, _VOCABULARY)), Metrics(*(jnp.zeros(1) for _ in Metrics._fields)))
    leaves, tree = jax.tree.flatten(cfg)
    state = sampler.init(cfg, [[1]], lambda text: [1])
    key_B = jax.random.split(jax.random.key(0), 1)

    def step(numbers: list[Any], key_B: Array, state: Any, context: SamplerInputs) -> Any:
        return sampler.step(key_B, state, context, jax.tree.unflatten(tree, numbers))

    return jax.make_jaxpr(step)([jnp.asarray(leaf) for leaf in leaves], key_B, state, context).jaxpr


def _fixes_shape(sampler: Sampler, name: str) -> bool:
    """Whether another value of a static field is another program."""
    usual = SamplerConfig()
    other = dataclasses.replace(usual, **{name: _OTHER_SHAPES[name]})  # type: ignore[arg-type]
    return str(_jaxpr(sampler, usual)) != str(_jaxpr(sampler, other))
