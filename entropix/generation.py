"""Prompts in, text and records out: `stream` yields tokens as they come, `generate` is the stream joined."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax
import numpy as np

from entropix import config, presets, samplers
from entropix.checkpoint.chat import encode_chat
from entropix.checkpoint.loading import Model
from entropix.checkpoint.tokenizer import Tokenizer
from entropix.config import GenerateConfig, SamplerConfig
from entropix.decoding import backtracking, branching
from entropix.decoding.branching import Paths
from entropix.decoding.inputs import check_prompts
from entropix.decoding.sample_step import StepRecord
from entropix.decoding.session import Session
from entropix.prompts import Message
from entropix.results import FinishReason, Result, TokenEvent, TokenRecord, add
from entropix.samplers import Sampler

Prompt = str | Sequence[Message] | Sequence[int]


@dataclass(frozen=True)
class GenerationRequest:
    """A checked request: what to continue, by which rule, how far. Nothing has been computed yet."""

    model: Model
    prompt_ids: list[list[int]]
    sampler: Sampler
    sampler_config: SamplerConfig
    config: GenerateConfig
    given: tuple[int, ...] = ()  # tokens at each prompt's end that are its answer's first; nobody draws them


def prepare(
    model: Model,
    prompts: Prompt | Sequence[Prompt],
    *,
    sampler: str = "entropix",
    sampler_config: SamplerConfig | Mapping[str, Any] | None = None,
    system: str | None = None,
    raw: bool = False,
    allow_special: bool = False,
    **options: Any,
) -> GenerationRequest:
    """Checks everything that can be checked before work begins; raises a ValueError that names what is wrong.

    prompts: one prompt or several. A string is a user's message to a model with a chat template, or plain text to
        continue when `raw` or when there is no template; a list of `{"role", "content"}` is a conversation; a list
        of integers is token ids, used as they are.
    sampler: a preset in configs/samplers or a TOML file.
    sampler_config: a mapping replaces single numbers of the preset, a `SamplerConfig` all of them.
    system: a system message for string prompts.
    allow_special: names of special tokens in a prompt become these tokens; otherwise they are text like any other.
    options: the fields of `GenerateConfig`, like max_new_tokens, seed, stop, speculate and alternatives. With `seeds`
        each row draws what its prompt alone would with that `seed`, so that one batch holds many samples of a prompt.
    """
    rule, preset = presets.read_preset(sampler)
    if isinstance(sampler_config, SamplerConfig):
        chosen = sampler_config
    else:
        numbers = dataclasses.asdict(preset) | dict(sampler_config or {})
        chosen = config.from_mapping(SamplerConfig, numbers, "sampler config")
    config.check(chosen, "sampler config")
    if isinstance(stop := options.get("stop"), str):
        options["stop"] = (stop,)
    cfg = config.from_mapping(GenerateConfig, options, "generation")
    if "" in cfg.stop:
        raise ValueError("generation: a stop string must not be empty")
    several = cast(list[Prompt], [prompts] if _is_one(prompts) else list(prompts))
    prompt_ids = [
        encode_prompt(model, p, system=system, raw=raw, allow_special=allow_special) for p in several
    ]
    check_prompts(prompt_ids, model)
    for name in ("seeds", "occurrences"):
        if (n := len(getattr(cfg, name))) not in (0, len(prompt_ids)):
            raise ValueError(
                f"generation: {name} has {n} numbers for {len(prompt_ids)} prompts; give one for each prompt"
            )
    rule_or_guarded = samplers.configured(rule, chosen)
    _check_branching(cfg, rule_or_guarded)
    _check_backtracking(cfg, rule_or_guarded)
    return GenerationRequest(
        model=model,
        prompt_ids=prompt_ids,
        sampler=rule_or_guarded,
        sampler_config=chosen,
        config=cfg,
    )


def _check_branching(cfg: GenerateConfig, sampler: Sampler) -> None:
    """Raises a ValueError for branching that would never happen, or together with what it excludes."""
    wish = cfg.branching
    if not branching.plan(wish, sampler.strategies).is_on:
        return
    _check_strategies("branching", wish.strategies, sampler)
    if not (wish.entropy or wish.margin or set(wish.strategies) & set(sampler.strategies)):
        raise ValueError(
            f"branching: {sampler.name} never does {' or '.join(wish.strategies) or 'anything that branches'}; it has "
            f"{', '.join(sampler.strategies)}. Name one of these, or an entropy or a margin to branch at"
        )
    if cfg.speculate:
        raise ValueError("branching and speculate do not go together; drop one of them")
    if cfg.head_entropies:
        raise ValueError("branching records no head_entropies; drop one of them")


def _check_backtracking(cfg: GenerateConfig, sampler: Sampler) -> None:
    """Raises a ValueError for backtracking that would never happen."""
    wish = cfg.backtracking
    if not backtracking.is_on(wish):
        return
    _check_strategies("backtracking", wish.strategies, sampler)
    if not set(wish.strategies) & set(sampler.strategies):
        raise ValueError(
            f"backtracking: {sampler.name} never does {' or '.join(wish.strategies) or 'what asks for it'}; it has "
            f"{', '.join(sampler.strategies)}"
        )


def _check_strategies(what: str, names: Sequence[str], sampler: Sampler) -> None:
    """Raises a ValueError for strategies that no sampler has."""
    known = {name for other in samplers.SAMPLERS.values() for name in other.strategies}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"{what}: unknown strategy {unknown[0]!r}; {sampler.name} has {', '.join(sampler.strategies)}"
        )


def encode_prompt(
    model: Model, prompt: Prompt, *, system: str | None = None, raw: bool = False, allow_special: bool = False
) -> list[int]:
    """Token ids of one prompt; `prepare` says how each kind is read."""
    if len(prompt) == 0:
        raise ValueError("the prompt is empty: give at least one character")
    if isinstance(prompt, str):
        if raw or (model.chat_template is None and system is None):
            if system is not None:
                raise ValueError(
                    "a system message needs a chat, but --raw completes plain text; drop one of the two"
                )
            return [*model.tokenizer.bos_ids, *model.tokenizer.encode(prompt, allow_special=allow_special)]
        opening = [] if system is None else [Message(role="system", content=system)]
        prompt = [*opening, Message(role="user", content=prompt)]
    if isinstance(prompt[0], int):
        return [int(token) for token in cast(Sequence[int], prompt)]
    messages = cast(Sequence[Message], prompt)
    return encode_chat(model.chat_template, model.tokenizer, messages, allow_special=allow_special)


def stream(model: Model, prompts: Prompt | Sequence[Prompt], **options: Any) -> Iterator[TokenEvent]:
    """Yields every token of every row as soon as its chunk is done. Options: see `prepare`."""
    return run(prepare(model, prompts, **options))


def generate(model: Model, prompts: Prompt | Sequence[Prompt], **options: Any) -> list[Result]:
    """One `Result` a prompt, all rows computed as one batch. Options: see `prepare`."""
    job = prepare(model, prompts, **options)
    return collect(job, run(job))


def collect(job: GenerationRequest, events: Iterable[TokenEvent]) -> list[Result]:
    """The stream of a job, joined into results."""
    results = [Result(prompt_ids) for prompt_ids in job.prompt_ids]
    for event in events:
        add(results, event)
    return results


def run(job: GenerationRequest, session: Session | None = None) -> Iterator[TokenEvent]:
    """The events of a job. A session of an earlier job keeps its cache for prompts that begin like its text."""
    session = session or Session(job.model, len(job.prompt_ids))
    session.start(job.prompt_ids, job.sampler, job.sampler_config, job.config, job.given)
    texts = [_RowText(job) for _ in job.prompt_ids]
    for row, (text, n_forced) in enumerate(zip(texts, job.given, strict=False)):
        event = _opening(text, row, job.prompt_ids[row][-n_forced:] if n_forced else [])
        yield event
        if text.ended:
            session.end([row])
    n_done = 0
    while session.running:
        chunk = session.advance(_until_next_look(job.config, n_done))
        n_done += int(chunk.live_B.sum(axis=0).max())  # not the places of drafts that were wrong
        stopped = set()
        for row, text in enumerate(texts):
            for event in _row_events(job, row, text, chunk):
                yield event
                if event.finish == FinishReason.STOP_STRING:
                    stopped.add(row)
        if stopped:
            session.end(stopped)


def _until_next_look(cfg: GenerateConfig, n_done: int) -> int:
    """Steps of the next chunk. What a row computes past a stop string is lost: 3 tokens, or a quarter of its text."""
    return min(cfg.chunk_length, max(4, n_done // 4)) if cfg.stop else cfg.chunk_length


class StopStrings:
    """Finds stop strings in text that comes in pieces; holds back what may be the beginning of one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""

    def push(self, piece: str) -> tuple[str, bool]:
        """(text that is safe to show, whether a stop string was found just after it)."""
        text = self._held + piece
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        hold = next((n for n in range(min(longest, len(text)), 0, -1) if self._begins_stop(text[-n:])), 0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold], False

    def flush(self) -> str:
        """What was held back, when nothing more comes."""
        text, self._held = self._held, ""
        return text

    def _begins_stop(self, text: str) -> bool:
        return any(stop.startswith(text) for stop in self._stops)


class _RowText:
    """The text of one row as its tokens come, and the tokens that may still be taken back."""

    def __init__(self, job: GenerationRequest) -> None:
        self._decoder = job.model.tokenizer.stream_decoder()
        self._stops = StopStrings(job.config.stop)
        self._n_back = job.config.backtracking.tokens if backtracking.is_on(job.config.backtracking) else 0
        self._held: list[TokenRecord] = []
        self._taken_back: list[list[int]] = []
        self.ended = False

    def settle(
        self, record: TokenRecord | None, finish: FinishReason
    ) -> Iterator[tuple[TokenRecord | None, FinishReason]]:
        """The records that are final after one more step, the last of a row with its end."""
        if finish == FinishReason.BACKTRACKING:
            self._held, taken = self._held[: -self._n_back], self._held[-self._n_back :]
            self._taken_back += [ids for record in taken for ids in record.get("taken_back", [])]
            self._taken_back.append([record["id"] for record in taken])
            return
        if record is not None:
            if self._taken_back:
                record["taken_back"], self._taken_back = self._taken_back, []
            self._held.append(record)
        ended = finish != FinishReason.RUNNING
        while self._held and (ended or len(self._held) > self._n_back):
            settled = self._held.pop(0)
            yield settled, finish if record is not None and not self._held else FinishReason.RUNNING
        if ended and record is None:
            yield None, finish

    def push(self, token: int) -> tuple[str, bool]:
        return self._stops.push(self._decoder.push(token))

    def flush(self) -> tuple[str, bool]:
        text, found = self._stops.push(self._decoder.flush())
        return (text, True) if found else (text + self._stops.flush(), False)


def _opening(text: _RowText, row: int, tokens: Sequence[int]) -> TokenEvent:
    """What a row shows before it draws its first token, which may be a stop string already."""
    shown = ""
    for token in tokens:
        piece, text.ended = text.push(token)
        shown += piece
        if text.ended:
            return TokenEvent(row, shown, None, FinishReason.STOP_STRING)
    return TokenEvent(row, shown, None, FinishReason.RUNNING)


def _row_events(job: GenerationRequest, row: int, text: _RowText, chunk: StepRecord) -> Iterator[TokenEvent]:
    """The events of one row in one chunk."""
    for i in range(len(chunk.token_B)):
        finish = FinishReason(int(chunk.finish_B[i, row]))
        record = token_record(job, chunk, i, row) if chunk.live_B[i, row] else None
        for settled, ending in text.settle(record, finish):
            if text.ended:
                return
            piece, found = "", False
            if settled is not None and ending != FinishReason.STOP_TOKEN:
                piece, found = text.push(settled["id"])
            if ending != FinishReason.RUNNING and not found:
                rest, found = text.flush()
                piece += rest
            ending = FinishReason.STOP_STRING if found else ending
            text.ended = ending != FinishReason.RUNNING
            yield TokenEvent(row, piece, settled, ending)
        if finish == FinishReason.BACKTRACKING:
            return


def token_record(job: GenerationRequest, chunk: StepRecord, i: int, row: int) -> TokenRecord:
    """Step i of a chunk as plain Python values. What is not finite becomes None, for which JSON has a word."""
    info = {name.removesuffix("_B"): _plain(value[i, row]) for name, value in chunk.info._asdict().items()}
    info["strategy"] = job.sampler.strategies[info["strategy"]]
    metrics = {name: _plain(value[i, row]) for name, value in chunk.metrics._asdict().items()}
    record = {**_token(job.model.tokenizer, int(chunk.token_B[i, row])), **info, **metrics}
    if chunk.alternatives:
        columns = (column[i, row] for column in chunk.alternatives)
        record["alternatives"] = [
            {**_token(job.model.tokenizer, int(token)), "logprob": _plain(p), "draw_logprob": _plain(q)}
            for token, p, q in zip(*columns, strict=True)
        ]
    if chunk.paths and chunk.paths.forked_B[i, row]:
        record["branches"] = _branches(job, jax.tree.map(lambda leaf: leaf[i, row], chunk.paths))
    if isinstance(chunk.head_entropy_BLN, np.ndarray):
        record["head_entropies"] = [
            [_plain(bits) for bits in layer] for layer in chunk.head_entropy_BLN[i, row]
        ]
    return record


def _branches(job: GenerationRequest, paths: Paths) -> list[dict[str, Any]]:
    """The paths that were tried at a fork, the drawn token's first."""
    lengths = paths.live_BCD.sum(axis=-1)
    ids = [paths.token_BCD[c, :n].tolist() for c, n in enumerate(lengths)]
    return [
        {
            "ids": ids[c],
            "text": job.model.tokenizer.decode(ids[c]),
            "logprobs": [_plain(p) for p in paths.logprob_BCD[c, :n]],
            "score": _plain(paths.score_BC[c]),
            "chosen": bool(c == paths.best_B),
        }
        for c, n in enumerate(lengths)
        if n
    ]


def _token(tokenizer: Tokenizer, token: int) -> TokenRecord:
    """What names a token: its bytes too, since it may be a part of a character, which no text can show."""
    return {"id": token, "text": tokenizer.decode([token]), "bytes": list(tokenizer.token_bytes(token))}


def _plain(value: Any) -> Any:
    number = value.item()
    return None if isinstance(number, float) and not math.isfinite(number) else number


def _is_one(prompts: Any) -> bool:
    return isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int | Mapping))
