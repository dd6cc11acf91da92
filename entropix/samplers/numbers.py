"""The numbers that several rules share, each documented once; a rule's own stand beside the rule.

`RuleConfig` is what every rule has: the numbers of the guard against repetition (`samplers.repetition`). The functions
below make the field of a shared number, given its default and, where there is one, the source of that default.
"""

from functools import partial
from typing import Any

from entropix.config import MAX_INT32, STATIC, parameter, rule_config

DRY = ("dry_base", "dry_allowed_length")  # what these two say where `dry_multiplier` is not 0

temp = partial(parameter, help="base temperature", low=1e-3, high=100.0)
top_p = partial(
    parameter,
    help="nucleus: smallest prefix of tokens whose mass reaches this",
    low=0.0,
    high=1.0,
    unit="probability",
)
top_k = partial(
    parameter,
    help="most tokens a draw may choose from; at most max_top_k",
    low=1,
    high=MAX_INT32,
    unit="tokens",
)
min_p = partial(
    parameter, help="drop tokens less likely than this times the likeliest", low=0.0, high=1.0, unit="ratio"
)
max_top_k = partial(
    parameter,
    help="no strategy keeps more tokens than this (static)",
    low=1,
    high=MAX_INT32,
    unit="tokens",
    kind=STATIC,
)


@rule_config
class RuleConfig:
    """What may be told to any rule: the guard against repetition. The numbers of a rule are a subclass of this one."""

    repetition_penalty: float = parameter(
        1.0,
        "guard: divides the positive logits of recent tokens, multiplies the others; 1 is off",
        0.01,
        100.0,
        source="about 1.2 [ctrl]; 1, off [llama.cpp]",
    )
    dry_multiplier: float = parameter(
        0.0,
        "guard: penalty of a token that goes on repeating; 0 is off",
        0.0,
        100.0,
        "nats",
        source="0.8 where on, 0 (off) by default [llama.cpp]",
    )
    dry_base: float = parameter(
        1.75,
        "guard: growth of that penalty with each repeated token",
        1.0,
        100.0,
        source="1.75 [llama.cpp]",
    )
    dry_allowed_length: float = parameter(
        2.0,
        "guard: repeated tokens from which on that penalty applies",
        1.0,
        32.0,
        "tokens",
        source="2 [llama.cpp]",
    )
    repetition_special: float = parameter(
        0.0,
        "guard: above 0 the tokens that end a text or mark a turn are lowered too, as published",
        0.0,
        1.0,
        source="1, lowered like any other [ctrl]",
    )

    def problem(self) -> str | None:
        """What is wrong with these numbers together, as a sentence."""
        return None


@rule_config
class TemperatureConfig(RuleConfig):
    """The numbers of a rule that has only a temperature."""

    temp: float = temp(1.0)


def top_k_problem(cfg: Any) -> str | None:
    """What is wrong with a top-k, of which the program has room for `max_top_k`."""
    if cfg.top_k <= cfg.max_top_k:
        return None
    return f"top_k must be at most max_top_k ({cfg.max_top_k}), got {cfg.top_k}; raise max_top_k with it"
