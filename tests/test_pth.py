"""Files of torch, read without it: every value in its place, and no instruction followed that does anything else."""

from pathlib import Path

import numpy as np
import pth_files
import pytest

from entropix.checkpoint.pth_file import read_pth

VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)
STORED = pth_files.storage("FloatStorage", "0", 6)


def with_pickle(path: Path, *parts: bytes) -> Path:
    """A .pth file of six numbers with this pickle between its first and its last instruction."""
    return pth_files.write_pth(path, {"a": VALUES}, pickle=b"\x80\x02" + b"".join(parts) + b".")


def one(value: bytes) -> bytes:
    return b"}(" + pth_files.text("a") + value + b"u"


def test_views_of_a_storage_are_read(tmp_path: Path) -> None:
    """The transposed, and the last two values."""
    path = with_pickle(tmp_path / "a.pth", one(pth_files.tensor(STORED, 0, (3, 2), (1, 3))))
    np.testing.assert_array_equal(read_pth(path)["a"], VALUES.T)
    path = with_pickle(tmp_path / "b.pth", one(pth_files.tensor(STORED, 4, (2,), (1,))))
    np.testing.assert_array_equal(read_pth(path)["a"], [4, 5])


@pytest.mark.parametrize(
    ("pickle", "message"),
    [
        (b"cos\nsystem\n(" + pth_files.text("id") + b"tR", "it calls os.system"),
        (b"cbuiltins\nbytearray\n(" + pth_files.whole(10**12) + b"tR", "it calls builtins.bytearray"),
        (one(pth_files.whole(3)), "'a' is no tensor; expected tensors by name and nothing else"),
        (b"]", "expected tensors by name, got a list"),
        (one(pth_files.tensor(STORED, 0, (-2, 3), (3, 1))), "no whole numbers of at least 0"),
        (one(pth_files.tensor(STORED, 5, (2, 3), (-3, 1))), "no whole numbers of at least 0"),
        (one(pth_files.tensor(STORED, -1, (2, 3), (3, 1))), "no whole numbers of at least 0"),
        (one(pth_files.tensor(STORED, 0, (2**70, 3), (3, 1))), "no whole numbers of at least 0"),
        (
            one(pth_files.tensor(STORED, 0, (10**12, 3), (0, 1))),
            "a tensor is empty or larger than its values",
        ),
        (one(pth_files.tensor(STORED, 1, (2, 3), (3, 1))), "a tensor is empty or larger than its values"),
        (
            one(pth_files.tensor(pth_files.storage("FloatStorage", "0", 10**12), 0, (2, 3), (3, 1))),
            "'a' needs 4000000",
        ),
        (
            one(pth_files.tensor(pth_files.storage("FloatStorage", "7", 6), 0, (2, 3), (3, 1))),
            "of 'archive/data/7'",
        ),
        (
            one(pth_files.tensor(pth_files.storage("QInt8Storage", "0", 6), 0, (6,), (1,))),
            "keeps values as QInt8",
        ),
        (b"}u", "its data.pkl cannot be read"),
        (b"ccollections\nOrdered\\_Dict\n)R", "it calls collections.Ordered"),
        (b"(lp0\n", "it has the instruction LIST"),
    ],
)
def test_a_pickle_of_anything_but_tensors_is_refused(tmp_path: Path, pickle: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        assert read_pth(with_pickle(tmp_path / "a.pth", pickle))


def test_a_large_number_of_a_note_takes_no_room(tmp_path: Path) -> None:
    """Python's own reader of pickles makes room for all notes up to the largest number: 32 GB here."""
    assert read_pth(with_pickle(tmp_path / "a.pth", b"}r\xff\xff\xff\xff")) == {}


def test_a_pickle_longer_than_any_list_of_tensors_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"its data\.pkl has 9000003 bytes, which no list of tensors has"):
        read_pth(with_pickle(tmp_path / "a.pth", b"N" * 9_000_000))


def test_a_compressed_archive_is_refused(tmp_path: Path) -> None:
    path = pth_files.write_pth(tmp_path / "a.pth", {"a": np.zeros(10**6, np.float32)}, compression=8)
    assert path.stat().st_size < 10_000
    with pytest.raises(ValueError, match=r"'archive/data\.pkl' is compressed or encrypted"):
        read_pth(path)


def test_values_that_are_shared_too_often_are_refused(tmp_path: Path) -> None:
    values = np.zeros(10_000, np.float32)
    shared = pth_files.tensor(pth_files.storage("FloatStorage", "0", 10_000), 0, (10_000,), (1,))
    path = tmp_path / "a.pth"
    pth_files.write_pth(path, {"a": values}, pickle=pth_files.program({"a": shared, "b": shared}))
    assert set(read_pth(path)) == {"a", "b"}  # as tied embeddings are
    pth_files.write_pth(path, {"a": values}, pickle=pth_files.program(dict.fromkeys("abc", shared)))
    with pytest.raises(ValueError, match="its tensors would take more than 2 times the"):
        read_pth(path)


@pytest.mark.parametrize("keep", [0, 10, 300, -30], ids=["empty", "start", "middle", "end"])
def test_a_truncated_pth_file_is_named(tmp_path: Path, keep: int) -> None:
    path = pth_files.write_pth(tmp_path / "a.pth", {"a": VALUES})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"a\.pth: damaged, or not a \.pth file"):
        read_pth(path)


def test_files_of_torch_before_its_archives_tell_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.")
    with pytest.raises(ValueError, match=r"before version 1\.6; load it with torch and torch\.save it again"):
        read_pth(tmp_path / "a.pth")
