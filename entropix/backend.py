"""Settings of the machinery below JAX: where compiled programs are kept between processes."""

import os
from pathlib import Path

import jax

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
        user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = chosen or str(user_cache / "entropix" / "compiled")
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    return Path(folder)
