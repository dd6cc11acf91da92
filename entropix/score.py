"""What a model makes of given texts, token by token: `python -m entropix.score --text FILE`.

A row a position on stdout, as soon as it is computed: as a table, as JSON (`--format jsonl`: the records of
`scoring.Scored`) or as CSV with the same columns; then, for each text, the number of tokens, the mean log-probability
in nats and the perplexity. Of several texts, each comes whole, in their order, and JSON and CSV have a `document`.

Exit codes: 0 all texts were scored; 1 bad input; 2 bad flags; 128 + n after signal n (130 for Ctrl-C), once what was
computed is printed.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import arg

from entropix import distributed, metric_labels, prompts, tables
from entropix.console import cli, coloring, signals
from entropix.console.cli import Adapter, DeviceFlags, Dtype, TableFile, Weights, flag

if TYPE_CHECKING:
    from entropix.checkpoint.loading import Model
    from entropix.scoring import Record, Scored

_PROG = "python -m entropix.score"
_DESCRIPTION = (
    "Let a language model read a text instead of writing one. For every token: how likely the model found it, and how "
    "uncertain it was about the next one (entropy, varentropy, attention). For the whole text: its perplexity."
)
_TEXT_WIDTH = 14  # characters of a token in the table
_PLACE = (
    "position",
    "id",
    "text",
    "next_id",
    "next_text",
    "logprob",
    "rank",
)  # of a record, before its metrics


@dataclass(frozen=True, kw_only=True)
class Flags:
    """What can be asked for."""

    text: Annotated[
        tuple[str, ...],
        flag(
            'the texts to read: UTF-8 files, each one text; or .jsonl files with {"text": "..."} a line',
            "FILE...",
            None,
        ),
    ]
    weights: Weights = None
    adapter: Adapter = None
    dtype: Dtype = None
    devices: Annotated[DeviceFlags, arg(name="devices")] = field(default_factory=DeviceFlags)
    format: Annotated[
        Literal["table", "jsonl", "csv"],
        flag(
            "table, for people; jsonl, a JSON object a position; or csv, whose summary is on stderr",
            hint=None,
        ),
    ] = "table"
    table: TableFile = None
    allow_special: Annotated[
        bool, flag("read names of special tokens, like <|im_end|>, as these tokens instead of as plain text")
    ] = False


def main(args: Sequence[str] | None = None, prog: str = _PROG) -> None:
    """Does what the flags (by default those of the process) say. Raises a ValueError for bad input."""
    flags = cli.parse(Flags, args, prog, _DESCRIPTION)
    cli.join(flags)
    distributed.from_first(lambda: tables.check(flags.table))

    # These take their time to import; --help and bad flags do not wait for them.
    from entropix import backend, scoring
    from entropix.console import terminal

    texts = distributed.from_first(lambda: prompts.texts_from_files(flags.text))
    backend.use_compilation_cache()
    model = terminal.load(flags.weights, flags.dtype, flags.devices, adapter=flags.adapter)
    if flags.allow_special:
        terminal.note_beginning(model, texts)
    printed = Printed(flags.format, scoring.encode(model, texts, flags.allow_special))
    read(model, printed, flags.table)


def read(model: "Model", printed: "Printed", table: str | None = None) -> None:
    """Reads all texts and prints what is found, with the time left on stderr where that is a terminal.

    table: where the same rows go when all texts, or those until a signal, are read.
    """
    from entropix import scoring
    from entropix.console import terminal

    n_tokens, rows = sum(map(len, printed.rows)), list[dict[str, Any]]()
    with terminal.progress("reading", n_tokens) as advance:
        for piece in signals.until_signal(scoring.read(model, printed.rows)):
            advance(len(piece.records))
            printed.add(piece.text, piece.records)
            if table is not None:
                rows += [{"document": piece.text, **record} for record in piece.records]
    printed.close()
    if table is not None:
        tables.write(table, sorted(rows, key=lambda row: row["document"]))
    if printed.n_records < n_tokens:
        raise signals.ended()


class Printed:
    """Records on stdout, those of a text when all texts before it are complete."""

    def __init__(self, form: str, rows: list[list[int]]) -> None:
        """form: table, jsonl or csv. rows: the texts' tokens."""
        self.rows, self.n_records = rows, 0
        self._form, self._turn, self._n_shown = form, 0, 0
        self._records: list[list[Record]] = [[] for _ in rows]
        self._numbers = ("logprob", *metric_labels.known())
        self._heads = [f"{name:>{max(len(name), 8)}}" for name in self._numbers]

    def add(self, text: int, records: "list[Record]") -> None:
        """More of a text; prints it, and what waited for it, if it is this text's turn."""
        self._records[text] += records
        self.n_records += len(records)
        while self._turn < len(self.rows) and self._show(self._turn) == len(self.rows[self._turn]):
            self._end(self._turn)

    def close(self) -> None:
        """Prints what waits still: texts that were not read to their end, and those behind them."""
        while self._turn < len(self.rows):
            if self._show(self._turn):
                self._end(self._turn)
            else:
                self._turn += 1

    def _show(self, text: int) -> int:
        """Prints what is new of a text; how many of its records are printed."""
        records = self._records[text]
        if records and not self._n_shown:
            _print(self._before(text))
        _print(self._lines(text, records[self._n_shown :]))
        self._n_shown = len(records)
        return len(records)

    def _end(self, text: int) -> None:
        from entropix.scoring import Scored

        lines = [self._summary(text, Scored(self.rows[text], self._records[text]))]
        _print(lines, sys.stderr if self._form == "csv" else sys.stdout)
        self._records[text] = []
        self._turn, self._n_shown = text + 1, 0

    # ----- the forms ----------------------------------------------------------------------------------------

    @property
    def _several(self) -> bool:
        return len(self.rows) > 1

    def _place(self, text: int) -> dict[str, Any]:
        return {"document": text} if self._several else {}

    def _before(self, text: int) -> list[str]:
        if self._form == "table":
            title = [f"==> text {text + 1} <=="] if self._several else []
            head = [f"{'position':>8}", f"{'token':{_TEXT_WIDTH}}", f"{'next':{_TEXT_WIDTH}}", *self._heads]
            return [*title, "  ".join(head)]
        if self._form == "csv" and text == 0:
            return [tables.line([*self._place(text), *_PLACE, *self._numbers[1:]])]
        return []

    def _lines(self, text: int, records: "list[Record]") -> Iterator[str]:
        place = self._place(text)
        for record in records:
            if self._form == "jsonl":
                yield cli.json_line(place | record, allow_nan=False)
            elif self._form == "csv":
                yield tables.line(
                    [*place.values(), *(record[name] for name in (*_PLACE, *self._numbers[1:]))]
                )
            else:
                cells = [
                    f"{'-' if record[name] is None else format(record[name], '.4f'):>{len(head)}}"
                    for name, head in zip(self._numbers, self._heads, strict=True)
                ]
                tokens = _quoted(record["text"]), _quoted(record["next_text"])
                yield "  ".join([f"{record['position']:8}", *tokens, *cells])

    def _summary(self, text: int, scored: "Scored") -> str:
        n, n_read = len(scored.token_ids), len(scored.records)
        if self._form == "jsonl":
            found = {"tokens": n, "mean_logprob": scored.mean_logprob, "perplexity": scored.perplexity}
            return json.dumps(self._place(text) | found | ({"read": n_read} if n_read < n else {}))
        title = f"text {text + 1}: " if self._several and self._form == "csv" else ""
        count = f"{title}{n} tokens" if n_read == n else f"{title}the first {n_read} of {n} tokens"
        if scored.perplexity is None:
            return f"{count}, no perplexity: it needs two tokens and finite logits"
        mean = f"mean log-probability {scored.mean_logprob:.4f} nats, perplexity {scored.perplexity:.4f}"
        return f"{count}, {mean}"


def _print(lines: "Sequence[str] | Iterator[str]", stream: Any = None) -> None:
    print("".join(f"{line}\n" for line in lines), end="", file=stream or sys.stdout, flush=True)


def _quoted(text: str | None) -> str:
    shown = "" if text is None else coloring.visible(json.dumps(text, ensure_ascii=False))
    return f"{shown if len(shown) <= _TEXT_WIDTH else shown[: _TEXT_WIDTH - 1] + '…':{_TEXT_WIDTH}}"


if __name__ == "__main__":
    cli.leave(cli.run(main))
