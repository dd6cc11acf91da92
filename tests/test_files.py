"""Reading files: what is no readable regular file is named, before anything waits for it."""

import os
import socket
from pathlib import Path

import pytest

from entropix import files, prompts


def test_a_pipe_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")  # opening it would wait for a writer
    with pytest.raises(ValueError, match=r"config\.json: expected a regular file, but this is a pipe"):
        files.read_json(tmp_path / "config.json")


def test_folders_devices_and_sockets_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # names of sockets are short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("s")
        for path, kind in ((".", "a folder"), ("/dev/zero", "a device"), ("s", "a socket")):
            with pytest.raises(ValueError, match=f"{path}: expected a regular file, but this is {kind}"):
                files.read_text(path)


def test_what_is_open_already_is_read_whatever_it_is() -> None:
    read, write = os.pipe()
    os.write(write, b"handed over")
    os.close(write)
    assert files.read_text(f"/dev/fd/{read}") == "handed over"
    os.close(read)


def test_what_may_not_be_read_is_not_said_to_be_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "stat", refuse)  # the tests may run as root, who may read everything
    monkeypatch.setattr(os, "lstat", refuse)
    for read in (files.read_text, files.is_there):
        with pytest.raises(
            ValueError, match=r"config\.json: you may not read this \(permission denied\); change its"
        ):
            read(tmp_path / "config.json")


def test_a_missing_file_and_a_link_to_one_are_two_things(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    assert not files.is_there(tmp_path / "gone")
    assert files.is_there(tmp_path / "link")
    with pytest.raises(ValueError, match="gone: no such file"):
        files.read_text(tmp_path / "gone")
    with pytest.raises(ValueError, match="link: a link to a file that is not there"):
        files.read_text(tmp_path / "link")


def test_a_file_beyond_the_limit_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(files.MOST_JSON + 1)  # a hole: hardly any disk
    with pytest.raises(
        ValueError, match=r"huge\.json: expected a file of at most 64000000 bytes, but this has 64000001"
    ):
        files.read_json(tmp_path / "huge.json")


@pytest.mark.parametrize(("ending", "text"), [("json", '{"a": 1}'), ("toml", "a = 1")])
def test_a_byte_order_mark_is_no_part_of_any_text(tmp_path: Path, ending: str, text: str) -> None:
    path = tmp_path / f"file.{ending}"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert files.read_text(path) == text
    assert {"json": files.read_json, "toml": files.read_toml}[ending](path) == {"a": 1}


@pytest.mark.parametrize(
    ("ending", "text"),
    [("json", "[" * 100_000), ("json", '{"a":' * 100_000), ("toml", "a = " + "[" * 100_000)],
)
def test_brackets_without_end_are_a_value_error(tmp_path: Path, ending: str, text: str) -> None:
    path = tmp_path / f"file.{ending}"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"file.{ending}: not a readable {ending.upper()} file"):
        {"json": files.read_json, "toml": files.read_toml}[ending](path)


@pytest.mark.parametrize("line", ["[" * 100_000, '{"prompt": ' + "9" * 5000 + "}", '{"prompt": '])
def test_a_line_of_prompts_that_is_no_json_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "p.jsonl").write_text(f'{{"prompt": "a"}}\n{line}\n')
    with pytest.raises(ValueError, match=r"p\.jsonl: line 2: not JSON \("):
        prompts.from_file(tmp_path / "p.jsonl")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a" + ".a" * 100_000 + " = 1", r"not a readable TOML file \(it has a key of more than 50 parts"),
        (
            "a = {a" + """ . "b c"."d\\"e".'f'""" * 17 + " = 1}",
            r"not a readable TOML file \(it has a key of more than 50 parts",
        ),
        ("a = " + "[" * 60 + "]" * 60, "tables and lists stand in each other more than 50 deep"),
        (
            "a = [{b = 0x" + "f" * 17 + "}]",
            "a whole number of TOML has at most 64 bits, got 295147905179352825855",
        ),
        ("a = " + "9" * 5000, r"not a readable TOML file \(Exceeds the limit"),
    ],
    ids=["parts", "quoted parts", "depth", "bits", "digits"],
)
def test_toml_that_nobody_would_write_is_refused_with_its_name(
    tmp_path: Path, text: str, message: str
) -> None:
    """A key of 100,000 parts, a file of 200 kB, would take 40 GB."""
    path = tmp_path / "file.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"file\.toml: {message}"):
        files.read_toml(path)


def test_toml_as_people_write_it_is_read(tmp_path: Path) -> None:
    text = 'a.b."c d" = "' + "x." * 200 + '"\nb = 0xffffffffffffffff\nc = [[[1, 2]]]\n'
    (tmp_path / "file.toml").write_text(text)
    assert files.read_toml(tmp_path / "file.toml")["b"] == 2**64 - 1


@pytest.mark.parametrize("name", ["a\0b", "a\ud800"])
def test_a_name_that_no_file_has_is_no_fault_of_the_reader(name: str) -> None:
    with pytest.raises(ValueError, match=r"^'a.*': no file has such a name$"):
        files.read_text(name)
