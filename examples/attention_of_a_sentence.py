"""Logits and attention of a sentence: what comes next at every word, and how widely each head of each layer looks.

python examples/attention_of_a_sentence.py "The capital of France is Paris."
"""

import sys

import numpy as np

import entropix


def main(sentence: str = "The capital of France is Paris.", **options) -> np.ndarray:
    """Prints a line a token, and returns the attention entropies in bits, `[layer, head, token]`."""
    model = entropix.load(**options)
    seen = entropix.forward(model, sentence)  # arrays; their names end in their axes

    a = seen.attention()  # [layer, head, query, key]: softmax of seen.scores_LNTT over the visible keys
    entropy_LNT = np.abs(np.sum(a * np.log2(np.where(a > 0, a, 1)), axis=-1))

    likeliest_T = seen.logits_TV.argmax(axis=-1)
    print(f"{'token':>14}  {'likeliest next':14}  {'H (bits)':>8}  {'attention (bits), widest head':>30}")
    for t, token in enumerate(seen.tokens):
        layer, head = np.unravel_index(entropy_LNT[:, :, t].argmax(), entropy_LNT.shape[:2])
        following = model.tokenizer.decode([int(likeliest_T[t])])
        widest = f"{entropy_LNT[layer, head, t]:.2f} in layer {layer}, head {head}"
        print(f"{token!r:>14}  {following!r:14}  {seen.metrics.logits_entropy[t]:8.2f}  {widest:>30}")
    mean_T = entropy_LNT.mean(axis=(0, 1))
    assert np.allclose(mean_T, seen.metrics.attn_entropy, atol=1e-3)  # which is how the metric is defined
    return entropy_LNT


if __name__ == "__main__":
    main(*sys.argv[1:])
