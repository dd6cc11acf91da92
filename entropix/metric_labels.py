"""The colours and names that terminal, report and figures share."""

from collections.abc import Sequence
from typing import NamedTuple

from entropix import own_metrics

# By a strategy's place among its sampler's. The last four are those of Okabe & Ito's palette for colour-blind readers
# ("Color Universal Design", 2008) whose contrast is 3 or more on white and on black; the first one is a grey that has
# the same, for what happens most often.
STRATEGIES = ("#808080", "#cc79a7", "#0072b2", "#d55e00", "#009e73")


class Label(NamedTuple):
    """How a metric is shown to people."""

    title: str
    unit: str  # empty for a share or a count
    meaning: str  # a sentence

    @property
    def axis_title(self) -> str:
        """The title with the unit, if there is one."""
        return f"{self.title} ({self.unit})" if self.unit else self.title


METRICS = {
    "logits_entropy": Label(
        "logits entropy", "bits", "How open the next token is: 0 certain, 1 a coin toss."
    ),
    "logits_varentropy": Label(
        "logits varentropy", "bits²", "How unequal the surprises are that are possible."
    ),
    "attn_entropy": Label("attention entropy", "bits", "How widely a head looks, on average."),
    "attn_varentropy": Label(
        "attention varentropy", "bits²", "How much the heads of a layer differ in that."
    ),
    "agreement": Label(
        "agreement (deviation of heads)", "", "How far heads are from their mean; small if they agree."
    ),
    "interaction_strength": Label("interaction strength", "", "How large the raw attention scores are."),
    "attn_entropy_normalized": Label(
        "normalized attention entropy", "", "Attention entropy as a share of what the visible text allows."
    ),
    "head_agreement": Label("head agreement", "", "How alike a layer's heads look: 1 all the same."),
    "top_prob": Label("largest probability", "", "The probability of the likeliest token."),
    "margin": Label("margin", "", "The likeliest token's probability minus that of the next."),
    "previous_token_attention": Label(
        "previous-token attention", "", "How much of the attention is on the token just before."
    ),
    "self_certainty": Label(
        "self-certainty", "nats", "How far the next token's distribution is from all tokens alike."
    ),
}

# Nine evenly spaced colours of viridis (N. Smith & S. van der Walt, 2015, CC0): lightness rises evenly, so that readers
# with any kind of colour vision see the same order.
SCALE = ("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725")


class Span(NamedTuple):
    """The ends of a metric's scale. They are fixed, so that colours mean the same in every picture."""

    low: float
    high: float
    is_bound: bool  # whether no value is above `high`


# Where a metric has no bound, the end is a round number above 99 of 100 tokens of the default model.
SPANS = {
    "logits_entropy": Span(0, 8, False),
    "logits_varentropy": Span(0, 20, False),
    "attn_entropy": Span(0, 5, False),
    "attn_varentropy": Span(0, 2, False),
    "agreement": Span(0, 0.02, False),
    "interaction_strength": Span(0, 6, False),
    "attn_entropy_normalized": Span(0, 1, True),
    "head_agreement": Span(0, 1, True),
    "top_prob": Span(0, 1, True),
    "margin": Span(0, 1, True),
    "previous_token_attention": Span(0, 0.2, False),
    "self_certainty": Span(0, 25, False),
}


def scale_color(share: float) -> str:
    """The "#rrggbb" at a share of the way along `SCALE`, mixed from the two nearest of its colours."""
    place = share * (len(SCALE) - 1)
    left = min(int(place), len(SCALE) - 2)
    pairs = zip(*(bytes.fromhex(color[1:]) for color in SCALE[left : left + 2]), strict=True)
    return "#" + bytes(round(a + (b - a) * (place - left)) for a, b in pairs).hex()


def strategy_color(name: str, strategies: Sequence[str]) -> str:
    """The "#rrggbb" of a strategy, given all of its sampler's."""
    return STRATEGIES[strategies.index(name) % len(STRATEGIES)]


def known() -> list[str]:
    """The names of all metrics, those of one's own last."""
    return [*METRICS, *(metric.name for metric in own_metrics.registered())]


def label(name: str) -> Label:
    """How a metric is shown, one of one's own too; a bare name for one that is not registered here."""
    if name in METRICS:
        return METRICS[name]
    for metric in own_metrics.registered():
        if metric.name == name:
            return Label(metric.title, metric.unit, metric.meaning)
    return Label(name.replace("_", " "), "", "")


def span(name: str) -> Span:
    """The ends of a known metric's scale."""
    if name in SPANS:
        return SPANS[name]
    [own] = [metric for metric in own_metrics.registered() if metric.name == name]
    return Span(own.low, own.high, False)


def axis_title(name: str) -> str:
    """A metric's title with its unit, if it has one."""
    return label(name).axis_title
