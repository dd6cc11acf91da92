"""Loading onto a mesh: the values of a single device, read once by those that hold them, in little memory."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import folders
import jax
import jax.numpy as jnp
import meshes
import numpy as np
import pytest
import toy
from jax.sharding import NamedSharding

from entropix import sharding
from entropix.checkpoint import load_weights
from entropix.checkpoint.tensors import StoredTensor, tensor_shapes
from entropix.model.weights import Weights

VARIANTS: dict[str, dict[str, Any]] = {
    **toy.VARIANTS,
    "all divided": {"n_heads": 8, "vocab_size": 264, "tied_embeddings": False},
    "one key head for eight": {"n_heads": 8, "n_kv_heads": 1, "vocab_size": 264},
}


def assert_equal(found: Weights, expected: Weights) -> None:
    """In shape, dtype, place and every value."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for leaf, like in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (leaf.shape, leaf.dtype, leaf.sharding) == (like.shape, like.dtype, like.sharding)
        np.testing.assert_array_equal(leaf, like)


@pytest.mark.parametrize("shape", ["data=2,model=4", "model=8", "model=2", "data=3"])
@pytest.mark.parametrize("name", VARIANTS)
def test_loading_onto_a_mesh_is_placing_what_one_device_loads(tmp_path: Path, name: str, shape: str) -> None:
    cfg, mesh = toy.config(**VARIANTS[name]), meshes.mesh_of(shape)
    folders.write_tensors(tmp_path, folders.random_tensors(cfg))
    alone = load_weights.load(tmp_path, cfg, jnp.bfloat16)
    assert_equal(load_weights.load(tmp_path, cfg, jnp.bfloat16, mesh), meshes.placed(alone, cfg, mesh))


@pytest.mark.parametrize("name", ["lm_head.weight", "model.layers.1.self_attn.o_proj.weight"])
def test_a_weight_that_is_no_number_is_named_on_a_mesh(tmp_path: Path, name: str) -> None:
    cfg = toy.config(tied_embeddings=False, n_heads=8, vocab_size=264)
    tensors = folders.random_tensors(cfg)
    tensors[name].flat[-1] = np.nan
    folders.write_tensors(tmp_path, tensors)
    with pytest.raises(ValueError, match=rf"{name} has NaN or infinite values as float32"):
        load_weights.load(tmp_path, cfg, jnp.float32, meshes.mesh_of("data=2,model=4"))


# ----- what a process reads ---------------------------------------------------------------------------------


class Counted(np.ndarray):
    """Rows of a stored tensor that count what is taken of them."""

    n_taken = 0

    def __getitem__(self, index: Any) -> Any:
        part = super().__getitem__(index).view(np.ndarray)
        Counted.n_taken += part.size
        return part


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> type[Counted]:
    """Counts the numbers that are taken from stored tensors."""
    read = StoredTensor.read
    monkeypatch.setattr(Counted, "n_taken", 0)
    monkeypatch.setattr(StoredTensor, "read", lambda *args: read(*args).view(Counted))
    return Counted


def test_every_number_is_read_once_for_all_devices(tmp_path: Path, taken: type[Counted]) -> None:
    """But for the keys and values, which two devices along `model` have each; those along `data` have all alike."""
    cfg = toy.config(n_heads=8, n_kv_heads=2, vocab_size=264, tied_embeddings=False)
    folders.write_tensors(tmp_path, folders.random_tensors(cfg))
    load_weights.load(tmp_path, cfg, jnp.float32, meshes.mesh_of("data=2,model=4"))
    stored = sum(int(np.prod(shape)) for shape in tensor_shapes(cfg).values())
    keys_and_values = cfg.n_layers * 2 * cfg.n_kv_heads * cfg.head_dim * cfg.dim
    assert taken.n_taken == stored + keys_and_values


class OfProcess:
    """A sharding as a process sees it that has only some of the devices."""

    def __init__(self, whole: NamedSharding, devices: set[jax.Device]) -> None:
        self._whole, self._devices = whole, devices

    def addressable_devices_indices_map(self, shape: tuple[int, ...]) -> dict[jax.Device, Any]:
        every = self._whole.devices_indices_map(shape)
        return {device: index for device, index in every.items() if device in self._devices}


def test_a_process_reads_what_its_devices_hold(
    tmp_path: Path, taken: type[Counted], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of four pairs of devices, which are neighbours along `model`."""
    cfg = toy.config(n_heads=8, n_kv_heads=4, vocab_size=264, tied_embeddings=False)
    folders.write_tensors(tmp_path, folders.random_tensors(cfg))
    mesh, mine = meshes.mesh_of("model=8"), jax.devices()[2:4]
    whole = load_weights.load(tmp_path, cfg, jnp.float32, mesh)
    lay_out = sharding.lay_out
    monkeypatch.setattr(
        sharding,
        "lay_out",
        lambda shapes, mesh: jax.tree.map(lambda place: OfProcess(place, set(mine)), lay_out(shapes, mesh)),
    )
    monkeypatch.setattr(jax, "make_array_from_single_device_arrays", lambda shape, place, parts: parts)
    taken.n_taken = 0
    parts = jax.tree.leaves(
        load_weights.load(tmp_path, cfg, jnp.float32, mesh), is_leaf=lambda x: isinstance(x, list)
    )
    held = 0
    for leaf, own in zip(jax.tree.leaves(whole), parts, strict=True):
        shards = {shard.device: shard for shard in leaf.addressable_shards}
        for device, part in zip(mine, own, strict=True):
            assert part.devices() == {device}
            np.testing.assert_array_equal(part, shards[device].data)
        held += sum({str(shards[device].index): shards[device].data.size for device in mine}.values())
    assert taken.n_taken == held
    assert held < sum(leaf.size for leaf in jax.tree.leaves(whole)) / 4 + 1000


# ----- memory -----------------------------------------------------------------------------------------------

# 2.2 GB in bfloat16, of which the largest tensors are a quarter each.
LARGE = {
    "vocab_size": 131_072, "dim": 2048, "n_heads": 16, "n_kv_heads": 8, "head_dim": 128, "ffn_dim": 8192,
    "n_layers": 9, "tied_embeddings": False,
}  # fmt: skip

# Run in a process of its own: loads the checkpoint, and prints what it took beyond what there was before, in bytes.
LOAD = """
import json, os, sys
from pathlib import Path
import jax, jax.numpy as jnp
import meshes, test_sharding_loading as tests, toy
from entropix import sharding
from entropix.checkpoint import load_weights

folder, shape, n_devices, n_processors = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
os.cpu_count = lambda: n_processors
os.process_cpu_count = os.cpu_count  # what Python 3.13 asks instead
if n_devices < 8:  # a process of a pod
    mine, lay_out = set(jax.devices()[:n_devices]), sharding.lay_out
    sharding.lay_out = lambda *args: jax.tree.map(lambda place: tests.OfProcess(place, mine), lay_out(*args))
    jax.make_array_from_single_device_arrays = lambda shape, place, parts: parts
mesh = meshes.mesh_of(shape)

def memory(key):
    [line] = [line for line in open("/proc/self/status") if line.startswith(key)]
    return int(line.split()[1]) * 1024

before = memory("VmRSS")
loaded = load_weights.load(Path(folder), toy.config(**tests.LARGE), jnp.bfloat16, mesh)
peak = memory("VmHWM") - before
shards = {x.unsafe_buffer_pointer(): x.nbytes for leaf in jax.tree.leaves(loaded)
          for x in ([s.data for s in leaf.addressable_shards] if hasattr(leaf, "addressable_shards") else [leaf])}
print(json.dumps({"peak": peak, "shards": sum(shards.values())}))
"""


@pytest.fixture(scope="module")
def large_folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A checkpoint whose numbers are all 0: a header, and a hole of two gigabytes behind it."""
    file = tmp_path_factory.mktemp("large") / "model.safetensors"
    header, end = {}, 0
    for name, shape in tensor_shapes(toy.config(**LARGE)).items():
        begin, end = end, end + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)
    yield file.parent
    file.unlink()


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "n_devices"), [("data=2,model=4", 8), ("model=8", 1)])
def test_the_host_needs_its_shards_and_little_more(large_folder: Path, shape: str, n_devices: int) -> None:
    """At most 1.2 times the largest tensor beyond what the process's own devices hold, be it all eight or, as in a pod,
    one; on a machine of 64 processors, since every thread takes some. A process by itself, since memory once taken
    stays with a process."""
    result = subprocess.run(
        [sys.executable, "-c", LOAD, str(large_folder), shape, str(n_devices), "64"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(result.stdout)
    sizes = [2 * int(np.prod(shape)) for shape in tensor_shapes(toy.config(**LARGE)).values()]
    assert found["shards"] == pytest.approx(sum(sizes) * n_devices / 8, rel=0.01)
    assert found["shards"] < found["peak"] < found["shards"] + 1.2 * max(sizes)
