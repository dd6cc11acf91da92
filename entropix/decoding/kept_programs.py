"""Large programs kept whole on disk, so that a later process does not even trace them.

JAX's own compilation cache finds a program by what it was lowered to, so a start traces and lowers it to look it up,
which takes longer than reading it. Here it is found by what it is made from: this package's code, the versions below
it, flags, the processor, the static arguments, and shapes and dtypes of the others. What has no name that means the
same in every process, such as a rule of your own, is compiled as usual, and so is all on a mesh or an accelerator.
"""

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import os
import pickle
import re
import sys
from collections.abc import Callable, Hashable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import flax
import jax
import jaxlib
from jax.experimental import serialize_executable
from jax.experimental.compilation_cache import compilation_cache

from entropix import PACKAGE_ROOT, backend, distributed, files

# The files and folders of the package that a program can come from: all that `loop` imports, and every rule.
SOURCES = (
    *("config", "decoding", "filters", "metrics", "model", "numerics", "own_metrics", "results", "samplers"),
    *("sharding", "showing"),
)
MOST = 128  # programs in the folder, of some 3 MB each; the longest unused ones make room
_DIGEST = hashlib.sha256
# XLA's default, but named: with an option of its own a compilation is not answered from JAX's memory, where `jit` may
# have a program that came from JAX's cache.
_OPTIONS = {"xla_embed_ir_in_executable": False}
# Settings of JAX that change no program.
_WITHOUT_EFFECT = (
    "jax_enable_compilation_cache",
    "jax_compilation_cache_",
    "jax_persistent_cache_",
    "jax_log",
)


class Unnameable(Exception):
    """Of a value that cannot be told from others in another process."""


class KeptProgram:
    """A jitted function whose programs are read from `backend.programs_folder`, and written there when they are not.

    static: the names of its static arguments. Whatever else the function has, such as `lower`, this has too.
    """

    def __init__(self, jitted: Any, static: Sequence[str]) -> None:
        self._jitted = jitted
        self._static = tuple(static)
        self._signature = inspect.signature(jitted)
        self._programs: dict[Hashable, Callable[..., Any] | None] = {}
        functools.update_wrapper(self, jitted)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._jitted, name)

    def __call__(self, *args: Any, **options: Any) -> Any:
        folder = backend.programs_folder()
        if folder is None:
            return self._jitted(*args, **options)
        given = self._signature.bind(*args, **options)
        given.apply_defaults()
        arrays = tuple(value for name, value in given.arguments.items() if name not in self._static)
        leaves, structure = jax.tree.flatten(arrays)
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return self._jitted(*args, **options)
        static = tuple(given.arguments[name] for name in self._static)
        made_for = (folder, static, structure, tuple(map(jax.typeof, leaves)), _settings())
        if made_for not in self._programs:
            self._programs[made_for] = self._program(folder, given.args, arrays, static)
        program = self._programs[made_for]
        return self._jitted(*args, **options) if program is None else program(*arrays)

    def _program(
        self, folder: Path, args: tuple[Any, ...], arrays: Any, static: Any
    ) -> Callable[..., Any] | None:
        """The program for these arguments, to be called with the arrays; None where none is kept."""
        try:
            file = folder / f"{self.__name__}-{_name(static, arrays)}"
        except Unnameable:
            return None
        return _read(file, arrays) or _write(file, self._jitted.lower(*args))


def kept(static: Sequence[str]) -> Callable[[Any], KeptProgram]:
    """A decorator that makes a jitted function a `KeptProgram`."""
    return functools.partial(KeptProgram, static=static)


# ----- files ------------------------------------------------------------------------------------------------


def _read(file: Path, arrays: Any) -> Callable[..., Any] | None:
    """The program in a file; None where there is none, or it is damaged, or cannot be loaded."""
    try:
        stored = file.read_bytes()
    except OSError:
        return None
    digest, data = stored[: _DIGEST().digest_size], stored[_DIGEST().digest_size :]
    if _DIGEST(data).digest() != digest:
        return None
    with contextlib.suppress(OSError):  # somebody else's file
        os.utime(file)  # the newest are kept
    try:
        program, result = pickle.loads(data)
        takes, gives = jax.tree.structure((arrays, {})), jax.tree.structure(result)
        return serialize_executable.deserialize_and_load(
            program, takes, gives, execution_devices=jax.devices()[:1]
        )
    except Exception:  # whatever another JAX, or another machine, finds wrong with it
        return None


def _write(file: Path, lowered: Any) -> Callable[..., Any]:
    """Compiles a program, and keeps it where that is possible; where not, a line on stderr says why, once."""
    with _compiled_anew():
        compiled = lowered.compile(compiler_options=_OPTIONS)
    try:
        program, _, gives = serialize_executable.serialize(compiled)
        data = pickle.dumps((program, jax.tree.unflatten(gives, range(gives.num_leaves))))
        with files.replacing(file) as temporary:
            temporary.write_bytes(_DIGEST(data).digest() + data)
    except Exception as error:  # a full disk; what this JAX cannot serialize
        _complain(getattr(error, "strerror", None) or str(error))
    _make_room(file.parent)
    return compiled


@functools.cache
def _complain(why: str) -> None:
    distributed.complain(f"some compiled programs cannot be kept, and are compiled again: {why}")


def _make_room(folder: Path) -> None:
    """Removes the longest unused files beyond `MOST`."""
    with contextlib.suppress(OSError):  # another process does so too
        by_age = sorted((file.stat().st_mtime, file) for file in folder.iterdir() if file.is_file())
        for _, file in by_age[:-MOST]:
            file.unlink(missing_ok=True)


@contextlib.contextmanager
def _compiled_anew() -> Iterator[None]:
    """Without JAX's own cache: a program that was read from there can be serialized again, but then fails when run."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX asks once, and remembers
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
        compilation_cache.reset_cache()


# ----- names ------------------------------------------------------------------------------------------------


def _name(static: Any, arrays: Any) -> str:
    """The same in every process for what makes the same program. Raises `Unnameable` where that cannot be known."""
    leaves, structure = jax.tree.flatten(arrays)
    types = [(kind.shape, str(kind.dtype), kind.weak_type) for kind in map(jax.typeof, leaves)]
    if _CODE is None or " at 0x" in (takes := str(structure)):
        raise Unnameable
    made_of = (_environment(), _settings(), _CODE, _fingerprint(static), takes, types)
    return _DIGEST(repr(made_of).encode()).hexdigest()[:32]


def _settings() -> tuple[tuple[str, str], ...]:
    """Those of JAX that are in force and may change a program."""
    there = [
        (name, value) for name, value in jax.config.values.items() if not name.startswith(_WITHOUT_EFFECT)
    ]
    return tuple((name, str(getattr(jax.config, name, value))) for name, value in there)


@functools.cache
def _environment() -> Any:
    """What a program depends on below this package, besides settings of JAX."""
    try:
        processor, _, _ = Path("/proc/cpuinfo").read_text().partition("\n\n")
    except OSError:  # no Linux
        raise Unnameable from None
    constant = [line for line in processor.splitlines() if not re.match("(?i)cpu mhz|bogomips", line)]
    versions = (sys.version, *(library.__version__ for library in (jax, jaxlib, flax)))
    return versions, os.environ.get("XLA_FLAGS"), constant, len(os.sched_getaffinity(0))


def _digest_of_sources() -> str | None:
    """Of the code that a program can come from; None where it cannot be read."""
    digest = _DIGEST()
    try:
        for part in SOURCES:
            place = PACKAGE_ROOT / part
            for file in sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]:
                code = file.read_bytes()
                digest.update(f"{file.relative_to(PACKAGE_ROOT)} {len(code)}\n".encode() + code)
    except OSError:
        return None
    return digest.hexdigest()


# Taken when the code is imported: what is edited while the process runs is not what it compiles.
_CODE = _digest_of_sources()


def _fingerprint(value: Any) -> Any:
    """What a static argument is, in numbers and texts. Raises `Unnameable` for what has code from elsewhere."""
    kind = type(value).__qualname__
    match value:
        case Enum():
            return kind, value.name
        case None | bool() | int() | float() | str():
            return kind, repr(value)
        case functools.partial():
            return kind, *map(_fingerprint, (value.func, value.args, tuple(sorted(value.keywords.items()))))
        case tuple():
            return kind, *map(_fingerprint, value)
        case frozenset():
            return kind, *sorted(map(_fingerprint, value))
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return kind, *(
                (field.name, _fingerprint(getattr(value, field.name))) for field in dataclasses.fields(value)
            )
        case _ if _is_of_sources(value):
            return value.__module__, value.__qualname__
    raise Unnameable


def _is_of_sources(value: Any) -> bool:
    """Whether this is a function or class at the top level of a file of `SOURCES`."""
    package, _, module = getattr(value, "__module__", "").partition(".")
    name = getattr(value, "__qualname__", "")
    is_known = package == PACKAGE_ROOT.name and module.partition(".")[0] in SOURCES
    return is_known and getattr(sys.modules[value.__module__], name, None) is value
