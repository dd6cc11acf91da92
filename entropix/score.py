"""What a model makes of a given text, token by token: `python -m entropix.score --text FILE`.

One line a position on stdout, as JSON (`--format jsonl`: the records of `scoring.Scored`) or as a table with the same
columns; then one line with the number of tokens, the mean log-probability in nats and the perplexity.

Exit codes: 0 the text was scored; 1 bad input; 2 bad flags.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import arg

from entropix import distributed, metric_labels, prompts
from entropix.console import cli, coloring
from entropix.console.cli import DeviceFlags, Dtype, Weights, flag

if TYPE_CHECKING:
    from entropix.scoring import Scored

_PROG = "python -m entropix.score"
_DESCRIPTION = (
    "Let a language model read a text instead of writing one. For every token: how likely the model found it, and how "
    "uncertain it was about the next one (entropy, varentropy, attention). For the whole text: its perplexity."
)
_TEXT_WIDTH = 14  # characters of a token in the table


@dataclass(frozen=True)
class Flags:
    """What can be asked for."""

    text: Annotated[str, flag("the text to read, a UTF-8 file", "FILE", None)]
    weights: Weights = None
    dtype: Dtype = None
    devices: Annotated[DeviceFlags, arg(name="devices")] = field(default_factory=DeviceFlags)
    format: Annotated[
        Literal["table", "jsonl"],
        flag("table, for people, or jsonl, a JSON object a position, for programs", hint=None),
    ] = "table"
    allow_special: Annotated[
        bool, flag("read names of special tokens, like <|im_end|>, as these tokens instead of as plain text")
    ] = False


def main(args: Sequence[str] | None = None, prog: str = _PROG) -> None:
    """Does what the flags (by default those of the process) say. Raises a ValueError for bad input."""
    flags = cli.parse(Flags, args, prog, _DESCRIPTION)
    cli.join(flags)

    # These take their time to import; --help and bad flags do not wait for them.
    from entropix import backend, scoring
    from entropix.console import terminal

    text = distributed.from_first(lambda: prompts.text_from_file(flags.text))
    backend.use_compilation_cache()
    model = terminal.load(flags.weights, flags.dtype, flags.devices)
    if flags.allow_special:
        terminal.note_beginning(model, [text])
    with terminal.status("compiling and reading the text"):
        [scored] = scoring.score(model, [text], allow_special=flags.allow_special)
    for line in json_lines(scored) if flags.format == "jsonl" else table_lines(scored):
        print(line)


def json_lines(scored: "Scored") -> Iterator[str]:
    """A record a line, then the summary."""
    for record in scored.records:
        yield cli.json_line(record, allow_nan=False)
    yield json.dumps(
        {
            "tokens": len(scored.token_ids),
            "mean_logprob": scored.mean_logprob,
            "perplexity": scored.perplexity,
        }
    )


def table_lines(scored: "Scored") -> Iterator[str]:
    """The records in columns, then the summary. Tokens are quoted, so that each stays on its line."""
    numbers = ("logprob", *metric_labels.known())
    heads = [f"{name:>{max(len(name), 8)}}" for name in numbers]
    yield "  ".join([f"{'position':>8}", f"{'token':{_TEXT_WIDTH}}", f"{'next':{_TEXT_WIDTH}}", *heads])
    for record in scored.records:
        cells = [
            f"{'-' if record[name] is None else format(record[name], '.4f'):>{len(head)}}"
            for name, head in zip(numbers, heads, strict=True)
        ]
        yield "  ".join(
            [f"{record['position']:8}", _quoted(record["text"]), _quoted(record["next_text"]), *cells]
        )
    if scored.perplexity is None:
        yield f"{len(scored.token_ids)} tokens, no perplexity: it needs two tokens and finite logits"
    else:
        yield (
            f"{len(scored.token_ids)} tokens, mean log-probability {scored.mean_logprob:.4f} nats, "
            f"perplexity {scored.perplexity:.4f}"
        )


def _quoted(text: str | None) -> str:
    shown = "" if text is None else coloring.visible(json.dumps(text, ensure_ascii=False))
    return f"{shown if len(shown) <= _TEXT_WIDTH else shown[: _TEXT_WIDTH - 1] + '…':{_TEXT_WIDTH}}"


if __name__ == "__main__":
    cli.leave(cli.run(main))
