"""The paths of one prompt: where they part, what becomes of them, and what a selector looks at."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from entropix.cot import answers, selection
from entropix.cot.plan import EXPLORE, START, VOTE, Plan
from entropix.cot.selection import Path
from entropix.decoding.batching import Cost
from entropix.decoding.request import GenerationRequest, PromptRow, occurrences
from entropix.results import FinishReason, Result, TokenRecord

CONFIDENCE_TOKENS = 20  # likeliest tokens whose log-probabilities make a token's confidence (Fu et al. 2025)


def path_seed(seed: int, index: int) -> int:
    """The seed of an independent sample; that of the first is the seed itself."""
    return seed if index == 0 else int(np.random.SeedSequence([seed, index]).generate_state(1)[0])


@dataclass(frozen=True)
class Branch:
    """A path that is to be continued."""

    records: list[TokenRecord]  # of the tokens it is given
    seed: int
    parent: int | None = None
    position: int = 0

    @property
    def ids(self) -> list[int]:
        return [record["id"] for record in self.records]


@dataclass
class PathState:
    """A path so far, and what it has cost."""

    branch: Branch
    result: Result
    passes: int = 0  # forward passes of decoding that it took part in
    computed: int = 0  # tokens, those among them that were given to it and are shared with no other

    def note_cost(self, cost: Cost) -> None:
        """What it took to continue it."""
        self.passes = cost.passes
        self.computed = cost.computed + len(self.branch.records) - self.branch.position


@dataclass
class PromptPaths:
    """The paths of one prompt so far."""

    request: GenerationRequest  # of this prompt alone
    plan: Plan
    paths: list[PathState] = field(default_factory=list)
    decided: bool = False  # the vote, before all paths had ended

    @property
    def row(self) -> PromptRow:
        return self.request.rows[0]

    @property
    def prompt(self) -> list[int]:
        return self.row.ids

    @property
    def seed(self) -> int:
        return self.row.seed

    @property
    def forward_passes(self) -> int:
        """Of decoding, where all paths run side by side as soon as they can."""
        first, *others = [path.passes for path in self.paths]
        if self.plan.grows:
            return first + max(others, default=0)
        return max(first, *others, 0) + (self.plan.fork == START)

    def begin(self, branches: Sequence[Branch]) -> list[PathState]:
        """Paths that are to be continued; they are among this prompt's from now on."""
        paths = [
            PathState(branch, Result(self.prompt, token_ids=branch.ids, records=[*branch.records]))
            for branch in branches
        ]
        self.paths += paths
        return paths

    def request_of(self, branches: Sequence[Branch]) -> GenerationRequest:
        """The request that continues paths. Of one text and one seed a prompt's later paths draw otherwise."""
        texts = [[*self.prompt, *branch.ids] for branch in branches]
        seeds = [branch.seed for branch in branches]
        return self.request.of_rows([0] * len(branches)).with_each(
            ids=texts,
            seed=seeds,
            occurrence=[self.row.occurrence + n for n in occurrences(texts, seeds)],
            n_forced=[len(branch.records) for branch in branches],
        )

    def beginnings(self) -> list[Branch]:
        """The paths that there are from the beginning, where that is not a first token."""
        return self._samples()[: 1 if self.plan.grows else None]

    def further(self) -> list[Branch]:
        """The paths that the first one, which has ended, asks for."""
        if self.plan.fork == EXPLORE:
            return self._forks()
        bits = [record["logits_entropy"] for record in self.paths[0].result.records]
        is_unsure = any(one is None or one > self.plan.above for one in bits)  # None: it was not finite
        return self._samples()[1:] if is_unsure else []

    def _samples(self) -> list[Branch]:
        """Independent paths."""
        return [Branch([], path_seed(self.seed, i)) for i in range(self.plan.paths)]

    def _forks(self) -> list[Branch]:
        """Paths from the first uncertain positions of the first one."""
        first = self.paths[0].result
        left = self.request.model.config.longest_text(len(self.prompt)) - len(self.prompt)
        room = min(self.request.config.max_new_tokens, left) - 1
        found: list[Branch] = []
        for position, record in enumerate(first.records[:room]):
            if not self._is_uncertain(record) or len(found) == self.plan.paths - 1:
                continue
            others = [
                token for token in self._not_stopping(record["alternatives"]) if token["id"] != record["id"]
            ]
            if others:
                tokens = [*map(dict, first.records[:position]), given(record, others[0])]
                found.append(Branch(tokens, self.seed, 0, position))
        return found

    def from_first_tokens(self, record: TokenRecord) -> list[Branch]:
        """A path from each of the most likely tokens of a step."""
        chosen = self._not_stopping(record["alternatives"])[: self.plan.paths]
        return [Branch([given(record, token)], self.seed) for token in chosen]

    def may_stop(self) -> bool:
        """Whether paths are left that the vote can do without."""
        results = [path.result for path in self.paths]
        unfinished = {i for i, result in enumerate(results) if result.finish == FinishReason.RUNNING}
        if not (unfinished and self.plan.select == VOTE and self.plan.stop_early):
            return False
        paths = [None if i in unfinished else self.path_of(result) for i, result in enumerate(results)]
        found = [path.answer if path is not None and path.ended else None for path in paths]
        return selection.is_decided(found, unfinished)

    def path_of(self, result: Result) -> Path:
        """What selectors look at. A path that was interrupted has no answer, and one that its limit cut off in the
        middle of the answer neither: it might have been another one."""
        extract = answers.extractor(self.plan.extract)
        found = (
            None if result.finish in (FinishReason.INTERRUPTED, FinishReason.NAN) else extract(result.text)
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


def given(record: TokenRecord, token: TokenRecord) -> TokenRecord:
    """The record of a step at which another token was put in place of the drawn one."""
    fields = {name: token[name] for name in ("id", "text", "bytes", "logprob")}
    own = ("branches", "taken_back")  # of the drawn token's text, which this leaves
    kept = {name: value for name, value in record.items() if name not in own}
    return {**kept, **fields, "draw_logprob": 0.0, "score": None, "injected": True}


def _numbers(result: Result, name: str, missing: float) -> list[float]:
    """A field of all tokens; a record has None for what is not finite."""
    return [missing if record[name] is None else record[name] for record in result.records]


def _confidence(record: TokenRecord) -> float:
    likeliest = [token["logprob"] for token in record["alternatives"][:CONFIDENCE_TOKENS]]
    return math.inf if None in likeliest else -math.fsum(likeliest) / len(likeliest)
