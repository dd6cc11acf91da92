"""A row's tokens as columns: what the page embeds, a few bytes a number."""

import base64
import codecs
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from entropix.metrics import Metrics

SETTINGS = ("temperature", "top_p", "top_k", "min_p", "kept", "logprob", "draw_logprob", "score")
DIGITS = 5  # significant ones that a number keeps
NOT_A_NUMBER = 255  # among the head entropies, whose largest becomes one less


def pack(
    records: Sequence[Mapping[str, Any]],
    strategies: Sequence[str],
    texts: "Texts",
    metrics: Sequence[str] = Metrics._fields,
) -> dict[str, Any]:
    """The columns of n tokens, for JSON.

    token, strategy              indices into `texts` and `strategies`
    injected                     the steps of inserted tokens
    shown                        text that stands for a token where its own does not, by step; see `shown`
    columns                      settings and metrics by name, null where there is no number
    alternatives                 null without, else columns: `start` has n + 1 offsets into `token`, `logprob` and
                                 `draw_logprob`
    heads                        null without; see `pack_heads`
    """
    return {
        "token": [texts.add(record) for record in records],
        "strategy": [strategies.index(record["strategy"]) for record in records],
        "injected": [step for step, record in enumerate(records) if record["injected"]],
        "shown": shown(records),
        "columns": {
            name: [rounded(record.get(name)) for record in records] for name in (*SETTINGS, *metrics)
        },
        "alternatives": _pack_alternatives(records, texts),
        "heads": pack_heads(records),
    }


class Texts:
    """The different tokens of a page, each once. Ids alone would not do: traces may come from different tokenizers."""

    def __init__(self) -> None:
        self._places: dict[tuple[int, str], int] = {}

    def add(self, token: Mapping[str, Any]) -> int:
        """The place of a record or an alternative, which is a new one if need be."""
        data = token.get("bytes")
        text: str = token["text"]
        if data is not None and "\N{REPLACEMENT CHARACTER}" in text:
            text = "".join(f"⟨{byte:02x}⟩" for byte in data)
        return self._places.setdefault((token["id"], text), len(self._places))

    def packed(self) -> dict[str, list[Any]]:
        """Ids and texts by place; of a token that is a part of a character, its bytes like ⟨e2⟩."""
        return {"id": [id for id, _ in self._places], "text": [text for _, text in self._places]}


def shown(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """How tokens that are parts of a character read in the text: nothing, and the whole character at its last part.

    By step, as text; without the tokens that read as they are. Empty for traces without `bytes`.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    result = {}
    for step, record in enumerate(records):
        if "bytes" not in record:
            return {}
        text = decoder.decode(bytes(record["bytes"]))
        if text != record["text"]:
            result[str(step)] = text
    return result


def rounded(value: float | None) -> float | int | None:
    """The number with five significant digits, in its shortest form; None for none and for what is not finite."""
    if value is None or not math.isfinite(value):
        return None
    short = float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
    return int(short) if short == int(short) else short


def pack_heads(records: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Attention entropies as bytes in base64, `[n, layers, heads]`; None unless all have them.

    A byte times `largest` / 254 is the entropy, to within half of that step, which no colour shows; 255 stands for no
    number.
    """
    if not records or not all(record.get("head_entropies") for record in records):
        return None
    shapes = {tuple(map(len, record["head_entropies"])) for record in records}
    if len(shapes) != 1 or len(set(next(iter(shapes)))) != 1:
        raise ValueError(
            "head_entropies must have the same number of layers at every token and of heads in every layer"
        )
    bits_nLN = np.array([record["head_entropies"] for record in records], np.float64)
    largest = float(np.nanmax(bits_nLN, initial=0.0)) or 1.0
    levels_nLN = np.where(np.isnan(bits_nLN), NOT_A_NUMBER, np.rint(bits_nLN / largest * (NOT_A_NUMBER - 1)))
    return {
        "layers": bits_nLN.shape[1],
        "heads": bits_nLN.shape[2],
        "largest": largest,
        "levels": base64.b64encode(levels_nLN.astype(np.uint8).tobytes()).decode(),
    }


def _pack_alternatives(records: Sequence[Mapping[str, Any]], texts: Texts) -> dict[str, list[Any]] | None:
    lists = [record.get("alternatives", []) for record in records]
    flat = [alternative for alternatives in lists for alternative in alternatives]
    if not flat:
        return None
    return {
        "start": np.cumsum([0, *map(len, lists)]).tolist(),
        "token": [texts.add(alternative) for alternative in flat],
        "logprob": [rounded(alternative["logprob"]) for alternative in flat],
        "draw_logprob": [rounded(alternative["draw_logprob"]) for alternative in flat],
    }
