"""Traces: a generation as JSON lines, from which it can be read, checked and repeated.

A trace is UTF-8 text with one JSON object a line. null stands for numbers that are not finite.

    the header    {"format": "entropix-trace", "version": 1, ...}: everything needed to repeat the generation
    a token       {"row": 0, "step": 0, "id": 504, "text": "The", "strategy": "adaptive", ...}
    a row's end   {"row": 0, "finish": "stop_token", "reason": "...", "new_tokens": 57, "text": "The sky ..."}

A row is a prompt, counted from 0. Rows come one after the other, each with its tokens in order and its end; a
file that lacks the end of a row is truncated. A token has the fields of `generation.Result.records`.

The header has `entropix` and `jax` (versions), `backend` and `device` (where it ran), `model` (`name`,
`config`, `dtype`, `fingerprint`), `sampler`, `strategies`, `sampler_config`, `generation` (with the seed) and
`prompts`: for each row the `token_ids`, and the `text` as the model saw it, chat template included. `version`
rises when a field goes or changes its meaning; readers ignore fields they do not know.
"""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

import entropix
from entropix import config
from entropix.checkpoint import DTYPES, stored_tensors
from entropix.config import GenerateConfig, SamplerConfig
from entropix.decode import Finish
from entropix.generation import Job, Result

FORMAT, VERSION = "entropix-trace", 1
SAMPLED_BYTES = 4096  # of each tensor; see `fingerprint`


class Trace(NamedTuple):
    """A trace that was read. `results` are those that were written: `entropix.generate` gives the same type.

    The same tokens again, given the same weights and backend:

        from entropix import trace

        read = trace.read("trace.jsonl")
        entropix.generate(model, read.prompts, **read.options)
    """

    header: dict[str, Any]
    results: list[Result]

    @property
    def prompts(self) -> list[list[int]]:
        """Token ids of the prompts."""
        return [result.prompt_ids for result in self.results]

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of `entropix.generate` that repeat the generation."""
        sampler_config = config.from_mapping(SamplerConfig, self.header["sampler_config"], "sampler_config")
        generation = config.from_mapping(GenerateConfig, self.header["generation"], "generation")
        return {
            "sampler": self.header["sampler"],
            "sampler_config": sampler_config,
            **{field.name: getattr(generation, field.name) for field in dataclasses.fields(generation)},
        }


# ----- writing ----------------------------------------------------------------------------------------------


def check_writable(path: str | Path) -> None:
    """Raises a ValueError where `write` would fail; for calling before the work that is to be traced."""
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise ValueError(f"{path}: a trace needs a regular file to write to, and this is something else")
        if not path.resolve().parent.is_dir():
            folder = path.resolve().parent
            raise ValueError(f"{path}: cannot write a trace there, the folder {folder} does not exist")
        temporary = _temporary(path)
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        raise ValueError(f"{path}: cannot write a trace there ({error.strerror})") from None


def write(path: str | Path, job: Job, results: Sequence[Result]) -> None:
    """Writes the trace of a job's results, one a prompt. Replaces a file of that name only when complete."""
    check_writable(path)
    temporary = _temporary(Path(path))
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            for line in _lines(job, results):
                file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        temporary.replace(Path(path).resolve())
    finally:
        temporary.unlink(missing_ok=True)


def header(job: Job) -> dict[str, Any]:
    """The first line of a job's trace."""
    model = job.model
    return {
        "format": FORMAT,
        "version": VERSION,
        "entropix": entropix.__version__,
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "model": {
            "name": model.folder.resolve().name,
            "config": dataclasses.asdict(model.config),
            "dtype": model.dtype.name,
            "fingerprint": fingerprint(model.folder),
        },
        "sampler": job.sampler.name,
        "strategies": list(job.sampler.strategies),
        "sampler_config": dataclasses.asdict(job.sampler_config),
        "generation": dataclasses.asdict(job.config),
        "prompts": [{"token_ids": ids, "text": model.tokenizer.decode(ids)} for ids in job.prompt_ids],
    }


def fingerprint(folder: Path) -> str:
    """SHA-256 that tells checkpoints apart without reading gigabytes.

    Hashed are, for every tensor by name, its name, dtype and shape and its first 4096 bytes: enough to tell
    fine-tunings of one architecture apart. It does not prove that two checkpoints are the same.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(stored_tensors(folder).items()):
        size = DTYPES[tensor.dtype].itemsize * math.prod(tensor.shape)
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        with tensor.file.open("rb") as file:
            file.seek(tensor.offset)
            digest.update(file.read(min(size, SAMPLED_BYTES)))
    return digest.hexdigest()


def _lines(job: Job, results: Sequence[Result]) -> Iterator[dict[str, Any]]:
    yield header(job)
    for row, result in enumerate(results):
        for step, record in enumerate(result.records):
            yield {"row": row, "step": step, **record}
        yield {
            "row": row,
            "finish": result.finish.name.lower(),
            "reason": result.finish.sentence,
            "new_tokens": len(result.token_ids),
            "text": result.text,
        }


def _temporary(path: Path) -> Path:
    """A name beside the file itself (not beside a link to it), so that replacing is atomic."""
    target = path.resolve()
    return target.with_name(f".{target.name}.{os.getpid()}.tmp")


# ----- reading ----------------------------------------------------------------------------------------------


def read(path: str | Path) -> Trace:
    """The trace in a file. Raises a ValueError that names the file and line when it is not a whole trace."""
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read as a trace ({error})") from None
    head = _object(lines[0], f"{path}: line 1")
    if head.get("format") != FORMAT:
        raise ValueError(f'{path}: not a trace; its first line should have "format": "{FORMAT}"')
    if head.get("version") != VERSION:
        raise ValueError(
            f"{path}: a trace of version {head.get('version')!r}, but this entropix reads {VERSION}"
        )

    try:
        results = [Result(prompt["token_ids"]) for prompt in head["prompts"]]
        for number, line in enumerate(lines[1:], start=2):
            _add_line(results, _object(line, f"{path}: line {number}"), f"{path}: line {number}")
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: damaged; a line lacks a field or has one of a wrong type ({error!r})"
        ) from None
    if open_rows := [row for row, result in enumerate(results) if result.finish == Finish.RUNNING]:
        raise ValueError(f"{path}: truncated; the end of row {open_rows[0]} is missing")
    return Trace(head, results)


def _add_line(results: list[Result], line: dict[str, Any], where: str) -> None:
    """Adds a token or a row's end to its result."""
    row = line.pop("row")
    if not 0 <= row < len(results):
        raise ValueError(f"{where}: row {row}, but the header has {len(results)} prompts")
    result = results[row]
    if result.finish != Finish.RUNNING:
        raise ValueError(f"{where}: row {row} has already ended")
    if "finish" in line:
        if line["new_tokens"] != len(result.records):
            raise ValueError(
                f"{where}: row {row} has {len(result.records)} tokens, but ends after {line['new_tokens']}"
            )
        result.finish, result.text = Finish[line["finish"].upper()], line["text"]
    elif line.pop("step") != len(result.records):
        raise ValueError(f"{where}: expected step {len(result.records)} of row {row}")
    else:
        result.token_ids.append(line["id"])
        result.records.append(line)


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not JSON ({error}); the file is no trace, or cut short") from None
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected a JSON object, got a {type(value).__name__}")
    return value
