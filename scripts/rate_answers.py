"""How often answers are right: presets and variants of one, over files of questions and several seeds.

    python scripts/rate_answers.py --samplers greedy,entropix,my.toml
    python scripts/rate_answers.py --samplers greedy --branch 4

All samplers draw with the same random numbers. The table has, for each file of questions, the share of right answers
(the mean over seeds), the smallest and the largest share of a seed, and how many different answers there are of as many
as there are seeds. --show prints every answer.
"""

import dataclasses
from collections.abc import Iterator
from statistics import mean
from typing import Annotated, Any

from entropix import presets, samplers
from entropix.checkpoint import loading
from entropix.checkpoint.loading import Model
from entropix.console import cli
from entropix.console.cli import flag
from entropix.lab import questions
from entropix.lab.questions import Question
from entropix.samplers import ResolvedSampler


@dataclasses.dataclass(frozen=True)
class Args:
    """What to rate."""

    samplers: Annotated[str, flag("presets or TOML files", "A,B,...")]
    files: Annotated[str, flag("of questions, in configs/questions or elsewhere", "A,B,...", None)] = (
        "capitals,plain,plain-held-out"
    )
    weights: Annotated[str, flag("a name below weights/ or a checkpoint folder", "NAME|DIR", None)] = (
        loading.DEFAULT_MODEL
    )
    seeds: Annotated[int, flag("answers to each question", "N", None)] = 3
    max_new_tokens: Annotated[int, flag("most tokens of an answer", "N", None)] = 32
    batch: Annotated[int, flag("answers to generate together", "N", None)] = 32
    branch: Annotated[int, flag("paths to try where explore forks", "N", None)] = 1
    show: Annotated[bool, flag("print every answer, as a JSON object a line")] = False


def answers(model: Model, sampler: ResolvedSampler, asked: list[Question], args: Args) -> list[list[str]]:
    """The texts, by question and seed."""
    from entropix import batching, generation

    cells = [(question, seed) for question in asked for seed in range(args.seeds)]
    request = generation.prepare(
        model,
        [question.prompt for question, _ in cells],
        sampler=sampler,
        seeds=[seed for _, seed in cells],
        occurrences=[0] * len(cells),
        max_new_tokens=args.max_new_tokens,
        branching={"paths": args.branch},
    )
    texts = [""] * len(cells)
    for event in batching.ContinuousBatch(request, args.batch).run():
        texts[event.row] += event.text
    return [texts[start : start + args.seeds] for start in range(0, len(texts), args.seeds)]


def rated(asked: list[Question], texts: list[list[str]]) -> dict[str, Any]:
    """The figures of one file and one sampler."""
    right = [[question.is_right(text) for text in row] for question, row in zip(asked, texts, strict=True)]
    by_seed = [mean(column) for column in zip(*right, strict=True)]
    return {
        "right": mean(by_seed),
        "least": min(by_seed),
        "most": max(by_seed),
        "different": mean(len(set(row)) for row in texts),
    }


def rows(args: Args) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(sampler, file, figures), as soon as they are known."""
    model = loading.load(args.weights)
    for name in args.samplers.split(","):
        sampler = samplers.resolve(name)
        for file in args.files.split(","):
            known = presets.shipped("questions") / f"{file}.jsonl"
            asked = questions.read(known if known.is_file() else file)
            texts = answers(model, sampler, asked, args)
            if args.show:
                for question, row in zip(asked, texts, strict=True):
                    for seed, text in enumerate(row):
                        told = {"sampler": name, "prompt": question.prompt, "seed": seed, "text": text}
                        print(cli.json_line(told | {"right": question.is_right(text)}))
            yield name, file, rated(asked, texts)


def main() -> None:
    """Prints the table."""
    from entropix import backend

    args = cli.parse(Args, None, None, __doc__)
    backend.use_compilation_cache()
    print(f"{'sampler':40} {'questions':16} {'right':>6} {'of a seed':>14} {'different':>10}", flush=True)
    for name, file, found in rows(args):
        spread = f"{found['least']:.3f} to {found['most']:.3f}"
        print(
            f"{name:40} {file:16} {found['right']:6.3f} {spread:>14} {found['different']:10.2f}", flush=True
        )


if __name__ == "__main__":
    cli.leave(cli.run(main))
