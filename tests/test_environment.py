"""Tokens and numbers are the same whatever JAX's environment asks for."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest
import toy

import entropix
from entropix import backend
from entropix.checkpoint.loading import Model

OPTIONS: dict[str, Any] = {"seed": 1, "max_new_tokens": 6, "sampler_config": {"high_vent_thresh": 2.0}}


@pytest.fixture(scope="module")
def usual(toy_model: Model) -> list[list[int]]:
    return tokens(toy_model)


def tokens(model: Model) -> list[list[int]]:
    return [result.token_ids for result in entropix.generate(model, ["Why?", "ab" * 9], **OPTIONS)]


@contextlib.contextmanager
def seed_offset(n: int) -> Any:
    jax.config.update("jax_random_seed_offset", n)
    yield
    jax.config.update("jax_random_seed_offset", 0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "setting",
    [
        lambda: jax.default_prng_impl("rbg"),
        lambda: jax.enable_x64(True),
        lambda: jax.threefry_partitionable(False),
        lambda: jax.debug_nans(True),
        lambda: jax.transfer_guard("disallow"),
        lambda: seed_offset(5),
    ],
    ids=["generator", "64 bits", "partitionable", "NaN", "transfers", "seeds"],
)
def test_a_setting_of_jax_changes_no_token(toy_model: Model, usual: list[list[int]], setting: Any) -> None:
    with setting():
        assert tokens(toy_model) == usual


def test_the_precision_of_products_is_recorded() -> None:
    """On accelerators it changes logits, as those who set it wish."""
    assert backend.matmul_precision() is None
    with jax.default_matmul_precision("highest"):
        assert backend.matmul_precision() == "highest"


@pytest.mark.slow
def test_a_row_whose_logits_are_not_finite_still_ends_by_itself_where_nan_is_an_error_elsewhere() -> None:
    broken = toy.with_a_broken_token(77)
    with jax.debug_nans(True):
        [result] = entropix.generate(broken, [1, 77], max_new_tokens=4)
    assert result.finish == entropix.FinishReason.NAN


def command(*words: str, **variables: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of Python with these words and variables of the environment."""
    done = subprocess.run(
        [sys.executable, *words], env=os.environ | variables, capture_output=True, text=True, timeout=120
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("JAX_ENABLE_X64", "maybe", "JAX takes true or false (or 1 or 0) for it"),
        ("JAX_TRACEBACK_FILTERING", "x", "JAX takes one of off, tracebackhide, remove_frames, "),
        ("JAX_DEFAULT_DEVICE", "x", "JAX takes another value (jax.default_device must be "),
    ],
)
def test_a_variable_that_jax_refuses_is_named_by_every_command(name: str, value: str, expected: str) -> None:
    for words in (("-m", "entropix", "main", "--help"), ("-m", "entropix.replay", "no-trace")):
        code, stdout, stderr = command(*words, **{name: value})
        assert (code, stdout) == (1, "") and stderr.count("\n") == 1, stderr
        assert stderr.startswith(f"error: ${name} is {value!r}, but {expected}"), stderr


def test_in_python_a_variable_that_jax_refuses_is_an_exception_of_jax() -> None:
    program = "import entropix\ntry: entropix.generate\nexcept ValueError as error: print(error)"
    code, stdout, _ = command("-c", program, JAX_ENABLE_X64="maybe")
    assert code == 0 and "JAX_ENABLE_X64" in stdout


def test_flags_that_xla_would_end_the_process_for_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"XLA refuses \$XLA_FLAGS, '--nonsense=1': Unknown flag"):
        backend.check_flags("--nonsense=1")
    backend.check_flags("--xla_force_host_platform_device_count=2")


def test_a_folder_that_cannot_keep_programs_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = jax.config.jax_compilation_cache_dir
    (tmp_path / "file").touch()
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        for folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/dev/null/x")):
            monkeypatch.setenv(backend.CACHE_VARIABLE, str(folder))
            assert backend.use_compilation_cache() is None
            assert jax.config.jax_compilation_cache_dir is None
            line = f"no compiled programs are kept: {folder} is not a folder, nor can one be made there; name a folder"
            assert capsys.readouterr().err.startswith(line)
        jax.config.update("jax_compilation_cache_dir", str(tmp_path / "file"))
        assert backend.use_compilation_cache() is None
        assert "in $JAX_COMPILATION_CACHE_DIR\n" in capsys.readouterr().err
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_a_disk_that_is_full_is_told_once_and_other_warnings_as_ever(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown: list[str] = []
    monkeypatch.setattr(backend, "_told", set())
    monkeypatch.setattr(backend, "_usual_show_warning", lambda message, *_: shown.append(str(message)))
    for name in ("jit_step", "jit_prefill"):
        fault = f"Error writing persistent compilation cache entry for '{name}': OSError: [Errno 28] No space left"
        backend._show_warning(UserWarning(fault), UserWarning, "compiler.py", 833)
    expected = (
        "some compiled programs cannot be kept, and are compiled again: OSError: [Errno 28] No space left\n"
    )
    assert capsys.readouterr().err == expected
    backend._show_warning(UserWarning("something else"), UserWarning, "file.py", 1)
    assert shown == ["something else"]
