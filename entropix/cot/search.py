"""The paths of several prompts as they come, computed as one batch; `parallel` chooses among them.

A prompt's paths are rows beside those of other prompts. What a row draws depends on its seed and its text, so that a
path is the same whatever stands beside it.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from entropix import generation
from entropix.cot import answers, selection
from entropix.cot.plan import EXPLORE, START, VOTE, Plan
from entropix.cot.selection import Path
from entropix.decoding import inputs
from entropix.decoding.batch import Costs
from entropix.decoding.prefix_cache import common_prefix
from entropix.decoding.request import GenerationRequest
from entropix.decoding.session import Session
from entropix.results import FinishReason, Result, TokenEvent, TokenRecord, add

SHARED_TOKENS = 64  # that all prompts of a batch begin with: if so many, they are read and held once for all
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


@dataclass
class PromptPaths:
    """The paths of one prompt so far. Lists have an entry a path."""

    request: GenerationRequest  # of this prompt alone
    plan: Plan
    branches: list[Branch] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    row_passes: list[int] = field(default_factory=list)
    computed: list[int] = field(default_factory=list)
    forward_passes: int = 0  # of decoding, each of a whole batch, in which a path of this prompt took part
    decided: int | None = (
        None  # how many passes the batch had made when the vote was; None as long as it is not
    )

    @property
    def prompt(self) -> list[int]:
        return self.request.prompt_ids[0]

    @property
    def seed(self) -> int:
        return self.request.config.seeds[0] if self.request.config.seeds else self.request.config.seed

    def begun(self, branches: Sequence[Branch]) -> list[Result]:
        """Their results, to be continued; the paths are among this prompt's from now on."""
        results = [
            Result(
                self.prompt, token_ids=[record["id"] for record in branch.records], records=[*branch.records]
            )
            for branch in branches
        ]
        self.branches += branches
        self.results += results
        return results

    def add_ended(self, result: Result, passes: int = 0, computed: int = 0) -> None:
        """Adds a path that no other comes after, since there is nothing to begin it with."""
        branch = Branch([], self.seed)
        result.finish = result.finish or FinishReason.INTERRUPTED
        self.branches.append(branch)
        self.results.append(result)
        self.note_cost(branch, passes, computed)

    def note_cost(self, branch: Branch, passes: int, computed: int) -> None:
        """What the next path has cost: what was given to it and is shared with no other was computed for it too."""
        self.row_passes.append(passes)
        self.computed.append(computed + len(branch.records) - branch.position)

    def forks(self) -> list[Branch]:
        """Paths from the first uncertain positions of the first one."""
        [first] = self.results
        left = self.request.model.config.context_length - len(self.prompt)
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
        unfinished = {i for i, result in enumerate(self.results) if result.finish == FinishReason.RUNNING}
        if not (unfinished and self.plan.select == VOTE and self.plan.stop_early):
            return False
        paths = [None if i in unfinished else self.path_of(result) for i, result in enumerate(self.results)]
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


Row = tuple[int, Branch]  # a path that is continued, and the number of its prompt


class Search:
    """All paths of some prompts, as a batch.

    `events` decodes them; the paths stand in `prompts`, and `end` closes them when there are no more events, also
    before their time.
    """

    def __init__(self, request: GenerationRequest, plan: Plan, size: int) -> None:
        """size: prompts of a batch that is full. Batches of equal size share programs."""
        self.plan = plan
        self.prompts = [PromptPaths(request.of_rows([i]), plan) for i in range(len(request.prompt_ids))]
        self._request, self._size = request, size
        self._session = Session(request.model, size, shrinks=True)
        self._rows: list[Row] = []  # under way

    @property
    def n_passes(self) -> int:
        """Forward passes of decoding so far, each of the whole batch."""
        return self._session.costs.n_passes

    def events(self) -> Iterator[TokenEvent]:
        """Decodes all paths, from where the plan says that they part. The row of an event is its prompt's number."""
        self._read_beginning()
        if self.plan.fork == START:
            yield from self._from_first_tokens()
        elif self.plan.fork == EXPLORE:
            yield from self._from_uncertain_positions()
        else:
            yield from self._samples()
        self.end()

    def end(self) -> None:
        """Closes what is still open: paths that were running are interrupted, and a prompt without a path gets one."""
        self._note_costs()
        for number, paths in enumerate(self.prompts):
            for result in paths.results:
                if result.finish == FinishReason.RUNNING:
                    result.finish = FinishReason.INTERRUPTED
            if not paths.results:
                paths.add_ended(Result(paths.prompt))
            paths.forward_passes = int(self._session.costs.prompt_passes_P[number])

    def _read_beginning(self) -> None:
        """Reads what all prompts begin with, such as worked examples, once for all of them."""
        prompts = self._request.prompt_ids
        first, last = min(prompts), max(prompts)  # no others have less in common
        n = min(common_prefix(first, last), min(map(len, prompts)) - 1)
        if self._size > 1 and n >= SHARED_TOKENS:
            self._session = Session(self._request.model, 1, shrinks=True)
            self._session.start(dataclasses.replace(self._request.of_rows([0]), prompt_ids=[first[: n + 1]]))
            self._session.fork([0] * self._size)
            self._session.costs = Costs(self._size)  # each row is a prompt from here on

    def _from_first_tokens(self) -> Iterator[TokenEvent]:
        """One step of the sampler tells the most likely tokens; what it draws is not used."""
        request = self._request
        one = dataclasses.replace(request, config=dataclasses.replace(request.config, max_new_tokens=1))
        firsts = [Result(paths.prompt) for paths in self.prompts]
        for event in self._generate(one, self._size):
            add(firsts, event)
            yield event
        rows: list[Row] = []
        passes_B, computed_B = self._session.costs.row_passes_B, self._session.costs.computed_B
        for number, (paths, first) in enumerate(zip(self.prompts, firsts, strict=True)):
            if first.records:
                rows += [(number, branch) for branch in paths.from_first_tokens(first.records[0])]
            else:
                paths.add_ended(first, int(passes_B[number]), int(computed_B[number]))
        yield from self._continue(rows, self.plan.paths)

    def _from_uncertain_positions(self) -> Iterator[TokenEvent]:
        """The first pass, which is path 0, and a path from each position where it might have gone another way."""
        # A row that left the batch would take with it what its paths begin with.
        self._session.shrinks = False
        yield from self._continue([(i, Branch([], paths.seed)) for i, paths in enumerate(self.prompts)], 1)
        self._session.shrinks = True
        rows = [(i, branch) for i, paths in enumerate(self.prompts) for branch in paths.forks()]
        yield from self._continue(rows, self.plan.paths - 1)

    def _samples(self) -> Iterator[TokenEvent]:
        """Independent paths after one prefill."""
        n = self.plan.paths
        self._session.start(self._padded(self._request, self._size))
        rows = [
            (number, Branch([], path_seed(paths.seed, i)))
            for number, paths in enumerate(self.prompts)
            for i in range(n)
        ]
        yield from self._continue(rows, n)

    def _continue(self, rows: Sequence[Row], most: int) -> Iterator[TokenEvent]:
        """Continues paths as one batch, which begin with what the session holds of their prompts.

        most: paths of a prompt that there can be.
        """
        if not rows:
            return
        n_rows = len(rows) if self._size == 1 else most * self._size
        owners = [self.prompts[number] for number, _ in rows]
        self._session.fork(_filled([number for number, _ in rows], n_rows))
        results = [
            result
            for owner, (_, branch) in zip(owners, rows, strict=True)
            for result in owner.begun([branch])
        ]
        self._rows = [*rows]
        for event in self._generate(self._request_of(rows), n_rows):
            owner = owners[event.row]
            n_passes = self._session.costs.n_passes
            if owner.decided is not None and n_passes > owner.decided:
                continue  # its paths have ended, and the batch goes on for others
            add(results, event)
            if event.finish != FinishReason.RUNNING and owner.decided is None and owner.may_stop():
                owner.decided = n_passes
                mine = [row for row, other in enumerate(owners) if other is owner]
                self._session.end(mine, FinishReason.INTERRUPTED)
            yield event._replace(row=rows[event.row][0])
        for result in results:
            if result.finish == FinishReason.RUNNING:
                result.finish = FinishReason.INTERRUPTED
        self._note_costs()

    def _request_of(self, rows: Sequence[Row]) -> GenerationRequest:
        """The request that continues paths. Of one text and one seed a prompt's later paths draw otherwise."""
        ids = [[record["id"] for record in branch.records] for _, branch in rows]
        texts = [
            [*self.prompts[number].prompt, *tokens] for (number, _), tokens in zip(rows, ids, strict=True)
        ]
        seeds = tuple(branch.seed for _, branch in rows)
        config = self._request.config
        counted: list[int] = []
        for number in range(len(self.prompts)):
            mine = [row for row, (owner, _) in enumerate(rows) if owner == number]
            alone = dataclasses.replace(config, seeds=tuple(seeds[row] for row in mine), occurrences=())
            base = config.occurrences[number] if config.occurrences else 0
            counted += [base + n for n in inputs.occurrences([texts[row] for row in mine], alone)]
        return dataclasses.replace(
            self._request,
            prompt_ids=texts,
            config=dataclasses.replace(config, seeds=seeds, occurrences=tuple(counted)),
            forced_prefix=tuple(map(len, ids)),
        )

    def _generate(self, request: GenerationRequest, n_rows: int) -> Iterator[TokenEvent]:
        """The events of a request, in a batch of so many rows; those that are lacking end at once."""
        n = len(request.prompt_ids)
        spare = range(n, n_rows)
        for event in generation.run(self._padded(request, n_rows), self._session):
            if spare:
                self._session.end(spare, FinishReason.INTERRUPTED)
                spare = range(0)
            if event.row < n:
                yield event

    @staticmethod
    def _padded(request: GenerationRequest, n_rows: int) -> GenerationRequest:
        """The request with so many rows: those that are lacking repeat the last."""
        return request.of_rows(_filled(range(len(request.prompt_ids)), n_rows))

    def _note_costs(self) -> None:
        """Notes what the paths under way have cost, which go on no more."""
        rows, self._rows = self._rows, []
        costs = self._session.costs
        for (number, branch), passes, computed in zip(
            rows, costs.row_passes_B, costs.computed_B, strict=False
        ):
            self.prompts[number].note_cost(branch, int(passes), int(computed))


def given(record: TokenRecord, token: TokenRecord) -> TokenRecord:
    """The record of a step at which another token was put in place of the drawn one."""
    fields = {name: token[name] for name in ("id", "text", "bytes", "logprob")}
    own = ("branches", "taken_back")  # of the drawn token's text, which this leaves
    kept = {name: value for name, value in record.items() if name not in own}
    return {**kept, **fields, "draw_logprob": 0.0, "score": None, "injected": True}


def _filled(rows: Sequence[int], n: int) -> list[int]:
    """n of them, the last repeated where they are fewer."""
    return [*rows, *[rows[-1]] * (n - len(rows))]


def _numbers(result: Result, name: str, missing: float) -> list[float]:
    """A field of all tokens; a record has None for what is not finite."""
    return [missing if record[name] is None else record[name] for record in result.records]


def _confidence(record: TokenRecord) -> float:
    likeliest = [token["logprob"] for token in record["alternatives"][:CONFIDENCE_TOKENS]]
    return math.inf if None in likeliest else -math.fsum(likeliest) / len(likeliest)
