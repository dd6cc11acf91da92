"""The machinery below JAX: where compiled programs are kept between processes, and traces of what devices do."""

import contextlib
import functools
import importlib.metadata
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

from entropix import distributed, files

CACHE_VARIABLE = "ENTROPIX_COMPILATION_CACHE"


def use_compilation_cache() -> Path | None:
    """Keeps compiled programs on disk, so that the next process does not compile them again. Returns the folder.

    The folder is `entropix/compiled` in the user's cache; `$ENTROPIX_COMPILATION_CACHE` names another one, or `off`.
    JAX's own `$JAX_COMPILATION_CACHE_DIR` wins over both. Commands call this; importing the package does not. Where
    nothing can be kept in the folder, a line on stderr says so, and there is no cache.
    """
    folder: str | None = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    variable = "JAX_COMPILATION_CACHE_DIR"
    if folder is None:
        chosen = os.environ.get(CACHE_VARIABLE)
        if chosen == "off":
            return None
        folder = chosen or _user_folder()
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
    return Path(folder)


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


def check_devices() -> None:
    """Raises a ValueError where JAX finds none of the devices that its environment asks for, or XLA refuses a flag."""
    if os.environ.get("XLA_FLAGS"):
        check_flags(os.environ["XLA_FLAGS"])
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
