"""Files of weights as they come: pointers, pipes, files of others, names that lead elsewhere."""

import os
from pathlib import Path

import folders
import foreign
import numpy as np
import pth_files
import pytest
import toy
from safetensors.numpy import save_file

from entropix.checkpoint import tensors
from entropix.checkpoint.convert import convert, gguf_header
from entropix.checkpoint.convert.pth_file import read_pth
from entropix.checkpoint.weight_files import check_file

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 4400000000\n"


def read(path: Path) -> None:
    """Opens a file as what its name says."""
    if path.suffix == ".safetensors":
        tensors.stored_tensors(path.parent)
    elif path.suffix == ".gguf":
        convert(path, path.parent / "out")
    else:
        read_pth(path)


NAMES = ["model.safetensors", "model.gguf", "consolidated.00.pth"]


@pytest.mark.parametrize("name", NAMES)
def test_a_git_lfs_pointer_is_called_so(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(ValueError, match=rf"{name}: this is a Git LFS pointer.*`git lfs pull`"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", NAMES)
def test_a_pipe_is_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name}: expected a regular file, but this is a pipe"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", NAMES)
def test_a_device_is_not_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=f"{name}: expected a regular file, but this is a device"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_may_not_be_read_is_not_called_absent(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permissions do not bind the superuser, under whom tests may run, so that opening refuses by itself here."""

    def refuse(path: Path, *args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / name).write_bytes(b"GGUF")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ValueError, match=rf"{name}: you may not read this \(permission denied\)"):
        read(tmp_path / name)


def test_a_file_that_is_not_there_is_called_absent(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="absent: no such file"):
        check_file(tmp_path / "absent")


# ----- names in an index ------------------------------------------------------------------------------------


def indexed(folder: Path, name: str) -> None:
    """A folder whose index names one file of that name."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors.index.json").write_text(f'{{"weight_map": {{"a": "{name}"}}}}')


@pytest.mark.parametrize(
    "name", ["../outside.safetensors", "{tmp}/outside.safetensors", "sub/../../outside.safetensors"]
)
def test_an_index_names_no_file_outside_its_folder(tmp_path: Path, name: str) -> None:
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "outside.safetensors")
    (tmp_path / "in" / "sub").mkdir(parents=True)
    indexed(tmp_path / "in", name.format(tmp=tmp_path))
    with pytest.raises(
        ValueError, match=r"index\.json: it names '.*'; expected the name of a file in the same folder"
    ):
        tensors.stored_tensors(tmp_path / "in")


def test_a_link_out_of_the_folder_is_followed_only_into_the_cache_of_hugging_face(tmp_path: Path) -> None:
    repository = tmp_path / "models--org--toy"
    snapshot = repository / "snapshots" / "c0ffee"
    indexed(snapshot, "model-1.safetensors")
    (repository / "blobs").mkdir()
    save_file({"a": np.zeros(2, np.float32)}, repository / "blobs" / "0123")
    (snapshot / "model-1.safetensors").symlink_to("../../blobs/0123")
    assert tensors.stored_tensors(snapshot)["a"].shape == (2,)
    (snapshot / "model-1.safetensors").unlink()
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "outside")
    (snapshot / "model-1.safetensors").symlink_to(tmp_path / "outside")
    with pytest.raises(
        ValueError, match=r"it names 'model-1\.safetensors', a link to .*outside outside the folder"
    ):
        tensors.stored_tensors(snapshot)


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    indexed(tmp_path, "loop.safetensors")
    (tmp_path / "loop.safetensors").symlink_to("loop.safetensors")
    with pytest.raises(ValueError, match=r"loop\.safetensors"):
        tensors.stored_tensors(tmp_path)


# ----- counts and sizes -------------------------------------------------------------------------------------


def test_a_header_longer_than_its_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match=r"a header of 4611686018427387904 bytes in a file of 10"):
        tensors.stored_tensors(tmp_path)


def test_more_layers_than_tensors_are_refused_before_they_are_listed(tmp_path: Path) -> None:
    folders.write_tensors(tmp_path, folders.random_tensors(toy.config()))
    with pytest.raises(
        ValueError, match=r"config\.json implies 1000000000 layers, but there are only 20 tensors"
    ):
        tensors.check(tmp_path, toy.config(n_layers=10**9))


def test_of_many_faults_the_first_are_listed(tmp_path: Path) -> None:
    save_file({f"t{i:02}": np.zeros(1, np.float32) for i in range(30)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="do not fit") as raised:
        tensors.check(tmp_path, toy.config())
    lines = str(raised.value).splitlines()
    assert (len(lines), lines[-1]) == (22, "  and 30 more")


def changed(path: Path, offset: int, data: bytes) -> Path:
    """A file with other bytes at a place."""
    old = path.read_bytes()
    path.write_bytes(old[:offset] + data + old[offset + len(data) :])
    return path


def place(path: Path, text: str, after: int = 0) -> int:
    """The byte after the first of a text, and so many more."""
    return path.read_bytes().index(text.encode()) + len(text) + after


HUGE = (10**12).to_bytes(8, "little")


@pytest.mark.parametrize(
    ("at", "message"),
    [
        (8, "it promises 1000000000000 tensors in the"),
        (16, "it promises 1000000000000 entries of metadata in the"),
        (24, "a key would take 1000000000000 bytes from byte 32 on"),
    ],
    ids=["tensors", "entries", "key"],
)
def test_counts_beyond_the_end_of_a_gguf_file_are_refused(tmp_path: Path, at: int, message: str) -> None:
    with pytest.raises(ValueError, match=f"empty, truncated or not a GGUF file .{message}"):
        gguf_header.read_gguf(changed(foreign.toy_gguf(tmp_path), at, HUGE))


@pytest.mark.parametrize(
    ("text", "after", "data", "message"),
    [
        ("general.architecture", 4, HUGE, "general.architecture would take 1000000000000 bytes"),
        ("tokenizer.ggml.tokens", 8, HUGE, "1000000000000 texts in tokenizer.ggml.tokens"),
        ("tokenizer.ggml.token_type", 8, HUGE, "1000000000000 items in tokenizer.ggml.token_type"),
        (
            "tokenizer.ggml.token_type",
            4,
            b"\x09\0\0\0",
            "token_type is an array of type 9, which is not supported",
        ),
        ("general.architecture", 0, b"\x63\0\0\0", "general.architecture is of the unknown type 99"),
        ("token_embd.weight", 0, b"\x05\0\0\0", "token_embd.weight must have 1 to 4 dimensions, got 5"),
        ("token_embd.weight", 4, HUGE, r"token_embd.weight would take \d{15,} bytes"),
        ("token_embd.weight", 4, bytes(8), r"token_embd.weight is empty, of shape \[259, 0\]"),
        (
            "token_embd.weight",
            20,
            b"\x04\0\0\0",
            "token_embd.weight is of the retired type Q4_2, which cannot be read",
        ),
        ("token_embd.weight", 20, b"\x1f\0\0\0", "token_embd.weight is of the retired type Q4_0_4_4,"),
        (
            "token_embd.weight",
            20,
            b"\xe7\3\0\0",
            "token_embd.weight is of the unknown type 999, which cannot",
        ),
        (
            "token_embd.weight",
            20,
            b"\x0c\0\0\0",
            "of type Q4_K, whose rows are multiples of 256 values; got rows of 32",
        ),
        ("token_embd.weight", 24, HUGE, "token_embd.weight would take 33152 bytes from byte 1000000"),
        ("blk.0.attn_norm.weight", 16, bytes(8), r"(begins inside the tensor before it|token_embd)"),
    ],
)
def test_what_a_gguf_file_cannot_mean_is_refused_by_name(
    tmp_path: Path, text: str, after: int, data: bytes, message: str
) -> None:
    path = foreign.toy_gguf(tmp_path)
    with pytest.raises(ValueError, match=message):
        gguf_header.read_gguf(changed(path, place(path, text, after), data))


@pytest.mark.parametrize(
    ("version", "what"), [(1, "of version 1"), (4, "of version 4"), (3 << 24, "big-endian")]
)
def test_other_versions_of_gguf_are_named(tmp_path: Path, version: int, what: str) -> None:
    path = changed(foreign.toy_gguf(tmp_path), 4, version.to_bytes(4, "little"))
    with pytest.raises(
        ValueError, match=f"a GGUF file {what}; expected one of version 2 or 3, little endian"
    ):
        gguf_header.read_gguf(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tokenizer__ggml__bos_token_id": "<s>"},
            r"bos_token_id must be one whole number from 0 to 258, got '<s>'",
        ),
        (
            {"tokenizer__ggml__eot_token_id": 259},
            r"eot_token_id must be one whole number from 0 to 258, got 259",
        ),
        (
            {"llama__block_count": "two"},
            "llama.block_count must be one whole number of at least 1, got 'two'",
        ),
        ({"llama__block_count": 10**9}, "llama.block_count is 1000000000, but there are only 20 tensors"),
        ({"llama__attention__layer_norm_rms_epsilon": "small"}, "must be one number above 0, got 'small'"),
        (
            {"llama__rope__freq_base": float("nan")},
            "llama.rope.freq_base must be one number above 0, got nan",
        ),
        ({"tokenizer__ggml__add_bos_token": 1}, "add_bos_token must be true or false, got 1"),
        ({"tokenizer__ggml__tokens": "all"}, "tokenizer.ggml.tokens must be a list of texts, got 'all'"),
        (
            {"tokenizer__ggml__tokens": [1, 2, 3]},
            r"tokenizer.ggml.tokens must be a list of texts, got \[1, 2, 3\]",
        ),
        ({"tokenizer__ggml__token_type": ["a"]}, r"must be a list of 259 whole numbers, got \['a'\]"),
        ({"tokenizer__chat_template": 5}, "tokenizer.chat_template must be a text, got 5"),
        ({"tokenizer__ggml__model": 5}, "tokenizer.ggml.model must be a text, got 5"),
        ({"llama__expert_count": "none"}, "llama.expert_count is 'none'; only 0 is supported"),
        ({"split__count": "all"}, "split.count must be one whole number of at least 0, got 'all'"),
        ({"general__alignment": 7}, "general.alignment must be a power of two, got 7"),
    ],
)
def test_values_of_another_kind_are_named(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{tmp_path}/model\.gguf: .*{message}"):
        convert(foreign.toy_gguf(tmp_path, **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_embedding_of_one_dimension_is_refused(tmp_path: Path) -> None:
    path = foreign.toy_gguf(tmp_path, {"token_embd.weight": np.zeros(259 * 32, np.float32)})
    with pytest.raises(
        ValueError, match=r"token_embd\.weight must have two dimensions, it is of shape \[8288\]"
    ):
        convert(path, tmp_path / "out")


# ----- .pth -------------------------------------------------------------------------------------------------

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
