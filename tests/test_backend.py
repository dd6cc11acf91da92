"""The compilation cache between processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import jax, jax.numpy as jnp
from entropix import backend
hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name) if name.endswith("cache_hits") else None)
assert backend.use_compilation_cache() is not None
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

@jax.jit
def work(x):
    for _ in range(40):
        x = jnp.tanh(x @ x) + x
    return x.sum()

print(float(work(jnp.eye(8))), len(hits) > 0)
"""


def start(folder: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"ENTROPIX_COMPILATION_CACHE": str(folder)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    return subprocess.Popen(
        (sys.executable, "-c", PROGRAM),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def outcome(process: subprocess.Popen[str]) -> tuple[str, str]:
    """(result, whether a compiled program was found), of a process that had nothing to complain about."""
    stdout, stderr = process.communicate()
    assert process.returncode == 0, stderr
    assert "rror" not in stderr and "arning" not in stderr
    result, found = stdout.split()
    return result, found


@pytest.mark.slow
def test_processes_at_the_same_time_may_share_a_cache_and_a_later_one_finds_it(tmp_path: Path) -> None:
    """All write the same entries, in a folder that does not exist yet."""
    folder = tmp_path / "not" / "there"
    together = [outcome(process) for process in [start(folder) for _ in range(3)]]
    assert len({result for result, _ in together}) == 1
    assert outcome(start(folder)) == (together[0][0], "True")
    assert not list(folder.rglob("*tmp*"))
