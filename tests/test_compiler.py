"""XLA's CPU backend adds up rightly, or the user is told: jaxlib 0.10.2 leaves sums to a library that may be wrong."""

import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import pytest

from entropix import backend

FLAG = "--xla_cpu_experimental_ynn_fusion_type=-reduce"


@pytest.mark.parametrize(
    ("version", "started", "given", "then"),
    [
        ("0.10.2", False, None, FLAG),
        ("0.10.2", False, "--a=1", f"--a=1 {FLAG}"),
        ("0.10.2", False, "--xla_cpu_experimental_ynn_fusion_type=+reduce", None),  # the user's own choice
        ("0.10.2", True, "--a=1", None),  # too late
        ("0.10.1", False, "--a=1", None),  # right, and ends the process where it does not know a flag
        ("9.0.0", False, None, None),
    ],
)
def test_sums_are_kept_from_the_library_where_that_is_needed_and_possible(
    monkeypatch: pytest.MonkeyPatch, version: str, started: bool, given: str | None, then: str | None
) -> None:
    """then: the environment that is left, if it is another."""
    monkeypatch.setattr(backend.jaxlib, "__version__", version)
    monkeypatch.setattr(backend, "_has_started", lambda: started)
    monkeypatch.delenv("XLA_FLAGS")
    if given is not None:
        monkeypatch.setenv("XLA_FLAGS", given)
    backend.avoid_wrong_sums()
    backend.avoid_wrong_sums()
    assert os.environ.get("XLA_FLAGS") == (given if then is None else then)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[bool]]:
    """What checks will find, one after the other; nothing is remembered of earlier ones."""
    to_come: list[bool] = []
    monkeypatch.setattr(backend, "sums_are_right", lambda: to_come.pop(0))
    monkeypatch.setenv(backend.CACHE_VARIABLE, str(tmp_path / "not" / "there"))
    kept = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    jax.config.update("jax_compilation_cache_dir", None)
    yield to_come
    jax.config.update("jax_compilation_cache_dir", kept)


def test_a_compiler_that_passed_is_not_asked_again_and_one_that_failed_is(
    answers: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers += [False, False, True, True]
    for _ in range(2):
        with pytest.warns(
            RuntimeWarning, match=r"computes some sums wrongly on this CPU \(jax issue 39103\)"
        ):
            backend.warn_of_wrong_sums()
    backend.warn_of_wrong_sums()
    backend.warn_of_wrong_sums()
    assert answers == [True]
    monkeypatch.setenv("XLA_FLAGS", "--another")
    backend.warn_of_wrong_sums()
    assert answers == []


def test_the_advice_is_what_has_not_been_tried(answers: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    for given, advice in (("", f"; start with XLA_FLAGS={FLAG} in the "), (FLAG, "wrong; install another ")):
        monkeypatch.setenv("XLA_FLAGS", given)
        answers.append(False)
        with pytest.warns(RuntimeWarning, match=advice):
            backend.warn_of_wrong_sums()


def test_commands_say_a_warning_in_one_line(run_command: Callable[..., tuple[int, str, str]]) -> None:
    def main(_args: object) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            warnings.warn("careful", RuntimeWarning, stacklevel=1)

    assert run_command(main) == (0, "", "warning: careful\n")


@pytest.mark.slow
def test_every_number_is_right_over_many_rows_in_the_programs_that_users_run() -> None:
    """In a process of its own, without the flags with which tests compile."""
    program = Path(__file__).with_name("large_rows.py")
    users = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    process = subprocess.run([sys.executable, str(program)], env=users, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    found = json.loads(process.stdout)
    assert found["right"]
    assert len(found["errors"]) > 50
    assert {kind: error for kind, error in found["errors"].items() if not error < 2e-5} == {}
