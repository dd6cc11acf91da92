"""Writing a trace: what ran, then the tokens of every row. The package says how the file is made."""

import contextlib
import dataclasses
import hashlib
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import jax

import entropix
from entropix import backend, distributed, own_metrics, sharding
from entropix.checkpoint import adapter
from entropix.checkpoint.hf_folder import read_config
from entropix.checkpoint.loading import Model
from entropix.checkpoint.tensors import DTYPES, stored_tensors
from entropix.config import GenerateConfig
from entropix.decoding.request import GenerationRequest, occurrences
from entropix.files import check_writable, replacing
from entropix.metric_labels import METRICS, Label
from entropix.results import Result
from entropix.trace.schema import (
    BATCH,
    FORMAT,
    TURNS,
    VERSION,
)

SAMPLED_BYTES = 4096  # of each tensor; see `fingerprint`


def write(
    path: str | Path,
    request: GenerationRequest,
    results: Sequence[Result],
    turns: bool = False,
    selection: Mapping[str, Any] | None = None,
    paths: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Writes the trace of a request's results, one a prompt. Replaces a file of that name only when complete.

    turns: the results are those of a chat, generated one after the other, and not one batch.
    selection, paths: where the results are paths from one prompt, how one was chosen and what each is; see `PATH`.
    """
    with Writer(path, request, turns, selection, paths) as writer:
        for row, result in enumerate(results):
            writer.add(row, result)


class Writer:
    """A trace that is written while its results come, row by row in any order. A context manager: whatever ends it,
    what was added becomes the file of that name, and before that nothing does. Of several processes only the first
    writes. The arguments are those of `write`.
    """

    def __init__(
        self,
        path: str | Path,
        request: GenerationRequest,
        turns: bool = False,
        selection: Mapping[str, Any] | None = None,
        paths: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self._path, self._is_whole = path, True
        self._file: TextIO | None = None
        self._head = header(request, TURNS if turns else BATCH) | {
            "selection": selection or {},
            "paths": list(paths),
        }

    def __enter__(self) -> "Writer":
        if distributed.is_first():
            check_writable(self._path, "a trace")
            self._stack = contextlib.ExitStack()
            temporary = self._stack.enter_context(replacing(self._path))
            self._file = self._stack.enter_context(temporary.open("w", encoding="utf-8", newline="\n"))
            self._write(self._head)
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None and self._is_whole:
            self._stack.close()
        elif self._file is not None:
            self._stack.__exit__(*sys.exc_info())

    def add(self, row: int, result: Result) -> None:
        """All tokens of a row, and its end."""
        if self._file is not None:
            for line in _row_lines(row, result):
                self._write(line)

    def _write(self, line: Mapping[str, Any]) -> None:
        assert self._file is not None
        try:
            self._file.write(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n")
        except Exception:  # such as a full disk
            self._is_whole = False
            raise


def circumstances(model: Model) -> dict[str, Any]:
    """What ran, and where: releases, devices and model, as a header tells it; and what its chat template is given
    beside a conversation (`template_args`), if that is anything.

    The model's config is its folder's, the same on every mesh: not that of `sharding.widened`.
    """
    return {
        "entropix": entropix.__version__,
        "jax": jax.__version__,
        "backend": jax.default_backend(),
        "device": jax.devices()[0].device_kind,
        "mesh": sharding.as_text(model.mesh),
        "matmul_precision": backend.matmul_precision(),
        "model": {
            "name": model.name,
            "config": read_config(model.folder).as_json(),
            "dtype": model.precision,
            "fingerprint": fingerprint(model.folder),
            **adapter_of(model),
        },
        **({"template_args": dict(model.template_args)} if model.template_args else {}),
    }


def _generation(request: GenerationRequest) -> GenerateConfig:
    """The config, with the seeds and occurrences of the rows where it does not imply them."""
    seeds = tuple(row.seed for row in request.rows)
    counted = tuple(row.occurrence for row in request.rows)
    implied = occurrences(request.prompt_ids, seeds)
    return dataclasses.replace(
        request.config,
        seeds=() if {*seeds} <= {request.config.seed} else seeds,
        occurrences=() if counted == implied else counted,
    )


def header(request: GenerationRequest, rows: str = BATCH) -> dict[str, Any]:
    """The first line of a request's trace."""
    own = own_metrics.registered()
    if request.numbers_differ:
        raise ValueError(
            "a trace has one set of numbers, but here each row has its own; write one for each set"
        )
    return {
        "format": FORMAT,
        "version": VERSION,
        **circumstances(request.model),
        "template_args": dict(request.model.template_args),
        "sampler": request.sampler.name,
        "preset": request.preset or request.sampler.name,
        "strategies": list(request.sampler.strategies),
        "sampler_config": dataclasses.asdict(request.sampler_config),
        "sampler_source": None if request.sampler_source is None else request.sampler_source._asdict(),
        "generation": dataclasses.asdict(_generation(request)),
        "rows": rows,
        "prompts": [
            {"token_ids": ids, "text": request.model.tokenizer.decode(ids)} for ids in request.prompt_ids
        ],
        "selection": {},
        "paths": [],
        "metrics": [{"name": m.name, "title": m.title, "unit": m.unit, "meaning": m.meaning} for m in own],
    }


def metric_labels_of(headers: Sequence[Mapping[str, Any]]) -> dict[str, Label]:
    """How the metrics in these traces are shown, by name: the built-in ones, then those of one's own."""
    own = (metric for header in headers for metric in header["metrics"])
    return METRICS | {m["name"]: Label(m["title"], m["unit"], m["meaning"]) for m in own}


def comments(model: Model) -> Iterator[str]:
    """Lines of a preset that was chosen for a model: which it was."""
    yield f"# model: {json.dumps(model.name)}, {model.precision}"
    yield f"# fingerprint, as in a trace: {fingerprint(model.folder)}"
    yield from (f"# adapter: {json.dumps(told)}" for told in adapter_of(model).values())
    if model.template_args:
        yield f"# template_args: {json.dumps(dict(model.template_args))}"


def adapter_of(model: Model) -> dict[str, dict[str, str]]:
    """The name and the fingerprint of the adapter that was merged into a model, if there is one."""
    if model.adapter is None:
        return {}
    told = {"name": model.adapter.resolve().name, "fingerprint": adapter.fingerprint(model.adapter)}
    return {"adapter": told}


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


def _row_lines(row: int, result: Result) -> Iterator[dict[str, Any]]:
    for step, record in enumerate(result.records):
        yield {"row": row, "step": step, **record}
    yield {
        "row": row,
        "finish": result.finish.name.lower(),
        "reason": result.finish.sentence,
        "new_tokens": len(result.token_ids),
        "text": result.text,
    }
