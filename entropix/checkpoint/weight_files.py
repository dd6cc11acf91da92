"""What must hold of any file of weights before it is opened: it is regular, may be read, and is no mere pointer."""

import os
from pathlib import Path, PurePosixPath

from entropix.files import check_no_pointer, opened


def check_file(path: Path) -> int:
    """The length in bytes of a file that can be opened for what is in it.

    Raises a ValueError for one that is not there, may not be read, is no regular file (a pipe would wait for ever), or
    is the pointer that Git leaves in place of a large file.
    """
    with opened(path) as file:
        check_no_pointer(path, file.read(100))
        return os.fstat(file.fileno()).st_size


def starts_with(path: Path, magic: bytes) -> bool:
    """Whether a path is a regular file that begins with these bytes; False where it cannot be read."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as stream:
            return stream.read(len(magic)) == magic
    except OSError:
        return False


def beside(index: Path, name: str) -> Path:
    """The file that an index names, which lies in the folder of the index.

    Links out of the folder are followed only into the `blobs` of Hugging Face's cache. Raises a ValueError that names
    both for a name that leads elsewhere.
    """
    parts = PurePosixPath(name)
    plain = bool(parts.parts) and not parts.is_absolute() and ".." not in parts.parts
    if not plain or any(letter in name for letter in "\\:\0"):
        raise ValueError(f"{index}: it names {name!r}; expected the name of a file in the same folder")
    file = index.parent / name
    try:
        target = file.resolve()
        inside = target.is_relative_to(index.parent.resolve())
    except (OSError, RuntimeError) as error:  # a link that leads to itself
        raise ValueError(f"{file}: cannot be read ({error})") from None
    if not inside and target.parent.name != "blobs":
        raise ValueError(
            f"{index}: it names {name!r}, a link to {target} outside the folder; put the file itself there, or link "
            "the whole folder"
        )
    return file
