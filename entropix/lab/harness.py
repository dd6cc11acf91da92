"""A model class for EleutherAI's lm-evaluation-harness: its tasks, its requests, its command line, with our samplers.

Imported only where the harness is (`pip install 'entropix-jax[lm-eval]'`); `entropix.lm_eval` is the command.
"""

import dataclasses
import hashlib
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lm_eval.api.model
import lm_eval.utils
from lm_eval.api.model import CachingLM, TemplateLM
from tqdm import tqdm

from entropix import generation, scoring, trace
from entropix.checkpoint import loading
from entropix.config import BATCH_ROWS
from entropix.decoding.batching import ContinuousBatch
from entropix.files import read_toml
from entropix.prompts import Message
from entropix.showing import shown

NAME = "entropix"
MAX_NEW_TOKENS = 256  # of an answer, where a task does not say, as in the harness's other models
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # names of one thing
_OF_THE_SAMPLER = {
    "do_sample",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
}  # which tasks say, and we do not follow
_GREEDY = 1e-6  # of a log-probability: rounding between it and that of the likeliest token

Tokens = tuple[Any, list[int], list[int]]  # (what it is, context, continuation)


@dataclasses.dataclass(frozen=True)
class Limits:
    """What `--model_args` may say besides the model and the sampler; the names are the harness's.

    max_length: tokens that the model sees, at most as many as its context has. max_gen_toks: tokens of an answer where
    the task does not say. batch_size: rows at a time; the harness's "auto" is ours. device: has no say, nor has
    max_batch_size; JAX has (JAX_PLATFORMS), and the harness gives "cuda:0" where nobody asked for a device.
    template_args: what the chat template reads besides, for --model_args as JSON.
    """

    max_length: int | str | None = None
    max_gen_toks: int | str = MAX_NEW_TOKENS
    batch_size: int | str | None = None
    max_batch_size: int | str | None = None
    device: str | None = None
    template_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def rows(self) -> int:
        """Of a batch. Raises a ValueError for none."""
        auto = self.batch_size is None or str(self.batch_size).startswith("auto")
        rows = BATCH_ROWS if auto else _whole("batch_size", self.batch_size)
        if rows < 1:
            raise ValueError(f"batch_size must be at least 1 or auto, got {self.batch_size}")
        return rows

    def length(self, context: int) -> int:
        """Tokens that a model of this context sees. Raises a ValueError for fewer than two, or more than it has."""
        length = context if self.max_length is None else _whole("max_length", self.max_length)
        if not 1 < length <= context:
            raise ValueError(
                f"max_length must be from 2 to the model's context, {context}, got {self.max_length}"
            )
        return length


def _whole(name: str, value: Any) -> int:
    """What the harness may have left a text. Raises a ValueError for what is no whole number."""
    try:
        return int(str(value))
    except ValueError:
        raise ValueError(f"{name} must be a whole number, got {shown(value)}") from None


class Harness(TemplateLM):
    """What `--model entropix` is.

    weights, dtype, adapter: see `checkpoint.loading.load`. sampler: a preset, a TOML file, or a rule of one's own; by
        default the preset for the model. sampler_config: a TOML file with numbers of the rule, or a mapping.
    seed: answers are those of (seed, task, document, repetition), whatever is asked beside them.
    told: what `Limits` has, and numbers of the rule, such as temp; one that it does not have is refused.
    """

    def __init__(
        self,
        weights: str = loading.DEFAULT_MODEL,
        dtype: str | None = None,
        adapter: str | None = None,
        sampler: str | None = None,
        sampler_config: str | Mapping[str, Any] | None = None,
        seed: int = 0,
        **told: Any,
    ) -> None:
        super().__init__()
        self.model = loading.load(weights, dtype, adapter=adapter)
        if isinstance(sampler_config, str):
            sampler_config = read_toml(Path(sampler_config))
        own = [field.name for field in dataclasses.fields(Limits)]
        limits = Limits(**{name: told.pop(name) for name in own if name in told})
        self.model = self.model.with_template_args(limits.template_args)
        self.sampler = generation.resolve_sampler(self.model, sampler, sampler_config, told)
        self.seed, self.max_gen_toks = _whole("seed", seed), _whole("max_gen_toks", limits.max_gen_toks)
        if self.max_gen_toks < 1:
            raise ValueError(f"max_gen_toks must be at least 1, got {self.max_gen_toks}")
        self.max_length = limits.length(self.model.config.context_length)
        self.batch_rows = limits.rows()

    # ----- text and tokens ----------------------------------------------------------------------------------

    @property
    def eot_token_id(self) -> int:
        """A token that ends a text. Raises a ValueError where the model has none."""
        if not self.model.stop_ids:
            raise ValueError(f"{self.model.name} has no end token; list one in its generation_config.json")
        return self.model.stop_ids[0]

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that nothing stands before: the beginning-of-text token, if the model has one."""
        bos = self.model.tokenizer.bos_id
        return self.eot_token_id if bos is None else bos

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The ids of a text, in which names of special tokens are these tokens."""
        if add_special_tokens is False:
            return self.model.tokenizer.encode(string, allow_special=True)
        return self.model.tokenizer.encode_text(string, allow_special=True)

    @property
    def tokenizer_name(self) -> str:
        """For the harness's cache of requests."""
        return self.model.folder.resolve().as_posix().replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The source of the model's own; None where none is wanted or there is none."""
        if isinstance(chat_template, str) and chat_template not in ("", "default"):
            raise ValueError(
                f"there is no chat template {chat_template!r}; use --apply_chat_template without a name"
            )
        template = self.model.chat_template
        return template.source if chat_template and template is not None else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The conversation as text; without a generation prompt the last message is left open, to be continued."""
        template = self.model.chat_template
        if template is None:
            raise ValueError(f"{self.model.name} has no chat template; leave --apply_chat_template out")
        turns = [Message(role=turn["role"], content=turn["content"]) for turn in chat_history]
        text = template.render(turns, add_generation_prompt)
        if add_generation_prompt:
            return text
        last = (
            turns[-1]["content"].rstrip()
            if turns[-1]["content"].rstrip() in text
            else turns[-1]["content"].strip()
        )
        return text[: text.rindex(last) + len(last)]

    # ----- log-likelihoods ----------------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self, requests: Sequence[Tokens], disable_tqdm: bool = False, **unused: Any
    ) -> list[tuple[float, bool]]:
        """(log-likelihood in nats, whether each token is the likeliest) of each continuation.

        The model reads `max_length` tokens, and what it predicts last need not be one of them.
        """
        rows = [(context + continuation)[-(self.max_length + 1) :] for _, context, continuation in requests]
        for (_, context, continuation), row in zip(requests, rows, strict=True):
            if not context or not 0 < len(continuation) < len(row):
                raise ValueError(
                    f"a continuation of {len(continuation)} tokens does not fit behind one of {len(context)} in "
                    f"a context of {self.max_length}; take a larger max_length or shorter texts"
                )
        found: list[list[tuple[float, bool]]] = [[] for _ in rows]
        with tqdm(total=sum(map(len, rows)), disable=disable_tqdm, desc="Reading", unit="token") as bar:
            for piece in scoring.read(self.model, rows):
                bar.update(len(piece.records))
                for record in piece.records:
                    if record["logprob"] is None and record["position"] < len(rows[piece.text]) - 1:
                        raise ValueError("the model's logits are not finite; its answers mean nothing")
                    if record["logprob"] is not None:
                        best = math.log(record["top_prob"])
                        found[piece.text].append((record["logprob"], record["logprob"] >= best - _GREEDY))
        results: list[tuple[float, bool]] = []
        for (_, _, continuation), values in zip(requests, found, strict=True):
            counted = values[-len(continuation) :]
            results.append((math.fsum(value for value, _ in counted), all(greedy for _, greedy in counted)))
        for request, result in zip(requests, results, strict=True):
            if request[0] is not None:
                self.cache_hook.add_partial("loglikelihood", request[0], result)
        return results

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of whole texts, in windows that do not overlap in what they predict."""
        windows: list[tuple[int, Tokens]] = []
        for i, request in enumerate(requests):
            rolling = lm_eval.utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            windows += [(i, (None, *lm_eval.utils.make_disjoint_window(window))) for window in rolling]
        parts = defaultdict(list)
        found = self._loglikelihood_tokens([window for _, window in windows], disable_tqdm)
        for (i, _), (value, _) in zip(windows, found, strict=True):
            parts[i].append(value)
        return [math.fsum(parts[i]) for i in range(len(requests))]

    # ----- answers ------------------------------------------------------------------------------------------

    def generate_until(
        self,
        requests: Sequence[Any],
        disable_tqdm: bool = False,
        numbers: Sequence[tuple[Any, ...]] | None = None,
    ) -> list[str]:
        """The answers of the sampler, each up to the first of its task's stop strings.

        numbers: (task, document, place, repetition) of each request, where some were left out.
        """
        seeds = self.seeds(_numbered(requests) if numbers is None else numbers)
        groups: dict[tuple[tuple[str, ...], int], list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            groups[_limits(request.args[1], self.max_gen_toks)].append(i)
        texts = [""] * len(requests)
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Answering") as bar:
            for (until, most), rows in groups.items():
                if most >= self.max_length:
                    raise ValueError(
                        f"max_gen_toks={most} leaves no room for a prompt in a context of {self.max_length} tokens"
                    )
                prompts = {i: self.tok_encode(requests[i].args[0])[most - self.max_length :] for i in rows}
                rows = sorted(rows, key=lambda i: len(prompts[i]))
                request = generation.prepare(
                    self.model,
                    [prompts[i] for i in rows],
                    sampler=self.sampler,
                    seeds=[seeds[i] for i in rows],
                    occurrences=[0] * len(rows),
                    max_new_tokens=most,
                    stop=until,
                )
                for event in ContinuousBatch(request, self.batch_rows).run():
                    texts[rows[event.row]] += event.text
                    bar.update(int(bool(event.finish)))
        return texts

    def seeds(self, numbers: Sequence[tuple[Any, ...]]) -> list[int]:
        """One for each (task, document, place there, repetition), which the seed and these choose."""
        return [
            int.from_bytes(hashlib.sha256(json.dumps([self.seed, *which]).encode()).digest()[:4], "big") >> 1
            for which in numbers
        ]

    @property
    def identity(self) -> dict[str, Any]:
        """All that answers depend on beside the requests, as JSON has it."""
        return {
            "weights": self.tokenizer_name,
            **trace.adapter_of(self.model),
            "dtype": self.model.precision,
            "max_length": self.max_length,
            "max_gen_toks": self.max_gen_toks,
            "seed": self.seed,
            "template_args": dict(self.model.template_args),
            "sampler": self.sampler.name,
            "numbers": dataclasses.asdict(self.sampler.numbers),
            **{name: dataclasses.asdict(own) for name, own in self.sampler.looking.items()},
            "source": None if self.sampler.source is None else self.sampler.source.sha256,
        }


class Cache(CachingLM):
    """The harness's cache of answers, whose keys have the sampler, the seed and the repetition too.

    The harness's own has the request alone, so that another sampler would get the answers of the first.
    """

    def __getattr__(self, attr: str) -> Any:
        kinds = ("loglikelihood", "loglikelihood_rolling", "generate_until")
        if attr not in kinds or not isinstance(self.lm, Harness):
            return super().__getattr__(attr)
        return lambda requests: self._answered(attr, getattr(self.lm, attr), requests)

    def get_cache_hook(self) -> Any:
        """None of the harness's: answers are kept when a call has all of them."""
        return lm_eval.api.model.CacheHook(None)

    def _answered(self, kind: str, ask: Callable[..., list[Any]], requests: Sequence[Any]) -> list[Any]:
        numbers = _numbered(requests)
        keys = [
            hashlib.sha256(json.dumps([kind, self.lm.identity, which, request.args]).encode()).hexdigest()
            for which, request in zip(numbers, requests, strict=True)
        ]
        known = {key: self.dbdict[key] for key in keys if key in self.dbdict}
        missing = [i for i, key in enumerate(keys) if key not in known]
        # Each keeps the number that it has among all, so that its seed is that of a run without a cache.
        given = {"numbers": [numbers[i] for i in missing]} if kind == "generate_until" else {}
        answers = ask([requests[i] for i in missing], **given) if missing else []
        for i, answer in zip(missing, answers, strict=True):
            known[keys[i]] = self.dbdict[keys[i]] = answer
        self.dbdict.commit()
        return [known[key] for key in keys]


def _numbered(requests: Sequence[Any]) -> list[tuple[Any, ...]]:
    """(task, document, place in the document, repetition) of each request."""
    seen: Counter[tuple[Any, ...]] = Counter()
    found = []
    for request in requests:
        which = (request.task_name, request.doc_id, request.idx)
        found.append((*which, seen[which]))
        seen[which] += 1
    return found


def _limits(arguments: Mapping[str, Any], default: int) -> tuple[tuple[str, ...], int]:
    """(stop strings, most tokens) of a request. Raises a ValueError for what we cannot do.

    Temperatures and the like are left to the sampler: most tasks say `do_sample: false` whatever the model.
    """
    unknown = arguments.keys() - {"until", *_LENGTHS} - _OF_THE_SAMPLER
    if unknown:
        raise ValueError(
            f"generation argument {min(unknown)!r} is not known; there are until and {_LENGTHS[0]}, and what is "
            "drawn is the sampler's, in --model_args"
        )
    until = arguments.get("until") or []
    stops = (until,) if isinstance(until, str) else tuple(until)
    most = next((arguments[name] for name in _LENGTHS if arguments.get(name) is not None), default)
    return tuple(stop for stop in stops if stop), int(most)
