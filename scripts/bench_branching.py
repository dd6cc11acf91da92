"""Measures several paths as one batch against one after the other, and looks at what choosing gains.

Speed: the paths of `--cot C` on small generated arithmetic questions, computed as one batch and then, the same tokens,
by one generation after the other. Every question is asked once before, so that nothing is compiled in what is timed: a
batch shrinks as its paths end, and each size is a program. Medians over the questions.

Look: on generated arithmetic questions and on facts, how often greedy decoding, the path with the largest answer margin
and a majority vote over as many samples are right, with the tokens each of them computed. It is a look and not a claim:
one small model, few questions, and intervals that say how little they tell. The intervals are 95 %: Wilson's for a
share, a bootstrap over the questions for the difference of two methods. A table goes to stdout, and after it one line
of JSON.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Sequence
from random import Random
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from entropix import generation
from entropix.checkpoint import loading
from entropix.checkpoint.loading import Model
from entropix.console import cli
from entropix.cot import answers, parallel

OPTIONS: dict[str, Any] = {"raw": True, "stop": ("\n",)}
EXTRACT = "phrase"
ARITHMETIC_SHOTS = ((3, "+", 4), (9, "-", 2), (2, "+", 11), (15, "-", 6))
FACT_SHOTS = (("Portugal", "Lisbon"), ("Kenya", "Nairobi"), ("Peru", "Lima"), ("Norway", "Oslo"))
CAPITALS = (
    ("France", "Paris"), ("Germany", "Berlin"), ("Italy", "Rome"), ("Spain", "Madrid"), ("Japan", "Tokyo"),
    ("China", "Beijing"), ("Russia", "Moscow"), ("Egypt", "Cairo"), ("Greece", "Athens"), ("Cuba", "Havana"),
    ("Austria", "Vienna"), ("Poland", "Warsaw"), ("Sweden", "Stockholm"), ("Finland", "Helsinki"),
    ("Ireland", "Dublin"), ("Hungary", "Budapest"), ("Denmark", "Copenhagen"), ("Belgium", "Brussels"),
    ("Thailand", "Bangkok"), ("Vietnam", "Hanoi"), ("Indonesia", "Jakarta"), ("Iran", "Tehran"),
    ("Iraq", "Baghdad"), ("Syria", "Damascus"), ("Lebanon", "Beirut"), ("Turkey", "Ankara"),
    ("Canada", "Ottawa"), ("Australia", "Canberra"), ("Argentina", "Buenos Aires"), ("Chile", "Santiago"),
    ("Colombia", "Bogotá"), ("Venezuela", "Caracas"), ("Ukraine", "Kyiv"), ("Romania", "Bucharest"),
    ("Bulgaria", "Sofia"), ("Ghana", "Accra"), ("Senegal", "Dakar"), ("Ethiopia", "Addis Ababa"),
    ("Zimbabwe", "Harare"), ("Nepal", "Kathmandu"),
)  # fmt: skip


class Question(NamedTuple):
    """A prompt, and the answer as the extractor writes it."""

    prompt: str
    answer: str


class Outcome(NamedTuple):
    """What a method made of a question."""

    right: bool
    tokens: int  # computed


@dataclasses.dataclass(frozen=True)
class Args:
    """What to measure."""

    weights: str = loading.DEFAULT_MODEL
    """A name below weights/ or a checkpoint folder."""
    paths: int = 10
    """Paths, and samples of the vote."""
    timed: int = 20
    """Questions to time."""
    questions: int = 40
    """Questions of each kind to look at; of facts there are 40."""
    max_new_tokens: int = 32
    seed: int = 0
    """Of the questions, the samples and the bootstrap."""


def main() -> None:
    """Prints a table, and all of it as JSON at the end."""
    args = cli.parse(Args, None, None, __doc__)
    if min(args.paths, args.timed, args.questions) < 1 or args.max_new_tokens < 2:
        raise ValueError(
            "--paths, --timed and --questions must be at least 1 and --max-new-tokens at least 2"
        )
    model = loading.load(args.weights)
    options = {**OPTIONS, "max_new_tokens": args.max_new_tokens, "seed": args.seed}
    speed = time_paths(model, arithmetic(args.timed, Random(args.seed)), args.paths, options)
    print(f"{args.paths} paths of {args.timed} questions, greedy, medians")
    for name, value in speed.items():
        print(f"  {name:24}{value:10.3f}")
    looks = {}
    for kind, questions in (
        ("arithmetic", arithmetic(args.questions, Random(args.seed + 1))),
        ("facts", facts(args.questions, Random(args.seed))),
    ):
        looks[kind] = look(model, questions, args.paths, options)
        print(f"\n{kind}, {len(questions)} questions")
        for name, line in looks[kind].items():
            print(f"  {name:32}" + "  ".join(f"{field} {value}" for field, value in line.items()), flush=True)
    print(json.dumps({"options": dataclasses.asdict(args), "speed": speed, "looks": looks}))


def time_paths(
    model: Model, questions: Sequence[Question], paths: int, options: dict[str, Any]
) -> dict[str, float]:
    """Seconds of both ways, their ratio, and how many passes they take."""
    together, apart = [], []
    passes_together: list[float] = []
    passes_apart: list[float] = []
    greedy = {**options, "sampler": "greedy"}
    rest = {**greedy, "max_new_tokens": options["max_new_tokens"] - 1}

    def as_batch(question: Question) -> parallel.CotResult:
        return parallel.decode(model, question.prompt, paths=paths, extract=EXTRACT, **greedy)

    def alone(path: parallel.CotPath) -> None:
        prompt = [*path.result.prompt_ids, path.result.token_ids[0]]
        generation.generate(model, [prompt], **rest)

    for question in questions:
        alone(as_batch(question).winner)
    for question in questions:
        start = time.perf_counter()
        result = as_batch(question)
        together.append(time.perf_counter() - start)
        start = time.perf_counter()
        for path in result.paths:
            alone(path)
        apart.append(time.perf_counter() - start)
        passes_together.append(result.forward_passes)
        passes_apart.append(sum(path.forward_passes for path in result.paths))
        print(f"{together[-1]:.2f} s as one batch, {apart[-1]:.2f} s one by one", file=sys.stderr, flush=True)
    return {
        "one batch, s": median(together),
        "one by one, s": median(apart),
        "ratio": median(b / a for a, b in zip(together, apart, strict=True)),
        "passes of one batch": median(passes_together),
        "passes one by one": median(passes_apart),
    }


def look(
    model: Model, questions: Sequence[Question], paths: int, options: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Shares of right answers, and by how much the margin's differ from the others'."""
    methods: dict[str, Callable[[str], tuple[str | None, int]]] = {
        "greedy": lambda prompt: _greedy(model, prompt, options),
        "answer margin": lambda prompt: _chosen(
            parallel.decode(model, prompt, paths=paths, extract=EXTRACT, sampler="greedy", **options)
        ),
        "majority vote": lambda prompt: _chosen(
            parallel.self_consistency(
                model, prompt, paths, extract=EXTRACT, sampler="top-p", stop_early=False, **options
            )
        ),
    }
    outcomes: dict[str, list[Outcome]] = {name: [] for name in methods}
    for question in questions:
        for name, method in methods.items():
            answer, tokens = method(question.prompt)
            outcomes[name].append(Outcome(answer == question.answer, tokens))
    lines: dict[str, dict[str, Any]] = {}
    for name, found in outcomes.items():
        right = sum(outcome.right for outcome in found)
        low, high = wilson(right, len(found))
        mean_tokens = sum(outcome.tokens for outcome in found) / len(found)
        lines[name] = {**_share(right / len(found), low, high), "tokens": round(mean_tokens, 1)}
    for other in ("greedy", "majority vote"):
        difference = [
            a.right - b.right for a, b in zip(outcomes["answer margin"], outcomes[other], strict=True)
        ]
        low, high = bootstrap(difference, options["seed"])
        lines[f"answer margin minus {other}"] = _share(sum(difference) / len(difference), low, high)
    return lines


def arithmetic(n: int, rng: Random) -> list[Question]:
    """Sums and differences of numbers below 30."""
    shots = "".join(f"{_arithmetic(*shot)} {_solution(*shot)}\n\n" for shot in ARITHMETIC_SHOTS)
    found = []
    for _ in range(n):
        a, b, sign = rng.randrange(2, 30), rng.randrange(2, 30), rng.choice("+-")
        a, b = max(a, b), min(a, b)
        found.append(Question(shots + _arithmetic(a, sign, b), str(_value(a, sign, b))))
    return found


def facts(n: int, rng: Random) -> list[Question]:
    """Capitals of countries."""
    shots = "".join(f"{_fact(country)} The answer is {city}.\n\n" for country, city in FACT_SHOTS)
    chosen = rng.sample(CAPITALS, min(n, len(CAPITALS)))
    return [Question(shots + _fact(country), city.lower()) for country, city in chosen]


def wilson(right: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """Interval of a share (Wilson 1927)."""
    share = right / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap(values: Sequence[float], seed: int, n_draws: int = 10_000) -> tuple[float, float]:
    """Interval of a mean: the middle 95 % of means of as many values drawn with replacement."""
    drawn = np.random.default_rng(seed).choice(np.asarray(values, float), (n_draws, len(values)))
    low, high = np.percentile(drawn.mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


def _greedy(model: Model, prompt: str, options: dict[str, Any]) -> tuple[str | None, int]:
    [result] = generation.generate(model, prompt, sampler="greedy", **options)
    found = answers.extractor(EXTRACT)(result.text)
    return None if found is None else found.value, len(result.token_ids)


def _chosen(result: parallel.CotResult) -> tuple[str | None, int]:
    return result.winner.answer, result.computed_tokens


def _share(right: float, low: float, high: float) -> dict[str, Any]:
    return {"right": round(right, 3), "interval": f"[{low:.3f}, {high:.3f}]"}


def _arithmetic(a: int, sign: str, b: int) -> str:
    return f"Question: What is {a} {sign} {b}?\nAnswer:"


def _solution(a: int, sign: str, b: int) -> str:
    value = _value(a, sign, b)
    return f"{a} {sign} {b} = {value}. The answer is {value}."


def _value(a: int, sign: str, b: int) -> int:
    return a + b if sign == "+" else a - b


def _fact(country: str) -> str:
    return f"Question: What is the capital of {country}?\nAnswer:"


if __name__ == "__main__":
    cli.leave(cli.run(main))
