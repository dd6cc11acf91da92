"""Records: what a step says of a token, as plain Python values that JSON has words for."""

import math
from typing import Any

import jax

from entropix.checkpoint.tokenizer import Tokenizer
from entropix.decoding.request import GenerationRequest
from entropix.decoding.state import Paths, StepRecord
from entropix.results import TokenRecord


def token_record(request: GenerationRequest, chunk: StepRecord, i: int, row: int) -> TokenRecord:
    """Step i of a chunk as plain Python values. What is not finite becomes None, for which JSON has a word."""
    info = {
        name.removesuffix("_B"): plain_number(value[i, row]) for name, value in chunk.info._asdict().items()
    }
    info["strategy"] = request.sampler.strategies[info["strategy"]]
    metrics = {name: plain_number(value[i, row]) for name, value in chunk.metrics._asdict().items()}
    own = {name: plain_number(value[i, row]) for name, value in (chunk.own_metrics or {}).items()}
    record = {**_token(request.model.tokenizer, int(chunk.token_B[i, row])), **info, **metrics, **own}
    if chunk.alternatives is not None:
        columns = (column[i, row] for column in chunk.alternatives)
        record["alternatives"] = [
            {
                **_token(request.model.tokenizer, int(token)),
                "logprob": plain_number(p),
                "draw_logprob": plain_number(q),
            }
            for token, p, q in zip(*columns, strict=True)
        ]
    if chunk.paths is not None and chunk.paths.forked_B[i, row]:
        record["branches"] = _branches(request, jax.tree.map(lambda leaf: leaf[i, row], chunk.paths))
    if chunk.head_entropy_BLN is not None:
        record["head_entropies"] = [
            [plain_number(bits) for bits in layer] for layer in chunk.head_entropy_BLN[i, row]
        ]
    return record


def _branches(request: GenerationRequest, paths: Paths) -> list[dict[str, Any]]:
    """The paths that were tried at a fork, the drawn token's first."""
    lengths = paths.live_BCD.sum(axis=-1)
    ids = [paths.token_BCD[c, :n].tolist() for c, n in enumerate(lengths)]
    return [
        {
            "ids": ids[c],
            "text": request.model.tokenizer.decode(ids[c]),
            "logprobs": [plain_number(p) for p in paths.logprob_BCD[c, :n]],
            "score": plain_number(paths.score_BC[c]),
            "chosen": bool(c == paths.best_B),
        }
        for c, n in enumerate(lengths)
        if n
    ]


def _token(tokenizer: Tokenizer, token: int) -> TokenRecord:
    """What names a token: its bytes too, since it may be a part of a character, which no text can show."""
    return {"id": token, "text": tokenizer.decode([token]), "bytes": list(tokenizer.token_bytes(token))}


def plain_number(value: Any) -> Any:
    """A number of numpy's as Python's; None for what is not finite."""
    number = value.item()
    return None if isinstance(number, float) and not math.isfinite(number) else number
