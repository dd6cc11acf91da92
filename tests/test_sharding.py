"""Where arrays lie on a mesh, and what of them ever leaves a device."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import meshes
import numpy as np
import pytest
import toy
from every_number import EveryNumber
from jax import Array
from meshes import Made

from entropix import presets, samplers, sharding
from entropix.checkpoint import loading
from entropix.decoding import inputs, sample_step
from entropix.decoding.state import BatchInputs, Program, RecordOptions, RowState
from entropix.metrics import Metrics
from entropix.samplers.base import SamplerInputs
from entropix.sharding import Shape

pytestmark = pytest.mark.slow

# ----- meshes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("data=2,model=4", Shape(2, 4)),
        ("model=4,data=2", Shape(2, 4)),
        (" model = 8 ", Shape(1, 8)),
        ("data=3", Shape(3, 1)),
        ("auto", None),
    ],
)
def test_a_shape_is_read(text: str, shape: Shape | None) -> None:
    assert sharding.read_shape(text) == shape
    assert shape is None or sharding.read_shape(str(shape)) == shape


@pytest.mark.parametrize(
    "text",
    ["", "2x4", "data", "data=", "data=0", "data=-1", "data=2.0", "batch=2", "data=2,", "data=2,data=3"],
)
def test_a_text_that_is_no_shape_is_refused(text: str) -> None:
    with pytest.raises(ValueError) as raised:
        sharding.read_shape(text)
    assert str(raised.value) == (
        f"mesh: expected auto or sizes like data=2,model=4, each a whole number of at least 1, got {text!r}"
    )


def test_a_mesh_has_the_first_devices_in_order() -> None:
    mesh = meshes.mesh_of("data=2,model=3")
    assert dict(mesh.shape) == {"data": 2, "model": 3}
    assert mesh.devices.tolist() == [jax.devices()[:3], jax.devices()[3:6]]
    assert sharding.make_mesh(Shape(1, 1)) is None


def test_too_many_devices_are_refused(toy_folder: str) -> None:
    message = (
        r"mesh: data=4,model=4 takes 16 devices, but there are 8 \(cpu\); "
        "choose sizes whose product is at most 8, or auto"
    )
    with pytest.raises(ValueError, match=message):
        loading.load(toy_folder, mesh=Shape(4, 4))


def test_several_processes_use_all_their_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="mesh: data=1,model=4 takes 4 devices, but there are 8"):
        sharding.make_mesh(Shape(1, 4))
    assert sharding.make_mesh(Shape(1, 1), jax.devices()[:1]) is not None
    assert sharding.make_mesh(Shape(2, 4)) is not None


# 70B has 64 query heads and 8 key/value heads, 8B and 1B have 32 and 8; their vocabulary is 2⁸·501. SmolLM2 has 9 and 3
# heads, and the toy a vocabulary of 7·37. Qwen 2.5 0.5B has 14 and 2 heads, Qwen 3 has 16 or 32 and 8.
AUTOMATIC = {
    "llama-3.1-70b": {1: (1, 1), 4: (1, 4), 8: (1, 8), 16: (1, 16), 32: (1, 32), 256: (4, 64)},
    "llama-3.1-8b": {1: (1, 1), 4: (1, 4), 8: (1, 8), 16: (1, 16), 32: (1, 32), 256: (8, 32)},
    "llama-3.2-1b": {1: (1, 1), 4: (1, 4), 8: (1, 8), 16: (1, 16), 32: (1, 32), 256: (8, 32)},
    "smollm2-135m": {
        1: (1, 1),
        3: (1, 3),
        4: (4, 1),
        6: (2, 3),
        8: (8, 1),
        16: (16, 1),
        32: (32, 1),
        256: (256, 1),
    },
    "toy": {1: (1, 1), 4: (4, 1), 8: (8, 1), 16: (16, 1), 32: (32, 1), 256: (256, 1)},
    "qwen2.5-0.5b": {1: (1, 1), 2: (1, 2), 4: (2, 2), 8: (4, 2), 256: (128, 2)},
    "qwen3-0.6b": {1: (1, 1), 4: (1, 4), 8: (1, 8), 16: (1, 16), 32: (2, 16), 256: (16, 16)},
    "qwen3-8b": {1: (1, 1), 4: (1, 4), 8: (1, 8), 16: (1, 16), 32: (1, 32), 256: (8, 32)},
    "mistral-7b": {1: (1, 1), 4: (1, 4), 8: (1, 8), 16: (1, 16), 32: (1, 32), 256: (8, 32)},
}


@pytest.mark.parametrize("name", presets.preset_names("models"))
def test_the_automatic_mesh_divides_as_much_as_can_be_divided(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    cfg = presets.read_model(name)
    assert {n: sharding.automatic(cfg, n) for n in AUTOMATIC[name]} == {
        n: Shape(*sizes) for n, sizes in AUTOMATIC[name].items()
    }


def test_the_automatic_mesh_of_simulated_devices_is_a_single_one() -> None:
    assert sharding.automatic(presets.read_model("llama-3.1-8b"), 8) == Shape(1, 1)


# ----- where arrays lie -------------------------------------------------------------------------------------

# D = 32, F = 64, V = 264, N = 8, K = 2, H = 8: on four devices the two key/value heads are there twice.
CHANGES: dict[str, Any] = {"n_heads": 8, "vocab_size": 264, "tied_embeddings": False}
WHOLE_SHARDS = {
    "embed_VD": (264, 32), "unembed_VD": (264, 32), "norm_D": (32,), "attn_norm_D": (32,), "ffn_norm_D": (32,),
    "qkv": (2, 6, 8, 32), "attn_out": (32, 8, 8), "gate_up": (1, 2, 64, 32), "down": (32, 64),
}  # fmt: skip
SHARDS = {
    "data=2,model=4": {
        "embed_VD": (66, 32), "unembed_VD": (66, 32), "qkv": (1, 4, 8, 32), "attn_out": (32, 2, 8),
        "gate_up": (1, 2, 16, 32), "down": (32, 16),
    },
    "data=4,model=2": {
        "embed_VD": (132, 32), "unembed_VD": (132, 32), "qkv": (1, 6, 8, 32), "attn_out": (32, 4, 8),
        "gate_up": (1, 2, 32, 32), "down": (32, 32),
    },
    "data=8": {},
    "model=3": {"embed_VD": (88, 32), "unembed_VD": (88, 32)},  # 3 divides the vocabulary and nothing else
}  # fmt: skip


@pytest.mark.parametrize("shape", SHARDS)
def test_weights_are_divided_as_the_table_says(shape: str) -> None:
    model = meshes.on_mesh(toy.model_of(**CHANGES), shape)
    found = {
        path[-1].name: meshes.shard_shape(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(model.weights)
    }
    assert found == WHOLE_SHARDS | SHARDS[shape]


def test_without_a_mesh_nothing_is_constrained() -> None:
    x_BV = jnp.ones((2, 8))
    assert sharding.constrain(x_BV, "data", "model") is x_BV
    assert sharding.n_shards(512) == 1


# ----- the largest, and sums so far -------------------------------------------------------------------------


def ties(*shape: int) -> np.ndarray:
    """Random numbers of which many are equal, and some -inf."""
    x = np.random.default_rng(0).integers(-3, 4, shape).astype(np.float32)
    return np.where(x == -3, -np.inf, x)


@pytest.mark.parametrize("shape", ["model=8", "data=2,model=4", "data=8", "model=3"])
@pytest.mark.parametrize("k", [1, 5, 64, 100, 512])
def test_the_largest_are_those_of_one_device(shape: str, k: int) -> None:
    """Among equals the lower index first, also where k is more than a device has (64 on the first mesh)."""
    x_BV = ties(8, 512)
    with sharding.on(meshes.mesh_of(shape)):
        value, index = jax.jit(lambda x_BV: sharding.top_k(sharding.constrain(x_BV, "data", "model"), k))(
            x_BV
        )
    expected = jax.lax.top_k(x_BV, k)
    np.testing.assert_array_equal(value, expected[0])
    np.testing.assert_array_equal(index, expected[1])
    assert index.dtype == jnp.int32


@pytest.mark.parametrize("shape", ["model=8", "data=2,model=4", "data=8", "model=3"])
def test_sums_so_far_are_those_of_one_device(shape: str) -> None:
    """Exactly, for counts of whatever dtype; for other numbers but for the order of the sum."""
    count_BV, share_BV = ties(8, 512) > 0, np.random.default_rng(1).uniform(size=(8, 512)).astype(np.float32)
    with sharding.on(meshes.mesh_of(shape)):
        cumsum = jax.jit(lambda x_BV: sharding.cumsum(sharding.constrain(x_BV, "data", "model")))
        for dtype in (np.float32, np.int32):
            np.testing.assert_array_equal(
                cumsum(count_BV.astype(dtype)), count_BV.astype(dtype).cumsum(axis=-1)
            )
        np.testing.assert_allclose(cumsum(share_BV), share_BV.cumsum(axis=-1), rtol=1e-6)


# ----- samplers ---------------------------------------------------------------------------------------------

VOCABULARY = 4096
# What the model says, one row each: flow, clarify, explore, resample, adaptive; then half the tokens impossible, logits
# that are no numbers, all tokens alike.
ENTROPY = [0.05, 6.0, 3.0, 6.0, 2.0, 2.0, np.nan, 12.0]
VARENTROPY = [0.05, 0.05, 9.0, 9.0, 2.0, 2.0, np.nan, 2.0]
BROKEN = 6
RULES = {
    **samplers.SAMPLERS,
    "guarded temperature": samplers.guarded(samplers.SAMPLERS["temperature"]),
    "guarded entropix": samplers.guarded(samplers.SAMPLERS["entropix"]),
}
NUMBERS = EveryNumber(repetition_penalty=1.5, dry_multiplier=2.0)


def logits() -> Array:
    """In steps of 1/4, so that many are equal."""
    rng = np.random.default_rng(0)
    logits_BV = np.round(rng.normal(0, 3, (len(ENTROPY), VOCABULARY)) * 4) / 4
    logits_BV[5, rng.permutation(VOCABULARY)[: VOCABULARY // 2]] = -np.inf
    logits_BV[BROKEN, 17] = np.nan
    logits_BV[7] = 1.5
    return jnp.asarray(logits_BV, jnp.float32)


def contexts() -> SamplerInputs:
    batch = len(ENTROPY)
    metrics_B = {name: jnp.full(batch, 0.5) for name in Metrics._fields}
    metrics_B["logits_entropy"] = jnp.asarray(ENTROPY, jnp.float32)
    metrics_B["logits_varentropy"] = jnp.asarray(VARENTROPY, jnp.float32)
    return SamplerInputs(
        jax.jit(lambda x_BV: sharding.constrain(x_BV, "data", "model"))(logits()), Metrics(**metrics_B)
    )


def draw_all(context: SamplerInputs, states: Any, key_B: Array, cfg: EveryNumber) -> Any:
    """One step of every sampler in one program: what they have in common is compiled once."""
    batch = len(key_B)
    nothing_B = jnp.zeros(batch, jnp.int32)
    asked = BatchInputs(key_B, jnp.full(batch, 9, jnp.int32), nothing_B, jnp.zeros(1, jnp.int32))
    drawn = {}
    for name, sampler in RULES.items():
        rows = RowState(nothing_B, nothing_B, nothing_B, states[name])
        program = Program(toy.config(), sampler, record=RecordOptions(alternatives=5))
        with jax.named_scope(f"<{name}>"):
            drawn[name] = sample_step.sample_step(asked, rows, context, cfg, program)[:2]
    return jax.tree.map(sharding.constrain, drawn)


class Divided(NamedTuple):
    """A program on a mesh."""

    made: list[Made]
    drawn: Any


def compiled_draws(shape: str | None) -> tuple[Any, Any]:
    """(the program, what comes out of it) on a mesh or, without a shape, on a single device."""
    prompts = [[row, 5, 5, 7, 5, 5] for row in range(len(ENTROPY))]
    with sharding.on(meshes.mesh_of(shape) if shape else None):
        states = {name: rule.init(NUMBERS, prompts, lambda text: [7, 9]) for name, rule in RULES.items()}
        key_B = jax.random.split(jax.random.key(1), len(ENTROPY))
        given = contexts(), states, key_B, inputs.device_numbers(NUMBERS)
        program = jax.jit(draw_all).lower(*given).compile()
        return program, jax.device_get(program(*given))


@pytest.fixture(scope="module")
def alone() -> Any:
    return compiled_draws(None)[1]


@pytest.fixture(scope="module")
def divided() -> Divided:
    program, drawn = compiled_draws("data=2,model=4")
    return Divided(meshes.made(program), drawn)


@pytest.mark.parametrize("name", RULES)
def test_a_sampler_does_the_same_on_a_mesh(name: str, alone: Any, divided: Divided) -> None:
    """The same tokens, in which many are equally likely, strategies and states; numbers within 1e-4."""
    (rows, record), (rows_there, record_there) = alone[name], divided.drawn[name]
    live_B = record.live_B
    assert live_B.tolist() == [row != BROKEN for row in range(len(ENTROPY))]
    assert rows_there.finish_B.tolist() == rows.finish_B.tolist()
    np.testing.assert_array_equal(record_there.live_B, live_B)
    there, here = jax.tree.leaves((rows_there, record_there)), jax.tree.leaves((rows, record))
    for mine, theirs in zip(here, there, strict=True):
        if np.issubdtype(mine.dtype, np.floating):
            np.testing.assert_allclose(theirs[live_B], mine[live_B], atol=1e-4, rtol=1e-4)
        else:
            np.testing.assert_array_equal(theirs[live_B], mine[live_B])


@pytest.mark.parametrize("name", RULES)
def test_no_sampler_sends_a_vocabulary(name: str, divided: Divided) -> None:
    """The most that is sent are 128 candidates of each of four devices for each of a device's four rows: 2048 numbers,
    less than the logits of one row. No device has a whole row by other means, but for the tokens' own numbers."""
    mine = [one for one in divided.made if f"<{name}>" in one.source]
    assert max(one.size for one in meshes.collectives(mine)) < VOCABULARY
    assert [one for one in mine if VOCABULARY in one.shape and one.operation != "iota"] == []


def test_a_gathered_vocabulary_would_be_seen() -> None:
    """`jax.lax.top_k` gathers it."""
    with sharding.on(meshes.mesh_of("data=2,model=4")):

        def naive(logits_BV: Array) -> Any:
            with jax.named_scope("<naive>"):
                return jax.lax.top_k(sharding.constrain(logits_BV, "data", "model"), 5)

        program = jax.jit(naive).lower(logits()).compile()
    mine = [one for one in meshes.made(program) if "<naive>" in one.source]
    assert max(one.size for one in meshes.collectives(mine)) == len(ENTROPY) * VOCABULARY
