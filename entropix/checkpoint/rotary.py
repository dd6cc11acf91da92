"""What `config.json` says of the rotary embedding: the base of its frequencies, and how they are scaled."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from entropix.checkpoint import values
from entropix.checkpoint.values import positive, whole
from entropix.config import RopeScaling, YarnScaling

MOST_POSITIONS = 1 << 30
_KINDS = ("default", "linear", "dynamic", "llama3", "longrope", "su", "yarn")  # su: LongRoPE's earlier name


class LinearScaling(NamedTuple):
    """All frequencies divided by a factor (Chen et al. 2023, arXiv:2306.15595)."""

    factor: float
    original_context_length: int


class DynamicScaling(NamedTuple):
    """A base that grows with texts longer than those of pre-training, and is the plain one for all others."""

    factor: float
    original_context_length: int


class LongRope(NamedTuple):
    """Frequencies divided one by one (Ding et al. 2024, arXiv:2402.13753), by other numbers in texts that are longer
    than the original length."""

    divisors: tuple[float, ...]
    long_divisors: tuple[float, ...]  # none where the object has none
    factor: float  # of rotated queries and keys
    original_context_length: int


Scaling = RopeScaling | YarnScaling | LinearScaling | DynamicScaling | LongRope | None


def longest(scaling: Scaling, length: int) -> int:
    """How long a text may be, where config.json says `length`.

    A config.json that a scaling was added to often still has the length of pre-training. LongRoPE without the numbers
    for longer texts is for texts of that length.
    """
    match scaling:
        case YarnScaling() | LinearScaling() | DynamicScaling():
            return max(length, int(scaling.factor * scaling.original_context_length))
        case LongRope(long_divisors=()):
            return min(length, scaling.original_context_length)
    return length


def fields(scaling: Scaling) -> dict[str, Any]:
    """The fields of `ModelConfig` that say so."""
    match scaling:
        case RopeScaling():
            return {"rope_scaling": scaling}
        case YarnScaling():
            return {"yarn": scaling}
        case LinearScaling():
            return {"rope_divisors": (scaling.factor,)}
        case DynamicScaling():
            return {
                "rope_dynamic_factor": scaling.factor,
                "rope_original_length": scaling.original_context_length,
            }
        case LongRope():
            longer = {
                "rope_long_divisors": scaling.long_divisors,
                "rope_original_length": scaling.original_context_length,
            }
            return {
                "rope_divisors": scaling.divisors,
                "rope_factor": scaling.factor,
                **(longer if scaling.long_divisors else {}),
            }
    return {}


def fraction(raw: Mapping[str, Any], path: Path) -> float:
    """Which part of a head is rotated (`partial_rotary_factor`)."""
    holders = [
        raw,
        *(raw[key] for key in ("rope_parameters", "rope_scaling") if values.table(raw, key, path)),
    ]
    name = "partial_rotary_factor"
    found = {positive(one, name, path, default=1.0) for one in holders if name in one}
    if len(found) > 1 or any(one > 1 for one in found):
        raise ValueError(f"{path}: {name} must be one number of at most 1, got {sorted(found)}")
    return next(iter(found), 1.0)


def of_layers(raw: Mapping[str, Any], path: Path, theta: float) -> tuple[Mapping[str, Any], float]:
    """(config.json with the `rope_parameters` of layers without a window, the base of the others) where these differ;
    this theta where no place has the latter.

    Raises a ValueError where the others are scaled, and for `rope_parameters` that are not those of each kind of layer.
    """
    key, whole_kind, local_kind = "rope_parameters", "full_attention", "sliding_attention"
    rope = values.table(raw, key, path)
    if not rope.keys() <= {whole_kind, local_kind}:
        raise values.wrong(path, key, f"an object for {whole_kind} and one for {local_kind}", rope)
    whole_layers, local = (values.table(rope, kind, f"{path}: {key}") for kind in (whole_kind, local_kind))
    if _scaling({**raw, key: local}, key, path) is not None:
        raise ValueError(f"{path}: {key} scales the frequencies of {local_kind}: only others may be scaled")
    places = ((raw, "rope_local_base_freq"), (local, "rope_theta"))
    thetas = [positive(place, name, path) for place, name in places if place.get(name) is not None]
    if len({*thetas}) > 1:
        raise ValueError(
            f"{path}: it has rope_local_base_freq {thetas[0]} and {key}.{local_kind}.rope_theta {thetas[1]}; make them "
            "agree"
        )
    return {**raw, key: whole_layers}, next(iter(thetas), theta)


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
    if kind == "default":
        if rope.get("factor", 1) not in (1, None):
            raise ValueError(
                f"{path}: {key} has a factor, {values.shown(rope['factor'])}, but no type that scales by it; name one, "
                "or leave the factor out"
            )
        return None
    if kind == "yarn":
        return _yarn(raw, key, path)
    if kind in ("longrope", "su"):
        return _longrope(raw, key, path)
    if kind == "dynamic":
        return DynamicScaling(*_stretched(raw, key, path))
    if kind == "linear":
        return LinearScaling(*_stretched(raw, key, path))
    numbers = {name: positive(rope, name, path) for name in ("factor", "low_freq_factor", "high_freq_factor")}
    length = whole(rope, "original_max_position_embeddings", path, MOST_POSITIONS)
    try:
        return RopeScaling(**numbers, original_context_length=length)
    except ValueError as error:
        raise ValueError(f"{path}: {key}: {error}") from None


def _stretched(raw: Mapping[str, Any], key: str, path: Path) -> tuple[float, int]:
    """(factor, length of pre-training) of a scaling that stretches `max_position_embeddings`, which is that length: to
    transformers here, unlike elsewhere (`_original`), whatever else is named."""
    factor = positive(raw[key], "factor", path)
    length = whole(raw, "max_position_embeddings", path, MOST_POSITIONS)
    if not 1 <= factor <= MOST_POSITIONS / length:
        raise ValueError(
            f"{path}: {key} has a factor of {factor} for a length of {length} tokens; it must be at least 1, and the "
            f"product at most {MOST_POSITIONS} tokens"
        )
    return factor, length


def _original(raw: Mapping[str, Any], key: str, path: Path) -> int:
    """The length of pre-training, beside the object of this key or in it: transformers takes the former first."""
    name, pretrained = (
        "original_max_position_embeddings",
        whole(raw, "max_position_embeddings", path, MOST_POSITIONS),
    )
    inside = whole(raw[key], name, path, MOST_POSITIONS, default=pretrained)
    return whole(raw, name, path, MOST_POSITIONS, default=inside)


def _longrope(raw: Mapping[str, Any], key: str, path: Path) -> LongRope:
    """LongRoPE's numbers, with those that transformers takes where the object leaves one out."""
    rope, original = raw[key], _original(raw, key, path)
    length = whole(raw, "max_position_embeddings", path, MOST_POSITIONS)
    ratio = positive(rope, "factor", path, default=length / original)
    usual = math.sqrt(1 + math.log(ratio) / math.log(original)) if ratio > 1 and original > 1 else 1.0
    has_longer = length > original and rope.get("long_factor") is not None
    short = _divisors(rope, "short_factor", key, path)
    longer = _divisors(rope, "long_factor", key, path) if has_longer else ()
    if longer and len(longer) != len(short):
        raise ValueError(
            f"{path}: {key} has {len(short)} numbers as short_factor and {len(longer)} as long_factor; both need one "
            "for each rotary pair"
        )
    is_one_kind = longer == short  # for texts of any length
    return LongRope(
        divisors=short,
        long_divisors=() if is_one_kind else longer,
        factor=positive(rope, "attention_factor", path, default=usual),
        original_context_length=length if is_one_kind else original,
    )


def _divisors(rope: Mapping[str, Any], name: str, key: str, path: Path) -> tuple[float, ...]:
    """What frequencies are divided by, one number for each rotary pair."""
    numbers = rope.get(name)
    if not isinstance(numbers, list) or len(numbers) < 2:
        raise values.wrong(path, f"{key}.{name}", "a list of numbers, one for each rotary pair", numbers)
    each = {f"{key}.{name}[{i}]": one for i, one in enumerate(numbers)}
    return tuple(positive(each, place, path) for place in each)


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
