"""What can be asked of a generation in Python: the keywords of `generate`, `stream` and `prepare`, and their types."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, NamedTuple, TypedDict, TypeVar

from entropix.config import BacktrackConfig, BranchConfig, GenerateConfig
from entropix.samplers import ResolvedSampler, RuleConfig, Sampler, users
from entropix.showing import nearest

Function = TypeVar("Function", bound=Callable[..., Any])

# What other libraries call it.
ELSEWHERE = {
    "temperature": "temp",
    "max_tokens": "max_new_tokens",
    "max_length": "max_new_tokens",
    "n_predict": "max_new_tokens",
    "stop_strings": "stop",
    "stop_sequences": "stop",
    "repeat_penalty": "repetition_penalty",
    "random_state": "seed",
    "logprobs": "alternatives",
    "top_logprobs": "alternatives",
    "system_prompt": "system",
    "chat_template_kwargs": "template_args",
}


class Options(TypedDict, total=False):
    """Besides these, every number of the rule is a keyword: the commonest stand here, `docs/samplers.md` has all."""

    sampler: str | Sampler | ResolvedSampler | None
    sampler_config: RuleConfig | Mapping[str, Any] | Sequence[RuleConfig | Mapping[str, Any]] | None
    system: str | None
    raw: bool
    allow_special: bool
    template_args: Mapping[str, Any]

    max_new_tokens: int
    seed: int
    seeds: Sequence[int]
    occurrences: Sequence[int]
    stop: str | Sequence[str]
    ignore_stop_tokens: bool
    chunk_length: int
    speculate: int
    alternatives: int
    head_entropies: bool
    branching: BranchConfig | Mapping[str, Any]
    backtracking: BacktrackConfig | Mapping[str, Any]

    temp: float
    top_p: float
    top_k: int
    min_p: float
    repetition_penalty: float


class Asked(NamedTuple):
    """The keywords of a call, by what they are about."""

    general: dict[str, Any]  # how prompts are read, and which rule
    generation: dict[str, Any]  # fields of `GenerateConfig`
    numbers: dict[str, Any]  # of the rule, as far as their names tell


class _RulesOwn:
    """The default of a rule's number, which differs from rule to rule."""

    def __repr__(self) -> str:
        return "<the rule's>"


_RULES_OWN = _RulesOwn()
_GENERATION = {field.name: field.default for field in fields(GenerateConfig)}
_GENERAL: dict[str, Any] = {
    "sampler": None,
    "sampler_config": None,
    "system": None,
    "raw": False,
    "allow_special": False,
    "template_args": {},
}


def sort(options: Mapping[str, Any]) -> Asked:
    """The keywords of a call; what is neither general nor of `GenerateConfig` should be a number of the rule."""
    general = {name: options.get(name, default) for name, default in _GENERAL.items()}
    generation = {name: value for name, value in options.items() if name in _GENERATION}
    numbers = {
        name: value for name, value in options.items() if name not in _GENERAL and name not in _GENERATION
    }
    return Asked(general, generation, numbers)


def check_numbers(names: Sequence[str], sampler: ResolvedSampler) -> None:
    """Raises a ValueError for the first keyword that is no number of any rule, with the one that may be meant."""
    own = [field.name for field in fields(sampler.rule.config)]
    for name in names:
        if name in own or users(name):
            continue
        known = [*own, *_GENERATION, *_GENERAL]
        meant = [ELSEWHERE[name]] if ELSEWHERE.get(name) in known else nearest(name, known)
        hint = (
            f"did you mean {meant[0]!r}?" if meant else f"the numbers of {sampler.name} are {', '.join(own)}"
        )
        raise ValueError(f"unknown keyword {name!r}; {hint}")


def with_signature(function: Function) -> Function:
    """The function, whose signature tells the keywords one by one, as notebooks and `help` show them."""
    own = inspect.signature(function)
    positional = [p for p in own.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
    named = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=_default(name),
            annotation=annotation,
        )
        for name, annotation in Options.__annotations__.items()
    ]
    numbers = inspect.Parameter("numbers", inspect.Parameter.VAR_KEYWORD)
    function.__signature__ = own.replace(parameters=[*positional, *named, numbers])  # type: ignore[attr-defined]
    return function


def _default(name: str) -> Any:
    """What is taken without it; of a rule's number, the rule's own."""
    return (_GENERAL | _GENERATION).get(name, _RULES_OWN)
