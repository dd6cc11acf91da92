"""Toys on meshes of simulated devices, and what their compiled programs send from one device to another."""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from entropix import sharding
from entropix.checkpoint.loading import Model
from entropix.config import ModelConfig
from entropix.model.weights import LayerWeights, Weights
from entropix.results import Result

# fmt: off
_COLLECTIVES = (
    "all-gather", "all-reduce", "all-to-all", "ragged-all-to-all", "reduce-scatter", "collective-permute",
    "collective-broadcast",
)
# fmt: on
_OPERATION = re.compile(r" = (\(.*?\)|\S+) ([\w-]+)\((?:.*op_name=\"(.*?)\")?")


def mesh_of(text: str) -> Mesh:
    """The mesh of a shape like `data=2,model=4`, over the first devices."""
    shape = sharding.read_shape(text)
    assert shape is not None
    mesh = sharding.make_mesh(shape)
    assert mesh is not None
    return mesh


def placed(whole: Weights, cfg: ModelConfig, mesh: Mesh) -> Weights:
    """Weights of a single device, those of `cfg`, as they belong on a mesh: numpy's arithmetic, not that of loading."""
    n = mesh.shape["model"]
    repeats = n // cfg.n_kv_heads if n % cfg.n_kv_heads == 0 and cfg.n_heads % n == 0 else 1
    parts = n if cfg.ffn_dim % n == 0 else 1
    group, width = cfg.n_heads // cfg.n_kv_heads, cfg.ffn_dim // parts

    def divided(layer: LayerWeights) -> LayerWeights:
        heads, (halves,) = np.asarray(layer.qkv), np.asarray(layer.gate_up)
        query, key_value = heads[:, :group], heads[:, group:]
        query = query.reshape(cfg.n_kv_heads * repeats, group // repeats, *query.shape[2:])
        return layer.replace(
            qkv=np.concatenate([query, key_value.repeat(repeats, axis=0)], axis=1),
            gate_up=np.stack([halves[:, i * width : (i + 1) * width] for i in range(parts)]),
        )

    weights = whole.replace(layers=tuple(divided(layer) for layer in whole.layers))
    return jax.device_put(weights, sharding.lay_out(weights, mesh))


def on_mesh(model: Model, shape: str) -> Model:
    """The model of a single device on a mesh of that shape."""
    mesh = mesh_of(shape)
    return dataclasses.replace(
        model,
        config=sharding.widened(model.config, mesh),
        weights=placed(model.weights, model.config, mesh),
        mesh=mesh,
    )


def shard_shape(array: jax.Array) -> tuple[int, ...]:
    """Of the part that one device holds."""
    return array.sharding.shard_shape(array.shape)


class Made(NamedTuple):
    """One array that an operation of a compiled program makes on each device."""

    operation: str
    shape: tuple[int, ...]
    source: str  # where in the Python program it is from

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def made(program: Any) -> list[Made]:
    """All arrays that a compiled program makes, in the order of its text."""
    return [
        Made(operation, tuple(int(n) for n in dims.split(",") if n), source)
        for results, operation, source in _OPERATION.findall(program.as_text())
        for dims in re.findall(r"\w\[([\d,]*)\]", results)
    ]


def collectives(made: Iterable[Made]) -> list[Made]:
    """What comes to a device from others."""
    return [one for one in made if one.operation.removesuffix("-start") in _COLLECTIVES]


# ----- what comes out ----------------------------------------------------------------------------------------


def tokens(results: Sequence[Result]) -> list[list[int]]:
    return [result.token_ids for result in results]


def assert_close(there: Any, here: Any) -> None:
    """The same plain values, numbers within 1e-4, or 1e-5 of those above 10, which no metric is."""
    if isinstance(here, Mapping):
        assert there.keys() == here.keys()
        for name in here:
            assert_close(there[name], here[name])
    elif isinstance(here, list):
        assert len(there) == len(here)
        for mine, theirs in zip(there, here, strict=True):
            assert_close(mine, theirs)
    else:
        assert there == (pytest.approx(here, abs=1e-4, rel=1e-5) if isinstance(here, float) else here)


def assert_same(there: Sequence[Result], here: Sequence[Result]) -> None:
    """The same tokens and ends, and records that agree in all they say."""
    assert tokens(there) == tokens(here)
    assert [result.finish for result in there] == [result.finish for result in here]
    for mine, theirs in zip(there, here, strict=True):
        assert_close(mine.records, theirs.records)
