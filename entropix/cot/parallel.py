"""Several answers to a prompt, computed as one batch, and one of them chosen: parallel chain-of-thought decoding.

Where the paths part is the plan's `fork`:

    start      at the first token: the C most likely ones begin a path each (Wang & Zhou 2024, arXiv:2402.10200)
    explore    where a first pass was uncertain: at its first C - 1 such positions a path goes on with the most likely
               token that was not chosen; the first pass is path 0
    none       nowhere in particular: C independent samples, as for best-of-N and self-consistency; with `above`, more
               than the first only where it was unsure somewhere

The prompt is prefilled once and its cache copied; a path that ends makes room for the next. A path is what its first
tokens, up to and with the one at which it departs, are continued with alone: `generate` of the prompt with these
tokens appended and the same seed gives the rest. It depends neither on the other paths nor on how many there are. What
a sampler remembers begins anew there, as at the end of a prompt.

The paths of many prompts take turns in the rows of one batch. A prompt's answer is the one that it gets alone, for what
a path draws depends on seed, prompt and path only: a prompt that comes twice has the same answer twice.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from entropix import generation
from entropix.checkpoint.loading import Model
from entropix.config import BATCH_ROWS, ModelConfig
from entropix.cot import selection
from entropix.cot.plan import EXPLORE, NONE, START, VOTE, Plan
from entropix.cot.prompt_paths import CONFIDENCE_TOKENS, PromptPaths, given, path_seed
from entropix.cot.search import Search
from entropix.decoding.request import GenerationRequest
from entropix.generation import Prompt
from entropix.results import FinishReason, Result, TokenEvent

__all__ = ["EXPLORE", "NONE", "START", "VOTE", "given", "path_seed"]  # of what others have

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
    forward_passes: int  # of decoding, where all paths run side by side
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
    return run(generation.prepare(model, prompt, **options), plan)


def best_of(
    model: Model,
    prompt: Prompt,
    n: int,
    *,
    select: str = "borda",
    extract: str = "number",
    above: float = 0.0,
    **options: Any,
) -> CotResult:
    """`n` independent samples, and the one that `select` chooses. The first is that of `generate`.

    above: bits; where no token of the first had more entropy than this, it is the only one.
    """
    return run(generation.prepare(model, prompt, **options), Plan(n, NONE, select, extract, above=above))


def self_consistency(
    model: Model,
    prompt: Prompt,
    n: int,
    *,
    extract: str = "number",
    above: float = 0.0,
    stop_early: bool = True,
    **options: Any,
) -> CotResult:
    """`n` independent samples, and a majority vote over their answers, ended as soon as it is decided. above: as for
    `best_of`."""
    plan = Plan(n, NONE, VOTE, extract, above=above, stop_early=stop_early)
    return run(generation.prepare(model, prompt, **options), plan)


def answer_all(
    model: Model, prompts: Sequence[Prompt], plan: Plan, *, most_rows: int = BATCH_ROWS, **options: Any
) -> Iterator[CotResult]:
    """The paths of each of many prompts and the chosen one, in the order of the prompts, as they are done.

    plan: `Plan(10)` does what `decode` does, `Plan(8, "none", "borda")` what `best_of` does, and
        `Plan(8, "none", "majority")` what `self_consistency` does.
    most_rows: of the batch, whose rows are paths of any of the prompts.
    """
    return run_all(generation.prepare(model, prompts, **options), plan, most_rows=most_rows)


def run(request: GenerationRequest, plan: Plan, watch: Watch = iter) -> CotResult:
    """All paths of a request with a single prompt; see `run_all`."""
    if len(request.prompt_ids) != 1:
        raise ValueError(f"paths start from one prompt, got {len(request.prompt_ids)}; run_all takes several")
    [result] = run_all(request, plan, watch)
    return result


def run_all(
    request: GenerationRequest, plan: Plan, watch: Watch = iter, most_rows: int = BATCH_ROWS
) -> Iterator[CotResult]:
    """The paths of each prompt of a request, in order.

    watch: passes all events on, of which each has its prompt's number as row, and may end them before their time. Paths
        that are still running then get `FinishReason.INTERRUPTED`, and prompts whose turn has not come one empty path.
    """
    return ParallelPaths(request, plan, most_rows).run(watch)


class ParallelPaths:
    """The paths of each prompt of a request, in a batch of few rows, and the chosen one."""

    def __init__(self, request: GenerationRequest, plan: Plan, most_rows: int = BATCH_ROWS) -> None:
        """most_rows: of the batch, at least 1. Raises a ValueError for what could not be decoded in the end."""
        check_room(plan, request.prompt_ids, request.config.max_new_tokens, request.model.config)
        self._n_alternatives = request.config.alternatives
        n_alternatives = max(
            self._n_alternatives, CONFIDENCE_TOKENS, plan.paths + len(request.model.stop_ids)
        )
        config = dataclasses.replace(request.config, alternatives=n_alternatives)
        self._search = Search(dataclasses.replace(request, config=config), plan, most_rows)

    @property
    def n_passes(self) -> int:
        """Forward passes of decoding so far, each of a whole batch."""
        return self._search.n_passes

    def run(self, watch: Watch = iter) -> Iterator[CotResult]:
        """What `run_all` gives."""
        n_done = 0
        for _ in watch(self._search.events()):
            while n_done < len(self._search.prompts) and self._search.is_done(n_done):
                yield self._take(n_done)
                n_done += 1
        self._search.end()
        for number in range(n_done, len(self._search.prompts)):
            yield self._take(number)

    def _take(self, number: int) -> CotResult:
        """Chooses a path of a prompt, whose records are not kept here any more."""
        paths = self._search.prompts[number]
        found = _finished(paths, self._n_alternatives)
        paths.paths = []
        return found


def check_room(plan: Plan, prompts: Sequence[Sequence[int]], max_new_tokens: int, cfg: ModelConfig) -> None:
    """Raises a ValueError where there is no token left to draw after the one that a path is given."""
    if plan.fork != START:
        return
    if max_new_tokens < 2:
        raise ValueError(
            "max_new_tokens must be at least 2, as the first token of every path is given to it, got 1"
        )
    for number, prompt in enumerate(prompts, start=1):
        if len(prompt) + 1 >= (longest := cfg.longest_text(len(prompt))):
            raise ValueError(
                f"prompt {number} has {len(prompt)} tokens, but its text may come to {longest} and paths need two "
                "more; shorten the prompt"
            )


def _finished(found: PromptPaths, n_alternatives: int) -> CotResult:
    """Scores every path and chooses one. n_alternatives: of each token, that were asked for."""
    seen = [found.path_of(path.result) for path in found.paths]
    choices = {name: kind.select(seen) for name, kind in selection.SELECTORS.items()}
    paths = [
        CotPath(
            result=_with_alternatives(state.result, n_alternatives),
            parent=state.branch.parent,
            position=state.branch.position,
            given=len(state.branch.records),
            seed=state.branch.seed,
            forward_passes=state.passes,
            computed_tokens=state.computed,
            answer=path.answer,
            scores={name: choice.scores[i] for name, choice in choices.items()},
        )
        for i, (state, path) in enumerate(zip(found.paths, seen, strict=True))
    ]
    request = found.request.of_rows([0] * len(paths)).with_each(seed=[path.seed for path in paths])
    config = dataclasses.replace(request.config, alternatives=n_alternatives)
    cut = any(state.result.finish == FinishReason.INTERRUPTED for state in found.paths)
    return CotResult(
        request=dataclasses.replace(request, config=config),
        plan=found.plan,
        paths=paths,
        chosen=choices[found.plan.select].winner,
        forward_passes=found.forward_passes,
        decided_early=cut and found.decided,
        interrupted=cut and not found.decided,
    )


def _with_alternatives(result: Result, n: int) -> Result:
    """The result with n alternatives a token, which may have more."""
    records = []
    for record in result.records:
        kept = {name: value for name, value in record.items() if name != "alternatives"}
        wanted = record.get("alternatives", [])[:n]
        records.append({**kept, "alternatives": wanted} if wanted else kept)
    return dataclasses.replace(result, records=records)
