"""Prompts in, text and records out: `stream` yields tokens as they come, `generate` is the stream joined."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import numpy as np

from entropix import config, samplers
from entropix.chat import Message, encode_chat
from entropix.config import GenerateConfig, SamplerConfig
from entropix.decode import Finish, StepRecord
from entropix.loading import Model
from entropix.samplers import Sampler
from entropix.session import Session, check_prompts
from entropix.tokenizer import Tokenizer

Prompt = str | Sequence[Message] | Sequence[int]
TokenRecord = dict[str, Any]


class Event(NamedTuple):
    """A row's next token, or, where `record` is None, an end that came without one."""

    row: int
    text: str  # what is now safe to print; empty while a character or a possible stop string is incomplete
    record: TokenRecord | None
    finish: Finish  # RUNNING until the row's last event


@dataclass
class Result:
    """What became of one prompt.

    `text` leaves out the stop token and the stop string. `token_ids` and `records` have one entry a generated token,
    the stop token included. A record is a dict: `id`, `text`, `bytes`, `strategy`, `temperature`, `top_p`, `top_k`,
    `min_p`, `kept`, `logprob`, `draw_logprob`, `score`, `injected`, every field of `metrics.Metrics` and, where
    asked for, `alternatives` and `head_entropies`. docs/trace.md says what each is.
    """

    prompt_ids: list[int]
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    records: list[TokenRecord] = field(default_factory=list)
    finish: Finish = Finish.RUNNING


@dataclass(frozen=True)
class Job:
    """A checked request: what to continue, by which rule, how far. Nothing has been computed yet."""

    model: Model
    prompt_ids: list[list[int]]
    sampler: Sampler
    sampler_config: SamplerConfig
    config: GenerateConfig


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
) -> Job:
    """Checks everything that can be checked before work begins; raises a ValueError that names what is wrong.

    prompts: one prompt or several. A string is a user's message to a model with a chat template, or plain text to
        continue when `raw` or when there is no template; a list of `{"role", "content"}` is a conversation; a list
        of integers is token ids, used as they are.
    sampler: a preset in configs/samplers or a TOML file.
    sampler_config: a mapping replaces single numbers of the preset, a `SamplerConfig` all of them.
    system: a system message for string prompts.
    allow_special: names of special tokens in a prompt become these tokens; otherwise they are text like any other.
    options: the fields of `GenerateConfig`, like max_new_tokens, seed, stop, speculate and alternatives.
    """
    rule, preset = config.read_preset(sampler)
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
    return Job(
        model=model,
        prompt_ids=prompt_ids,
        sampler=samplers.configured(rule, chosen),
        sampler_config=chosen,
        config=cfg,
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


def stream(model: Model, prompts: Prompt | Sequence[Prompt], **options: Any) -> Iterator[Event]:
    """Yields every token of every row as soon as its chunk is done. Options: see `prepare`."""
    return run(prepare(model, prompts, **options))


def generate(model: Model, prompts: Prompt | Sequence[Prompt], **options: Any) -> list[Result]:
    """One `Result` a prompt, all rows computed as one batch. Options: see `prepare`."""
    job = prepare(model, prompts, **options)
    return collect(job, run(job))


def collect(job: Job, events: Iterable[Event]) -> list[Result]:
    """The stream of a job, joined into results."""
    results = [Result(prompt_ids) for prompt_ids in job.prompt_ids]
    for event in events:
        add(results, event)
    return results


def add(results: Sequence[Result], event: Event) -> None:
    """Appends one event to its row's result."""
    result = results[event.row]
    result.text += event.text
    result.finish = event.finish
    if event.record is not None:
        result.token_ids.append(event.record["id"])
        result.records.append(event.record)


def run(job: Job, session: Session | None = None) -> Iterator[Event]:
    """The events of a job. A session of an earlier job keeps its cache for prompts that begin like its text."""
    session = session or Session(job.model, len(job.prompt_ids))
    session.start(job.prompt_ids, job.sampler, job.sampler_config, job.config)
    texts = [_RowText(job) for _ in job.prompt_ids]
    while session.running:
        chunk = session.advance()
        stopped = set()
        for row, text in enumerate(texts):
            for event in _row_events(job, row, text, chunk):
                yield event
                if event.finish == Finish.STOP_STRING:
                    stopped.add(row)
        if stopped:
            session.end(stopped)


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
    """The text of one row as its tokens come."""

    def __init__(self, job: Job) -> None:
        self._decoder = job.model.tokenizer.stream_decoder()
        self._stops = StopStrings(job.config.stop)
        self.ended = False

    def push(self, token: int) -> tuple[str, bool]:
        return self._stops.push(self._decoder.push(token))

    def flush(self) -> tuple[str, bool]:
        text, found = self._stops.push(self._decoder.flush())
        return (text, True) if found else (text + self._stops.flush(), False)


def _row_events(job: Job, row: int, text: _RowText, chunk: StepRecord) -> Iterator[Event]:
    """The events of one row in one chunk."""
    for i in range(len(chunk.token_B)):
        if text.ended:
            return
        finish = Finish(int(chunk.finish_B[i, row]))
        record, piece, found = None, "", False
        if chunk.live_B[i, row]:
            record = token_record(job, chunk, i, row)
            if finish != Finish.STOP_TOKEN:
                piece, found = text.push(record["id"])
        if finish != Finish.RUNNING and not found:
            rest, found = text.flush()
            piece += rest
        if found:
            finish = Finish.STOP_STRING
        text.ended = finish != Finish.RUNNING
        yield Event(row, piece, record, finish)


def token_record(job: Job, chunk: StepRecord, i: int, row: int) -> TokenRecord:
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
    if isinstance(chunk.head_entropy_BLN, np.ndarray):
        record["head_entropies"] = [
            [_plain(bits) for bits in layer] for layer in chunk.head_entropy_BLN[i, row]
        ]
    return record


def _token(tokenizer: Tokenizer, token: int) -> TokenRecord:
    """What names a token: its bytes too, since it may be a part of a character, which no text can show."""
    return {"id": token, "text": tokenizer.decode([token]), "bytes": list(tokenizer.token_bytes(token))}


def _plain(value: Any) -> Any:
    number = value.item()
    return None if isinstance(number, float) and not math.isfinite(number) else number


def _is_one(prompts: Any) -> bool:
    return isinstance(prompts, str) or (len(prompts) > 0 and isinstance(prompts[0], int | Mapping))
