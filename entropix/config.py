"""Configurations: what a model is, how a token is chosen, when to stop.

Each field carries its help text, unit and inclusive range in its metadata. The command line, the error messages
and the tables of docs/configuration.md all read them from there, so they cannot disagree. Values come from TOML
files or flags and are checked once, at the border.
"""

import dataclasses
import difflib
import math
from collections.abc import Mapping
from typing import Any, TypeVar, get_type_hints

import jax

Config = TypeVar("Config")

_LARGEST = 3.4028234e38  # what float32 holds
_MAX_INT32 = 2**31 - 1  # the device counts in int32
BATCH_ROWS = 32  # prompts that are answered together, unless told otherwise
# The types of fields that are lists: of what, and its name in a sentence.
_LISTS: dict[Any, tuple[type, str]] = {
    tuple[str, ...]: (str, "a list of strings"),
    tuple[int, ...]: (int, "a list of integers"),
}


def knob(default: Any, help: str, low: float = -math.inf, high: float = math.inf, unit: str = "") -> Any:
    """A dataclass field with its documentation and its inclusive range."""
    return dataclasses.field(default=default, metadata={"help": help, "low": low, "high": high, "unit": unit})


# ----- the model -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """How Llama 3.1 and later stretch their low rotary frequencies (arXiv:2407.21783 and the released code)."""

    factor: float = knob(8.0, "division of the lowest frequencies", 1.0)
    low_freq_factor: float = knob(1.0, "wavelengths above original/low are divided in full", 0.0)
    high_freq_factor: float = knob(4.0, "wavelengths below original/high are left alone", 0.0)
    original_context_length: int = knob(8192, "context length of pre-training, in tokens", 1)

    def __post_init__(self) -> None:
        check(self)
        if self.high_freq_factor <= self.low_freq_factor:
            high, low = self.high_freq_factor, self.low_freq_factor
            raise ValueError(f"high_freq_factor ({high}) must be above low_freq_factor ({low})")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The numbers that fix a Llama-family architecture. Hashable, so that it can be a static argument of `jit`."""

    n_layers: int = knob(dataclasses.MISSING, "transformer layers", 1)
    dim: int = knob(dataclasses.MISSING, "model width D", 1)
    n_heads: int = knob(dataclasses.MISSING, "query heads N", 1)
    n_kv_heads: int = knob(dataclasses.MISSING, "key/value heads K", 1)
    head_dim: int = knob(dataclasses.MISSING, "head width H", 2)
    ffn_dim: int = knob(dataclasses.MISSING, "feed-forward width F", 1)
    vocab_size: int = knob(dataclasses.MISSING, "vocabulary size V", 1)
    context_length: int = knob(dataclasses.MISSING, "longest text the model was trained for, in tokens", 1)
    rope_theta: float = knob(dataclasses.MISSING, "base of the rotary frequencies", 0.0)
    norm_eps: float = knob(dataclasses.MISSING, "epsilon of every RMSNorm", 0.0)
    tied_embeddings: bool = knob(dataclasses.MISSING, "the unembedding is the embedding, transposed")
    rope_scaling: RopeScaling | None = knob(None, "Llama 3 frequency scaling, if any")

    def __post_init__(self) -> None:
        check(self)
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads ({self.n_heads}) must be a multiple of n_kv_heads ({self.n_kv_heads})")
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for the rotary embedding, got {self.head_dim}")


# ----- the sampler ---------------------------------------------------------------------------------------------

_STATIC = ("n_adaptive_samples", "max_top_k")


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
    """Everything a sampler may be told.

    Inside `jit` every number is a traced leaf, so sweeping thresholds never compiles anew; only
    `n_adaptive_samples` and `max_top_k`, which fix shapes, are static. `clarifier` is text for the host: a sampler
    that inserts it tokenises it in its `init`, and it does not enter `jit` at all.

    Entropies are in bits, varentropies in bits².
    """

    temp: float = knob(0.666, "base temperature", 1e-3, 100.0)
    top_p: float = knob(
        0.90, "nucleus: smallest prefix of tokens whose mass reaches this", 0.0, 1.0, "probability"
    )
    top_k: int = knob(27, "most tokens a draw may choose from; at most max_top_k", 1, _MAX_INT32, "tokens")
    min_p: float = knob(0.03, "drop tokens less likely than this times the likeliest", 0.0, 1.0, "ratio")

    low_ent_thresh: float = knob(0.1, "flow below this logits entropy", 0.0, unit="bits")
    low_vent_thresh: float = knob(0.1, "flow and clarify below this logits varentropy", 0.0, unit="bits²")
    med_ent_thresh: float = knob(3.0, "resample above this logits entropy", 0.0, unit="bits")
    high_ent_thresh: float = knob(5.0, "clarify above, explore below this logits entropy", 0.0, unit="bits")
    high_vent_thresh: float = knob(
        5.0, "explore and resample above this logits varentropy", 0.0, unit="bits²"
    )

    clarifier: str = knob(" ...", "text that clarify inserts, tokenised by the model's own tokenizer")

    helv_attn_ent_offset: float = knob(1.3, "clarify: temperature factor at zero attention entropy")
    helv_attn_ent_coef: float = knob(0.2, "clarify: temperature factor per attention entropy", unit="1/bit")
    lehv_interaction_strength_offset: float = knob(
        1.2, "explore: temperature factor at zero interaction strength"
    )
    lehv_interaction_strength_coef: float = knob(0.3, "explore: temperature factor per interaction strength")
    hehv_attn_ent_coef: float = knob(0.2, "resample: top-p lowered per attention entropy", unit="1/bit")
    hehv_attn_vent_offset: float = knob(2.0, "resample: temperature factor at zero attention varentropy")
    hehv_attn_vent_coef: float = knob(
        0.5, "resample: temperature factor per attention varentropy", unit="1/bit²"
    )

    n_adaptive_samples: int = knob(5, "adaptive: draws, of which the best-scored is kept (static)", 1, 64)
    max_top_k: int = knob(128, "no strategy keeps more tokens than this (static)", 1, _MAX_INT32, "tokens")

    ada_temp_logits: float = knob(0.3, "adaptive: temperature raised by entropy + varentropy of the logits")
    ada_temp_attn: float = knob(0.2, "adaptive: temperature raised by entropy + varentropy of attention")
    ada_temp_agree: float = knob(0.2, "adaptive: temperature lowered by agreement")
    ada_top_p: float = knob(0.1, "adaptive: top-p raised by attention varentropy", unit="1/bit²")
    ada_top_k_int: float = knob(0.3, "adaptive: top-k raised by interaction strength")
    ada_top_k_agree: float = knob(0.2, "adaptive: top-k lowered by agreement")
    ada_min_p: float = knob(0.5, "adaptive: min-p lowered by entropy + varentropy of the logits")

    ada_score_logits_ent: float = knob(0.1, "score weight of 1 - logits entropy")
    ada_score_attn_ent: float = knob(0.2, "score weight of 1 - attention entropy")
    ada_score_logits_vent: float = knob(0.3, "score weight of 1 - logits varentropy")
    ada_score_attn_vent: float = knob(0.4, "score weight of 1 - attention varentropy")
    ada_score_agree: float = knob(0.5, "score weight of agreement")
    ada_score_int: float = knob(0.6, "score weight of interaction strength")

    typical_p: float = knob(
        0.95, "typical: mass of the tokens whose surprise is nearest the entropy", 0.0, 1.0, "probability"
    )
    epsilon_cutoff: float = knob(6e-4, "epsilon: drop tokens no likelier than this", 0.0, 1.0, "probability")
    eta_cutoff: float = knob(
        6e-4, "eta: the epsilon of a cutoff that falls with the entropy", 0.0, 1.0, "probability"
    )
    top_n_sigma: float = knob(
        1.0, "top-n-sigma: keep logits within so many standard deviations of the largest", 0.0, 1000.0
    )
    top_h_alpha: float = knob(
        0.4, "top-h: share of the entropy that the kept tokens may have", 0.0, 1.0, "ratio"
    )
    dynatemp_range: float = knob(0.5, "dynamic-temperature: temp plus or minus this, by entropy", 0.0, 100.0)
    dynatemp_exponent: float = knob(
        1.0, "dynamic-temperature: exponent of the entropy's share of its maximum", 0.0, 100.0
    )
    edt_theta: float = knob(1.0, "edt: how strongly low entropy cools", 0.0, 100.0, "nats")
    edt_base: float = knob(0.8, "edt: what is raised to theta / entropy", 1e-3, 1.0)
    mirostat_tau: float = knob(3.0, "mirostat: the mean surprise to steer to", 0.0, 100.0, "bits")
    mirostat_eta: float = knob(0.1, "mirostat: share of an error that is corrected at once", 0.0, 1.0)
    xtc_threshold: float = knob(
        0.1, "xtc: of several tokens at least this likely, all but the last may go", 0.0, 1.0, "probability"
    )
    xtc_probability: float = knob(0.5, "xtc: how often they go", 0.0, 1.0, "probability")
    greedy_threshold: float = knob(
        0.3, "greedy-threshold: greedy where the likeliest token is less likely", 0.0, 1.0, "probability"
    )
    placebo_flow: float = knob(0.008, "placebo: relative frequency of flow", 0.0, 1.0)
    placebo_clarify: float = knob(0.0, "placebo: relative frequency of clarify", 0.0, 1.0)
    placebo_explore: float = knob(0.557, "placebo: relative frequency of explore", 0.0, 1.0)
    placebo_resample: float = knob(0.213, "placebo: relative frequency of resample", 0.0, 1.0)
    placebo_adaptive: float = knob(0.222, "placebo: relative frequency of adaptive", 0.0, 1.0)

    repetition_penalty: float = knob(
        1.0,
        "guard: divides the positive logits of recent tokens, multiplies the others; 1 is off",
        0.01,
        100.0,
    )
    dry_multiplier: float = knob(
        0.0, "guard: penalty of a token that goes on repeating; 0 is off", 0.0, 100.0, "nats"
    )
    dry_base: float = knob(1.75, "guard: growth of that penalty with each repeated token", 1.0, 100.0)
    dry_allowed_length: float = knob(
        2.0, "guard: repeated tokens from which on that penalty applies", 1.0, 32.0, "tokens"
    )


jax.tree_util.register_dataclass(
    SamplerConfig,
    data_fields=[f.name for f in dataclasses.fields(SamplerConfig) if f.name not in (*_STATIC, "clarifier")],
    meta_fields=list(_STATIC),
    drop_fields=["clarifier"],
)


# ----- generation ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class BranchConfig:
    """Where a generation branches, and which path it keeps. With one path or none rolled forward it does not."""

    paths: int = knob(1, "tokens tried where the generation branches; 1 is no branching", 1, 16, "paths")
    depth: int = knob(4, "tokens that each path is rolled forward; 0 is no branching", 0, 15, "tokens")
    strategies: tuple[str, ...] = knob(("explore",), "strategies of the sampler that branch")
    entropy: float = knob(0.0, "branch above this entropy too; 0 is off", 0, 100, "bits")
    margin: float = knob(0.0, "branch too where the two likeliest tokens are closer; 0 is off", 0, 1)
    budget: int = knob(64, "most forks in one answer", 0, _MAX_INT32)
    distance: int = knob(1, "tokens from one fork to the next, at least", 1, _MAX_INT32, "tokens")
    growth: float = knob(0.0, "two paths, and one more for every so much entropy; 0 is all", 0, 100, "bits")
    score: str = knob("logprob", "mean over a path: logprob, margin, certainty or entropy")
    penalty: float = knob(0.1, "score entropy: taken off the log-probability", 0, 100, "nats per bit")
    keep: str = knob("path", "of the best path: path, or its first token")
    among: str = knob("kept", "tokens to try: kept by the sampler's filters, or all")

    def __post_init__(self) -> None:
        choices = {
            "score": ("logprob", "margin", "certainty", "entropy"),
            "keep": ("path", "token"),
            "among": ("kept", "all"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be {' or '.join(known)}, got {getattr(self, name)!r}")


@dataclasses.dataclass(frozen=True)
class BacktrackConfig:
    """When tokens are taken back, and how many."""

    tokens: int = knob(0, "newest tokens to take back; 0 is no backtracking", 0, 16, "tokens")
    strategies: tuple[str, ...] = knob(("resample",), "strategies of the sampler that ask for it")
    budget: int = knob(8, "how often in one answer", 0, _MAX_INT32)


@dataclasses.dataclass(frozen=True)
class GenerateConfig:
    """How long to go on, and from which seed."""

    max_new_tokens: int = knob(512, "most tokens to generate for one prompt", 1, _MAX_INT32, "tokens")
    seed: int = knob(0, "seed of every draw", 0, 2**32 - 1)
    seeds: tuple[int, ...] = knob((), "a seed for each prompt, instead of one for all", 0, 2**32 - 1)
    occurrences: tuple[int, ...] = knob(
        (), "how often each prompt came earlier with its seed, instead of counting", 0, 2**32 - 1
    )
    stop: tuple[str, ...] = knob((), "text that ends a row; it is not part of the result")
    ignore_stop_tokens: bool = knob(False, "go on past the checkpoint's stop tokens")
    chunk_length: int = knob(
        16, "most steps computed on the device before the host looks", 1, _MAX_INT32, "tokens"
    )
    speculate: int = knob(
        0,
        "tokens drafted from the text itself and checked in one pass; changes the speed alone",
        0,
        15,
        "tokens",
    )
    alternatives: int = knob(0, "likeliest tokens to record at every step", 0, 20, "tokens")
    head_entropies: bool = knob(False, "record the attention entropy of every head at every step")
    branching: BranchConfig = knob(BranchConfig(), "where to try several tokens; see BranchConfig")
    backtracking: BacktrackConfig = knob(BacktrackConfig(), "when to take tokens back; see BacktrackConfig")


_PARTS = {"rope_scaling": RopeScaling, "branching": BranchConfig, "backtracking": BacktrackConfig}


# ----- checking and reading ------------------------------------------------------------------------------------


def check(cfg: Any, source: str = "") -> None:
    """Raises a ValueError that names the first field of the wrong type or out of its range."""
    where = f"{source}: " if source else ""
    hints = get_type_hints(type(cfg))
    for field in dataclasses.fields(cfg):
        value, expected = getattr(cfg, field.name), hints[field.name]
        if isinstance(value, BranchConfig | BacktrackConfig):
            check(value, f"{where}{field.name}")
        if not _is_of_type(value, expected):
            type_name = getattr(expected, "__name__", str(expected))
            kind = _LISTS[expected][1] if expected in _LISTS else f"of type {type_name}"
            raise ValueError(f"{where}{field.name} must be {kind}, got {value!r}")
        low, high = field.metadata.get("low", -math.inf), field.metadata.get("high", math.inf)
        for item in value if isinstance(value, tuple) else (value,):
            is_number = isinstance(item, int | float) and not isinstance(item, bool)
            if is_number and (not low <= item <= high or abs(item) > _LARGEST):
                raise ValueError(f"{where}{field.name} must be {_range_text(low, high)}, got {item!r}")
    if isinstance(cfg, SamplerConfig) and cfg.top_k > cfg.max_top_k:
        raise ValueError(
            f"{where}top_k must be at most max_top_k ({cfg.max_top_k}), got {cfg.top_k}; raise max_top_k with it"
        )
    if isinstance(cfg, SamplerConfig):
        frequencies = {name: value for name, value in vars(cfg).items() if name.startswith("placebo_")}
        if not any(frequencies.values()):
            raise ValueError(f"{where}one of {', '.join(frequencies)} must be above 0, got 0 for all")


def from_mapping(cls: type[Config], values: Mapping[str, Any], source: str) -> Config:
    """Builds a checked config from parsed TOML; an unknown or missing name is an error with the nearest known one."""
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            near = difflib.get_close_matches(name, fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(sorted(fields))}"
            raise ValueError(f"{source}: unknown field {name!r}{hint}")
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
    check(cfg, source)
    return cfg


def _converted(value: Any, expected: Any) -> Any:
    """TOML writes tuples as arrays, and whole numbers without a point, which would compile another program."""
    if isinstance(value, list | range):
        return tuple(value)
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
