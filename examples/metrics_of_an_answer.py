"""One prompt, and how unsure the model was at each token of its answer, as a picture.

python examples/metrics_of_an_answer.py answer.png
"""

import sys

import entropix
from entropix.metric_labels import axis_title

SHOWN = ("logits_entropy", "logits_varentropy", "attn_entropy", "top_prob")


def main(path: str, prompt: str = "Why is the sky blue?", **options) -> entropix.Result:
    """Answers, and draws the metrics into a file; its ending says how (.png, .svg, .pdf)."""
    from matplotlib.figure import Figure

    model = entropix.load(**options)
    [result] = entropix.generate(model, prompt, seed=1, max_new_tokens=40)
    columns = result.columns()  # a list for each field of a record, one entry a token
    figure = Figure(figsize=(10, 7), layout="constrained")
    for axes, name in zip(figure.subplots(len(SHOWN), sharex=True), SHOWN, strict=True):
        axes.plot(columns[name], marker=".")
        axes.set_ylabel(axis_title(name), fontsize=7)
    tokens = [ascii(text)[1:-1] for text in columns["text"]]  # not every font has every character
    axes.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=7)
    figure.suptitle(prompt)
    figure.savefig(path)
    return result


if __name__ == "__main__":
    words = sys.argv[1:] or ["answer.png"]
    print(main(*words).text, f"The picture: {words[0]}", sep="\n")
