"""How often answers are right: presets and variants of one, over files of questions and several seeds.

    python scripts/rate_answers.py --samplers greedy,entropix,my.toml
    python scripts/rate_answers.py --samplers greedy --branch 4

All samplers have the same keys. The table has, for each file of questions, the share of right answers
(the mean over seeds), the smallest and the largest share of a seed, and how many different answers there are of as many
as there are seeds, and the share of answers that were cut off. --show prints every answer.
"""

import dataclasses
from collections.abc import Iterator
from statistics import mean
from typing import Annotated, Any

from entropix import presets, results, samplers
from entropix.checkpoint import loading
from entropix.checkpoint.loading import Model
from entropix.console import cli
from entropix.console.cli import flag
from entropix.lab import questions
from entropix.lab.questions import Question
from entropix.results import Result
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
    branch: Annotated[
        int | None, flag("paths to try where explore forks", "N", "(default: what the sampler says)")
    ] = None
    show: Annotated[bool, flag("print every answer, as a JSON object a line")] = False


def answers(model: Model, sampler: ResolvedSampler, asked: list[Question], args: Args) -> list[list[Result]]:
    """By question and seed."""
    from entropix import generation
    from entropix.decoding import batching

    cells = [(question, seed) for question in asked for seed in range(args.seeds)]
    looking: Any = {} if args.branch is None else {"branching": {"paths": args.branch}}
    request = generation.prepare(
        model,
        [question.prompt for question, _ in cells],
        sampler=sampler,
        seeds=[seed for _, seed in cells],
        occurrences=[0] * len(cells),
        max_new_tokens=args.max_new_tokens,
        **looking,
    )
    found = [Result(ids) for ids in request.prompt_ids]
    for event in batching.ContinuousBatch(request, args.batch).run():
        results.add(found, event)
    return [found[start : start + args.seeds] for start in range(0, len(found), args.seeds)]


def rated(asked: list[Question], found: list[list[Result]]) -> dict[str, Any]:
    """The figures of one file and one sampler."""
    right = [[question.is_right(r.text) for r in row] for question, row in zip(asked, found, strict=True)]
    by_seed = [mean(column) for column in zip(*right, strict=True)]
    return {
        "right": mean(by_seed),
        "least": min(by_seed),
        "most": max(by_seed),
        "different": mean(len({result.text for result in row}) for row in found),
        "cut_off": mean(results.cut_off(row) / len(row) for row in found),
    }


def rows(args: Args) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(sampler, file, figures), as soon as they are known."""
    model = loading.load(args.weights)
    for name in args.samplers.split(","):
        sampler = samplers.resolve(name)
        for file in args.files.split(","):
            known = presets.shipped("questions") / f"{file}.jsonl"
            asked = questions.read(known if known.is_file() else file)
            found = answers(model, sampler, asked, args)
            if args.show:
                for question, row in zip(asked, found, strict=True):
                    for seed, result in enumerate(row):
                        told = {"sampler": name, "prompt": question.prompt, "seed": seed, "text": result.text}
                        ended = {
                            "right": question.is_right(result.text),
                            "finish": result.finish.name.lower(),
                        }
                        print(cli.json_line(told | ended))
            yield name, file, rated(asked, found)


def main() -> None:
    """Prints the table."""
    from entropix import backend

    args = cli.parse(Args, None, None, __doc__)
    backend.use_compilation_cache()
    head = f"{'sampler':40} {'questions':16} {'right':>6} {'of a seed':>14} {'different':>10} {'cut off':>8}"
    print(head, flush=True)
    for name, file, found in rows(args):
        spread = f"{found['least']:.3f} to {found['most']:.3f}"
        ends = f"{found['different']:10.2f} {found['cut_off']:8.3f}"
        print(f"{name:40} {file:16} {found['right']:6.3f} {spread:>14} {ends}", flush=True)


if __name__ == "__main__":
    cli.leave(cli.run(main))
