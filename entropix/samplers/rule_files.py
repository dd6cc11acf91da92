"""Rules, and other objects, that live in a Python file of somebody's own: `my_rule.py:RULE`."""

import functools
import hashlib
import sys
import traceback
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, NamedTuple

from entropix import PACKAGE_ROOT
from entropix.files import read_bytes
from entropix.samplers.base import Sampler
from entropix.samplers.registry import SAMPLERS, check_rule
from entropix.showing import suggestion

_ENDING = ".py"


class RuleFile(NamedTuple):
    """Where a rule came from: what a trace says of it."""

    file: str
    object: str
    sha256: str  # of the whole file


def is_rule_file(named: str) -> bool:
    """Whether this names a Python file, with or without the rule in it."""
    return named.endswith(_ENDING) or named.rpartition(":")[0].endswith(_ENDING)


def load(named: str, folder: Path = Path()) -> tuple[Sampler, RuleFile]:
    """The rule that `FILE.py:NAME` means, and where it came from. The same bytes give the same object.

    folder: what a relative name is relative to. Raises a ValueError for a file that is missing or fails, and for a name
    that is not in it or no rule.
    """
    found, source = load_object(named, Sampler, "rule", folder)
    path = folder / named.rpartition(":")[0]
    check_rule(found, f"{path}: {source.object}")
    check_free(found, str(path))
    return found, source


def load_object(named: str, kind: type, what: str, folder: Path = Path()) -> tuple[Any, RuleFile]:
    """Whatever `FILE.py:NAME` means, and where it came from.

    kind: a class or a checkable protocol that it must be an instance of; what: it is, as in "rule". Raises the
    ValueErrors of `load`.
    """
    text, _, name = named.rpartition(":")
    if not text.endswith(_ENDING):
        raise ValueError(f"{named}: say which {what} of the file is meant, like {named}:{what.upper()}")
    path = folder / text
    data = read_bytes(path)
    digest = hashlib.sha256(data).hexdigest()
    found = vars(_run(path.resolve(), data, digest))
    if name not in found:
        there = [known for known, value in found.items() if isinstance(value, kind) and value is not kind]
        hint = suggestion(name, there, f"its {what}s are {', '.join(there) or 'none'}")
        raise ValueError(f"{path}: there is no {name!r} in it{hint}")
    value = found[name]
    if not isinstance(value, kind) or isinstance(value, type):
        got = f"the class {name}" if isinstance(value, type) else type(value).__name__
        raise ValueError(f"{path}: {name}: expected a {kind.__name__}, got {got}")
    return value, RuleFile(path.resolve().as_posix(), name, digest)


def load_recorded(source: RuleFile) -> Sampler:
    """The rule that was recorded; a ValueError if its file is gone or has changed.

    A file that is no longer where it was may lie in the current folder.
    """
    path = Path(source.file)
    if not path.is_file():
        path = Path(path.name)
    if not path.is_file():
        raise ValueError(f"{source.file}: the file of the rule {source.object} is not there; put it back")
    if hashlib.sha256(read_bytes(path)).hexdigest() != source.sha256:
        raise ValueError(
            f"{path}: not the file that the rule {source.object} came from: its sha256 is not "
            f"{source.sha256[:12]}..., so it has changed"
        )
    return load(f"{path}:{source.object}")[0]


def source_of(sampler: Sampler) -> RuleFile | None:
    """Where a rule that was made in Python came from: the file of a module outside this package that has it."""
    makers = {
        getattr(_function(part), "__module__", None) for part in (sampler.config, sampler.init, sampler.step)
    }
    places = [
        (module.__name__ not in makers, Path(module.__file__), name)
        for module in list(sys.modules.values())
        if _is_foreign(module) and module.__file__ is not None
        for name, value in list(vars(module).items())
        if value is sampler
    ]
    if not places:
        return None
    _, path, name = min(places, key=lambda place: place[0])
    data = read_bytes(path)
    if not _is_of(sampler, path, data):
        raise ValueError(
            f"{path}: the file has changed since the rule {name} was imported from it; start Python anew, or "
            "reload the module"
        )
    return RuleFile(path.resolve().as_posix(), name, hashlib.sha256(data).hexdigest())


def _is_of(sampler: Sampler, path: Path, data: bytes) -> bool:
    """Whether the rule's functions, as far as they come from this file, are those that it has now."""
    try:
        waiting, there = [compile(data, str(path), "exec")], []
    except (SyntaxError, ValueError):
        return False
    while waiting:
        code = waiting.pop()
        there.append(code)
        waiting += [part for part in code.co_consts if isinstance(part, CodeType)]
    own = [getattr(_function(part), "__code__", None) for part in (sampler.init, sampler.step)]
    return all(code in there for code in own if code is not None and Path(code.co_filename) == path)


def check_free(sampler: Sampler, where: str) -> None:
    """Raises a ValueError if a rule calls itself what another is called."""
    if SAMPLERS.get(sampler.name, sampler) is not sampler:
        raise ValueError(f"{where}: there is a sampler {sampler.name!r} already; give this one another name")


def _function(part: Any) -> Any:
    while isinstance(part, functools.partial):
        part = part.func
    return part


def _is_foreign(module: Any) -> bool:
    file = getattr(module, "__file__", None)
    is_python = isinstance(module, ModuleType) and isinstance(file, str) and file.endswith(_ENDING)
    return is_python and Path(file or "").is_file() and PACKAGE_ROOT not in Path(file or "").parents


@functools.cache
def _run(path: Path, data: bytes, digest: str) -> ModuleType:
    """The file as a module. Whatever goes wrong in it is a ValueError that names the line."""
    module = ModuleType(f"{path.stem}_{digest[:12]}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module  # where dataclasses look for the types of their fields
    try:
        exec(compile(data, str(path), "exec"), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        lines = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
        ]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        where = path if line is None else f"{path}: line {line}"
        raise ValueError(f"{where}: {type(error).__name__}: {error}") from error
    return module
