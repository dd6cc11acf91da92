"""The colours and names that terminal, report and figures share."""

from collections.abc import Sequence
from typing import NamedTuple

# By a strategy's place among its sampler's. The last four are those of Okabe & Ito's palette for colour-blind readers
# ("Color Universal Design", 2008) whose contrast is 3 or more on white and on black; the first one is a grey that has
# the same, for what happens most often.
STRATEGIES = ("#808080", "#cc79a7", "#0072b2", "#d55e00", "#009e73")


class Label(NamedTuple):
    """How a metric is shown to people."""

    title: str
    unit: str  # empty for a share or a count


METRICS = {
    "logits_entropy": Label("logits entropy", "bits"),
    "logits_varentropy": Label("logits varentropy", "bits²"),
    "attn_entropy": Label("attention entropy", "bits"),
    "attn_varentropy": Label("attention varentropy", "bits²"),
    "agreement": Label("agreement (deviation of heads)", ""),
    "interaction_strength": Label("interaction strength", ""),
    "attn_entropy_normalized": Label("normalized attention entropy", ""),
    "head_agreement": Label("head agreement", ""),
    "top_prob": Label("largest probability", ""),
    "margin": Label("margin", ""),
    "previous_token_attention": Label("previous-token attention", ""),
}


def strategy_color(name: str, strategies: Sequence[str]) -> str:
    """The "#rrggbb" of a strategy, given all of its sampler's."""
    return STRATEGIES[strategies.index(name) % len(STRATEGIES)]
