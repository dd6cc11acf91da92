"""A strict session, and the models that tests share."""

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
        "--xla_cpu_use_fusion_emitters=false",
        # The tests of meshes use eight simulated devices; all others the first of them.
        "--xla_force_host_platform_device_count=8",
    )
)
# What the commands under test compile they share with each other, and not with the user.
os.environ["ENTROPIX_COMPILATION_CACHE"] = tempfile.mkdtemp(prefix="entropix-compiled-")

import chromium
import commands
import folders
import jax
import pytest
import toy
from playwright.sync_api import Browser

from entropix.checkpoint import loading
from entropix.checkpoint.loading import Model
from entropix.console import cli

# Shells start background jobs with Ctrl-C ignored, which processes inherit; what is tested here is a terminal's.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No silent conversion between dtypes, no silent broadcast of one rank against another.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session", autouse=True)
def compiled_programs() -> Iterator[None]:
    """Ends with the session."""
    yield
    shutil.rmtree(os.environ["ENTROPIX_COMPILATION_CACHE"], ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def forget_programs() -> Iterator[None]:
    """Frees what a file's tests compiled. Each program takes pages of memory, of which a process may map 65,530."""
    yield
    jax.clear_caches()


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
