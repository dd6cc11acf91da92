"""Traces: a generation as JSON lines, from which it can be read, checked and repeated.

A trace is UTF-8 text with one JSON object a line. null stands for numbers that are not finite.

    the header    {"format": "entropix-trace", "version": 1, ...}: everything needed to repeat the generation
    a token       {"row": 0, "step": 0, "id": 504, "text": "The", "strategy": "adaptive", ...}
    a row's end   {"row": 0, "finish": "stop_token", "reason": "...", "new_tokens": 57, "text": "The sky ..."}

A row is a prompt, or a turn of a chat, counted from 0. Rows come one after the other, in any order, each with its
tokens in order and its end; a file that lacks the end of a row is truncated.

`schema` has the fields and their types; docs/trace.md explains every one. `run_statistics` counts and averages what
records say. What is made of a trace lives elsewhere: `replay` repeats it, `report/` draws it.
"""

from entropix.trace.reading import Trace, read
from entropix.trace.writing import (
    Writer,
    adapter_of,
    circumstances,
    comments,
    fingerprint,
    header,
    metric_labels_of,
    write,
)

__all__ = [
    "Trace",
    "Writer",
    "adapter_of",
    "circumstances",
    "comments",
    "fingerprint",
    "header",
    "metric_labels_of",
    "read",
    "write",
]
