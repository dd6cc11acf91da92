"""Several answers to one prompt, computed as one batch, and one of them chosen: parallel chain-of-thought decoding.

Where the paths part is the plan's `fork`:

    start      at the first token: the C most likely ones begin a path each (Wang & Zhou 2024, arXiv:2402.10200)
    explore    where a first pass was uncertain: at its first C - 1 such positions a path goes on with the most likely
               token that was not chosen; the first pass is path 0
    none       nowhere in particular: C independent samples, as for best-of-N and self-consistency

The prompt is prefilled once and its cache copied; paths that end leave the batch. A path is what its first tokens, up
to and with the one at which it departs, are continued with alone: `generate` of the prompt with these tokens appended
and the same seed gives the rest. It depends neither on the other paths nor on how many there are. What a sampler
remembers begins anew there, as at the end of a prompt.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from entropix import generation
from entropix.checkpoint.loading import Model
from entropix.cot import answers, selection
from entropix.cot.answers import Extract
from entropix.cot.plan import EXPLORE, NONE, START, VOTE, Plan
from entropix.cot.selection import Path
from entropix.decoding.request import GenerationRequest
from entropix.decoding.session import Session
from entropix.generation import Prompt
from entropix.results import FinishReason, Result, TokenEvent, TokenRecord, add

CONFIDENCE_TOKENS = 20  # likeliest tokens whose log-probabilities make a token's confidence (Fu et al. 2025)

Watch = Callable[[Iterator[TokenEvent]], Iterable[TokenEvent]]


@dataclass(frozen=True)
class CotPath:
    """One path, whole: its text and tokens are those from the prompt's end on."""

    result: Result
    parent: int | None  # the path whose first tokens it shares
    position: int  # how many these are; the next token is where it departs
    given: int  # tokens at its beginning that were given to it and not drawn by it
    seed: int
    forward_passes: int  # that it took part in, without those of the tokens it was given
    computed_tokens: int  # its own, without those it shares with its parent; see `decoding.batch.Costs`
    answer: str | None  # None also for a path that was ended before it was finished
    scores: dict[str, float | None]  # by selector


@dataclass(frozen=True)
class CotResult:
    """All paths and the one that was chosen."""

    request: GenerationRequest  # with a prompt for each path
    plan: Plan
    paths: list[CotPath]
    chosen: int
    forward_passes: int  # of decoding, each of a whole batch
    decided_early: bool  # paths were ended because the vote was decided
    interrupted: bool  # paths were ended because `watch` ended

    @property
    def winner(self) -> CotPath:
        return self.paths[self.chosen]

    @property
    def text(self) -> str:
        return self.winner.result.text

    @property
    def kept_tokens(self) -> int:
        return len(self.winner.result.token_ids)

    @property
    def computed_tokens(self) -> int:
        return sum(path.computed_tokens for path in self.paths)


def decode(
    model: Model,
    prompt: Prompt,
    *,
    paths: int = 10,
    at: str = START,
    select: str = "answer-margin",
    extract: str = "number",
    entropy: float = Plan.entropy,
    **options: Any,
) -> CotResult:
    """Paths from the most likely first tokens (`at="start"`) or from uncertain positions of a first pass (`"explore"`),
    and the one that `select` chooses.

    There are fewer than `paths` where the first pass has fewer such positions. A stop token begins no path, so that
    every path has a text. options: those of `generation.prepare`, the sampler among them.
    """
    if at == NONE:
        raise ValueError(f"paths fork at {START} or {EXPLORE}; best_of draws independent ones")
    plan = Plan(paths, at, select, extract, entropy)
    return run(_request(model, prompt, options), plan)


def best_of(
    model: Model, prompt: Prompt, n: int, *, select: str = "borda", extract: str = "number", **options: Any
) -> CotResult:
    """`n` independent samples, and the one that `select` chooses. The first is that of `generate`."""
    return run(_request(model, prompt, options), Plan(n, NONE, select, extract))


def self_consistency(
    model: Model, prompt: Prompt, n: int, *, extract: str = "number", stop_early: bool = True, **options: Any
) -> CotResult:
    """`n` independent samples, and a majority vote over their answers, ended as soon as it is decided."""
    return run(_request(model, prompt, options), Plan(n, NONE, VOTE, extract, stop_early=stop_early))


def run(request: GenerationRequest, plan: Plan, watch: Watch = iter) -> CotResult:
    """All paths of a request with a single prompt.

    watch: passes the events of each batch on, and may end them before their time, at which paths that are still running
    get `FinishReason.INTERRUPTED`.
    """
    if len(request.prompt_ids) != 1:
        raise ValueError(
            f"paths start from one prompt, got {len(request.prompt_ids)}; decode them one by one"
        )
    if plan.fork == START and request.config.max_new_tokens < 2:
        raise ValueError(
            "max_new_tokens must be at least 2, as the first token of every path is given to it, got 1"
        )
    n_alternatives = max(
        request.config.alternatives, CONFIDENCE_TOKENS, plan.paths + len(request.model.stop_ids)
    )
    config = dataclasses.replace(request.config, alternatives=n_alternatives)
    search = _Search(dataclasses.replace(request, config=config), plan, watch)
    search.decode()
    return _finished(search, request)


def path_seed(seed: int, index: int) -> int:
    """The seed of an independent sample; that of the first is the seed itself."""
    return seed if index == 0 else int(np.random.SeedSequence([seed, index]).generate_state(1)[0])


@dataclass(frozen=True)
class _Branch:
    """A path that is to be continued."""

    records: list[TokenRecord]  # of the tokens it is given
    seed: int
    parent: int | None = None
    position: int = 0


class _Search:
    """The paths as they come."""

    def __init__(self, request: GenerationRequest, plan: Plan, watch: Watch) -> None:
        self.request, self.plan = request, plan
        self.extract: Extract = answers.extractor(plan.extract)
        self.branches: list[_Branch] = []
        self.results: list[Result] = []
        self.row_passes: list[int] = []
        self.computed: list[int] = []
        self.decided = False
        self._watch = watch
        self._seed = request.config.seeds[0] if request.config.seeds else request.config.seed
        self._session = Session(request.model, 1, shrinks=True)

    @property
    def forward_passes(self) -> int:
        """Of decoding, each of a whole batch."""
        return self._session.costs.n_passes

    def decode(self) -> None:
        """Decodes all paths, from where the plan says that they part."""
        if self.plan.fork == START:
            self._from_first_tokens()
        elif self.plan.fork == EXPLORE:
            self._from_uncertain_positions()
        else:
            self._samples()

    def _from_first_tokens(self) -> None:
        """One step of the sampler tells the most likely tokens; what it draws is not used."""
        config = dataclasses.replace(self.request.config, max_new_tokens=1)
        [first] = generation.collect(
            self.request,
            self._watch(generation.run(dataclasses.replace(self.request, config=config), self._session)),
        )
        if first.records:
            record = first.records[0]
            chosen = self._not_stopping(record["alternatives"])[: self.plan.paths]
            self._session.fork([0] * len(chosen))
            self._continue([_Branch([given(record, token)], self._seed) for token in chosen])
        else:
            first.finish = first.finish or FinishReason.INTERRUPTED
            self._add([_Branch([], self._seed)], [first])

    def _from_uncertain_positions(self) -> None:
        """The first pass, which is path 0, and a path from each position where it might have gone another way."""
        self._continue([_Branch([], self._seed)])
        [first] = self.results
        room = min(self.request.config.max_new_tokens, self._room) - 1
        forks = [i for i, record in enumerate(first.records[:room]) if self._is_uncertain(record)]
        branches: list[_Branch] = []
        for position in forks:
            record = first.records[position]
            others = [
                token for token in self._not_stopping(record["alternatives"]) if token["id"] != record["id"]
            ]
            if others and len(branches) < self.plan.paths - 1:
                tokens = [*map(dict, first.records[:position]), given(record, others[0])]
                branches.append(_Branch(tokens, self._seed, 0, position))
        if branches and first.finish != FinishReason.INTERRUPTED:
            self._session.fork([0] * len(branches))
            self._continue(branches)

    def _samples(self) -> None:
        """Independent paths after one prefill."""
        request = self.request
        self._session.start(request)
        self._session.fork([0] * self.plan.paths)
        self._continue([_Branch([], path_seed(self._seed, i)) for i in range(self.plan.paths)])

    def _continue(self, branches: Sequence[_Branch]) -> None:
        """Continues paths as one batch."""
        [prompt] = self.request.prompt_ids
        ids = [[record["id"] for record in branch.records] for branch in branches]
        request = dataclasses.replace(
            self.request,
            prompt_ids=[[*prompt, *tokens] for tokens in ids],
            config=dataclasses.replace(self.request.config, seeds=tuple(branch.seed for branch in branches)),
            forced_prefix=tuple(map(len, ids)),
        )
        results = [
            Result(prompt, token_ids=tokens, records=[*branch.records])
            for tokens, branch in zip(ids, branches, strict=True)
        ]
        everything = [*self.results, *results]
        for event in self._watch(generation.run(request, self._session)):
            add(results, event)
            if event.finish != FinishReason.RUNNING and not self.decided and self._may_stop(everything):
                self.decided = True
                self._session.end(range(len(branches)), FinishReason.INTERRUPTED)
        for result in results:
            if result.finish == FinishReason.RUNNING:
                result.finish = FinishReason.INTERRUPTED
        self._add(branches, results)

    def _add(self, branches: Sequence[_Branch], results: Sequence[Result]) -> None:
        """Notes paths that the session has just continued."""
        self.branches += branches
        self.results += results
        self.row_passes += self._session.costs.row_passes_B.tolist()
        # What was given to a path and is shared with no other was computed for it too.
        own = [len(branch.records) - branch.position for branch in branches]
        self.computed += [int(n) + m for n, m in zip(self._session.costs.computed_B, own, strict=True)]

    def _may_stop(self, results: Sequence[Result]) -> bool:
        """Whether paths are left that the vote can do without."""
        unfinished = {i for i, result in enumerate(results) if result.finish == FinishReason.RUNNING}
        if not (unfinished and self.plan.select == VOTE and self.plan.stop_early):
            return False
        paths = [None if i in unfinished else self.path_of(result) for i, result in enumerate(results)]
        found = [path.answer if path is not None and path.ended else None for path in paths]
        return selection.is_decided(found, unfinished)

    def path_of(self, result: Result) -> Path:
        """What selectors look at. A path that was interrupted has no answer, and one that its limit cut off in the
        middle of the answer neither: it might have been another one."""
        found = (
            None
            if result.finish in (FinishReason.INTERRUPTED, FinishReason.NAN)
            else self.extract(result.text)
        )
        limited = result.finish in (FinishReason.LENGTH, FinishReason.CONTEXT)
        if found is not None and limited and answers.is_cut(found, result.text, self.plan.extract):
            found = None
        pieces = [bytes(record["bytes"]) for record in result.records]
        return Path(
            answer=None if found is None else found.value,
            span=(0, 0) if found is None else answers.token_span(pieces, found.start, found.end),
            logprob_T=_numbers(result, "logprob", -math.inf),
            margin_T=_numbers(result, "margin", 0.0),
            self_certainty_T=_numbers(result, "self_certainty", math.inf),
            confidence_T=[_confidence(record) for record in result.records],
            ended=result.finish in (FinishReason.STOP_TOKEN, FinishReason.STOP_STRING),
        )

    def _is_uncertain(self, record: TokenRecord) -> bool:
        if EXPLORE in self.request.sampler.strategies:
            return bool(record["strategy"] == EXPLORE)
        return record["logits_entropy"] > self.plan.entropy

    def _not_stopping(self, tokens: Sequence[TokenRecord]) -> list[TokenRecord]:
        """Those that a text can go on with."""
        return [token for token in tokens if token["id"] not in self.request.model.stop_ids]

    @property
    def _room(self) -> int:
        return self.request.model.config.context_length - len(self.request.prompt_ids[0])


def given(record: TokenRecord, token: TokenRecord) -> TokenRecord:
    """The record of a step at which another token was put in place of the drawn one."""
    fields = {name: token[name] for name in ("id", "text", "bytes", "logprob")}
    own = ("branches", "taken_back")  # of the drawn token's text, which this leaves
    kept = {name: value for name, value in record.items() if name not in own}
    return {**kept, **fields, "draw_logprob": 0.0, "score": None, "injected": True}


def _finished(search: _Search, request: GenerationRequest) -> CotResult:
    """Scores every path and chooses one."""
    seen = [search.path_of(result) for result in search.results]
    choices = {name: kind.select(seen) for name, kind in selection.SELECTORS.items()}
    for result in search.results:
        for record in result.records:
            wanted = record.pop("alternatives", [])[: request.config.alternatives]
            if wanted:
                record["alternatives"] = wanted
    paths = [
        CotPath(
            result=result,
            parent=branch.parent,
            position=branch.position,
            given=len(branch.records),
            seed=branch.seed,
            forward_passes=passes,
            computed_tokens=computed,
            answer=path.answer,
            scores={name: choice.scores[i] for name, choice in choices.items()},
        )
        for i, (branch, result, passes, computed, path) in enumerate(
            zip(search.branches, search.results, search.row_passes, search.computed, seen, strict=True)
        )
    ]
    several = dataclasses.replace(
        request,
        prompt_ids=request.prompt_ids * len(paths),
        config=dataclasses.replace(request.config, seeds=tuple(path.seed for path in paths)),
    )
    cut = any(result.finish == FinishReason.INTERRUPTED for result in search.results)
    return CotResult(
        request=several,
        plan=search.plan,
        paths=paths,
        chosen=choices[search.plan.select].winner,
        forward_passes=search.forward_passes,
        decided_early=cut and search.decided,
        interrupted=cut and not search.decided,
    )


def _numbers(result: Result, field: str, missing: float) -> list[float]:
    """A field of all tokens; a record has None for what is not finite."""
    return [missing if record[field] is None else record[field] for record in result.records]


def _confidence(record: TokenRecord) -> float:
    likeliest = [token["logprob"] for token in record["alternatives"][:CONFIDENCE_TOKENS]]
    return math.inf if None in likeliest else -math.fsum(likeliest) / len(likeliest)


def _request(model: Model, prompt: Prompt, options: dict[str, Any]) -> GenerationRequest:
    """The prompt as a batch of one: a list of messages, or of ids, is one prompt, several prompts are an error."""
    return generation.prepare(model, prompt, **options)
