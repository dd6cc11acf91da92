"""What `config.json` says of the rotary embedding: the base of its frequencies, and how they are scaled."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from entropix.checkpoint import values
from entropix.checkpoint.values import positive, whole
from entropix.config import RopeScaling, YarnScaling

MOST_POSITIONS = 1 << 30
_KINDS = ("default", "linear", "llama3", "yarn")


class LinearScaling(NamedTuple):
    """All frequencies divided by a factor (Chen et al. 2023, arXiv:2306.15595)."""

    factor: float
    original_context_length: int


Scaling = RopeScaling | YarnScaling | LinearScaling | None


def scaled_length(scaling: Scaling) -> int:
    """How long a text may be by the scaling alone; 0 where it does not say.

    A config.json that a scaling was added to often still has the length of pre-training.
    """
    if not isinstance(scaling, YarnScaling | LinearScaling):
        return 0
    return int(scaling.factor * scaling.original_context_length)


def read(raw: Mapping[str, Any], path: Path, theta: float) -> tuple[float, Scaling]:
    """(theta, scaling) from `rope_parameters`, `rope_scaling` and `rope_theta`; this theta where no place has one.

    Raises a ValueError that names both where two of them say different things.
    """
    keys = [key for key in ("rope_parameters", "rope_scaling") if values.table(raw, key, path)]
    scalings = [_scaling(raw, key, path) for key in keys]
    if len({*scalings}) > 1:
        raise ValueError(
            f"{path}: rope_parameters is {values.shown(raw['rope_parameters'])}, but rope_scaling is "
            f"{values.shown(raw['rope_scaling'])}, which mean different rotary frequencies; make them agree"
        )
    thetas = {
        f"{place}rope_theta": positive(holder, "rope_theta", path)
        for place, holder in (("", raw), *((f"{key}.", raw[key]) for key in keys))
        if holder.get("rope_theta") is not None
    }
    if len({*thetas.values()}) > 1:
        both = " and ".join(f"{name} {theta}" for name, theta in thetas.items())
        raise ValueError(f"{path}: it has {both}; make them agree")
    return next(iter(thetas.values()), theta), next(iter(scalings), None)


def _scaling(raw: Mapping[str, Any], key: str, path: Path) -> Scaling:
    """The scaling in the object of this key; None for none."""
    rope = raw[key]
    if any(isinstance(value, dict) for value in rope.values()):
        raise ValueError(f"{path}: {key} must be one flat object for all layers, got {values.shown(rope)}")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if {"type", "rope_type"} <= rope.keys() and rope["type"] != kind:
        raise ValueError(
            f"{path}: {key} has the rope_type {values.shown(kind)} and the type {values.shown(rope['type'])}; make "
            "them agree"
        )
    if kind not in _KINDS:
        first = ", ".join(map(repr, _KINDS[:-1]))
        raise ValueError(
            f"{path}: {key} is of type {values.shown(kind)}: only {first} and {_KINDS[-1]!r} are supported"
        )
    if rope.get("partial_rotary_factor", 1) != 1:
        value = values.shown(rope["partial_rotary_factor"])
        raise ValueError(
            f"{path}: partial_rotary_factor is {value}: partial rotary embeddings are not supported"
        )
    if kind == "default":
        if rope.get("factor", 1) not in (1, None):
            raise ValueError(
                f"{path}: {key} has a factor, {values.shown(rope['factor'])}, but no type that scales by it; name one, "
                "or leave the factor out"
            )
        return None
    if kind == "yarn":
        return _yarn(raw, key, path)
    if kind == "linear":
        factor, length = (
            positive(rope, "factor", path),
            whole(raw, "max_position_embeddings", path, MOST_POSITIONS),
        )
        if not 1 <= factor <= MOST_POSITIONS / length:
            raise ValueError(
                f"{path}: {key} has a factor of {factor} for a length of {length} tokens; together they may be at most "
                f"{MOST_POSITIONS} tokens, and the factor at least 1"
            )
        return LinearScaling(factor, length)
    numbers = {name: positive(rope, name, path) for name in ("factor", "low_freq_factor", "high_freq_factor")}
    length = whole(rope, "original_max_position_embeddings", path, MOST_POSITIONS)
    try:
        return RopeScaling(**numbers, original_context_length=length)
    except ValueError as error:
        raise ValueError(f"{path}: {key}: {error}") from None


def _yarn(raw: Mapping[str, Any], key: str, path: Path) -> YarnScaling:
    """YaRN's numbers, with those that transformers takes where the object leaves one out."""
    rope = raw[key]
    factor = positive(rope, "factor", path)
    pretrained = whole(raw, "max_position_embeddings", path, MOST_POSITIONS)
    original = whole(rope, "original_max_position_embeddings", path, MOST_POSITIONS, default=pretrained)
    if factor * original > MOST_POSITIONS:
        raise ValueError(
            f"{path}: {key} has a factor of {factor} for an original length of {original} tokens; together they may be "
            f"at most {MOST_POSITIONS} tokens"
        )
    attention = rope.get("attention_factor")
    if attention is None:
        both = rope.get("mscale") and rope.get("mscale_all_dim")
        above, below = (
            0.1 * (positive(rope, name, path) if both else default) * max(math.log(factor), 0) + 1
            for name, default in (("mscale", 1.0), ("mscale_all_dim", 0.0))
        )
        attention = above / below
    else:
        attention = positive(rope, "attention_factor", path)
    try:
        return YarnScaling(
            factor=factor,
            original_context_length=original,
            attention_factor=attention,
            beta_fast=positive(rope, "beta_fast", path, default=32.0),
            beta_slow=positive(rope, "beta_slow", path, default=1.0),
            truncate=values.flag(rope, "truncate", path, default=True),
        )
    except ValueError as error:
        raise ValueError(f"{path}: {key}: {error}") from None
