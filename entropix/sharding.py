"""A model over many devices: which axis of which array is divided between them.

A mesh of devices has two axes. `data` divides the rows of a batch, `model` divides heads, feed-forward layer and
vocabulary (Shoeybi 2019, arXiv:1909.08053). What is said here is where weights, keys and values, activations and logits
lie; XLA's partitioner derives everything else, and every collective, from it.

Three rules keep the rest of the package free of devices:

- An axis of an array that the mesh does not divide evenly is not divided: every device then has it whole. So any model
  runs on any mesh, if not equally well.
- Where there are fewer key/value heads than devices on the axis `model`, `widened` repeats each head until there are
  as many. The arithmetic is the same, and each device keeps just the one that its query heads look at.
- What the host reads or writes (tokens, records, the sampler's state) is a few numbers a row and the same everywhere.

Without a mesh (`on(None)`), on a single device, nothing here does anything.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from numpy.typing import ArrayLike, DTypeLike

from entropix.config import ModelConfig

DATA, MODEL = "data", "model"
P = PartitionSpec
_VOCABULARY = 256  # tokens: what has fewer are candidates, quicker whole on every device than in parts

# The axes of each field of `weights.Weights` and `weights.LayerWeights`; what is not named here is whole everywhere.
WEIGHTS = {
    "embed_VD": P(MODEL, None),
    "unembed_VD": P(MODEL, None),
    "has_token_V": P(MODEL),
    "qkv": P(MODEL, None, None, None),  # by key/value head, with the query heads that look at it
    "qkv_bias": P(MODEL, None, None),  # as qkv
    "attn_out": P(None, MODEL, None),  # by head
    "gate_up": P(MODEL, None, None, None),  # by part, of which there are as many as devices
    "down": P(None, MODEL),
}


# ----- meshes -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Shape:
    """How many devices lie along each axis."""

    data: int
    model: int

    @property
    def n_devices(self) -> int:
        return self.data * self.model

    def __str__(self) -> str:
        return f"data={self.data},model={self.model}"


def read_shape(text: str) -> Shape | None:
    """The shape in a text like `data=2,model=4`, where an axis left out is 1; None for `auto`."""
    if text == "auto":
        return None
    sizes = dict[str, int]()
    for part in text.split(","):
        axis, _, size = (piece.strip() for piece in part.partition("="))
        if axis not in (DATA, MODEL) or axis in sizes or not size.isdecimal() or int(size) < 1:
            raise ValueError(
                f"mesh: expected auto or sizes like data=2,model=4, each a whole number of at least 1, got {text!r}"
            )
        sizes[axis] = int(size)
    return Shape(**{DATA: 1, MODEL: 1, **sizes})


def automatic(cfg: ModelConfig, n_devices: int) -> Shape:
    """`widest`; but CPU devices are only simulated, and share its cores: of these one is best."""
    if jax.default_backend() == "cpu" and jax.process_count() == 1:
        return Shape(1, 1)
    return widest(cfg, n_devices)


def widest(cfg: ModelConfig, n_devices: int) -> Shape:
    """As much as possible on the axis `model`, for the sake of a single row's speed and of the weights' memory.

    That is the largest divisor of the number of devices by which all that `model` divides can be divided; the others
    lie along `data`.
    """
    fits = (
        n
        for n in range(n_devices, 0, -1)
        if n_devices % n == 0
        and (cfg.n_kv_heads % n == 0 or _repeats(cfg, n) > 1)
        and cfg.ffn_dim % n == 0
        and cfg.vocab_size % n == 0
    )
    model = next(fits)
    return Shape(data=n_devices // model, model=model)


def make_mesh(shape: Shape, devices: Sequence[jax.Device] | None = None) -> Mesh | None:
    """A mesh over these devices, by default all of all processes; None for a single device.

    Raises a ValueError if there are not enough of them, or, with several processes, too many.

    A single process may leave some of its devices out.
    """
    devices = jax.devices() if devices is None else devices
    enough = len(devices) == shape.n_devices if jax.process_count() > 1 else len(devices) >= shape.n_devices
    if not enough:
        most = "" if jax.process_count() > 1 else "at most "
        raise ValueError(
            f"mesh: {shape} takes {shape.n_devices} devices, but there are {len(devices)} "
            f"({devices[0].device_kind}); choose sizes whose product is {most}{len(devices)}, or auto"
        )
    if shape.n_devices == 1 and jax.process_count() == 1:
        return None
    return jax.make_mesh(
        (shape.data, shape.model),
        (DATA, MODEL),
        axis_types=(AxisType.Auto,) * 2,
        devices=devices[: shape.n_devices],
    )


def as_text(mesh: Mesh | None) -> str | None:
    """Its shape, as `read_shape` reads it; None for a single device."""
    return None if mesh is None else str(Shape(**mesh.shape))


@contextlib.contextmanager
def on(mesh: Mesh | None) -> Iterator[None]:
    """Within this context, what is traced and put on devices lies as said here.

    And it is the same program with the same numbers whatever JAX's environment variables ask for: 32 bits, random
    numbers that do not depend on the mesh, NaN as a value (a row that has one ends and says so), and copies to and from
    the host.
    """
    with contextlib.ExitStack() as stack:
        for setting in (
            jax.enable_x64(False),
            jax.threefry_partitionable(True),
            jax.debug_nans(False),
            jax.debug_infs(False),
            jax.transfer_guard("allow"),
        ):
            stack.enter_context(setting)
        if mesh is not None:
            stack.enter_context(jax.set_mesh(mesh))
        yield


def to_device(values: ArrayLike, dtype: DTypeLike = np.int32) -> Array:
    """Numbers of the host, copied to the device, or whole to each of the current mesh.

    Onto a mesh `jnp.asarray` brings them, by a program for every shape and dtype, which a single device does without.
    """
    host = np.array(values, dtype)
    return jax.device_put(host) if jax.sharding.get_abstract_mesh().empty else jnp.asarray(host)


# ----- a model's arrays -------------------------------------------------------------------------------------


def groups(mesh: Mesh | None) -> int:
    """How many groups of devices have rows of their own."""
    return 1 if mesh is None else mesh.shape[DATA]


def widened(cfg: ModelConfig, mesh: Mesh | None) -> ModelConfig:
    """The same model with as many key/value heads as there are devices on the axis `model`, if it has fewer.

    Each is there several times, next to itself, and has accordingly fewer query heads; `load_weights` repeats them.
    """
    n = 1 if mesh is None else mesh.shape[MODEL]
    return dataclasses.replace(cfg, n_kv_heads=cfg.n_kv_heads * _repeats(cfg, n))


def parts(cfg: ModelConfig, mesh: Mesh | None) -> int:
    """Into how many parts the feed-forward layer is divided."""
    n = 1 if mesh is None else mesh.shape[MODEL]
    return n if cfg.ffn_dim % n == 0 else 1


def _repeats(cfg: ModelConfig, n: int) -> int:
    """How often each key/value head is wanted, so that n devices have one each; 1 where that is impossible."""
    fits = n % cfg.n_kv_heads == 0 and cfg.n_heads % n == 0
    return n // cfg.n_kv_heads if fits else 1


def lay_out(weights: Any, mesh: Mesh) -> Any:
    """The shardings of weights, given as arrays or their shapes: a pytree like them."""

    def sharding(path: Sequence[Any], leaf: Any) -> NamedSharding:
        # Of a matrix in int8 the scales have the axes of its outputs, the first ones.
        [spec] = [WEIGHTS[key.name] for key in path if getattr(key, "name", "") in WEIGHTS] or [P()]
        return NamedSharding(mesh, dividing(leaf.shape, P(*spec[: len(leaf.shape)]), mesh))

    return jax.tree_util.tree_map_with_path(sharding, weights)


def dividing(shape: Sequence[int], spec: PartitionSpec, mesh: Any) -> PartitionSpec:
    """The spec without the axes that the mesh does not divide evenly."""
    return P(
        *(
            axis if axis is not None and size % mesh.shape[axis] == 0 else None
            for size, axis in zip(shape, [*spec, *(None,) * (len(shape) - len(spec))], strict=True)
        )
    )


# ----- under jit --------------------------------------------------------------------------------------------


def constrain(x: Array, *axes: str | None) -> Array:
    """x, divided along these axes of the mesh: one for each of its own axes, of which the last may be left out."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, dividing(x.shape, P(*axes), mesh))


def n_shards(size: int) -> int:
    """Into how many parts the current mesh divides a vocabulary of this size; 1 for a few candidates."""
    n = jax.sharding.get_abstract_mesh().shape.get(MODEL, 1)
    return n if size % n == 0 and size >= _VOCABULARY else 1


def top_k(x_BV: Array, k: int) -> tuple[Array, Array]:
    """`jax.lax.top_k`, where only the k largest of each part leave their device, never the whole axis.

    Each device is told what to do: left to itself, XLA gathers rows and axis for this, whatever divides them.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return jax.lax.top_k(x_BV, k)
    wanted = P(DATA, MODEL if n_shards(x_BV.shape[1]) > 1 else None)
    rows, parts = spec = dividing(x_BV.shape, wanted, mesh)

    def on_device(x_BW: Array) -> tuple[Array, Array]:
        width = x_BW.shape[1]
        value_BX, index_BX = jax.lax.top_k(x_BW, min(k, width))
        if parts is None:
            return value_BX, index_BX
        index_BX += width * jax.lax.axis_index(MODEL)
        value_BX, index_BX = (jax.lax.all_gather(x, MODEL, axis=1, tiled=True) for x in (value_BX, index_BX))
        value_BK, place_BK = jax.lax.top_k(value_BX, k)  # of equal ones the first, hence the lower index
        return value_BK, jnp.take_along_axis(index_BX, place_BK, axis=1)

    # What is gathered is the same along `model`, of which JAX cannot know.
    return jax.shard_map(on_device, in_specs=spec, out_specs=(P(rows), P(rows)), check_vma=False)(x_BV)


def cumsum(x_BV: Array) -> Array:
    """`jnp.cumsum` over the last axis; of the other devices each needs only the sums of their parts."""
    n = n_shards(x_BV.shape[1])
    if n == 1:
        return jnp.cumsum(x_BV, axis=1)
    within = jnp.cumsum(constrain(x_BV.reshape(len(x_BV), n, -1), DATA, MODEL), axis=2)
    totals = within[..., -1]
    before = jnp.cumsum(constrain(totals, DATA), axis=1) - totals
    return (within + before[..., None]).reshape(x_BV.shape)
