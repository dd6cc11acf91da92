"""What one device and several meshes of simulated ones answer, computed in a process of their own (`apart`)."""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import conftest  # noqa: F401  before JAX: the compiler's flags, and the strictness of the tests
import jax
import meshes
import toy

from entropix.decoding.session import Session
from entropix.generation import collect, prepare, run
from entropix.results import Result

# Two key/value heads, which four and eight devices have twice and four times; all else is divided.
MODEL = toy.model_of(n_heads=8, n_kv_heads=2, vocab_size=264, tied_embeddings=False)
PROMPTS = [[1, 2, 3, 4, 5], [200, 7], [9] * 40, [8], [5, 6] * 35, [77, 78, 79], [250], [31, 4, 15, 9, 26]]
LENGTH = 40  # tokens: more than a tail
EVERYTHING = {"alternatives": 3, "head_entropies": True}

# Of each sampler two sets of numbers, which one program serves. The toy has about 7.2 bits of entropy and 2.2 bits² of
# varentropy, and the thresholds are such that every strategy has its turn.
NUMBERS: dict[str, list[dict[str, Any]]] = {
    "entropix": [
        {"low_ent_thresh": 100.0, "low_vent_thresh": 100.0, "clarifier": "hm"},  # flow, which is greedy
        {
            "low_ent_thresh": 7.3, "low_vent_thresh": 1.9, "med_ent_thresh": 7.05, "high_ent_thresh": 7.1,
            "high_vent_thresh": 2.2, "clarifier": "hm",
        },
    ],
    "temperature": [{"temp": 0.05}, {"temp": 0.7}],
}  # fmt: skip


def answer(rows: Session, sampler: str, numbers: Mapping[str, Any]) -> list[Result]:
    """The session's results for the first prompts, as many as it has rows."""
    job = prepare(
        rows._model,
        PROMPTS[: len(rows.costs.row_passes_B)],
        sampler=sampler,
        sampler_config=numbers,
        seed=5,
        max_new_tokens=LENGTH,
        chunk_length=7,
        **EVERYTHING,
    )
    return collect(job, run(job, rows))


# Shape, rows, sampler. Three rows are not divided by four devices.
MESHES = (
    ("data=2,model=4", 4, "entropix"),
    ("model=8", 3, "entropix"),
    ("data=4,model=2", 3, "temperature"),
    ("data=8", 8, "temperature"),
)
_COUNTED = ("decode_chunk", "commit")


class Answers(NamedTuple):
    """Of one device, by sampler; of each mesh, with how often it compiled step and commit. For each set of numbers."""

    alone: dict[str, list[list[Result]]]
    there: dict[tuple[str, int, str], tuple[list[list[Result]], list[list[int]]]]


def compute() -> Answers:
    """All of them."""
    alone = {}
    for sampler, both in NUMBERS.items():
        rows = Session(MODEL, len(PROMPTS))
        alone[sampler] = [answer(rows, sampler, numbers) for numbers in both]
    return Answers(alone, {mesh: _on_mesh(*mesh) for mesh in MESHES})


def _on_mesh(shape: str, n_rows: int, sampler: str) -> tuple[list[list[Result]], list[list[int]]]:
    rows = Session(meshes.on_mesh(MODEL, shape), n_rows)
    results, compiled = [], []
    for numbers in NUMBERS[sampler]:
        logged = _Messages()
        logging.getLogger("jax").addHandler(logged)
        with jax.log_compiles():
            results.append(answer(rows, sampler, numbers))
        logging.getLogger("jax").removeHandler(logged)
        compiled.append([logged.text.count(f"Compiling jit({name})") for name in _COUNTED])
    return results, compiled


class _Messages(logging.Handler):
    """What was logged, as one text."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += record.getMessage()
