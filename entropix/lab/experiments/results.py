"""The folder of a grid: what was asked for, and the answers so far. Only appended to, some answers at a time.

    manifest.json    everything the results depend on; a folder only takes results of its own manifest
    results.jsonl    an answer a line, in the order of the plan
    timings.jsonl    a line for those that came together: how fast they were, which no repetition gives again

Power may fail at any moment: a line that is half written is dropped when the folder is opened again.
"""

import contextlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from entropix import files
from entropix.checkpoint.values import is_text
from entropix.results import FinishReason
from entropix.trace.schema import check, check_choice

Line = dict[str, Any]
UNTIMED: Mapping[str, Any] = {"tokens": {}, "seconds": 0.0}  # of lines whose time tells nothing
ELSEWHERE = "use another folder, or delete this one"
# What tables and pages are made of; the types are those of traces.
ANSWER = {
    "finish": "string",
    "text": "string",
    "token_ids": "list of integers",
    "new_tokens": "integer",
    "strategies": "object",
    "mean_logprob": "number or null",
    "mean_metrics": "object",
    "logits_entropy": "list of numbers",
}
_OF_PATHS = {  # where it was chosen from several
    "answer": "string or null",
    "paths": "integer",
    "computed_tokens": "integer",
    "forward_passes": "integer",
}
_TIMING = {"answers": "integer", "tokens": "object", "seconds": "number"}
_FINISHES = [finish.name.lower() for finish in FinishReason if finish != FinishReason.RUNNING]
# What JSON can spell and nobody may write: half a character, and numbers that are not finite.
_UNUSUAL = re.compile(rb"\\u|NaN|Infinity|[eE]\+?\d{3}")
MANIFEST, RESULTS, TIMINGS = "manifest.json", "results.jsonl", "timings.jsonl"


class Store:
    """An open folder, which no other process may open. A context manager, which closes it.

    lines: the answers so far; timings: of those of them whose time was kept.
    """

    def __init__(
        self,
        folder: str | Path,
        manifest: Mapping[str, Any],
        keys: Sequence[Mapping[str, Any]],
        kinds: Mapping[str, str] = ANSWER,
    ) -> None:
        """Opens the folder, making it if need be.

        keys: for every answer of the plan the fields by which its line is known. kinds: what else a line has. Raises a
        ValueError where the folder holds something else, or another process has it.
        """
        self._folder = Path(folder)
        files.make_folder(self._folder)
        self._results, self._timings = ((self._folder / name).open("a+b") for name in (RESULTS, TIMINGS))
        try:
            _lock(self._results, self._folder)
            self._check_manifest(manifest)
            self.lines, self.timings = self._read(keys, kinds)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the folder."""
        self._results.close()
        self._timings.close()

    def append(self, lines: Sequence[Line], timing: Mapping[str, Any]) -> None:
        """Adds the next answers of the plan; when this returns, they are on the disk."""
        _append(self._results, lines)
        self.lines += lines
        timed = {**timing, "answers": len(self.lines)}
        _append(self._timings, [timed])
        self.timings.append(timed)

    @property
    def n_lines(self) -> int:
        """How many answers are there."""
        return len(self.lines)

    def _check_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Writes it into a new folder, compares it with that of an old one."""
        path = self._folder / MANIFEST
        text = json.dumps(manifest, ensure_ascii=False, allow_nan=False, indent=1)
        if not path.exists():
            if self._results.seek(0, os.SEEK_END):
                raise ValueError(f"{self._folder}: there is a {RESULTS} without its {MANIFEST}; {ELSEWHERE}")
            files.write_text(path, [text, "\n"], "a manifest")
        if change := difference(read_manifest(self._folder), json.loads(text)):
            raise ValueError(
                f"{self._folder} holds results of something else: {change}; use another folder, or what was used there"
            )

    def _read(
        self, keys: Sequence[Mapping[str, Any]], kinds: Mapping[str, str]
    ) -> tuple[list[Line], list[Line]]:
        """(lines, timings) that are whole; what comes after is cut off the files."""
        path = self._folder / RESULTS
        found, timings = (
            _whole_lines(self._results, path),
            _whole_lines(self._timings, self._folder / TIMINGS),
        )
        for number, ((_, line), key) in enumerate(zip(found, keys, strict=False), start=1):
            if any(line.get(name) != value for name, value in key.items()):
                raise ValueError(f"{path}: line {number} should be the answer of {dict(key)}; {ELSEWHERE}")
            if missing := [name for name in kinds if name not in line]:
                raise ValueError(f"{path}: line {number} has no {missing[0]} as answers have it; {ELSEWHERE}")
            _check_line(line, kinds, f"{path}: line {number}")
        for number, (_, timing) in enumerate(timings, start=1):
            where = f"{self._folder / TIMINGS}: line {number}"
            check(timing, _TIMING, where)
            check(timing["tokens"], dict.fromkeys(timing["tokens"], "integer"), where, "tokens.")
        if len(found) > len(keys):
            raise ValueError(f"{path}: {len(found)} lines for {len(keys)} answers; {ELSEWHERE}")
        n_timings = sum(timing["answers"] <= len(found) for _, timing in timings)
        for file, entries, n in ((self._results, found, len(found)), (self._timings, timings, n_timings)):
            file.truncate(entries[n - 1][0] if n else 0)
        return [line for _, line in found], [timing for _, timing in timings[:n_timings]]


class Follower:
    """What other processes have in place of the store that the first one writes: where it stands."""

    def __init__(self, n_lines: int) -> None:
        """n_lines: how many answers the store has."""
        self.n_lines = n_lines

    def append(self, lines: Sequence[Line], timing: Mapping[str, Any]) -> None:
        """Counts answers that the first process writes."""
        self.n_lines += len(lines)


def _check_line(line: Line, kinds: Mapping[str, str], where: str) -> None:
    """Raises a ValueError for a field that cannot be what it is called."""
    check(line, kinds, where)
    if "finish" not in kinds:
        return
    check(line, {name: kind for name, kind in _OF_PATHS.items() if name in line}, where)
    check_choice(line["finish"], _FINISHES, "finish", where)
    for name, kind in (("strategies", "integer"), ("mean_metrics", "number or null")):
        check(line[name], dict.fromkeys(line[name], kind), where, f"{name}.")


def read_manifest(folder: Path) -> dict[str, Any]:
    """What the results in a folder depend on. Raises a ValueError where that cannot be read, or nobody can write it."""
    path = folder / MANIFEST
    manifest = files.read_json(path)
    _check_writable(manifest, str(path))
    return manifest


def _check_writable(value: Any, where: str) -> None:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError):
        text = "\ud800"
    if not is_text(text):
        raise ValueError(f"{where} has half a character, or a number that is not finite; {ELSEWHERE}")


def difference(before: Any, after: Any, where: str = "") -> str | None:
    """The first thing in which two JSON values differ, in words."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in {**before, **after}:
            place = f"{where}.{name}" if where else name
            if found := difference(before.get(name), after.get(name), place):
                return found
        return None
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return next((found for i, (a, b) in pairs if (found := difference(a, b, f"{where}[{i}]"))), None)
    if before == after:
        return None
    return f"{where} is {_shown(before)} there, {_shown(after)} now"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"a list of {len(value)}"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"


def _append(file: IO[bytes], lines: Sequence[Line]) -> None:
    text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
    file.write(text.encode())
    file.flush()
    os.fsync(file.fileno())


def _whole_lines(file: IO[bytes], path: Path) -> list[tuple[int, Line]]:
    """(where it ends, its object) of each line; a last one without its end is left out."""
    file.seek(0)
    *whole, _ = file.read().split(b"\n")
    lines, end = [], 0
    for number, text in enumerate(whole, start=1):
        end += len(text) + 1
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise ValueError(f"{path}: line {number} is not a JSON object; {ELSEWHERE}")
        if _UNUSUAL.search(text):
            _check_writable(value, f"{path}: line {number}")
        lines.append((end, value))
    return lines


def _lock(file: IO[bytes], folder: Path) -> None:
    """Keeps other processes out until the file is closed, or this process gone. (Not on Windows.)"""
    with contextlib.suppress(ImportError):
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(f"{folder}: another process is working in this folder") from None
