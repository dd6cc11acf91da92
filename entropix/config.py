"""Configurations: what a model is, how a token is chosen, when to stop.

Each field carries its help text, unit and inclusive range in its metadata. The command line, the error messages
and the tables of docs/configuration.md all read them from there, so they cannot disagree. Values come from TOML
files or flags and are checked once, at the border.
"""

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar, cast, dataclass_transform, get_type_hints

import jax
import numpy as np

from entropix.showing import shown

Config = TypeVar("Config")

_LARGEST = 3.4028234e38  # what float32 holds
MAX_INT32 = 2**31 - 1  # the device counts in int32
NO_TOKEN = -1  # among token ids: none, where an array has more places than there are tokens
TRACED, STATIC, HOST = "traced", "static", "host"  # kinds of a rule's numbers
NO_NAMES: Mapping[str, str] = {}
BATCH_ROWS = 32  # prompts that are answered together, unless told otherwise
# The types of fields that are lists: of what, and its name in a sentence.
_LISTS: dict[Any, tuple[type, str]] = {
    tuple[str, ...]: (str, "a list of strings"),
    tuple[int, ...]: (int, "a list of integers"),
}


def parameter(
    default: Any,
    help: str,
    low: float = -math.inf,
    high: float = math.inf,
    unit: str = "",
    source: str = "",
    kind: str = TRACED,
) -> Any:
    """A dataclass field with its documentation and its inclusive range.

    source: what others set it to, and where that is written. kind, in the numbers of a sampling rule: `TRACED` numbers
    are data of the compiled program, so that another value compiles nothing; `STATIC` ones fix a shape and are compiled
    in; `HOST` ones, like texts, are read before anything is compiled.
    """
    documentation = {"help": help, "low": low, "high": high, "unit": unit, "source": source, "kind": kind}
    return dataclasses.field(default=default, metadata=documentation)


def choice(default: str, help: str, *known: str) -> Any:
    """A dataclass field that is one of these words."""
    documented = parameter(default, help)
    return dataclasses.field(default=default, metadata={**documented.metadata, "choices": known})


@dataclass_transform(frozen_default=True, kw_only_default=True)
def rule_config(cls: type[Config]) -> type[Config]:
    """Makes a class the frozen dataclass of a sampling rule's numbers, which `jit` takes apart as `parameter` says."""
    made: Any = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    hints = get_type_hints(made)
    for field in dataclasses.fields(made):
        if "kind" not in field.metadata:
            raise ValueError(
                f"{cls.__name__}.{field.name}: write its default as parameter(default, help, ...)"
            )
        if field.metadata["kind"] == TRACED and hints[field.name] not in (float, int, bool):
            raise ValueError(f"{cls.__name__}.{field.name}: a traced number is a float, an int or a bool")
    jax.tree_util.register_dataclass(
        made, fields_of_kind(made, TRACED), fields_of_kind(made, STATIC), fields_of_kind(made, HOST)
    )
    return cast(type[Config], made)


def fields_of_kind(cls: type, kind: str) -> list[str]:
    """The names of a rule's numbers that are traced, static or the host's."""
    return [field.name for field in dataclasses.fields(cls) if field.metadata["kind"] == kind]


# ----- the model -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How Llama 3.1 and later stretch their low rotary frequencies (arXiv:2407.21783 and the released code)."""

    factor: float = parameter(8.0, "division of the lowest frequencies", 1.0)
    low_freq_factor: float = parameter(1.0, "wavelengths above original/low are divided in full", 0.0)
    high_freq_factor: float = parameter(4.0, "wavelengths below original/high are left alone", 0.0)
    original_context_length: int = parameter(8192, "context length of pre-training, in tokens", 1)

    def __post_init__(self) -> None:
        check(self)
        if self.high_freq_factor <= self.low_freq_factor:
            high, low = self.high_freq_factor, self.low_freq_factor
            raise ValueError(f"high_freq_factor ({high}) must be above low_freq_factor ({low})")


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """How YaRN stretches rotary frequencies and sharpens attention (Peng et al. 2023, arXiv:2309.00071)."""

    factor: float = parameter(dataclasses.MISSING, "division of the lowest frequencies", 1.0)
    original_context_length: int = parameter(
        dataclasses.MISSING, "context length of pre-training, in tokens", 1
    )
    attention_factor: float = parameter(dataclasses.MISSING, "factor of rotated queries and keys", 0.0)
    beta_fast: float = parameter(32.0, "pairs that turn so often in the original context stay", 1e-6)
    beta_slow: float = parameter(1.0, "pairs that turn so rarely are divided in full", 1e-6)
    truncate: bool = parameter(True, "both borders lie at whole pairs")

    def __post_init__(self) -> None:
        check(self)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The numbers that fix an architecture. Hashable, so that it can be a static argument of `jit`.

    What stands behind `rope_scaling` are switches: in what a family differs from Llama, where each is off and leaves
    nothing in the compiled program. `checkpoint.families` says which family sets which.
    """

    n_layers: int = parameter(dataclasses.MISSING, "transformer layers", 1)
    dim: int = parameter(dataclasses.MISSING, "model width D", 1)
    n_heads: int = parameter(dataclasses.MISSING, "query heads N", 1)
    n_kv_heads: int = parameter(dataclasses.MISSING, "key/value heads K", 1)
    head_dim: int = parameter(dataclasses.MISSING, "head width H", 2)
    ffn_dim: int = parameter(dataclasses.MISSING, "feed-forward width F", 1)
    vocab_size: int = parameter(dataclasses.MISSING, "vocabulary size V", 1)
    context_length: int = parameter(
        dataclasses.MISSING, "longest text the model was trained for, in tokens", 1
    )
    rope_theta: float = parameter(dataclasses.MISSING, "base of the rotary frequencies", 0.0)
    norm_eps: float = parameter(dataclasses.MISSING, "epsilon of every RMSNorm", 0.0)
    tied_embeddings: bool = parameter(dataclasses.MISSING, "the unembedding is the embedding, transposed")
    rope_scaling: RopeScaling | None = parameter(None, "Llama 3 frequency scaling, if any")
    yarn: YarnScaling | None = parameter(None, "YaRN's frequency scaling, if any")
    qkv_bias: bool = parameter(False, "queries, keys and values have biases (Qwen 2)")
    qk_norm: str = choice(
        "none",
        "RMSNorm of queries and keys before their rotation: of each head (Qwen 3), or of all together (OLMo 2)",
        *("none", "head", "width"),
    )
    no_rope_layers: tuple[int, ...] = parameter((), "layers without rotary embedding, from 0 (SmolLM3)", 0)
    norm_after: bool = parameter(
        False, "norms of what attention and feed-forward give, not of what they take"
    )
    embedding_multiplier: float = parameter(1.0, "factor of the embedding (Granite)", 0.0)
    attention_multiplier: float = parameter(0.0, "factor of q·k in a score (Granite); 0 is 1/√H", 0.0)
    residual_multiplier: float = parameter(
        1.0, "factor of what attention and feed-forward add (Granite)", 0.0
    )
    logits_divisor: float = parameter(1.0, "what logits are divided by (Granite)", 1e-30)

    def __post_init__(self) -> None:
        check(self)
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads ({self.n_heads}) must be a multiple of n_kv_heads ({self.n_kv_heads})")
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for the rotary embedding, got {self.head_dim}")
        if self.yarn and (self.rope_scaling or self.rope_theta <= 1):
            raise ValueError("yarn takes a rope_theta above 1, and no other scaling beside it")
        if beyond := [layer for layer in self.no_rope_layers if layer >= self.n_layers]:
            raise ValueError(
                f"no_rope_layers has {beyond[0]}, but there are {self.n_layers} layers, from 0 on"
            )

    @property
    def switches(self) -> dict[str, Any]:
        """What differs from Llama: the switches that are not off, with their values."""
        fields = [field for field in dataclasses.fields(self) if field.default is not dataclasses.MISSING]
        found = {field.name: getattr(self, field.name) for field in fields if field.name != "rope_scaling"}
        return {
            field.name: found[field.name]
            for field in fields
            if found.get(field.name, field.default) != field.default
        }


# ----- generation ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class BranchConfig:
    """Where a generation branches, and which path it keeps. With one path or none rolled forward it does not."""

    paths: int = parameter(1, "tokens tried where the generation branches; 1 is no branching", 1, 16, "paths")
    depth: int = parameter(4, "tokens that each path is rolled forward; 0 is no branching", 0, 15, "tokens")
    strategies: tuple[str, ...] = parameter(("explore",), "strategies of the sampler that branch")
    entropy: float = parameter(0.0, "branch above this entropy too; 0 is off", 0, 100, "bits")
    margin: float = parameter(0.0, "branch too where the two likeliest tokens are closer; 0 is off", 0, 1)
    budget: int = parameter(64, "most forks in one answer", 0, MAX_INT32)
    distance: int = parameter(1, "tokens from one fork to the next, at least", 1, MAX_INT32, "tokens")
    growth: float = parameter(
        0.0, "two paths, and one more for every so much entropy; 0 is all", 0, 100, "bits"
    )
    score: str = choice(
        "logprob",
        "mean over a path: logprob, margin, certainty or entropy",
        *("logprob", "margin", "certainty", "entropy"),
    )
    penalty: float = parameter(0.1, "score entropy: taken off the log-probability", 0, 100, "nats per bit")
    keep: str = choice("path", "of the best path: path, or its first token", "path", "token")
    among: str = choice("kept", "tokens to try: kept by the sampler's filters, or all", "kept", "all")


@dataclasses.dataclass(frozen=True)
class BacktrackConfig:
    """When tokens are taken back, and how many."""

    tokens: int = parameter(0, "newest tokens to take back; 0 is no backtracking", 0, 16, "tokens")
    strategies: tuple[str, ...] = parameter(("resample",), "strategies of the sampler that ask for it")
    budget: int = parameter(8, "how often in one answer", 0, MAX_INT32)


@dataclasses.dataclass(frozen=True)
class GenerateConfig:
    """How long to go on, and from which seed."""

    max_new_tokens: int = parameter(512, "most tokens to generate for one prompt", 1, MAX_INT32, "tokens")
    seed: int = parameter(0, "seed of every draw", 0, 2**32 - 1)
    seeds: tuple[int, ...] = parameter((), "a seed for each prompt, instead of one for all", 0, 2**32 - 1)
    occurrences: tuple[int, ...] = parameter(
        (), "how often each prompt came earlier with its seed, instead of counting", 0, 2**32 - 1
    )
    stop: tuple[str, ...] = parameter((), "text that ends a row; it is not part of the result")
    ignore_stop_tokens: bool = parameter(False, "go on past the checkpoint's stop tokens")
    chunk_length: int = parameter(
        16, "most steps computed on the device before the host looks", 1, MAX_INT32, "tokens"
    )
    speculate: int = parameter(
        0,
        "tokens drafted from the text itself and checked in one pass; changes the speed alone",
        0,
        15,
        "tokens",
    )
    alternatives: int = parameter(0, "likeliest tokens to record at every step", 0, 20, "tokens")
    head_entropies: bool = parameter(False, "record the attention entropy of every head at every step")
    branching: BranchConfig = parameter(BranchConfig(), "where to try several tokens; see BranchConfig")
    backtracking: BacktrackConfig = parameter(
        BacktrackConfig(), "when to take tokens back; see BacktrackConfig"
    )


_PARTS = {
    "rope_scaling": RopeScaling,
    "yarn": YarnScaling,
    "branching": BranchConfig,
    "backtracking": BacktrackConfig,
}


# ----- checking and reading ------------------------------------------------------------------------------------


# What to do instead of a number out of its range.
_INSTEAD = {"temp": "the sampler greedy always takes the likeliest token"}


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """The known name that may be meant, if there is one: like the given one, or beginning like it."""

    def likeness(other: str) -> tuple[float, float]:
        alike = difflib.SequenceMatcher(None, name, other).ratio()
        return max(alike, difflib.SequenceMatcher(None, name, other[: len(name)]).ratio()), alike

    best = max(known, key=likeness, default=None)
    return [] if best is None or likeness(best)[0] < 0.6 else [best]


def suggestion(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: the nearest known one, or all of them."""
    names = list(known)
    near = nearest(name, names)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(names)}"


def _label(source: str, name: str) -> str:
    """A field as its user has written it."""
    if source == "flags":
        return f"--{name.replace('_', '-')}"
    return f"{source}: {name}" if source else name


def check(cfg: Any, source: str = "", typed: Mapping[str, str] = NO_NAMES) -> None:
    """Raises a ValueError that names the first field of the wrong type or out of its range.

    A config whose fields depend on each other has a method `problem`: a sentence, or None where all is well.
    source: what the error begins with; "flags" names fields as they are typed. typed: those flags that are not named
    after their field.
    """
    where = f"{source}: " if source else ""
    hints = get_type_hints(type(cfg))
    for field in dataclasses.fields(cfg):
        value, expected = getattr(cfg, field.name), hints[field.name]
        if isinstance(value, BranchConfig | BacktrackConfig):
            check(value, f"{where}{field.name}")
        label = _label(source, typed.get(field.name, field.name))
        if not _is_of_type(value, expected):
            type_name = getattr(expected, "__name__", str(expected))
            kind = _LISTS[expected][1] if expected in _LISTS else f"of type {type_name}"
            raise ValueError(f"{label} must be {kind}, got {shown(value)}")
        choices = field.metadata.get("choices", ())
        if choices and value not in choices:
            raise ValueError(f"{label} must be {' or '.join(choices)}, got {shown(value)}")
        low, high = field.metadata.get("low", -math.inf), field.metadata.get("high", math.inf)
        for item in value if isinstance(value, tuple) else (value,):
            is_number = isinstance(item, int | float) and not isinstance(item, bool)
            if is_number and (not low <= item <= high or abs(item) > _LARGEST):
                instead = f"; {_INSTEAD[field.name]}" if field.name in _INSTEAD else ""
                raise ValueError(f"{label} must be {_range_text(low, high)}, got {shown(item)}{instead}")
    problem = getattr(cfg, "problem", lambda: None)()
    if problem is not None and source == "flags":
        names = "|".join(field.name for field in dataclasses.fields(cfg))
        raise ValueError(re.sub(rf"\b({names})\b", lambda name: _label(source, name[0]), problem))
    if problem is not None:
        raise ValueError(f"{where}{problem}")


def from_mapping(
    cls: type[Config], values: Mapping[str, Any], source: str, typed: Mapping[str, str] = NO_NAMES
) -> Config:
    """Builds a checked config from parsed TOML or flags; an unknown or missing name is an error with the nearest known
    one. source, typed: as for `check`."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{source}: expected names with values, got {shown(values)}")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            near = nearest(name, fields)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(fields))}"
            raise ValueError(f"{source}: unknown field {shown(name)}{hint}")
    missing = [n for n, f in fields.items() if f.default is dataclasses.MISSING and n not in values]
    if missing:
        raise ValueError(f"{source}: missing field{'s'[: len(missing) - 1]} {', '.join(missing)}")
    hints = get_type_hints(cls)
    converted = {name: _converted(value, hints[name]) for name, value in values.items()}
    for name, inner in _PARTS.items():
        if name in fields and isinstance(converted.get(name), Mapping):
            converted[name] = from_mapping(inner, converted[name], f"{source}: {name}")
    try:
        cfg = cls(**converted)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    check(cfg, source, typed)
    return cfg


def _converted(value: Any, expected: Any) -> Any:
    """TOML writes tuples as arrays, and whole numbers without a point, which would compile another program; what is
    computed comes as numbers and arrays of numpy or JAX."""
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        value = value.tolist()
    if isinstance(value, list | range | tuple):
        return tuple(item.item() if isinstance(item, np.generic) else item for item in value)
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if expected is float and is_whole and abs(value) <= _LARGEST else value


def _is_of_type(value: Any, expected: Any) -> bool:
    if expected is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if expected is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if expected in _LISTS:
        return isinstance(value, tuple) and all(_is_of_type(item, _LISTS[expected][0]) for item in value)
    return isinstance(value, expected)


def _range_text(low: float, high: float) -> str:
    if math.isinf(high):
        return f"a finite number of at least {low}" if not math.isinf(low) else "a finite number"
    return f"between {low} and {high}"
