"""A program that `test_compiler` runs with the compiler flags of users: the package's own programs over more rows than
32,768 and 65,536, where a compiler was once wrong, against float64 in plain numpy. It prints one JSON object.

Seven texts are repeated, so that the expected numbers are quickly there; seven divides no size that work is split by.
"""

import json
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import reference
import toy

import entropix
from entropix import backend, metrics
from entropix.checkpoint.loading import Model
from entropix.decoding import loop, sample_step
from entropix.metrics import AttentionScores
from entropix.model import kv_cache, transformer

N_TEXTS = 7


class Found(NamedTuple):
    what: str
    rows: int  # of the program's longest axis, heads and layers included where it has them in its rows
    values: Any
    expected: Any  # of the same shape, or of fewer rows, which then repeat


def norms(model: Model, n: int) -> Found:
    """RMS norms of n vectors."""
    weight_D, eps = model.weights.layers[0].attn_norm_D, model.config.norm_eps
    x_XD = np.random.default_rng(0).normal(size=(n, model.config.dim)).astype(np.float32)
    norm = jax.jit(partial(transformer.rms_norm, cfg=model.config))
    expected = reference.norm(x_XD.astype(np.float64), np.asarray(weight_D, np.float64), eps)
    return Found("norms", n, norm(x_XD[None], weight_D)[0], expected)


def measures(batch: int, length: int) -> Iterator[Found]:
    """`measure` of batch · length positions, and the entropies of their heads."""
    L, N, S, V, n = 2, 4, 6, 24, batch * length
    rng = np.random.default_rng(1)
    logits, scores = 3 * rng.normal(size=(N_TEXTS, V)), 2 * rng.normal(size=(N_TEXTS, L, N, S))
    which_BT = (np.arange(n) % N_TEXTS).reshape(batch, length)
    attention = AttentionScores(
        jnp.asarray(scores[which_BT].transpose(2, 0, 3, 1, 4), jnp.float32),
        jnp.ones((batch, length, S), bool),
        jnp.broadcast_to(jnp.arange(S, dtype=jnp.int32), (batch, S)),
    )
    found = jax.jit(metrics.measure)(jnp.asarray(logits[which_BT], jnp.float32), attention)
    expected = [reference.metrics(*pair) for pair in zip(logits, scores, strict=True)]
    for name, value_BT in found._asdict().items():
        yield Found(f"measure: {name}", n, value_BT.reshape(n), [row[name] for row in expected])
    heads = [
        [[reference.entropy(reference.softmax(s)) for s in of_layer] for of_layer in row] for row in scores
    ]
    entropy_TBLN = jax.jit(sample_step.head_entropies)(attention)
    yield Found("head entropies", n * L * N, entropy_TBLN.swapaxes(0, 1).reshape(n, L, N), heads)


def scored(model: Model, batch: int, read: int, length: int) -> Iterator[Found]:
    """Metrics and log-probabilities of the last `length` tokens of texts, as a text is scored; `prefill` has read those
    before them, in two pieces."""
    cfg, weights = model.config, model.weights
    text_XT = toy.random_tokens(cfg, N_TEXTS, read + length + 1)
    tokens_BT = jnp.asarray(text_XT[np.arange(batch) % N_TEXTS])
    cache = kv_cache.empty_cache(cfg, batch, read + length, weights.embed_VD.dtype)
    first = read - read // 16
    for start, end in ((0, first), (first, read)) if read else ():
        count_B = jnp.full(batch, end - start, jnp.int32)
        cache = loop.prefill(weights, tokens_BT[:, start:end], count_B, cache, cfg, from_empty=start == 0)
    count_B, last_BT = jnp.full(batch, length, jnp.int32), tokens_BT[:, read:]
    _, logprob_BT, found = loop.score_tokens(weights, last_BT, count_B, cache, cfg)
    del found["rank"]  # of two tokens that are nearly as likely, rounding says which is first

    tensors = reference.named_tensors(weights, cfg)
    wanted: dict[str, list[list[float]]] = {name: [] for name in (*found, "logprob")}
    for text_T in text_XT:
        logits_TV, scores_LNTT = reference.forward(tensors, text_T.tolist(), cfg)
        rows = [
            reference.metrics(logits_TV[t], scores_LNTT[:, :, t, : t + 1])
            | {"logprob": np.log(reference.softmax(logits_TV[t])[text_T[t + 1]])}
            for t in range(read, read + length)
        ]
        for name in wanted:
            wanted[name].append([row[name] for row in rows])
    for name, value_BT in {**found, "logprob": logprob_BT}.items():
        yield Found(f"score after {read}: {name}", batch * max(length, first), value_BT, wanted[name])


def decoded(model: Model, batch: int) -> Iterator[Found]:
    """What the record of a greedy answer's first token holds, and of all its heads."""
    texts = toy.random_tokens(model.config, N_TEXTS, 5).tolist()
    options: dict[str, Any] = {"sampler": "greedy", "max_new_tokens": 1, "head_entropies": True}
    results = entropix.generate(
        model, [texts[row % N_TEXTS] for row in range(batch)], ignore_stop_tokens=True, **options
    )
    tensors, cfg = reference.named_tensors(model.weights, model.config), model.config
    wanted = []
    for text in texts:
        logits_TV, scores_LNTT = reference.forward(tensors, text, cfg)
        row = reference.metrics(logits_TV[-1], scores_LNTT[:, :, -1])
        of_heads = [
            [reference.entropy(reference.softmax(scores)) for scores in of_layer]
            for of_layer in scores_LNTT[:, :, -1]
        ]
        wanted.append(row | {"id": float(logits_TV[-1].argmax()), "head_entropies": of_heads})
    for name in wanted[0]:
        values = np.array([result.records[0][name] for result in results])
        yield Found(f"decoded: {name}", values.size, values, [row[name] for row in wanted])


def error(found: Found) -> float:
    """The largest of any row, beside its size where that is above 1."""
    expected = np.asarray(found.expected)
    expected = expected[np.arange(len(found.values)) % len(expected)]
    return float(np.max(np.abs(np.asarray(found.values) - expected) / np.maximum(1, np.abs(expected))))


def kinds() -> Iterator[Found]:
    model = toy.model_of()
    for n in (40_001, 70_001):
        yield norms(model, n)
    yield from measures(batch=1, length=35_001)
    yield from measures(batch=66_001, length=1)
    yield from scored(model, batch=4_300, read=0, length=8)
    yield from scored(toy.model_of(n_layers=1), batch=63, read=560, length=2)
    yield from decoded(model, batch=4_201)


def main() -> None:
    backend.check_devices()
    found = [(f"{kind.what}, {kind.rows:,} rows", error(kind)) for kind in kinds()]
    print(json.dumps({"right": backend.sums_are_right(), "errors": dict(found)}))


if __name__ == "__main__":
    main()
