"""The machinery below JAX: where compiled programs are kept between processes, and traces of what devices do."""

import contextlib
import importlib.metadata
import os
from pathlib import Path

import jax

from entropix import distributed

CACHE_VARIABLE = "ENTROPIX_COMPILATION_CACHE"


def use_compilation_cache() -> Path | None:
    """Keeps compiled programs on disk, so that the next process does not compile them again. Returns the folder.

    The folder is `entropix/compiled` in the user's cache; `$ENTROPIX_COMPILATION_CACHE` names another one, or `off`.
    JAX's own `$JAX_COMPILATION_CACHE_DIR` wins over both. Commands call this; importing the package does not.
    """
    folder: str | None = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    if folder is None:
        chosen = os.environ.get(CACHE_VARIABLE)
        if chosen == "off":
            return None
        folder = chosen or _user_folder()
        if folder is None:
            return None
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    return Path(folder)


def _user_folder() -> str | None:
    """The user's own folder for compiled programs; None for a user who has no home."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    return str(cache / "entropix" / "compiled")


def check_devices() -> None:
    """Raises a ValueError where JAX finds none of the devices that its environment asks for."""
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
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder}: cannot be made a folder for a profile ({error.strerror})") from None


def profile(folder: str | Path | None) -> contextlib.AbstractContextManager[None]:
    """Within it, what host and devices do is traced, and in the end written into a folder for XProf.

    Without a folder, and in all but the first of several processes, nothing happens: one sees its own devices, and all
    do the same. Stages of the model have the names that `jax.named_scope` gave them.
    """
    if folder is None or not distributed.is_first():
        return contextlib.nullcontext()
    return jax.profiler.trace(str(folder))
