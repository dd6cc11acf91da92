"""Damaged files of weights, by the hundred: each is read, or refused in one sentence, and nothing hangs.

The cases are the same in every run. Each begins with a good file of one kind and changes some of it: bytes anywhere,
words of eight bytes by which counts and offsets are written, a cut, a doubled piece; or a value of a text by another.
"""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folders
import foreign
import pth_files
import pytest
import toy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_meta import llama3_tokenizer

from entropix.checkpoint.convert import convert
from entropix.checkpoint.tensors import check

SECONDS = 5.0  # that a case may take; a good file takes a hundredth
bounded = settings(
    max_examples=40,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

NUMBERS = st.sampled_from([0, 1, 2, 7, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 10**12, 2**62, 2**63, 2**64 - 1])
BYTES = st.tuples(st.just("bytes"), st.floats(0, 1), st.binary(min_size=1, max_size=4))
WORD = st.tuples(st.just("word"), st.floats(0, 1), NUMBERS)
CUT = st.tuples(st.just("cut"), st.floats(0, 1), st.none())
TWICE = st.tuples(st.just("twice"), st.floats(0, 1), st.integers(1, 64))
CHANGES = st.lists(st.one_of(BYTES, WORD, WORD, CUT, TWICE), min_size=1, max_size=4)
VALUES = st.one_of(
    st.sampled_from(
        [None, True, "", "x", [], {}, [1], {"a": 1}, 0, -1, 0.5, 10**7, 2**40, 2**70, -(2**63), 1e308]
    ),
    st.integers(),
    st.text(max_size=5),
)


def changed(data: bytes, changes: list[tuple[str, float, Any]], length: int) -> bytes:
    """The bytes with changes among the first of them, so many."""
    for kind, where, what in changes:
        at = int(where * min(length, len(data)))
        if kind == "bytes":
            data = data[:at] + what + data[at + len(what) :]
        elif kind == "word":
            data = data[:at] + what.to_bytes(8, "little") + data[at + 8 :]
        elif kind == "cut":
            data = data[:at]
        else:
            data = data[:at] + data[at : at + what] + data[at:]
    return data


def holds(read: Callable[[], Any]) -> None:
    """Reading works, or raises a ValueError of one sentence (and a list of faults at most), and does so soon."""
    start = time.monotonic()
    try:
        read()
    except ValueError as error:
        sentence, *faults = str(error).split("\n")
        assert 0 < len(sentence) < 1000
        assert "Traceback" not in sentence
        assert len(faults) < 25
        assert type(error) is ValueError
    assert time.monotonic() - start < SECONDS


def into_a_new_folder(source: Path, work: Path) -> Callable[[], None]:
    def read() -> None:
        try:
            convert(source, work / "out")
        finally:
            shutil.rmtree(work / "out", ignore_errors=True)

    return read


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good file or folder of each kind."""
    root = tmp_path_factory.mktemp("good")
    cfg = toy.config(n_layers=1)
    tensors = folders.random_tensors(cfg)
    foreign.write_gguf(root / "model.gguf", foreign.gguf_tensors(tensors, cfg), foreign.gguf_metadata(cfg))
    meta = root / "meta"
    meta.mkdir()
    wide = toy.config(n_layers=1, vocab_size=512)
    foreign.write_meta(meta, wide, 1, llama3_tokenizer())
    stored = foreign.meta_tensors(folders.random_tensors(wide), wide)
    pth_files.write_pth(meta / "consolidated.00.pth", stored)
    hf = root / "hf"
    hf.mkdir()
    folders.write_config(hf, num_hidden_layers=1)
    folders.write_tensors(hf, tensors, n_files=2)
    return root


def test_the_good_files_are_read(good: Path, tmp_path: Path) -> None:
    """The tests below would pass on anything if these were refused."""
    into_a_new_folder(good / "model.gguf", tmp_path)()
    into_a_new_folder(good / "meta", tmp_path)()
    check(good / "hf", toy.config(n_layers=1))


@bounded
@given(changes=CHANGES, in_header=st.booleans())
def test_a_damaged_gguf_file(good: Path, tmp_path: Path, changes: list[Any], in_header: bool) -> None:
    data = (good / "model.gguf").read_bytes()
    path = tmp_path / "model.gguf"
    path.write_bytes(changed(data, changes, 8000 if in_header else len(data)))
    holds(into_a_new_folder(path, tmp_path))


@pytest.mark.slow
@bounded
@given(key=st.sampled_from(sorted({**foreign.gguf_metadata(toy.config()), "split.count": 1})), value=VALUES)
def test_a_value_of_another_kind_in_a_gguf_file(tmp_path: Path, key: str, value: Any) -> None:
    cfg = toy.config(n_layers=1)
    if value == {} or value == {"a": 1} or value == [] or (isinstance(value, int) and not 0 <= value < 2**32):
        value = str(value)  # what the format cannot say
    if isinstance(value, float) and value > 3e38:
        value = float("inf")
    foreign.write_gguf(
        tmp_path / "model.gguf",
        foreign.gguf_tensors(folders.random_tensors(cfg), cfg),
        foreign.gguf_metadata(cfg) | {key: value},
    )
    holds(into_a_new_folder(tmp_path / "model.gguf", tmp_path))


@bounded
@given(changes=CHANGES, in_end=st.booleans())
def test_a_damaged_pth_file(good: Path, tmp_path: Path, changes: list[Any], in_end: bool) -> None:
    """Its pickle is at the beginning, the archive's list of members at the end."""
    folder = tmp_path / "meta"
    shutil.copytree(good / "meta", folder, dirs_exist_ok=True)
    data = (folder / "consolidated.00.pth").read_bytes()
    start, end = (data[:-1500], data[-1500:]) if in_end else (b"", data)
    (folder / "consolidated.00.pth").write_bytes(start + changed(end, changes, 4000))
    holds(into_a_new_folder(folder, tmp_path))


@bounded
@given(changes=CHANGES)
def test_a_damaged_pickle(good: Path, tmp_path: Path, changes: list[Any]) -> None:
    """In an archive that is whole, so that what notices is the reader of the pickle."""
    folder = tmp_path / "meta"
    shutil.copytree(good / "meta", folder, dirs_exist_ok=True)
    cfg = toy.config(n_layers=1, vocab_size=512)
    stored = foreign.meta_tensors(folders.random_tensors(cfg), cfg)
    program = pth_files.program(
        {name: pth_files.plain(a, str(i)) for i, (name, a) in enumerate(stored.items())}
    )
    pickle = changed(program, changes, len(program))
    pth_files.write_pth(folder / "consolidated.00.pth", stored, pickle=pickle)
    holds(into_a_new_folder(folder, tmp_path))


@bounded
@given(
    key=st.sampled_from([*foreign.params(toy.config()), "rope_scaling_factor", "model", "x"]), value=VALUES
)
def test_a_value_of_another_kind_in_params(good: Path, tmp_path: Path, key: str, value: Any) -> None:
    folder = tmp_path / "meta"
    shutil.copytree(good / "meta", folder, dirs_exist_ok=True)
    params = json.loads((folder / "params.json").read_text())
    (folder / "params.json").write_text(json.dumps(params | {key: value}))
    holds(into_a_new_folder(folder, tmp_path))


@bounded
@given(
    changes=CHANGES,
    name=st.sampled_from(["model-00001-of-00002.safetensors", "model.safetensors.index.json"]),
)
def test_a_damaged_safetensors_file_or_its_index(
    good: Path, tmp_path: Path, changes: list[Any], name: str
) -> None:
    folder = tmp_path / "hf"
    shutil.copytree(good / "hf", folder, dirs_exist_ok=True)
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(changed(data, changes, 2000))
    holds(lambda: check(folder, toy.config(n_layers=1)))


@bounded
@given(value=VALUES, whole=st.booleans())
def test_a_value_of_another_kind_in_an_index(good: Path, tmp_path: Path, value: Any, whole: bool) -> None:
    folder = tmp_path / "hf"
    shutil.copytree(good / "hf", folder, dirs_exist_ok=True)
    index = json.loads((good / "hf" / "model.safetensors.index.json").read_text())
    index["weight_map"] = value if whole else index["weight_map"] | {"model.norm.weight": value}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    holds(lambda: check(folder, toy.config(n_layers=1)))
