"""A trace as the `logprobs` of OpenAI's chat completions, for viewers that read these.

    python -m entropix.logprobs trace.jsonl -o logprobs.json

One JSON object like the answer of POST /v1/chat/completions with "logprobs": true (OpenAI API reference, "Chat
Completions"); each row of the trace is a choice. Log-probabilities are the model's own, at temperature 1 before
filtering. What the format has no place for (metrics, strategies, log-probabilities after filtering) is left out.
"""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from entropix import files, trace
from entropix.console import cli
from entropix.results import FinishReason, Result
from entropix.trace import Trace

UNLIKELY = -9999.0  # the reference's number for what has no log-probability


@dataclass(frozen=True)
class Flags:
    """The command line."""

    trace: Annotated[tyro.conf.Positional[str], tyro.conf.arg(help="the trace", metavar="TRACE")]
    out: Annotated[
        str | None,
        tyro.conf.arg(
            aliases=["-o"],
            help="where to write",
            metavar="FILE.json",
            help_behavior_hint="(default: standard output)",
        ),
    ] = None


def main(args: Sequence[str] | None = None, prog: str = "python -m entropix.logprobs") -> None:
    """Does what the flags (by default those of the process) say. Raises a ValueError for bad input."""
    flags = cli.parse(Flags, args, prog, __doc__)
    if flags.out is not None:
        files.check_not_read(flags.out, [flags.trace])
    text = json.dumps(convert(trace.read(flags.trace)), ensure_ascii=False, allow_nan=False) + "\n"
    if flags.out is None:
        sys.stdout.write(text)
    else:
        files.write_text(flags.out, [text], "JSON")
        print(f"{flags.out}: the logprobs of {flags.trace}", file=sys.stderr)


def convert(recorded: Trace) -> dict[str, Any]:
    """The chat completion that a trace amounts to.

    `created` is 0, since a trace does not tell when it was made; `id` is a hash of the header.
    """
    header = json.dumps(recorded.header, sort_keys=True).encode()
    n_prompt = sum(len(result.prompt_ids) for result in recorded.results)
    n_new = sum(len(result.records) for result in recorded.results)
    return {
        "id": f"chatcmpl-{hashlib.sha256(header).hexdigest()[:24]}",
        "object": "chat.completion",
        "created": 0,
        "model": recorded.header["model"]["name"],
        "choices": [_choice(row, result) for row, result in enumerate(recorded.results)],
        "usage": {
            "prompt_tokens": n_prompt,
            "completion_tokens": n_new,
            "total_tokens": n_prompt + n_new,
        },
    }


def _choice(row: int, result: Result) -> dict[str, Any]:
    """A row. The stop token, which is no part of the text, is left out; a row that was cut short ends in `length`."""
    stopped = result.finish in (FinishReason.STOP_TOKEN, FinishReason.STOP_STRING)
    records = result.records[:-1] if result.finish == FinishReason.STOP_TOKEN else result.records
    content = [
        {**_token(record), "top_logprobs": [_token(other) for other in record.get("alternatives", [])]}
        for record in records
    ]
    return {
        "index": row,
        "message": {"role": "assistant", "content": result.text, "refusal": None},
        "logprobs": {"content": content, "refusal": None},
        "finish_reason": "stop" if stopped else "length",
    }


def _token(record: Mapping[str, Any]) -> dict[str, Any]:
    """One token. Where an older trace has no `bytes`, they are those of the text; null if that may be a broken one."""
    text = record["text"]
    of_text = None if "\N{REPLACEMENT CHARACTER}" in text else list(text.encode())
    logprob = UNLIKELY if record["logprob"] is None else record["logprob"]
    return {"token": text, "logprob": logprob, "bytes": record.get("bytes", of_text)}


if __name__ == "__main__":
    cli.leave(cli.run(main))
