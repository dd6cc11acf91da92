"""A wheel of this checkout, installed elsewhere, is all that a user needs."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import entropix
from entropix.__main__ import COMMANDS

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of a fresh environment with nothing but the wheel; what it depends on is borrowed from this one."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    [wheel] = folder.glob("entropix_jax-*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", str(wheel)], check=True)
    [site] = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python.parent


def run(installed: Path, *words: str) -> subprocess.CompletedProcess[str]:
    apart = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "ENTROPIX_WEIGHTS")}
    home = {"HOME": str(installed.parent), "ENTROPIX_COMPILATION_CACHE": "off"}
    return subprocess.run(
        [installed / words[0], *words[1:]],
        capture_output=True,
        text=True,
        cwd=installed.parent,
        env=apart | home,
    )


def test_the_command_tells_its_version_and_its_commands(installed: Path) -> None:
    done = run(installed, "entropix", "--version")
    assert (done.returncode, done.stdout) == (0, f"entropix {entropix.__version__}\n")
    listed = run(installed, "entropix")
    assert listed.returncode == 2 and all(f"  {name} " in listed.stdout for name in COMMANDS)
    helped = run(installed, "entropix", "--help")
    assert (helped.returncode, helped.stdout) == (0, listed.stdout)


def test_presets_manifest_and_help_came_with_it(installed: Path) -> None:
    """Presets and the manifest of downloads are read; the package is the installed one."""
    samplers = run(installed, "python", "-m", "entropix.main", "--sampler", "help")
    assert (samplers.returncode, samplers.stdout.startswith("dynamic-temperature")) == (0, True)
    told = run(installed, "entropix", "download", "--help").stdout
    assert told.startswith("usage: entropix download ") and "smollm2-135m-instruct" in told
    where = run(installed, "python", "-c", "import entropix; print(entropix.__file__)").stdout
    assert where.startswith(str(installed.parent))


@pytest.mark.slow
def test_without_weights_it_says_how_to_get_them(installed: Path) -> None:
    done = run(installed, "entropix", "--prompt", "Hi")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "entropix.download" in done.stderr
