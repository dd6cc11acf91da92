"""Files as `torch.save` writes them, without torch: a zip archive of a pickle and of raw values."""

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

STORAGES = {
    np.dtype(np.float32): "FloatStorage",
    np.dtype(np.float16): "HalfStorage",
    np.dtype(ml_dtypes.bfloat16): "BFloat16Storage",
    np.dtype(np.int32): "IntStorage",
}


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def whole(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def wholes(values: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(whole, values)) + b"t"


def storage(kind: str, key: str, length: int) -> bytes:
    return (
        b"("
        + text("storage")
        + b"ctorch\n"
        + kind.encode()
        + b"\n"
        + text(key)
        + text("cpu")
        + whole(length)
        + b"tQ"
    )


def tensor(stored: bytes, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    """A call of torch's function that puts a tensor together."""
    arguments = (
        stored + whole(offset) + wholes(shape) + wholes(strides) + b"\x89ccollections\nOrderedDict\n)R"
    )
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"tR"


def plain(array: np.ndarray, key: str) -> bytes:
    """A tensor that is all of its storage."""
    strides = tuple(stride // array.itemsize for stride in array.strides)
    return tensor(storage(STORAGES[array.dtype], key, array.size), 0, array.shape, strides)


def program(values: Mapping[str, bytes]) -> bytes:
    """A pickle of a dictionary of these."""
    return b"\x80\x02}q\x00(" + b"".join(text(name) + value for name, value in values.items()) + b"u."


def write_pth(path: Path, tensors: Mapping[str, np.ndarray], **changes: Any) -> Path:
    """The tensors by name. changes: pickle, the bytes of data.pkl instead; compression, of the archive."""
    arrays = {str(i): np.ascontiguousarray(array) for i, array in enumerate(tensors.values())}
    pickle = program({name: plain(arrays[key], key) for name, key in zip(tensors, arrays, strict=True)})
    with zipfile.ZipFile(path, "w", changes.get("compression", zipfile.ZIP_STORED)) as archive:
        archive.writestr("archive/data.pkl", changes.get("pickle", pickle))
        archive.writestr("archive/byteorder", changes.get("byteorder", "little"))
        for key, array in arrays.items():
            archive.writestr(f"archive/data/{key}", array.tobytes())
        archive.writestr("archive/version", "3\n")
    return path
