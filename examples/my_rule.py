"""A rule of one's own against two built-in ones, on the same prompts with the same seeds.

    python examples/my_rule.py
    python -m entropix --sampler examples/my_rule.py:CAREFUL --prompt "Why is the sky blue?"

The rule takes the likeliest token where two tokens are close, and draws from what min-p keeps elsewhere.
"""

import jax.numpy as jnp

import entropix
from entropix import filters
from entropix.config import parameter, rule_config
from entropix.samplers import numbers
from entropix.samplers.base import Sampler, draw, full_vocabulary, keep_argmax, stateless
from entropix.samplers.numbers import RuleConfig


@rule_config
class CarefulConfig(RuleConfig):
    """The numbers of the rule: flags, presets and sweeps come from here."""

    close: float = parameter(0.2, "greedy where the top two are closer than this", 0.0, 1.0, "probability")
    min_p: float = numbers.min_p(0.1)


def step(key_B, state, seen, cfg):
    """(token_B, state, info, candidates) of one step; traced, so rows differ by numbers and not by branches."""
    close_B = seen.metrics.margin < cfg.close
    kept_BV = filters.min_p(seen.logits_BV, cfg.min_p) > -jnp.inf
    kept_BV = keep_argmax(seen.logits_BV, kept_BV & ~close_B[:, None])
    candidates = full_vocabulary(filters.mask_logits(seen.logits_BV, kept_BV))
    params = filters.SamplingParams(
        min_p_B=jnp.full(close_B.shape, cfg.min_p)
    )  # what records say was in force
    token_B, info = draw(key_B, seen, candidates, params)
    return token_B, state, info._replace(strategy_B=close_B.astype(jnp.int32)), candidates


CAREFUL = Sampler(
    "careful", "greedy where two tokens are close", ("draw", "greedy"), stateless, step, CarefulConfig
)


def main(prompts=("The capital of Norway is", "Once upon a time"), n=20, **options) -> dict[str, list[str]]:
    """Prints and returns what each rule answers to each prompt."""
    model = entropix.load(**options)
    answers = {}
    for rule in (CAREFUL, "min-p", "greedy"):
        results = entropix.generate(model, list(prompts), sampler=rule, seed=1, max_new_tokens=n)
        name = rule if isinstance(rule, str) else rule.name
        answers[name] = [result.text for result in results]
        for result in results:
            print(f"{name:8} {result.text!r}")
    return answers


if __name__ == "__main__":
    main()
