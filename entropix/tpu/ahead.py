"""The programs of generation, compiled ahead of time for TPUs that are not there.

The TPU compiler, `libtpu`, runs on any machine: it is told a topology instead of finding devices, and programs are
lowered from shapes instead of arrays. What comes out is what a pod of these chips would run; it is measured, not
executed.
"""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from entropix import presets, samplers, sharding
from entropix.checkpoint.loading import Model
from entropix.config import GenerateConfig, ModelConfig
from entropix.decoding import loop
from entropix.decoding.inputs import batch_inputs, device_numbers, first_rows
from entropix.decoding.loop import RECENT_SLOTS
from entropix.decoding.prefix_cache import PREFILL_WIDTHS, capacity_for
from entropix.decoding.request import GenerationRequest, PromptRow
from entropix.decoding.state import ChunkEnd, DecodeState
from entropix.model import attention, kv_cache, weights

DTYPE = jnp.bfloat16  # of weights and cache


class Chip(NamedTuple):
    """What one chip has, by Google's own figures (10⁹ bytes)."""

    name: str
    hbm_bytes: float
    hbm_bytes_per_second: float
    flops_per_second: float  # dense products of bfloat16
    layouts: str  # some of those there are
    source: str


# As of 2025; the bandwidth of v6e was given as 1,640 GB/s before.
_PAGES = "https://cloud.google.com/tpu/docs"
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v5e", 16e9, 819e9, 197e12, "1x1, 2x2, 2x4, 4x4, 4x8, 8x8", f"{_PAGES}/v5e"),
        Chip("v5p", 95e9, 2765e9, 459e12, "2x2x1, 2x2x2, 2x4x4, 4x4x4", f"{_PAGES}/v5p"),
        Chip("v6e", 32e9, 1638e9, 918e12, "1x1, 2x2, 2x4, 4x4, 4x8, 8x8", f"{_PAGES}/v6e"),
    )
}


@dataclasses.dataclass(frozen=True)
class Target:
    """What is compiled, and for what."""

    chip: Chip
    model: ModelConfig  # on the mesh that of `sharding.widened`
    mesh: Mesh
    parts: int  # of the feed-forward layer
    batch: int
    capacity: int  # slots of the cache
    sampler: samplers.ResolvedSampler
    int8: bool = False  # whether the matrices are


class Compiled(NamedTuple):
    """One program for one device of the mesh."""

    name: str
    seconds: float  # that tracing and compiling took
    executable: Any  # a `jax.stages.Compiled`
    held_bytes: int  # of weights, cache and recent tokens when it starts, also of those that it does not use
    rounds: int  # of the loops inside it whose number only the run decides, where the cache is full
    hidden_flops: float  # in rounds of such loops, of which XLA counts the first


def target(
    model_name: str,
    topology: str,
    mesh: str,
    batch: int,
    capacity: int,
    sampler: str = "entropix",
    int8: bool = False,
) -> Target:
    """What these words describe. Raises a ValueError for what does not exist or does not fit together.

    model_name and sampler: as in configs/. topology: like `v5e:2x4`. mesh: as `sharding.read_shape` takes it; `auto`
    is the one that a process on such chips would choose. capacity: slots that each row has in the cache, one of the
    sizes of `prefix_cache.capacity_for`; it bounds the text, prompt and answer, to 32 tokens less.
    """
    cfg = presets.read_model(model_name)
    if capacity_for(capacity) != capacity:
        raise ValueError(
            f"context: a cache has {capacity_for(capacity)} slots for so many, give such a size; got {capacity}"
        )
    if capacity > cfg.context_length:
        raise ValueError(f"context: {model_name} was trained for {cfg.context_length} tokens, got {capacity}")
    chosen = samplers.resolve(sampler)
    if chosen.looking:
        raise ValueError(
            f"sampler: {sampler} has a table {next(iter(chosen.looking))}, which what is compiled here leaves out; "
            "give a preset without it"
        )
    chip, devices = topology_devices(topology)
    shape = sharding.read_shape(mesh) or sharding.widest(cfg, len(devices))
    if shape.n_devices != len(devices):
        raise ValueError(
            f"mesh: {shape} takes {shape.n_devices} devices, but {topology} has {len(devices)}; choose sizes whose "
            f"product is {len(devices)}, or auto"
        )
    if batch < 1 or batch % shape.data:
        raise ValueError(f"batch: expected a multiple of {shape.data}, the mesh's axis data, got {batch}")
    on = jax.make_mesh(
        (shape.data, shape.model),
        (sharding.DATA, sharding.MODEL),
        axis_types=(jax.sharding.AxisType.Auto,) * 2,
        devices=devices,
    )
    wide = sharding.widened(cfg, on)
    return Target(chip, wide, on, sharding.parts(cfg, on), batch, capacity, chosen, int8)


def topology_devices(topology: str) -> tuple[Chip, list[Any]]:
    """(the kind of chip, a stand-in for every device) of a topology like `v5e:2x4`, or `v5e:1x1` for a single chip.

    Raises a ValueError if there is no such topology or no TPU compiler.
    """
    kind, _, layout = topology.partition(":")
    sizes = re.fullmatch(r"\d+(x\d+)+", layout)
    if kind not in CHIPS or sizes is None:
        raise ValueError(
            f"topology: expected a chip ({', '.join(CHIPS)}) and a layout, like v5e:2x4 or v5p:2x2x1, "
            f"got {topology!r}"
        )
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError("libtpu, the TPU compiler, is not installed: pip install -e '.[tpu]'")
    jax.config.update("jax_platforms", "cpu")  # what is computed on the way needs no chip
    for variable, value in _ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    single = {"chips_per_host_bounds": (1, 1, 1)} if set(layout.split("x")) == {"1"} else {}
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **single)
    except jax.errors.JaxRuntimeError as error:
        why = str(error).partition(": ")[2] or error
        raise ValueError(
            f"topology: libtpu has no {topology}, but for example {CHIPS[kind].layouts} ({why})"
        ) from None
    return CHIPS[kind], list(found.devices)


# Without them libtpu asks the cloud where it is running, complains of the answer, and allows one process at a time.
_ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-1",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def programs(target: Target) -> Iterator[Compiled]:
    """Prefill, decode chunk, commit and growth, in this order, each compiled when it is asked for.

    Prefill reads the widest piece of a prompt into a cache that may already hold something. Growth doubles a cache to
    the target's capacity, which takes room for both.

    Raises a ValueError if the compiler finds that a program does not fit into a chip's memory.
    """
    cfg, batch = target.model, target.batch
    loaded, cache, recent = abstract_weights(target), abstract_cache(target), _recent(target)
    chunk = _chunk_arguments(target, recent)
    tokens_BT, count_B = (
        _whole(target, jax.ShapeDtypeStruct(shape, jnp.int32))
        for shape in ((batch, min(PREFILL_WIDTHS[-1], target.capacity)), (batch,))
    )
    smaller = abstract_cache(target, target.capacity // 2)
    for name, held, lower in (
        (
            "prefill",
            (loaded, cache),
            lambda: loop.prefill.lower(loaded, tokens_BT, count_B, cache, cfg, from_empty=False),
        ),
        ("decode", (loaded, cache, recent), lambda: chunk(loaded, cache)),
        ("commit", (loaded, cache, recent), lambda: loop.commit.lower(cache, recent, count_B)),
        ("grow", (loaded, smaller), lambda: loop.grow.lower(smaller, capacity=target.capacity)),
    ):
        start = time.perf_counter()
        with sharding.on(target.mesh), _in_memory(name, target):
            executable = lower().compile()
        seconds = time.perf_counter() - start
        is_prefill = name == "prefill"
        rounds = attention.key_blocks(target.capacity) if is_prefill else 1
        hidden_flops = _hidden_flops(target, tokens_BT.shape[1]) if is_prefill else 0.0
        yield Compiled(name, seconds, executable, device_bytes(held), rounds, hidden_flops)


def _hidden_flops(target: Target, n_new: int) -> float:
    """Of a prefill's attention over a full cache on one device, without the first round of its loops.

    Two products of each query head with every slot, but in the last layer, of which only keys and values are wanted.
    """
    cfg, shape = target.model, target.mesh.shape
    divided = shape[sharding.MODEL] if cfg.n_kv_heads % shape[sharding.MODEL] == 0 else 1
    rows = target.batch / shape[sharding.DATA]
    slots = target.capacity + n_new
    one_round = (target.capacity / attention.key_blocks(target.capacity) + n_new) / attention.query_blocks(
        n_new
    )
    return 4 * (cfg.n_layers - 1) * cfg.n_heads / divided * cfg.head_dim * rows * n_new * (slots - one_round)


def abstract_weights(target: Target) -> weights.Weights:
    """The weights' shapes, with where they lie."""
    shapes = weights.abstract(target.model, DTYPE, target.parts, target.int8)
    return jax.tree.map(_at, shapes, sharding.lay_out(shapes, target.mesh))


def abstract_cache(target: Target, capacity: int | None = None) -> kv_cache.KVCache:
    """The shapes of a cache of that capacity, by default the target's, with where its arrays lie."""
    slots = target.capacity if capacity is None else capacity
    return _divided(target, partial(kv_cache.empty_cache, target.model, target.batch, slots, DTYPE))


def device_bytes(tree: Any) -> int:
    """What one device holds of arrays, given by their shapes and where they lie."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _recent(target: Target) -> kv_cache.RecentKV:
    return _divided(target, partial(kv_cache.empty_recent, target.model, target.batch, RECENT_SLOTS, DTYPE))


def _chunk_arguments(target: Target, recent: kv_cache.RecentKV) -> Callable[[Any, Any], jax.stages.Lowered]:
    """What lowers the decode chunk, given weights and cache: all else that it takes is made as for a real request."""
    numbers = target.sampler.numbers
    encoder = SimpleNamespace(encode=lambda text: list(text.encode()))
    stand_in = SimpleNamespace(config=target.model, stop_ids=(), tokenizer=encoder)
    request = GenerationRequest(
        model=cast(Model, stand_in),
        rows=(PromptRow([0], seed=0),) * target.batch,
        sampler=target.sampler.sampler,
        sampler_config=numbers,
        config=GenerateConfig(),
    )
    text_BX = jax.ShapeDtypeStruct((target.batch, 0), jnp.int32)
    number: Any = jax.ShapeDtypeStruct((), jnp.int32)
    until = ChunkEnd(number, number)
    inputs, rows, text_BX, until, on_device = _whole(
        target, (batch_inputs(request), first_rows(request), text_BX, until, device_numbers(numbers))
    )
    state = DecodeState(rows=rows, recent=recent, text_BX=text_BX)

    def lower(loaded: Any, cache: Any) -> jax.stages.Lowered:
        return loop.decode_chunk.lower(loaded, inputs, cache, state, until, on_device, request.program)

    return lower


def _whole(target: Target, tree: Any) -> Any:
    """The shapes of arrays that are whole on every device."""
    return jax.tree.map(lambda leaf: _at(leaf, NamedSharding(target.mesh, PartitionSpec())), tree)


def _divided(target: Target, make: Callable[[], Any]) -> Any:
    """The shapes of what `make` returns, a cache or recent tokens, divided as `kv_cache.lay_out` does."""

    def place(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        axes = PartitionSpec(sharding.DATA, sharding.MODEL) if len(leaf.shape) == 4 else PartitionSpec()
        return _at(leaf, NamedSharding(target.mesh, sharding.dividing(leaf.shape, axes, target.mesh)))

    return jax.tree.map(place, jax.eval_shape(make))


def _at(leaf: Any, place: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)


@contextlib.contextmanager
def _in_memory(name: str, target: Target) -> Iterator[None]:
    """Says in a sentence that a program takes more memory than there is."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        used = re.search(r"Used (\S+) of (\S+) hbm", str(error))
        if used is None:
            raise
        raise ValueError(
            f"the program {name} does not fit: it takes {used[1]} of the {used[2]} that a {target.chip.name} has; use "
            "more chips, a smaller batch or a shorter context"
        ) from None
