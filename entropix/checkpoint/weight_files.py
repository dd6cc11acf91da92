"""What must hold of any file of weights before it is opened: it is regular, may be read, and is no mere pointer."""

import stat
from pathlib import Path, PurePosixPath

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_file(path: Path) -> int:
    """The length in bytes of a file that can be opened for what is in it.

    Raises a ValueError for one that is not there, may not be read, is no regular file (a pipe would wait for ever), or
    is the pointer that Git leaves in place of a large file.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = _KINDS.get(stat.S_IFMT(status.st_mode), "something else")
            raise ValueError(f"{path}: expected a regular file, this is {kind}")
        with path.open("rb") as stream:
            start = stream.read(len(_LFS_POINTER))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except PermissionError:
        raise ValueError(
            f"{path}: it is there, but this user may not read it (permission denied); `chmod u+r` or its owner can help"
        ) from None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    if start == _LFS_POINTER:
        raise ValueError(
            f"{path}: this is a Git LFS pointer, a few lines that stand for the file; fetch the file itself with "
            "`git lfs pull` in its folder, or download it again"
        )
    return status.st_size


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
