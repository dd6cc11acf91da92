"""What a model is: its shapes, and the switches in which families differ."""

import dataclasses
from typing import Any

from entropix.config.fields import check, choice, parameter


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


_LATER = ("rope_original_length", "rope_long_divisors", "rope_dynamic_factor")  # see `ModelConfig.as_json`


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
    rope_divisors: tuple[float, ...] = parameter(
        (),
        "what rotary frequencies are divided by: one number, or one for each pair (linear, LongRoPE)",
        1e-6,
    )
    rope_original_length: int = parameter(
        0, "tokens of the longest text that keeps these frequencies; 0: all texts do", 0
    )
    rope_long_divisors: tuple[float, ...] = parameter(
        (),
        "what rotary frequencies are divided by in longer texts, one number for each pair (LongRoPE)",
        1e-6,
    )
    rope_dynamic_factor: float = parameter(
        0.0,
        "how fast the base of the rotary frequencies grows with longer texts; 0: not (dynamic scaling)",
        0.0,
    )
    rope_factor: float = parameter(1.0, "factor of rotated queries and keys (LongRoPE)", 1e-6)
    rotary_dim: int = parameter(0, "components of a head that are rotated, the first; 0: all (Phi-4-mini)", 0)
    sliding_window: int = parameter(
        0, "positions that a query sees, its own among them; 0: all (Mistral 0.1)", 0
    )
    global_layers: tuple[int, ...] = parameter(
        (), "layers, from 0, whose queries see all positions in spite of the window (Qwen 2)", 0
    )
    rope_local_theta: float = parameter(
        0.0,
        "base of the rotary frequencies, unscaled, of layers with a window; 0: as in all others (Gemma 3)",
        0.0,
    )
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
    norm_around: bool = parameter(
        False, "norms of what attention and feed-forward take, and of what they give (Gemma)"
    )
    norm_offset: float = parameter(0.0, "what is added to the weight of every norm (Gemma: 1)", 0.0)
    activation: str = choice(
        "silu", "of the gate of feed-forward layers (Gemma: gelu_tanh)", "silu", "gelu_tanh"
    )
    embedding_multiplier: float = parameter(1.0, "factor of the embedding (Granite)", 0.0)
    attention_multiplier: float = parameter(0.0, "factor of q·k in a score (Granite); 0 is 1/√H", 0.0)
    residual_multiplier: float = parameter(
        1.0, "factor of what attention and feed-forward add (Granite)", 0.0
    )
    logits_divisor: float = parameter(1.0, "what logits are divided by (Granite)", 1e-30)
    attention_softcap: float = parameter(
        0.0, "c of c·tanh(score/c), which scores of attention do not exceed; 0: none (Gemma 2)", 0.0
    )
    logits_softcap: float = parameter(
        0.0, "c of c·tanh(logits/c), which logits do not exceed; 0: none (Gemma 2)", 0.0
    )

    def __post_init__(self) -> None:
        check(self)
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads ({self.n_heads}) must be a multiple of n_kv_heads ({self.n_kv_heads})")
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even for the rotary embedding, got {self.head_dim}")
        if (self.rope_divisors or self.rotary_dim) and (self.rope_scaling or self.yarn):
            raise ValueError("rope_divisors and rotary_dim take no other scaling beside them")
        if self.rotary_dim % 2 or self.rotary_dim > self.head_dim:
            raise ValueError(f"rotary_dim must be even and at most head_dim, got {self.rotary_dim}")
        if len(self.rope_divisors) not in (0, 1, (self.rotary_dim or self.head_dim) // 2):
            raise ValueError(
                f"rope_divisors has {len(self.rope_divisors)} numbers for {(self.rotary_dim or self.head_dim) // 2} "
                "rotary pairs"
            )
        if self.rotary_dim and self.attention_multiplier:
            raise ValueError("rotary_dim takes no attention_multiplier beside it")
        if self.yarn and (self.rope_scaling or self.rope_theta <= 1):
            raise ValueError("yarn takes a rope_theta above 1, and no other scaling beside it")
        for name in ("no_rope_layers", "global_layers"):
            if beyond := [layer for layer in getattr(self, name) if layer >= self.n_layers]:
                raise ValueError(f"{name} has {beyond[0]}, but there are {self.n_layers} layers, from 0 on")
        if self.global_layers and (not self.sliding_window or len({*self.global_layers}) == self.n_layers):
            raise ValueError("global_layers takes a sliding_window, and a layer that has it")
        if self.rope_local_theta and (not self.sliding_window or self.yarn or self.rope_factor != 1):
            raise ValueError("rope_local_theta takes a sliding_window, and no factor of attention beside it")
        kinds = bool(self.rope_long_divisors) + bool(self.rope_dynamic_factor)
        if kinds != bool(self.rope_original_length):
            raise ValueError(
                "rope_original_length takes either rope_long_divisors or rope_dynamic_factor, and these take it"
            )
        if kinds and self.rope_local_theta:
            raise ValueError("rope_original_length takes no rope_local_theta beside it")
        if self.rope_long_divisors and len(self.rope_long_divisors) != len(self.rope_divisors):
            raise ValueError(
                f"rope_long_divisors has {len(self.rope_long_divisors)} numbers, and rope_divisors "
                f"{len(self.rope_divisors)}"
            )
        if self.rope_dynamic_factor and (self.rope_divisors or self.rope_scaling or self.yarn):
            raise ValueError("rope_dynamic_factor takes no other scaling beside it")
        if self.rope_dynamic_factor and (pairs := (self.rotary_dim or self.head_dim) // 2) < 2:
            raise ValueError(
                f"dynamic scaling of the rotary base takes 2 rotary pairs of a head or more, got {pairs}"
            )
        if self.norm_around and self.norm_after:
            raise ValueError("norm_around and norm_after exclude each other")

    def rope_length(self, n_tokens: int) -> int:
        """The length that the rotary frequencies of a text of so many tokens are for: 0 for one that is not longer than
        `rope_original_length`. Texts with the same have the same keys where their tokens are the same."""
        if not self.rope_original_length or n_tokens <= self.rope_original_length:
            return 0
        return n_tokens if self.rope_dynamic_factor else self.rope_original_length + 1

    def longest_text(self, n_tokens: int) -> int:
        """How many tokens a text may come to that begins with a prompt of so many.

        LongRoPE reads texts that are longer than `rope_original_length` with other frequencies than shorter ones. A
        cache has the keys of one kind, so the answer to a shorter prompt ends there: with the last token that is drawn
        from a text that is not longer.
        """
        if self.rope_long_divisors and n_tokens <= self.rope_original_length:
            return min(self.rope_original_length + 1, self.context_length)
        return self.context_length

    def as_json(self) -> dict[str, Any]:
        """As headers of results have it: without switches that came later than the first of these, where they are off.
        So what was begun earlier can go on."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if name not in _LATER or value}

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
