"""A strict session, and the models that tests share."""

import importlib.metadata
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        # The toys' time goes into compiling. Less of LLVM's optimisation leaves the arithmetic and halves the wait.
        "--xla_backend_optimization_level=0",
        # Versions from 0.11.1 on do not know this one, and XLA ends the process at a flag that it does not know.
        "--xla_cpu_use_fusion_emitters=false" * importlib.metadata.version("jaxlib").startswith("0.10."),
        # There is a worker for each core already: a program that is compiled in parts is compiled for longer.
        "--xla_cpu_parallel_codegen_split_count=1",
        # The tests of meshes use eight simulated devices; all others the first of them.
        "--xla_force_host_platform_device_count=8",
    )
)
# What is compiled under test is kept until the session's end, and shared with nobody else: that of all workers in one
# folder, which they inherit from the process that starts them, and that of the commands under test in another.
os.environ["ENTROPIX_TESTS_COMPILED"] = os.environ.get("ENTROPIX_TESTS_COMPILED") or tempfile.mkdtemp(
    prefix="entropix-compiled-"
)
os.environ["ENTROPIX_COMPILATION_CACHE"] = os.path.join(  # noqa: PTH118
    os.environ["ENTROPIX_TESTS_COMPILED"], "commands" + os.environ.get("PYTEST_XDIST_WORKER", "")
)

import chromium
import commands
import folders
import jax
import pytest
import toy
from jax.experimental.compilation_cache import compilation_cache
from playwright.sync_api import Browser

from entropix import backend
from entropix.checkpoint import loading
from entropix.checkpoint.loading import Model
from entropix.console import cli

# Shells start background jobs with Ctrl-C ignored, which processes inherit; what is tested here is a terminal's.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No silent conversion between dtypes, no silent broadcast of one rank against another.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

backend.avoid_wrong_sums()  # before anything uses a device: the models of the tests are not loaded from files

COMPILED = Path(os.environ["ENTROPIX_TESTS_COMPILED"])
jax.config.update("jax_compilation_cache_dir", str(COMPILED / "programs"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)  # what takes less is not worth a file

# These read the text of compiled programs, or run them on meshes: XLA's simulated devices wait for each other in a pool
# of threads, and a worker was once seen to be aborted there with programs from the cache. They compile what they test.
COMPILED_ANEW = {
    *("test_compiled", "test_cuda", "test_hlo", "test_tpu"),
    *("test_device_flags", "test_golden", "test_prefix", "test_replay", "test_run_grid", "test_trace"),
    *("test_sharding", "test_sharding_loading", "test_sharding_output", "test_sharding_sessions"),
    *("test_families", "test_family_configs"),
}

# What takes longest, in its order, so that no worker is left with one of these when the others are done.
SLOWEST_FIRST = (
    *("test_speculation", "test_golden", "test_compiler", "test_cot", "test_samplers", "test_backtracking"),
    "test_generation",
    *("test_branching_model", "test_distributed", "test_tpu", "test_seeds", "test_laboratory_limits"),
    *("test_model", "test_calibration", "test_run_grid", "test_sharding", "test_bench", "test_prefix"),
    *("test_entropix", "test_grid", "test_branching", "test_report", "test_families"),
)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow files first. A file is one worker's; so are all tests on the real weights, which are then loaded once."""

    def rank(item: pytest.Item) -> int:
        name = item.path.stem
        return SLOWEST_FIRST.index(name) if name in SLOWEST_FIRST else len(SLOWEST_FIRST)

    def group(item: pytest.Item) -> str:
        return "real" if item.get_closest_marker("real") else item.path.stem

    items.sort(key=rank)
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))


def pytest_collection_finish(session: pytest.Session) -> None:
    """A group that is not kept together is paid for twice: fixtures of files, programs, weights."""
    apart = [
        item.nodeid for item in session.items if not item.nodeid.endswith(("@real", f"@{item.path.stem}"))
    ]
    if apart and getattr(session.config.option, "loadgroup", False):
        raise pytest.UsageError(
            f"pytest-xdist has left {apart[0]} out of its group; does it fit this pytest?"
        )


def pytest_unconfigure() -> None:
    """The process that started the workers, or is the only one, removes what was compiled."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(COMPILED, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def forget_programs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Keeps what a file's tests compiled for those of the next, as long as there is room: each program takes pages of
    memory, of which a process may map 65,530. Tests that compile what they test find nothing, and leave nothing."""
    anew = request.module.__name__ in COMPILED_ANEW
    if anew:
        jax.clear_caches()
        _keep_compiled(False)
    yield
    if anew or _n_mapped() > 30_000:
        jax.clear_caches()
    if anew:
        _keep_compiled(True)


def _n_mapped() -> int:
    """How many pieces of memory this process has mapped; of a system that does not say, more than there may be."""
    maps = Path("/proc/self/maps")
    return len(maps.read_bytes().splitlines()) if maps.exists() else 1 << 16


def _keep_compiled(keep: bool) -> None:
    jax.config.update("jax_enable_compilation_cache", keep)
    compilation_cache.reset_cache()  # JAX asks once, and remembers


@pytest.fixture(scope="session")
def toy_model() -> Model:
    """Random weights, a token a byte, no stop tokens and no chat template."""
    return toy.model_of()


@pytest.fixture(scope="session")
def real_model() -> Model:
    """The default model in float32; tests that use it are marked `real`."""
    return loading.load(dtype="float32")


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint on disk, tokenizer and chat template included."""
    return str(folders.write_checkpoint(tmp_path_factory.mktemp("weights") / "toy"))


@pytest.fixture
def run_command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """(exit code, stdout, stderr) of a command's `main` with these arguments, in this process."""

    def run(main: Callable[..., None], *args: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.run(lambda: main(args))
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def command(run_command: Callable[..., tuple[int, str, str]], toy_folder: str) -> commands.Command:
    """`entropix.main` on the toy; files for other commands have their own."""
    return commands.on(toy_folder, run_command)


@pytest.fixture
def prompt_file(tmp_path: Path) -> str:
    """Two prompts."""
    (tmp_path / "prompts.txt").write_text("Why?\nHow?\n")
    return str(tmp_path / "prompts.txt")


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium; tests that use it are marked `browser`."""
    with chromium.launch() as browser:
        yield browser
