"""Tensors in files that `torch.save` wrote, without torch and without unpickling.

Such a file is a zip archive of a pickle, which says what the tensors are called and where they lie, and of their raw
values, which are mapped into memory. A pickle is a program. This one is read, not run: of its instructions those that
make dictionaries, lists, tuples, numbers and names are followed, the only calls are to the functions that put a tensor
together, and anything else is refused by name.
"""

import io
import math
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, cast

import ml_dtypes
import numpy as np

from entropix.checkpoint.values import shown
from entropix.checkpoint.weight_files import check_file, starts_with

_DTYPES = {
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "DoubleStorage": np.dtype(np.float64),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}
_MAX_PICKLE = 2**23  # bytes; a pickle of a thousand tensors has 300,000
_SHARED = 2  # how often the same values may be given, as an embedding and an unembedding: twice

_CONSTANTS: dict[str, Any] = {
    "EMPTY_TUPLE": (),
    "NONE": None,
    "NEWTRUE": True,
    "NEWFALSE": False,
}
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
_MARK = object()


class _Unusual(ValueError):
    """The pickle does something that no pickle of tensors does."""


class _Name(NamedTuple):
    """A global name that the pickle mentions."""

    module: str
    name: str


class _Storage(NamedTuple):
    """The values of one member of the archive."""

    dtype: np.dtype
    key: str
    length: int  # in values


class _View(NamedTuple):
    """A tensor: a view of a storage. Numbers count values."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_pth(path: Path) -> dict[str, np.ndarray]:
    """Tensors by name, mapped into memory.

    Raises a ValueError for a file that is damaged, compressed, or holds anything but tensors by name.
    """
    size = check_file(path)
    if starts_with(path, b"\x80"):
        raise ValueError(
            f"{path}: a pickle as torch wrote it before version 1.6; load it with torch and torch.save it again"
        )
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as stream:
            members = {info.filename: info for info in archive.infolist()}
            _check_members(path, members.values(), size)
            [pickle] = [
                info for name, info in members.items() if name.count("/") <= 1 and _last(name) == "data.pkl"
            ]
            prefix = pickle.filename.removesuffix("data.pkl")
            order = members.get(f"{prefix}byteorder")
            if order and (order.file_size > 6 or _bytes(stream, order, size) != b"little"):
                raise ValueError(f"{path}: written on a big-endian machine, which is not supported")
            places = {name: _start(stream, info, size) for name, info in members.items()}
            if pickle.file_size > _MAX_PICKLE:
                raise ValueError(
                    f"{path}: its data.pkl has {pickle.file_size} bytes, which no list of tensors has"
                )
            program = _bytes(stream, pickle, size)
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        OSError,
        struct.error,
        OverflowError,
        UnicodeError,
    ) as error:
        raise ValueError(f"{path}: damaged, or not a .pth file ({error})") from None
    except ValueError as error:
        if str(error).startswith(f"{path}"):
            raise
        raise ValueError(
            f"{path}: damaged, or not a .pth file of tensors alone (no single data.pkl)"
        ) from None
    views = _views(path, program)
    if sum(math.prod(view.shape) * view.storage.dtype.itemsize for view in views.values()) > _SHARED * size:
        raise ValueError(
            f"{path}: its tensors would take more than {_SHARED} times the {size} bytes of the file"
        )
    whole = np.memmap(path, np.uint8, "r").view(np.ndarray)
    tensors = {}
    for name, view in views.items():
        member = f"{prefix}data/{view.storage.key}"
        nbytes = view.storage.length * view.storage.dtype.itemsize
        if member not in members or members[member].file_size < nbytes:
            raise ValueError(f"{path}: damaged, {shown(name)} needs {nbytes} bytes of {shown(member)}")
        values = whole[places[member] : places[member] + nbytes].view(view.storage.dtype)
        itemsize = view.storage.dtype.itemsize
        tensors[name] = np.lib.stride_tricks.as_strided(
            values[view.offset :], view.shape, [stride * itemsize for stride in view.strides], writeable=False
        )
    return tensors


# ----- the archive ------------------------------------------------------------------------------------------


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _check_members(path: Path, members: Iterable[zipfile.ZipInfo], size: int) -> None:
    """torch stores members as they are; what is compressed may become a thousand times as large."""
    total = 0
    for info in members:
        plain = info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1  # 1: encrypted
        if not plain or info.file_size != info.compress_size:
            raise ValueError(
                f"{path}: {shown(info.filename)} is compressed or encrypted, as torch never writes it; "
                "unpack it and save it again"
            )
        total += info.file_size
    if total > size:
        raise ValueError(f"{path}: damaged, its members would take {total} bytes, the file has {size}")


def _start(stream: io.BufferedIOBase | Any, info: zipfile.ZipInfo, size: int) -> int:
    """Where the bytes of a stored member begin: after a header of 30 bytes, a name and what else is noted there."""
    stream.seek(info.header_offset)
    header = stream.read(30)
    if len(header) < 30 or header[:4] != b"PK\3\4":
        raise zipfile.BadZipFile(f"no member at byte {info.header_offset}")
    start = info.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))
    if start + info.file_size > size:
        raise zipfile.BadZipFile(f"{shown(info.filename)} goes beyond the end")
    return start


def _bytes(stream: io.BufferedIOBase | Any, info: zipfile.ZipInfo, size: int) -> bytes:
    stream.seek(_start(stream, info, size))
    return stream.read(info.file_size)


# ----- the pickle -------------------------------------------------------------------------------------------


def _views(path: Path, program: bytes) -> dict[str, _View]:
    """What the pickle makes: a dictionary of tensors by name."""
    try:
        with warnings.catch_warnings():  # of a damaged name's backslashes
            warnings.simplefilter("ignore")
            made = _made(program)
    except (
        ValueError,
        IndexError,
        KeyError,
        TypeError,
        struct.error,
        RecursionError,
        OverflowError,
    ) as error:
        cause = str(error)[:200] if isinstance(error, _Unusual) else "its data.pkl cannot be read"
        raise ValueError(f"{path}: damaged, or not a .pth file of tensors alone ({cause})") from None
    if not isinstance(made, dict) or not all(isinstance(name, str) for name in made):
        raise ValueError(f"{path}: expected tensors by name, got a {type(made).__name__}")
    for name, view in made.items():
        if not isinstance(view, _View):
            raise ValueError(f"{path}: {shown(name)} is no tensor; expected tensors by name and nothing else")
    return made


def _made(program: bytes) -> Any:
    """Follows the instructions. Raises a ValueError that names one which is not followed."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def since_mark() -> list[Any]:
        at = len(stack) - 1
        while stack[at] is not _MARK:  # without one, this runs into an IndexError
            at -= 1
        items = stack[at + 1 :]
        del stack[at:]
        return items

    def pop(n: int) -> list[Any]:
        if len(stack) < n:
            raise IndexError
        items = stack[len(stack) - n :]
        del stack[len(stack) - n :]
        return items

    tuples = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
    for opcode, value, _ in pickletools.genops(program):
        name, argument = opcode.name, cast(Any, value)
        if name in ("PROTO", "FRAME"):
            continue
        if name == "STOP":
            [made] = stack
            return made
        if name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _LITERALS:
            stack.append(argument)
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "TUPLE":
            stack.append(tuple(since_mark()))
        elif name in tuples:
            stack.append(tuple(pop(tuples[name])))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "GLOBAL":
            stack.append(_named(argument.split(" ")))
        elif name == "STACK_GLOBAL":
            stack.append(_named(pop(2)))
        elif name == "BINPERSID":
            stack.append(_storage(*pop(1)))
        elif name == "REDUCE":
            stack.append(_called(*pop(2)))
        elif name in ("SETITEM", "SETITEMS"):
            items = pop(2) if name == "SETITEM" else since_mark()
            if not all(type(key) is str for key in items[::2]):  # hashing a nest of tuples may take for ever
                raise TypeError
            _filled(stack[-1], dict).update(zip(items[::2], items[1::2], strict=True))
        elif name in ("APPEND", "APPENDS"):
            items = pop(1) if name == "APPEND" else since_mark()
            _filled(stack[-1], list).extend(items)
        elif name == "BUILD":  # attributes of a dictionary, like the versions of modules: not needed
            pop(1)
            _filled(stack[-1], dict)
        else:
            raise _Unusual(f"it has the instruction {name}")
    raise _Unusual("it has no end")


def _named(words: list[Any]) -> _Name:
    module, name = words
    if type(module) is not str or type(name) is not str:
        raise TypeError
    return _Name(module, name)


def _filled(thing: Any, kind: type) -> Any:
    if type(thing) is not kind:
        raise TypeError
    return thing


def _storage(said: Any) -> _Storage:
    """From ('storage', its type, its key, the device, its length)."""
    word, kind, key, _, length = said
    if word != "storage" or not isinstance(kind, _Name) or kind.module != "torch" or kind.name not in _DTYPES:
        raise _Unusual(f"it keeps values as {kind.name if isinstance(kind, _Name) else 'something unknown'}")
    if not isinstance(key, str) or not _is_count(length):
        raise TypeError
    return _Storage(_DTYPES[kind.name], key, length)


def _called(function: Any, arguments: Any) -> Any:
    """What a call gives; only calls that put tensors together are made."""
    made: dict[_Name, Callable[..., Any]] = {
        _Name("collections", "OrderedDict"): dict,
        _Name("torch._utils", "_rebuild_tensor_v2"): lambda storage, offset, shape, strides, *_: _view(
            storage, offset, shape, strides
        ),
        _Name("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
    }
    if not isinstance(function, _Name) or function not in made:
        what = f"{function.module}.{function.name}" if isinstance(function, _Name) else "what is no function"
        raise _Unusual(f"it calls {what}")
    return made[function](*arguments)


def _view(storage: Any, offset: Any, shape: Any, strides: Any) -> _View:
    """A tensor, all of which lies in its storage, and which is no larger."""
    if type(storage) is not _Storage or type(shape) is not tuple or type(strides) is not tuple:
        raise TypeError
    numbers = (offset, *shape, *strides)
    if not all(map(_is_count, numbers)) or len(shape) != len(strides) or len(shape) > 8:
        raise _Unusual("a tensor has an offset, sizes or strides that are no whole numbers of at least 0")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if 0 in shape or last >= storage.length or math.prod(shape) > storage.length:
        raise _Unusual("a tensor is empty or larger than its values")
    return _View(storage, offset, shape, strides)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63
