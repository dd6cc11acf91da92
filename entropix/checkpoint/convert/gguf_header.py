"""The header of a GGUF file: metadata and where each tensor lies.

Every count and length is checked against the length of the file before anything is made of it, so that a damaged file
costs neither memory nor time. The layout is that of the specification, versions 2 and 3, little endian.
"""

import math
import re
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from entropix.checkpoint.convert.values import Values
from entropix.checkpoint.weight_files import check_file

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_ALIGNMENT = 32  # bytes, unless general.alignment says otherwise
_MAX_DIMS = 4  # of ggml
_FIRST_PART = re.compile(r"(?P<stem>.*)-00001-of-(?P<count>[0-9]{5})(?P<end>\.[^.]*)")

# The code of each type of value. Strings and arrays are read apart.
_SCALARS: dict[int, np.dtype] = {
    code: np.dtype(name)
    for code, name in enumerate(
        ("u1", "i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?", None, None, "<u8", "<i8", "<f8")
    )
    if name
}
_STRING, _ARRAY = 8, 9
_SMALLEST_ENTRY = 8 + 4 + 1  # bytes of a key, a type and a value
# Bytes of a name, a number of dimensions, one of them, a type and an offset.
_SMALLEST_TENSOR = 8 + 4 + 8 + 4 + 8

# Types that ggml once had. Their codes are not used again.
_RETIRED = {
    4: "Q4_2",
    5: "Q4_3",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}


class GgufTensor(NamedTuple):
    """A tensor of the file."""

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]  # [out, in], of values
    data: np.ndarray  # [out, bytes of a row], mapped into memory

    def values(self, path: Path) -> np.ndarray:
        """The float32 values that the stored ones stand for."""
        try:
            with np.errstate(all="ignore"):  # whoever writes them looks for NaN and infinities
                return dequantize(self.data, self.kind).reshape(self.shape)
        except NotImplementedError:
            raise ValueError(
                f"{path}: {self.name} is of type {self.kind.name}, which cannot be dequantised"
            ) from None


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    """(metadata, tensors by name).

    Numbers, truths and texts are Python's; an array of texts is a list, any other a numpy array. Raises a ValueError
    that names the file, what was read and what is wrong with it.
    """
    if check_file(path) < 24:
        raise ValueError(f"{path}: empty, truncated or not a GGUF file (it is shorter than a header)")
    reader = _Reader(path)
    if reader.take(4, "the magic").tobytes() != MAGIC:
        raise ValueError(f"{path}: not a GGUF file, which begins with the letters GGUF")
    version = reader.number("<I", "the version")
    if version not in _VERSIONS:
        what = "big-endian" if version & 0xFFFF == 0 else f"of version {version}"
        raise ValueError(f"{path}: a GGUF file {what}; expected one of version 2 or 3, little endian")
    n_tensors = reader.count(_SMALLEST_TENSOR, "tensors")
    n_entries = reader.count(_SMALLEST_ENTRY, "entries of metadata")
    meta: dict[str, Any] = {}
    for _ in range(n_entries):
        key = reader.text("a key")
        if key in meta:
            raise ValueError(f"{path}: {key!r} is in the metadata twice")
        meta[key] = reader.value(reader.number("<I", key), key)
    infos = [reader.tensor_info() for _ in range(n_tensors)]
    alignment = meta.get("general.alignment", _ALIGNMENT)
    if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
        raise ValueError(f"{path}: general.alignment must be a power of two, got {alignment!r}")
    start = -(-reader.offset // alignment) * alignment
    tensors = {}
    end = 0
    for info in sorted(infos, key=lambda info: info.offset):
        if info.offset < end:
            raise ValueError(f"{path}: {info.name} begins inside the tensor before it; the file is damaged")
        if info.name in tensors:
            raise ValueError(f"{path}: the tensor {info.name} is there twice")
        end = info.offset + info.nbytes
        data = reader.at(start + info.offset, info.nbytes, info.name)
        rows = math.prod(info.shape[:-1])
        tensors[info.name] = GgufTensor(info.name, info.kind, info.shape, data.reshape(rows, -1))
    return meta, tensors


def read_parts(path: Path) -> tuple[dict[str, Any], dict[str, GgufTensor]]:
    """As of `read_gguf`; of a file that is the first of several parts, with the tensors of all of them.

    Raises a ValueError for another part than the first, and for parts that are missing or not of one file.
    """
    meta, tensors = read_gguf(path)
    n_parts = Values(path, meta).whole("split.count", 1, low=0)
    if n_parts in (0, 1):
        return meta, tensors
    name = _FIRST_PART.fullmatch(path.name)
    if Values(path, meta).whole("split.no", 0, low=0) != 0 or name is None or int(name["count"]) != n_parts:
        raise ValueError(
            f"{path}: one of {n_parts} parts; give the first one, whose name ends with -00001-of- and how many there "
            "are, with the others beside it"
        )
    for number in range(1, n_parts):
        part = path.with_name(f"{name['stem']}-{number + 1:05}-of-{name['count']}{name['end']}")
        if not part.exists():
            raise ValueError(f"{part}: no such file, but {path.name} is the first of {n_parts} parts")
        said, more = read_gguf(part)
        of_part = Values(part, said)
        told = tuple(of_part.whole(key, -1, low=0) for key in ("split.no", "split.count"))
        architecture = meta.get("general.architecture")
        if told != (number, n_parts) or said.get("general.architecture", architecture) != architecture:
            raise ValueError(f"{part}: it says that it is another part than {number + 1} of {n_parts}")
        if twice := tensors.keys() & more.keys():
            raise ValueError(f"{part}: the tensor {min(twice)} is in another part too")
        tensors |= more
    if (total := Values(path, meta).whole("split.tensors.count", len(tensors), low=0)) != len(tensors):
        raise ValueError(f"{path}: its parts have {len(tensors)} tensors, but it counts {total}")
    return meta, tensors


class _Info(NamedTuple):
    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int  # bytes from the beginning of the data
    nbytes: int


class _Reader:
    """A place in a file's bytes, which moves on with what is taken."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes = np.memmap(path, np.uint8, "r").view(np.ndarray)
        self.view = self.bytes.data
        self.offset = 0

    def at(self, offset: int, n: int, what: str) -> np.ndarray:
        """The n bytes from `offset` on."""
        if offset + n > len(self.view):
            raise ValueError(
                f"{self.path}: empty, truncated or not a GGUF file ({what} would take {n} bytes from byte {offset} on, "
                f"the file has {len(self.view)})"
            )
        return self.bytes[offset : offset + n]

    def take(self, n: int, what: str) -> memoryview:
        """The next n bytes."""
        start, end = self.offset, self.offset + n
        if end > len(self.view):
            self.at(start, n, what)
        self.offset = end
        return self.view[start:end]

    def number(self, code: str, what: str) -> int:
        return struct.unpack(code, self.take(struct.calcsize(code), what))[0]

    def count(self, smallest: int, what: str) -> int:
        """A number of things of at least so many bytes each, for which there is room in the rest of the file."""
        n = self.number("<Q", f"the number of {what}")
        left = len(self.view) - self.offset
        if n * smallest > left:
            raise ValueError(
                f"{self.path}: empty, truncated or not a GGUF file (it promises {n} {what} in the {left} bytes that "
                "are left)"
            )
        return n

    def text(self, what: str) -> str:
        data = self.take(self.number("<Q", what), what)
        try:
            return str(data, "utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{self.path}: {what} is not UTF-8") from None

    def value(self, kind: int, key: str) -> Any:
        if kind == _STRING:
            return self.text(key)
        if dtype := _SCALARS.get(kind):
            return np.frombuffer(self.take(dtype.itemsize, key), dtype)[0].item()
        if kind != _ARRAY:
            raise ValueError(f"{self.path}: {key} is of the unknown type {kind}")
        kind = self.number("<I", key)
        if kind == _STRING:
            return [self.text(key) for _ in range(self.count(8, f"texts in {key}"))]
        if dtype := _SCALARS.get(kind):
            n = self.count(dtype.itemsize, f"items in {key}")
            return np.frombuffer(self.take(n * dtype.itemsize, key), dtype)
        raise ValueError(f"{self.path}: {key} is an array of type {kind}, which is not supported")

    def tensor_info(self) -> _Info:
        name = self.text("the name of a tensor")
        n_dims = self.number("<I", name)
        if not 1 <= n_dims <= _MAX_DIMS:
            raise ValueError(f"{self.path}: {name} must have 1 to {_MAX_DIMS} dimensions, got {n_dims}")
        shape = tuple(self.number("<Q", name) for _ in range(n_dims))[::-1]
        code, offset = self.number("<I", name), self.number("<Q", name)
        if 0 in shape:
            raise ValueError(f"{self.path}: {name} is empty, of shape {list(shape)}")
        if code not in GGMLQuantizationType.__members__.values():
            what = f"the retired type {_RETIRED[code]}" if code in _RETIRED else f"the unknown type {code}"
            raise ValueError(
                f"{self.path}: {name} is of {what}, which cannot be read; get the file in another type"
            )
        kind = GGMLQuantizationType(code)
        values_per_block, bytes_per_block = GGML_QUANT_SIZES[kind]
        if shape[-1] % values_per_block:
            raise ValueError(
                f"{self.path}: {name} is of type {kind.name}, whose rows are multiples of {values_per_block} values; "
                f"got rows of {shape[-1]}"
            )
        return _Info(name, kind, shape, offset, math.prod(shape) // values_per_block * bytes_per_block)
