"""The machinery below JAX: where compiled programs are kept between processes, whether the compiler can be trusted, and
traces of what devices do."""

import contextlib
import functools
import hashlib
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import jax
import jaxlib
import numpy as np

from entropix import distributed, files

CACHE_VARIABLE = "ENTROPIX_COMPILATION_CACHE"

# Versions of jaxlib whose CPU backend adds up wrongly in a library that sums are left to (jax issue 39103), and the
# flag that keeps sums away from it. Only versions that were seen to understand it: what XLA does not know ends the
# process.
WRONG_SUMS = ("0.10.2",)
SUMS_FLAG, SUMS_VALUE = "--xla_cpu_experimental_ynn_fusion_type", "-reduce"
_CHECKED_ROWS = 33_000  # the fault begins behind row 32,768


def use_compilation_cache() -> Path | None:
    """Keeps compiled programs on disk, so that the next process does not compile them again. Returns the folder.

    The folder is `entropix/compiled` in the user's cache; `$ENTROPIX_COMPILATION_CACHE` names another one, or `off`.
    JAX's own `$JAX_COMPILATION_CACHE_DIR` wins over both. Commands call this; importing the package does not. Where
    nothing can be kept in the folder, a line on stderr says so, and there is no cache.
    """
    folder: str | None = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    variable = "JAX_COMPILATION_CACHE_DIR"
    if folder is None:
        folder = _chosen_folder()
        if folder is None:
            return None
        variable = CACHE_VARIABLE
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    if (why := _unusable(folder)) is not None:
        distributed.complain(
            f"no compiled programs are kept: {folder} {why}; name a folder of yours in ${variable}"
            + (", or off" if variable == CACHE_VARIABLE else "")
        )
        jax.config.update("jax_compilation_cache_dir", None)
        return None
    jax.config.update("jax_compilation_cache_dir", folder)
    warnings.showwarning = _show_warning
    if variable == CACHE_VARIABLE:
        _keep_whole(Path(folder) / "whole")
    return Path(folder)


_programs: Path | None = None


def _keep_whole(folder: Path) -> None:
    """Lets `programs_folder` be this one; where nothing can be kept there, a line on stderr says so."""
    global _programs
    if (why := _unusable(str(folder))) is not None:
        distributed.complain(
            f"no programs are kept whole, so that starts take longer: {folder} {why}; remove it"
        )
        return
    _programs = folder


def programs_folder() -> Path | None:
    """Where `decoding.kept_programs` keeps whole programs; None where it keeps none.

    It is in the folder of JAX's cache, where this package chose that, for a process whose only device is a CPU.
    """
    settings: Any = jax.config
    if _programs is None or not settings.jax_enable_compilation_cache or settings.jax_disable_jit:
        return None
    return _programs if jax.default_backend() == "cpu" and jax.device_count() == 1 else None


_usual_show_warning, _told = warnings.showwarning, set[str]()
_CACHE_FAULT = re.compile(r"Error (reading|writing) persistent compilation cache entry for '.*?': (.*)", re.S)


def _show_warning(message: Warning | str, category: type[Warning], *args: Any, **options: Any) -> None:
    """As Python shows it; what JAX says of a program that it could not keep, as on a full disk, is one line, once."""
    found = _CACHE_FAULT.match(str(message))
    if found is None:
        _usual_show_warning(message, category, *args, **options)
    elif found[1] not in _told:
        _told.add(found[1])
        what = "kept" if found[1] == "writing" else "read"
        distributed.complain(f"some compiled programs cannot be {what}, and are compiled again: {found[2]}")


def _chosen_folder() -> str | None:
    """The folder that JAX's own setting does not name; None for no folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    return None if chosen == "off" else chosen or _user_folder()


def _unusable(folder: str) -> str | None:
    """Why nothing can be kept in this folder, which is made; None where all is well, or where it is no local one."""
    if "://" in folder:
        return None
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except (OSError, ValueError) as error:
        is_file = isinstance(error, FileExistsError | NotADirectoryError)
        why = getattr(error, "strerror", None) or error
        return "is not a folder, nor can one be made there" if is_file else f"cannot be written to ({why})"


def _user_folder() -> str | None:
    """The user's own folder for compiled programs; None for a user who has no home."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return str(cache / "entropix" / "compiled")


def avoid_wrong_sums() -> None:
    """Where this jaxlib is known to add up wrongly on the CPU, asks XLA for another way to do it.

    XLA reads $XLA_FLAGS once, when JAX first looks for devices; after that this does nothing, since the variable is
    part of the names under which compiled programs are kept. A choice of the user's for the same flag stands.
    """
    given = os.environ.get("XLA_FLAGS", "")
    if jaxlib.__version__ in WRONG_SUMS and SUMS_FLAG not in given and not _has_started():
        os.environ["XLA_FLAGS"] = f"{given} {SUMS_FLAG}={SUMS_VALUE}".strip()


def _has_started() -> bool:
    """Whether JAX has looked for devices. Only asked in versions of `WRONG_SUMS`, which have this function."""
    from jax._src import xla_bridge

    return xla_bridge.backends_are_initialized()


def warn_of_wrong_sums() -> None:
    """A RuntimeWarning where the CPU backend that computes here fails a sum of products whose result is known.

    That it passed is remembered beside the compiled programs, for this jaxlib with these flags on this kind of machine:
    compiling the check takes a tenth of a second, and running it a thousandth.
    """
    if jax.default_backend() != "cpu" or _checked():
        return
    if sums_are_right():
        _remember_checked()
        return
    flag = f"{SUMS_FLAG}={SUMS_VALUE}"
    mended = flag in os.environ.get("XLA_FLAGS", "").split()
    way = "" if mended else f"start with XLA_FLAGS={flag} in the environment, or "
    warnings.warn(
        f"jaxlib {jaxlib.__version__} computes some sums wrongly on this CPU (jax issue 39103), and numbers here may "
        f"be wrong; {way}install another version of jaxlib",
        RuntimeWarning,
        stacklevel=3,
    )


def sums_are_right() -> bool:
    """Whether Σ (M·row)² over the rows of a long matrix comes out, M being the identity of three dimensions."""
    rows = np.zeros((_CHECKED_ROWS, 3), np.float32)
    rows[:, 0] = np.arange(_CHECKED_ROWS)
    found = jax.device_get(_squares(*jax.device_put((np.eye(3, dtype=np.float32), rows))))
    return np.allclose(found, rows[:, 0].astype(np.float64) ** 2, rtol=1e-5, atol=0)


@jax.jit
def _squares(matrix: jax.Array, rows: jax.Array) -> jax.Array:
    return jax.vmap(lambda row: ((matrix @ row) ** 2).sum())(rows)


def _checked_file() -> Path | None:
    """Stands for a check that was passed; None where nothing is kept."""
    folder = jax.config.jax_compilation_cache_dir or _chosen_folder()  # type: ignore[attr-defined]
    of = (jaxlib.__version__, os.environ.get("XLA_FLAGS", ""), platform.machine(), str(os.cpu_count()))
    name = f"sums-{hashlib.sha256(repr(of).encode()).hexdigest()[:16]}"
    return None if folder is None else Path(folder) / name


def _checked() -> bool:
    return (file := _checked_file()) is not None and file.exists()


def _remember_checked() -> None:
    if (file := _checked_file()) is not None:
        with contextlib.suppress(OSError):  # it will be checked again
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()


def check_devices() -> None:
    """Raises a ValueError where JAX finds none of the devices that its environment asks for, or XLA refuses a flag."""
    if given := os.environ.get("XLA_FLAGS", "").removesuffix(f"{SUMS_FLAG}={SUMS_VALUE}").strip():
        check_flags(given)
    avoid_wrong_sums()
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter where nothing of that kind is installed
        wanted = os.environ.get("JAX_PLATFORMS") or jax.config.jax_platforms  # type: ignore[attr-defined]
        named = f" for JAX_PLATFORMS={wanted}" if wanted else ""
        why = f" ({said})" if (said := str(error).partition("\n")[0]) else ""
        there = ", ".join(sorted({"cpu", *_plugins()}))
        raise ValueError(
            f"JAX finds no device{named}{why}; what is installed here serves {there}: name one of "
            "these in JAX_PLATFORMS, or install what it needs, as in pip install 'entropix-jax[cuda]'"
        ) from None


@functools.cache
def check_flags(flags: str) -> None:
    """Raises a ValueError for `$XLA_FLAGS` on which XLA would end the process; another process tries them."""
    words = [sys.executable, "-c", "from jaxlib import _jax; _jax.CompileOptions()"]
    environment = os.environ | {"XLA_FLAGS": flags}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, errors="replace")
    said = [
        line.partition("] ")[2] for line in done.stderr.splitlines() if line[:2] in ("E1", "E0", "F0", "F1")
    ]
    if done.returncode and said:
        raise ValueError(f"XLA refuses $XLA_FLAGS, {flags!r}: {said[0].rstrip('.')}; mend it, or unset it")


def _plugins() -> list[str]:
    """The kinds of accelerators for which this environment has a plugin of JAX, whether or not there is one."""
    kinds = {"cuda": "jax_cuda", "rocm": "jax_rocm", "tpu": "libtpu"}
    names = {
        (distribution.name or "").replace("-", "_").lower()
        for distribution in importlib.metadata.distributions()
    }
    return [kind for kind, begin in kinds.items() if any(name.startswith(begin) for name in names)]


def matmul_precision() -> str | None:
    """How exactly matrices are multiplied where JAX's environment says so; None for the device's own way."""
    precision: str | None = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    return precision


def make_profile_folder(folder: str | Path) -> None:
    """Makes a folder for `profile`, unless it is there. Raises a ValueError where that fails."""
    files.make_folder(folder, "a profile")


def profile(folder: str | Path | None) -> contextlib.AbstractContextManager[None]:
    """Within it, what host and devices do is traced, and in the end written into a folder for XProf.

    Without a folder, and in all but the first of several processes, nothing happens: one sees its own devices, and all
    do the same. Stages of the model have the names that `jax.named_scope` gave them.
    """
    if folder is None or not distributed.is_first():
        return contextlib.nullcontext()
    return jax.profiler.trace(str(folder))
