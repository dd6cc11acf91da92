"""Reading and replacing files: whole, or not at all, and with errors that name the file and say what to do.

Only regular files are read: a pipe would wait for somebody to write to it, a device may never end. All text is UTF-8,
with or without a byte order mark, which is never part of it.
"""

import codecs
import contextlib
import json
import os
import re
import stat
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from entropix import distributed
from entropix.showing import shown

MOST_TOML = 4_000_000  # bytes; people write some thousands
_MOST_BITS = 64  # of a whole number in TOML, which promises no more
_DEEPEST = 50  # tables in tables, or lists in lists
# A key of so many parts, each a table of its own: the parser needs memory by the square of their number.
_KEY_PART = r"""(?:[\w-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*')[ \t]*\.[ \t]*"""
_LONG_KEY = re.compile(rf"(?:^|[\[{{,])[ \t]*(?:{_KEY_PART}){{{_DEEPEST}}}", re.MULTILINE)
MOST_JSON = 64_000_000  # bytes; the largest tokenizer files have some 35 million
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"

# ----- reading ----------------------------------------------------------------------------------------------


def is_there(path: str | Path) -> bool:
    """Whether something has this name, be it readable or not. Raises a ValueError where that cannot be known."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        raise ValueError(_unreadable(path, error)) from None
    return True


def read_bytes(path: str | Path, most: int | None = None) -> bytes:
    """What is in a regular file, of at most `most` bytes.

    Raises a ValueError that names it where it is too large, is the pointer that Git leaves in place of a large file, or
    cannot be opened (see `opened`).
    """
    with opened(path) as file:
        if most is not None and (size := os.fstat(file.fileno()).st_size) > most:
            raise ValueError(f"{path}: expected a file of at most {most} bytes, but this has {size}")
        data = file.read()
    check_no_pointer(path, data)
    return data


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[BinaryIO]:
    """A regular file, open for reading bytes.

    Raises a ValueError that names it where it is not there, cannot be read or is no regular file; what is of another
    kind is not even opened, but for `/dev/stdin` and `/dev/fd/N`, which are open.
    """
    _check_name(path)
    try:
        status = os.stat(path)  # noqa: PTH116 (Path's would refuse less than it says)
        if not stat.S_ISREG(status.st_mode) and not _is_handed_over(Path(path)):
            raise ValueError(f"{path}: expected a regular file, but this is {_kind(status.st_mode)}")
        with Path(path).open("rb") as file:
            yield file
    except FileNotFoundError:
        if is_there(path):
            raise ValueError(f"{path}: a link to a file that is not there") from None
        raise ValueError(f"{path}: no such file") from None
    except OSError as error:
        raise ValueError(_unreadable(path, error)) from None


def _check_name(path: str | Path) -> None:
    """Raises a ValueError for a name with a character that no file's name has."""
    try:
        possible = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        possible = False
    if not possible:
        raise ValueError(f"{shown(str(path))}: no file has such a name")


def check_no_pointer(path: str | Path, start: bytes) -> None:
    """Raises a ValueError for a file that begins like the pointer that Git LFS leaves in place of a large one."""
    if start.startswith(_LFS_POINTER):
        raise ValueError(
            f"{path}: this is a Git LFS pointer, a few lines that stand for the file; fetch the file itself with "
            "`git lfs pull` in its folder, or download it again"
        )


def _is_handed_over(path: Path) -> bool:
    """Whether this names what was opened for this process already, such as the output of another command."""
    return path == Path("/dev/stdin") or path.parent == Path("/dev/fd")


def _unreadable(path: str | Path, error: Exception) -> str:
    if isinstance(error, PermissionError):
        return f"{path}: you may not read this (permission denied); change its permissions or its folder's"
    return f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})"


def _kind(mode: int) -> str:
    kinds = {
        stat.S_ISDIR: "a folder",
        stat.S_ISFIFO: "a pipe",
        stat.S_ISSOCK: "a socket",
        stat.S_ISCHR: "a device",
        stat.S_ISBLK: "a device",
    }
    return next((name for is_kind, name in kinds.items() if is_kind(mode)), "something else")


def read_text(path: str | Path, most: int | None = None) -> str:
    """The text in a file of at most `most` bytes. Raises a ValueError that names it, and the line that is not UTF-8."""
    return decode_utf8(read_bytes(path, most), str(path))


def decode_utf8(data: bytes, where: str) -> str:
    """The text of these bytes, of which `where` says whence they come. Raises a ValueError that names the line."""
    data = data.removeprefix(codecs.BOM_UTF8)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - (data.rfind(b"\n", 0, error.start) + 1) + 1
        raise ValueError(
            f"{where}: line {line} is not UTF-8 (its byte {column} is 0x{data[error.start]:02x}); save it as UTF-8"
        ) from None


def read_json(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file. Raises a ValueError that names the file where there is none, or far too much."""
    return json_object(read_text(path, MOST_JSON), str(path))


def json_object(text: str, where: str) -> dict[str, Any]:
    """The object that a JSON text is. Raises a ValueError that begins with `where` for any other text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not a readable JSON file ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected a JSON object, got a {type(value).__name__}")
    return value


def read_toml(path: str | Path) -> dict[str, Any]:
    """The parsed TOML file. Raises a ValueError that names the file where it cannot be read, or is none that anybody
    would write: nested beyond reason, or with numbers that no program counts with."""
    text = read_text(path, MOST_TOML)
    if _LONG_KEY.search(text):
        raise ValueError(f"{path}: not a readable TOML file (it has a key of more than {_DEEPEST} parts)")
    try:
        found = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # none, numbers of thousands of digits, too many brackets
        raise ValueError(f"{path}: not a readable TOML file ({error})") from None
    _check_plain(found, path)
    return found


def _check_plain(values: dict[str, Any], path: str | Path) -> None:
    """Raises a ValueError for values of TOML that are nested too deep, or too large to count with."""
    layer: list[Any] = [values]
    for _ in range(_DEEPEST):
        for value in layer:
            if isinstance(value, int) and value.bit_length() > _MOST_BITS:
                raise ValueError(
                    f"{path}: a whole number of TOML has at most {_MOST_BITS} bits, got {shown(value)}"
                )
        inner = [list(value.values()) if isinstance(value, dict) else value for value in layer]
        layer = [item for items in inner if isinstance(items, list) for item in items]
        if not layer:
            return
    raise ValueError(f"{path}: tables and lists stand in each other more than {_DEEPEST} deep")


# ----- writing ----------------------------------------------------------------------------------------------


def check_writable(path: str | Path, what: str) -> None:
    """Raises a ValueError where writing would fail; for calling before the work whose outcome is to be written.

    what: is to be written, as in "a trace". Of several processes only the first looks, as only it writes.
    """
    if not distributed.is_first():
        return
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise ValueError(f"{path}: {what} needs a regular file to write to, and this is something else")
        if not path.resolve().parent.is_dir():
            folder = path.resolve().parent
            instead = (
                ", that is something else; name another place"
                if folder.exists()
                else "; make it, or name another place"
            )
            raise ValueError(
                f"{path}: cannot write {what} there, the folder {folder} does not exist{instead}"
            )
        temporary = _temporary(path)
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        raise ValueError(f"{path}: cannot write {what} there ({error.strerror})") from None


def make_folder(folder: str | Path, what: str = "") -> None:
    """Makes a folder and those that it is in, where they are missing. Raises a ValueError where that fails.

    what: is to be in it, as in "a profile", for the error.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        above = [place for place in (Path(folder), *Path(folder).parents) if place.exists()]
        is_none = f"; {above[0]} is no folder" if above and not above[0].is_dir() else ""
        purpose = f" for {what}" if what else ""
        raise ValueError(
            f"{folder}: cannot be made a folder{purpose} ({getattr(error, 'strerror', None) or error}){is_none}; name "
            "another place"
        ) from None


def check_not_read(path: str | Path, sources: Iterable[str | Path]) -> None:
    """Raises a ValueError for an output that is one of the files it is made of."""
    for source in sources:
        if Path(path).resolve() == Path(source).resolve():
            raise ValueError(
                f"{path} is read from and would be lost; choose another name for what is written"
            )


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A name beside the file, of the same ending, to be written to; it becomes the file when all went well."""
    temporary = _temporary(Path(path))
    try:
        yield temporary
        temporary.replace(Path(path).resolve())
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, pieces: Iterable[str], what: str) -> None:
    """Writes a text in pieces. Replaces a file of that name only when complete. Of several processes only the first
    writes. what: is written, as in "a trace", for the errors of `check_writable`."""
    if not distributed.is_first():
        return
    check_writable(path, what)
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(pieces)


def write_json(path: str | Path, values: Any) -> None:
    """Writes an indented JSON value, in place: for files of a folder that is renamed when it is complete."""
    Path(path).write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _temporary(path: Path) -> Path:
    """A hidden name beside the file itself (not beside a link to it), so that replacing is atomic."""
    target = path.resolve()
    return target.with_name(f".{target.stem}.{os.getpid()}{target.suffix}")
