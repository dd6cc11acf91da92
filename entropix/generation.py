"""Prompts in, text and records out: `stream` yields tokens as they come, `generate` is the stream joined."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack, cast

from entropix import config, options, presets, samplers
from entropix.checkpoint.chat import encode_chat
from entropix.checkpoint.loading import Model, check_model
from entropix.config import BATCH_ROWS, GenerateConfig
from entropix.decoding import branching
from entropix.decoding.batching import ContinuousBatch
from entropix.decoding.request import GenerationRequest, check_prompts, prompt_rows
from entropix.decoding.session import Session
from entropix.options import Options
from entropix.prompts import Message, check_flag, listed, token_ids
from entropix.results import Result, TokenEvent, add
from entropix.samplers import ResolvedSampler, RuleConfig, Sampler
from entropix.showing import shown, suggestion

Prompt = str | Sequence[Message] | Sequence[int]


@options.with_signature
def prepare(model: Model, prompts: Prompt | Sequence[Prompt], **given: Unpack[Options]) -> GenerationRequest:
    """Checks everything that can be checked before work begins; raises a ValueError that names what is wrong.

    prompts: one prompt or several. A string is a user's message to a model with a chat template, or plain text to
        continue when `raw` or when there is no template; a list of `{"role", "content"}` is a conversation; a list
        of integers is token ids, used as they are.
    sampler: a preset in configs/samplers, a TOML file, a rule in a Python file (`my_rule.py:RULE`), or a rule itself.
        None is the preset that was chosen for the model (`presets.for_model`), "entropix" has the published numbers.
    temp, top_p and all other numbers of the rule: instead of the preset's.
    sampler_config: the same as a mapping; or the rule's dataclass (`SamplerConfig` for entropix), which has them all;
        or a list of either, one for each prompt: of numbers that compile nothing, many sets run side by side.
    system: a system message for string prompts.
    allow_special: names of special tokens in a prompt become these tokens; otherwise they are text like any other.
    template_args: names that the model's chat template reads beside the conversation, with their values, as
        `{"enable_thinking": False}`; one that it never reads is refused.
    max_new_tokens and so on: the fields of `GenerateConfig`. With `seeds` each row draws what its prompt alone would
        with that `seed`, so that one batch holds many samples of a prompt.
    """
    check_model(model)
    general, generation, numbers = options.sort(given)
    _check_general(general)
    told = general["sampler_config"]
    told = list(told) if isinstance(told, list | tuple) else [told]
    each = [resolve_sampler(model, general["sampler"], one, numbers) for one in told or [None]]
    chosen = samplers.common(each)
    if isinstance(stop := generation.get("stop"), str):
        generation["stop"] = (stop,)
    cfg = config.from_mapping(GenerateConfig, chosen.looking | generation, "generation")
    if "" in cfg.stop:
        raise ValueError("generation: a stop string must not be empty")
    several = _several(prompts)
    model = _templated(model, several, general["template_args"])
    prompt_ids = [
        encode_prompt(
            model, p, system=general["system"], raw=general["raw"], allow_special=general["allow_special"]
        )
        for p in several
    ]
    check_prompts(prompt_ids, model.config)
    _check_counts(len(prompt_ids), cfg, len(each))
    _check_branching(cfg, chosen.rule)
    _check_backtracking(cfg, chosen.rule)
    request = GenerationRequest(
        model=model,
        rows=prompt_rows(prompt_ids, cfg),
        sampler=chosen.on([*model.stop_ids, *model.tokenizer.special_tokens.values()]),
        sampler_config=chosen.numbers,
        config=cfg,
        sampler_source=chosen.source,
        preset=Path(chosen.label).name,
    )
    return request if len(each) == 1 else request.with_each(numbers=[one.numbers for one in each])


def _check_general(general: Mapping[str, Any]) -> None:
    """Raises a ValueError for an option of how prompts are read that is of the wrong type."""
    if not isinstance(general["system"], str | None):
        raise ValueError(f"system must be a text, got {shown(general['system'])}")
    for name in ("raw", "allow_special"):
        check_flag(name, general[name])
    if not isinstance(general["template_args"], Mapping):
        raise ValueError(
            f"template_args must be names with their values, got {shown(general['template_args'])}"
        )


def _check_counts(n_prompts: int, cfg: GenerateConfig, n_numbers: int) -> None:
    """Raises a ValueError where there are more or fewer of what each prompt has its own than prompts."""
    for name in ("seeds", "occurrences"):
        if (n := len(getattr(cfg, name))) not in (0, n_prompts):
            raise ValueError(
                f"generation: {name} has {n} numbers for {n_prompts} prompts; give one for each prompt"
            )
    if n_numbers not in (1, n_prompts):
        raise ValueError(
            f"sampler_config: {n_numbers} sets of numbers for {n_prompts} prompts; give one for each prompt"
        )


def _templated(model: Model, prompts: Sequence[Prompt], arguments: Mapping[str, Any]) -> Model:
    """The model whose template has these arguments. Raises a ValueError for prompts to which no template applies."""
    for number, prompt in enumerate(prompts if arguments else (), start=1):
        if not isinstance(prompt, str) and not (prompt and isinstance(prompt[0], Mapping)):
            raise ValueError(
                f"prompt {number} is token ids, to which no chat template applies; leave out template_args"
            )
    return model.with_template_args(arguments)


def resolve_sampler(
    model: Model,
    sampler: str | Sampler | ResolvedSampler | None,
    sampler_config: RuleConfig | Mapping[str, Any] | None,
    numbers: Mapping[str, Any],
) -> ResolvedSampler:
    """The rule that is meant, with these numbers. Raises a ValueError for a number that it does not have."""
    chosen = samplers.resolve(presets.for_model(model.name) if sampler is None else sampler, sampler_config)
    if not numbers:
        return chosen
    options.check_numbers(list(numbers), chosen)
    chosen = chosen.changed(numbers, "sampler")
    samplers.check_guard(list(numbers), chosen.numbers, "sampler")
    return chosen


def _check_branching(cfg: GenerateConfig, sampler: Sampler) -> None:
    """Raises a ValueError for branching that would never happen, or together with what it excludes."""
    wish = cfg.branching
    if branching.plan(wish, sampler.strategies) is None:
        return
    _check_strategies("branching (--branch-on)", wish.strategies, sampler)
    if not (wish.entropy or wish.margin or set(wish.strategies) & set(sampler.strategies)):
        raise ValueError(
            f"branching (--branch-on): {sampler.name} never does "
            f"{' or '.join(wish.strategies) or 'anything that branches'}; it has "
            f"{', '.join(sampler.strategies)}. Name one of these, or an entropy or a margin to branch at"
        )
    if cfg.speculate:
        raise ValueError("branching and speculate do not go together; drop one of them")
    if cfg.head_entropies:
        raise ValueError("branching records no head_entropies; drop one of them")


def _check_backtracking(cfg: GenerateConfig, sampler: Sampler) -> None:
    """Raises a ValueError for backtracking that would never happen."""
    wish = cfg.backtracking
    if not wish.is_on:
        return
    _check_strategies("backtracking (--backtrack-on)", wish.strategies, sampler)
    if not set(wish.strategies) & set(sampler.strategies):
        raise ValueError(
            f"backtracking (--backtrack-on): {sampler.name} never does "
            f"{' or '.join(wish.strategies) or 'what asks for it'}; it has {', '.join(sampler.strategies)}"
        )


def _check_strategies(what: str, names: Sequence[str], sampler: Sampler) -> None:
    """Raises a ValueError for strategies that no sampler has."""
    known = {name for other in samplers.SAMPLERS.values() for name in other.strategies} | {
        *sampler.strategies
    }
    if unknown := [name for name in names if name not in known]:
        hint = suggestion(unknown[0], sampler.strategies)
        raise ValueError(f"{what}: unknown strategy {unknown[0]!r} of {sampler.name}{hint}")


def encode_prompt(
    model: Model, prompt: Prompt, *, system: str | None = None, raw: bool = False, allow_special: bool = False
) -> list[int]:
    """Token ids of one prompt; `prepare` says how each kind is read."""
    if not isinstance(prompt, str):
        items = listed(prompt)
        prompt = token_ids(prompt, "a prompt") if items is None else items
    if len(prompt) == 0:
        raise ValueError("the prompt is empty: give at least one character")
    is_conversation = not isinstance(prompt, str) and isinstance(prompt[0], Mapping)
    if not isinstance(prompt, str) and (system is not None or (raw and is_conversation)):
        raise ValueError(
            f"{'raw' if system is None else 'system'} is for prompts that are texts, not for "
            f"{'conversations' if is_conversation else 'token ids'}; a system message is the first of its conversation"
        )
    if isinstance(prompt, str):
        if raw or (model.chat_template is None and system is None):
            if model.template_args:
                raise ValueError(
                    "raw (--raw) completes plain text, without the chat template that template_args (--template-arg) "
                    "are for; drop one of the two"
                )
            if system is not None:
                raise ValueError(
                    "a system message needs a chat, but raw (--raw) completes plain text; drop one of the two"
                )
            return model.tokenizer.encode_text(prompt, allow_special)
        opening = [] if system is None else [Message(role="system", content=system)]
        prompt = [*opening, Message(role="user", content=prompt)]
    if not isinstance(prompt[0], Mapping):
        return token_ids(prompt, "a prompt")
    messages = cast(Sequence[Message], prompt)
    return encode_chat(model.chat_template, model.tokenizer, messages, allow_special=allow_special)


@options.with_signature
def stream(
    model: Model,
    prompts: Prompt | Sequence[Prompt],
    *,
    batch_size: int = BATCH_ROWS,
    **given: Unpack[Options],
) -> Iterator[TokenEvent]:
    """Yields every token of every prompt as soon as its chunk is done.

    batch_size: most prompts to answer at a time, at least 1; one that has ended makes room for the next. It changes
        memory and speed alone. All other keywords: see `prepare`.
    """
    return run(prepare(model, prompts, **given), most_rows=batch_size)


@options.with_signature
def generate(
    model: Model,
    prompts: Prompt | Sequence[Prompt],
    *,
    batch_size: int = BATCH_ROWS,
    **given: Unpack[Options],
) -> list[Result]:
    """Answers prompts: one `Result` each, in their order.

    The commonest keywords: `sampler` (a name, a preset's file, or a `Sampler`; by default the preset made for the
    model), `sampler_config` (its numbers), `max_new_tokens` (512), `seed` (0: the same call draws the same tokens),
    `system`, and `raw` (continue the text, without the chat template). `entropix.generation.prepare` has all of them,
    and what they raise; `batch_size` is as of `stream`.
    """
    request = prepare(model, prompts, **given)
    return collect(request, run(request, most_rows=batch_size))


def collect(request: GenerationRequest, events: Iterable[TokenEvent]) -> list[Result]:
    """The stream of a request, joined into results."""
    results = [Result(prompt_ids) for prompt_ids in request.prompt_ids]
    for event in events:
        add(results, event)
    return results


def run(
    request: GenerationRequest, session: Session | None = None, most_rows: int = BATCH_ROWS
) -> Iterator[TokenEvent]:
    """The events of a request. A session of an earlier request keeps its cache for prompts that begin like its text."""
    return ContinuousBatch(request, most_rows, session).run()


def _several(prompts: Any) -> list[Prompt]:
    """One prompt or several, as a list: of arrays the last axis is a prompt's tokens."""
    if isinstance(prompts, str):
        return [prompts]
    items = listed(prompts)
    if items is None:
        return [token_ids(prompts, "a prompt")]
    return [items] if any(map(_is_part, items[:1])) else items


def _is_part(item: Any) -> bool:
    """Whether this is a message or a token, and no prompt by itself."""
    is_number = getattr(item, "ndim", 1) == 0 or not isinstance(item, Iterable)
    return isinstance(item, Mapping) or (is_number and not isinstance(item, str))
