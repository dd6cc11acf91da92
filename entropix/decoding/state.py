"""What decoding carries from step to step, and what it says of each token.

    Program       what is static: equal programs are compiled once for each shape, and for each value of the few numbers
                  of a rule that are static too (`config.STATIC`)
    BatchInputs   what stays fixed while a batch is generated
    DecodeState   what one step hands to the next: `RowState` a row, recent keys and values, the text for drafts
    StepRecord    what one step says of the token that each row got

What is optional is None where it is not asked for, and then it is not in the program either.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from jax import Array

from entropix.config import ModelConfig
from entropix.metrics import Metrics
from entropix.model.kv_cache import RecentKV
from entropix.own_metrics import Metric
from entropix.samplers.base import SampleInfo, Sampler

# ----- what is static ---------------------------------------------------------------------------------------


class RecordOptions(NamedTuple):
    """What a record holds besides the usual."""

    alternatives: int = 0  # how many of the likeliest tokens
    head_entropies: bool = False
    metrics: tuple[Metric, ...] = ()  # of one's own


class BranchPlan(NamedTuple):
    """How rows branch. See `config.BranchConfig`."""

    paths: int
    depth: int
    strategies: tuple[int, ...] = ()  # that branch, as indices into the sampler's
    score: str = "logprob"
    whole: bool = True  # the whole best path is kept, not only its first token
    among_kept: bool = True  # only tokens that the sampler's filters left


class Program(NamedTuple):
    """What a compiled step depends on."""

    model: ModelConfig
    sampler: Sampler
    n_draft: int = 0  # tokens that are drafted from the text; excludes branching
    record: RecordOptions = RecordOptions()
    branching: BranchPlan | None = None

    @property
    def lookahead(self) -> int:
        """Most tokens that a step may add to a row besides its usual one."""
        rolled = self.branching.depth if self.branching is not None and self.branching.whole else 0
        return max(self.n_draft, rolled)


# ----- what stays fixed -------------------------------------------------------------------------------------


class BranchParams(NamedTuple):
    """The numbers of branching, scalars. See `config.BranchConfig`."""

    entropy: Array
    margin: Array
    budget: Array
    distance: Array
    growth: Array
    penalty: Array


class BacktrackParams(NamedTuple):
    """The numbers of backtracking. See `config.BacktrackConfig`."""

    tokens: Array  # int32: how many to take back
    budget: Array  # int32
    asks_S: Array  # bool: which strategies of the sampler ask for it


class BatchInputs(NamedTuple):
    """What stays fixed while a batch is generated."""

    key_B: Array  # one typed key a row
    limit_B: Array  # int32: most tokens to generate
    limit_reason_B: Array  # int32: FinishReason.LENGTH or CONTEXT, whichever the limit comes from
    stop_E: Array  # int32: tokens that end a row, padded with NO_TOKEN
    branching: BranchParams | None = None
    backtracking: BacktrackParams | None = None

    def by_row(self) -> dict[str, Array]:
        """The fields that rows have of their own."""
        return {name: value for name, value in self._asdict().items() if name.endswith("_B")}


class ChunkEnd(NamedTuple):
    """When a chunk of steps ends at the latest, scalars."""

    n_steps: Array  # int32: so many are done
    n_ended: Array  # int32: so many rows have ended


# ----- what a step hands to the next ------------------------------------------------------------------------


class BranchState(NamedTuple):
    """What a row has branched so far."""

    count_B: Array  # int32
    latest_B: Array  # int32: the step of the latest, if there is one
    waited_B: Array  # int32: passes for which it has waited to branch beside others


class Backtracks(NamedTuple):
    """What a row has taken back so far."""

    count_B: Array  # int32
    plain_B: Array  # int32: newest tokens of which none was inserted
    frontier_B: Array  # int32: the step of the latest; none is made before it is reached again
    place_B: Array  # int32: the step to which it led
    forbidden_BF: Array  # int32: tokens tried at that step, -1 where there are fewer


class RowState(NamedTuple):
    """What one drawn token changes in each row."""

    token_B: Array  # int32: the newest token, whose key and value are not computed yet
    step_B: Array  # int32: tokens generated so far
    finish_B: Array  # int32: FinishReason
    sampler: Any  # the sampler's own state: a pytree of arrays whose first axis is the row
    branching: BranchState | None = None
    backtracks: Backtracks | None = None
    # The sampler's, where rows have their own: a dataclass of arrays whose first axis is the row.
    numbers: Any = None


class DecodeState(NamedTuple):
    """What a step hands to the next."""

    rows: RowState
    recent: RecentKV
    text_BX: Array  # int32: prompt and answer, for drafts; without drafts X is 0


# ----- what a step says -------------------------------------------------------------------------------------


class Alternatives(NamedTuple):
    """The A likeliest tokens of each row, likeliest first."""

    token_BA: Array  # int32
    logprob_BA: Array  # nats, under the model: temperature 1, nothing filtered
    draw_logprob_BA: Array  # nats, under what one draw was made from; -inf for tokens that a filter removed


class Paths(NamedTuple):
    """The paths of every row, and which one is kept. Of rows that did not branch it means nothing."""

    forked_B: Array  # bool
    best_B: Array  # int32
    score_BC: Array  # -inf for a path that there is not, or that broke down
    token_BCD: Array  # int32: the fork's token, then the rolled ones
    logprob_BCD: Array  # nats, under the model
    live_BCD: Array  # bool: whether the path has this token; none for a path that there is not


class Before(NamedTuple):
    """What a row goes back to where the token is taken back."""

    sampler: Any
    latest_fork_B: Array | None


class StepRecord(NamedTuple):
    """One token of every row, or a buffer of such with a leading axis."""

    token_B: Array  # int32
    live_B: Array  # bool: this row generated this token; where not, the other fields mean nothing
    finish_B: Array  # int32: FinishReason after the token
    metrics: Metrics
    info: SampleInfo
    own_metrics: Mapping[str, Array] | None = None  # by name
    alternatives: Alternatives | None = None
    head_entropy_BLN: Array | None = None  # bits: attention entropy of each head of each layer
    paths: Paths | None = None  # where generation branches: what was tried; in the records of forks
    before: Before | None = None  # where tokens may be taken back
