"""Runs a script with transformers and torch, in a process of its own: no other test imports them."""

import os
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import pytest

PLACES = [
    str(Path(sys.prefix, "transformers")),
    *sys.path,
]  # where `make test` puts them, for such scripts alone
MISSING = [name for name in ("torch", "transformers") if PathFinder.find_spec(name, PLACES) is None]


def run(script: str, folder: Path) -> None:
    """The script with that folder to write into. Without the libraries the test is skipped; in CI it fails."""
    if MISSING:
        hint = f"no {' and no '.join(MISSING)}, with which families are compared; `make test` installs them"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(hint)
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    clean |= {"PYTHONPATH": os.pathsep.join(PLACES[:1] + os.environ.get("PYTHONPATH", "").split(os.pathsep))}
    clean |= {"HF_HUB_OFFLINE": "1", "USE_JAX": "0", "USE_TF": "0"}
    command = [sys.executable, "-W", "ignore", script, str(folder)]
    ran = subprocess.run(command, env=clean, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
