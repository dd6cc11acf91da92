"""Texts read by the model, and answers of its own read back: a line a document, kept as soon as it is read.

A position's numbers are those before the next token is known, so that whether it is the likeliest can be asked of them.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from entropix import generation, scoring, trace
from entropix.checkpoint.loading import Model
from entropix.lab.evaluation.protocol import Asked, Protocol, encoded
from entropix.lab.experiments import running
from entropix.lab.experiments.results import UNTIMED, Line
from entropix.lab.tasks import Item
from entropix.metrics import Metrics

TEXTS, DRAWN, GREEDY = "texts", "drawn", "greedy"
SIGNAL = "signal"
COLUMNS = ("logprob", "rank", *Metrics._fields)
_TURN = 8  # documents that are read, and kept, together
_DIGITS = 6


class Document(NamedTuple):
    """What is to be read: a given text, or the model's answer to an item."""

    kind: str
    name: str
    text: str = ""
    asked: Asked | None = None
    item: Item | None = None

    @property
    def key(self) -> dict[str, str]:
        """What names its line."""
        return {"kind": self.kind, "document": self.name}


def plan(protocol: Protocol) -> list[Document]:
    """Given texts; answers drawn at temperature 1; greedy answers. Tasks take turns, so that few answers are of all."""
    given = [Document(TEXTS, str(i), text) for i, text in enumerate(protocol.signal.documents())]
    n = protocol.signal.answers
    return [
        *given,
        *_answers(DRAWN, protocol.tasks, n),
        *_answers(GREEDY, [asked for asked in protocol.tasks if asked.task.is_closed], n),
    ]


def _answers(kind: str, asked: Sequence[Asked], n: int) -> list[Document]:
    most = max((len(each.items) for each in asked), default=0)
    found = [
        Document(kind, f"{each.label}: {each.items[i].id}", "", each, each.items[i])
        for i in range(most)
        for each in asked
        if i < len(each.items)
    ]
    return found[:n]


def read(model: Model, protocol: Protocol, folder: Path) -> list[Line]:
    """The lines of all documents, of which those that are kept already are not read again; none in processes but the
    first."""
    planned = plan(protocol)
    manifest = {"format": "entropix-documents", **trace.circumstances(model), "digest": protocol.digest}
    keys = [document.key for document in planned]
    with running.kept(str(folder / SIGNAL), manifest, keys, {"columns": "object"}) as store:
        done = store.n_lines
        pace = running.Pace()
        with running.progress(len(planned), done, "documents") as advance:
            for kind, documents in _turns(planned[done:]):
                texts = _token_ids(model, protocol, kind, documents)
                lines = list(_lines(model, documents, texts))
                store.append(lines, UNTIMED)
                done += len(lines)
                pace.add(kind, len(lines), sum(len(text.token_ids) for text in texts))
                advance(len(lines), kind, pace.tell(len(planned) - done))
        return list(getattr(store, "lines", []))


def _turns(documents: Sequence[Document]) -> Iterator[tuple[str, list[Document]]]:
    """Some documents of one kind after the other."""
    for kind in (TEXTS, DRAWN, GREEDY):
        mine = [document for document in documents if document.kind == kind]
        for start in range(0, len(mine), _TURN):
            yield kind, mine[start : start + _TURN]


class _Text(NamedTuple):
    """Token ids, and from which on they count."""

    token_ids: list[int]
    start: int
    answer: str


def _token_ids(model: Model, protocol: Protocol, kind: str, documents: Sequence[Document]) -> list[_Text]:
    if kind == TEXTS:
        context = model.config.context_length
        texts = [model.tokenizer.encode_text(document.text) for document in documents]
        return [_Text(ids[:context], 1, "") for ids in texts]  # what is longer counts with its beginning
    items = [document.item for document in documents if document.item is not None]
    sampler: dict[str, Any] = {"sampler": "greedy"}
    if kind == DRAWN:
        sampler = {"sampler": "temperature", "temp": 1.0}
    results = generation.generate(
        model,
        [encoded(model, protocol, item) for item in items],
        seed=protocol.seeds[0],
        max_new_tokens=protocol.signal.max_new_tokens,
        **sampler,
    )
    return [
        _Text([*result.prompt_ids, *result.token_ids], len(result.prompt_ids), result.text)
        for result in results
    ]


def _lines(model: Model, documents: Sequence[Document], texts: Sequence[_Text]) -> Iterator[Line]:
    scored = scoring.score(model, [text.token_ids for text in texts])
    for document, text, found in zip(documents, texts, scored, strict=True):
        records = [
            record
            for record in found.records[text.start - 1 : -1]
            if all(record[name] is not None for name in COLUMNS)
        ]
        right = None
        if document.asked is not None and document.item is not None:
            right = document.asked.task.score(document.item, text.answer)
        yield {
            **document.key,
            "score": right,
            "text": document.text or text.answer,
            "positions": [record["position"] - text.start + 1 for record in records],
            "columns": {name: [float(f"{r[name]:.{_DIGITS}g}") for r in records] for name in COLUMNS},
        }
