"""JAX's environment variables: what is said where JAX refuses the value of one.

JAX reads them while it is imported, which is before any command begins. In Python its exception is as good as any; a
command says the same in one sentence. Nothing here imports JAX.
"""

import os
import sys
import traceback
from pathlib import Path
from types import FrameType, TracebackType

import entropix

_TRUTH = "true or false (or 1 or 0)"
# What the readers of jax/_src/config.py take, by their names; those with a list of words have it at hand.
_EXPECTED = {
    "bool_env": _TRUTH,
    "bool_state": _TRUTH,
    "int_env": "a whole number",
    "int_state": "a whole number",
    "float_state": "a number",
}


def refused(error: BaseException) -> str | None:
    """The sentence for an error of JAX about a variable of the environment; None for any other error."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not isinstance(error, ValueError) or not frames or not _reads_variables(frames[-1]):
        return None
    for frame in filter(_reads_variables, reversed(frames)):
        found = frame.f_locals
        name = str(found.get("varname") or found.get("name")).upper()
        if name in os.environ:
            words = found.get("enum_values") or [item.value for item in found.get("enum_class", ())]
            reader = frame.f_code.co_name
            expected = (
                f"one of {', '.join(words)}" if words else _EXPECTED.get(reader, f"another value ({error})")
            )
            return f"${name} is {os.environ[name]!r}, but JAX takes {expected} for it; change or unset it"
    return None


def _reads_variables(frame: FrameType) -> bool:
    return frame.f_globals.get("__name__") == "jax._src.config"


def tell_refusals() -> None:
    """Lets a command that JAX's import ends say why in one sentence. Elsewhere changes nothing."""
    if _is_command(getattr(sys, "argv", [])):
        sys.excepthook = _tell


def _is_command(argv: list[str]) -> bool:
    """Whether the process was started as `entropix`, `python -m entropix...` (which is still looking for the module) or
    a script of the repository."""
    program = Path(argv[0] if argv else "")
    return (
        str(program) == "-m"
        or program.stem == "entropix"
        or program.resolve().parent == entropix.PACKAGE_ROOT.parent / "scripts"
    )


def _tell(kind: type[BaseException], error: BaseException, at: TracebackType | None) -> None:
    if (why := refused(error)) is None:
        sys.__excepthook__(kind, error, at)
    else:
        print(f"error: {why}", file=sys.stderr)
