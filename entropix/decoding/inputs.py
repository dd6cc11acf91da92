"""A request as arrays: keys, limits, stop tokens, the sampler's numbers, and rows at their beginning."""

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np

from entropix.config import NO_TOKEN, TRACED, fields_of_kind
from entropix.decoding import backtracking, branching, loop
from entropix.decoding.request import GenerationRequest, PromptRow
from entropix.decoding.state import BatchInputs, RowState
from entropix.numerics import power_of_two
from entropix.results import FinishReason
from entropix.sharding import to_device

_DTYPES: dict[type, Any] = {float: np.float32, int: np.int32, bool: np.bool_}


def batch_inputs(request: GenerationRequest) -> BatchInputs:
    """What stays fixed while the batch is generated."""
    rows, cfg, model = request.rows, request.config, request.model
    room = [model.config.longest_text(len(row.ids)) - len(row.ids) for row in rows]
    wanted = [(row.most_tokens or cfg.max_new_tokens) - row.n_forced for row in rows]
    assert min(wanted) > 0, (wanted, cfg.max_new_tokens)
    reasons = [
        FinishReason.LENGTH if n <= left else FinishReason.CONTEXT
        for n, left in zip(wanted, room, strict=True)
    ]
    stop_ids = () if cfg.ignore_stop_tokens else model.stop_ids
    stop_E = np.full(power_of_two(len(stop_ids), least=8), NO_TOKEN, np.int32)
    stop_E[: len(stop_ids)] = stop_ids
    of_key = zip(*((row.seed, _digest(row), row.occurrence) for row in rows), strict=True)
    return BatchInputs(
        key_B=loop.row_keys(*(to_device(numbers, np.uint32) for numbers in of_key)),
        limit_B=to_device([*map(min, wanted, room)]),
        limit_reason_B=to_device(reasons),
        stop_E=to_device(stop_E),
        branching=None if request.program.branching is None else branching.params(cfg.branching),
        backtracking=backtracking.params(cfg.backtracking, request.sampler.strategies),
    )


def first_rows(request: GenerationRequest) -> RowState:
    """The rows at their beginning: the newest token of each is its prompt's last."""
    prompts, cfg = request.prompt_ids, request.config
    batch = len(prompts)
    return RowState(
        token_B=to_device([prompt[-1] for prompt in prompts]),
        step_B=to_device([0] * batch),
        finish_B=to_device([FinishReason.RUNNING] * batch),
        sampler=_first_states(request),
        branching=None if request.program.branching is None else branching.no_forks(batch),
        backtracks=backtracking.none_yet(batch) if cfg.backtracking.is_on else None,
        numbers=stacked_numbers([row.numbers for row in request.rows]) if request.numbers_differ else None,
    )


def device_numbers(numbers: Any) -> Any:
    """The sampler's numbers as arrays of their field's dtype, so that 1 and 1.0 are the same program."""
    return jax.device_put(_as_arrays(numbers))


def _as_arrays(numbers: Any) -> Any:
    hints = get_type_hints(type(numbers))
    arrays = {
        name: _DTYPES[hints[name]](getattr(numbers, name)) for name in fields_of_kind(type(numbers), TRACED)
    }
    return dataclasses.replace(numbers, **arrays)


def _first_states(request: GenerationRequest) -> Any:
    """The sampler's state of each row, which may be made of the row's own numbers."""
    init, encode = request.sampler.init, request.model.tokenizer.encode
    if not request.numbers_differ:
        return init(request.sampler_config, request.prompt_ids, encode)
    states = [init(row.numbers, [row.ids], encode) for row in request.rows]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *states)


def stacked_numbers(row_numbers: Sequence[Any]) -> Any:
    """The same with the rows as first axis of every array."""
    return jax.device_put(jax.tree.map(lambda *values: np.stack(values), *map(_as_arrays, row_numbers)))


def _digest(row: PromptRow) -> int:
    """Of the tokens that its random numbers depend on."""
    keyed = row.ids[: len(row.ids) - row.n_unkeyed]
    return zlib.crc32(np.asarray(keyed, np.int32).tobytes())
