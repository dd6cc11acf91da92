"""What the command line shows of several paths: the chosen text on stdout, how it was chosen on stderr."""

import math
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from entropix import run_statistics, trace
from entropix.console import cli, coloring, signals, terminal
from entropix.console.terminal import Show
from entropix.cot import parallel, selection
from entropix.cot.parallel import CotPath, CotResult
from entropix.cot.plan import Plan
from entropix.decoding.request import GenerationRequest
from entropix.results import FinishReason

_SHOWN = 24  # characters of an answer in the table
_WIDTH = 160  # characters of the table where stderr is no terminal


def answer(request: GenerationRequest, plan: Plan, show: Show) -> CotResult:
    """Decodes and prints. Ctrl-C ends it early, and what there is then is chosen from.

    Raises a ValueError, after all, where the logits of every path were not finite.
    """
    start = time.perf_counter()
    with terminal.status(f"decoding {plan.paths} paths"):
        result = parallel.run(request, plan, signals.until_signal)
    seconds = time.perf_counter() - start
    if show.trace is not None:
        several = [path.result for path in result.paths]
        trace.write(
            show.trace, result.request, several, selection=selection_header(result), paths=tree(result)
        )
    answer = coloring.visible(result.text) if sys.stdout.isatty() else result.text
    sys.stdout.write((cli.json_line(json_object(result)) if show.json else answer) + "\n")
    sys.stdout.flush()
    console = Console(stderr=True, width=None if sys.stderr.isatty() else _WIDTH)
    shown = scores_that_fit(result, console)
    console.print(table(result, shown))
    for line in notes(result, len(shown)):
        terminal.note(line)
    if show.stats:
        terminal.note(stats(result, seconds))
        terminal.note_devices(request.model)
    if result.winner.result.finish == FinishReason.NAN:
        raise ValueError(FinishReason.NAN.sentence)
    return result


def json_object(result: CotResult) -> dict[str, Any]:
    """All paths with all scores, as `--json` prints them."""
    paths = [
        {
            "text": path.result.text,
            "token_ids": path.result.token_ids,
            "finish": path.result.finish.name.lower(),
            "reason": path.result.finish.sentence,
            "seed": path.seed,
            "new_tokens": len(path.result.token_ids),
            "computed_tokens": path.computed_tokens,
            **facts,
        }
        for path, facts in zip(result.paths, tree(result), strict=True)
    ]
    return {
        "text": result.text,
        "answer": result.winner.answer,
        "chosen": result.chosen,
        **selection_header(result),
        "prompt_tokens": len(result.winner.result.prompt_ids),
        "kept_tokens": result.kept_tokens,
        "computed_tokens": result.computed_tokens,
        "forward_passes": result.forward_passes,
        "paths": paths,
    }


def selection_header(result: CotResult) -> dict[str, Any]:
    """How a path was chosen, as JSON and traces tell it."""
    plan = result.plan
    return {
        "fork": plan.fork,
        "select": plan.select,
        "extract": plan.extract,
        "decided_early": result.decided_early,
    }


def tree(result: CotResult) -> list[dict[str, Any]]:
    """Where each path comes from and what became of it, as JSON and traces tell it."""
    return [
        {
            "parent": path.parent,
            "position": path.position,
            "given": path.given,
            "answer": path.answer,
            "scores": {name: _finite(score) for name, score in path.scores.items()},
            "forward_passes": path.forward_passes,
            "chosen": row == result.chosen,
        }
        for row, path in enumerate(result.paths)
    ]


def scores_that_fit(result: CotResult, console: Console) -> list[str]:
    """Names of the scores that the table has room for, in their order: the one that chose, then the first ones."""
    chose = result.plan.select
    fitting = [chose]
    for name in selection.SELECTORS:
        wider = [other for other in selection.SELECTORS if other in (*fitting, name)]
        if Measurement.get(console, console.options, table(result, wider)).maximum <= console.width - 1:
            fitting = wider
    return fitting


def table(result: CotResult, scores: Sequence[str]) -> Table:
    """A line for each path, with these of its scores."""
    with_forks = any(path.parent is not None for path in result.paths)
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("")
    shown.add_column("path", justify="right")
    if with_forks:
        shown.add_column("forks at", justify="right")
    shown.add_column("answer", no_wrap=True)
    for name in scores:
        shown.add_column(name.replace("-", "\n"), justify="right", overflow="fold")
    shown.add_column("tokens", justify="right")
    shown.add_column("end", no_wrap=True)
    for row, path in enumerate(result.paths):
        fork = "" if path.parent is None else f"{path.parent}:{path.position}"
        cells = ["→" if row == result.chosen else "", str(row), *([fork] if with_forks else [])]
        numbers = (_number(path.scores[name]) for name in scores)
        cells += [_short(path), *numbers, str(len(path.result.token_ids))]
        shown.add_row(*cells, path.result.finish.name.lower(), style="bold" if row == result.chosen else None)
    return shown


def notes(result: CotResult, n_scores: int) -> Iterator[str]:
    """What the table, with so many of the scores, does not say."""
    finish = result.winner.result.finish
    if finish not in (FinishReason.STOP_TOKEN, FinishReason.NAN):
        yield f"stopped: {finish.sentence}"
    if n_scores < len(selection.SELECTORS):
        yield f"{n_scores} of {len(selection.SELECTORS)} scores fit here; --json or a wider terminal has all"
    yield (
        f"chose path {result.chosen} of {len(result.paths)} by {_reason(result)}; kept {result.kept_tokens} of "
        f"{result.computed_tokens} tokens"
    )
    if len(result.paths) < result.plan.paths:
        yield f"the first answer had no more than {len(result.paths) - 1} places to fork at"
    if all(path.answer is None for path in result.paths):
        yield f"no path has an answer that {result.plan.extract!r} finds; --extract says what to look for"
    if result.decided_early:
        yield "paths were ended early, as they could not change the vote any more"


def _reason(result: CotResult) -> str:
    """The selector, or what it falls back on where no path has a score of its own."""
    scored = any(path.scores[result.plan.select] is not None for path in result.paths)
    return result.plan.select if scored else selection.FALLBACK


def stats(result: CotResult, seconds: float) -> str:
    """Lines of cost, and of the chosen path's strategies and metrics, as `--stats` prints them."""
    prompt, kept, computed = len(result.winner.result.prompt_ids), result.kept_tokens, result.computed_tokens
    rows = [
        ("prompt tokens", str(prompt), ""),
        ("paths", str(len(result.paths)), ""),
        ("tokens kept", str(kept), ""),
        ("tokens computed", str(computed), f"{100 * kept / computed:.1f} % kept" if computed else ""),
        ("forward passes", str(result.forward_passes), ""),
        ("total time", f"{seconds:.4g}", "s, compilation included"),
        ("speed", f"{computed / seconds:.4g}", "tokens/s of all paths"),
        *run_statistics.of_tokens([result.winner.result], result.request.sampler.strategies),
    ]
    return run_statistics.as_text(rows)


def _short(path: CotPath) -> str:
    """An answer in a cell; brackets are text there, not markup."""
    if path.answer is None:
        return "-"
    line = " ".join(path.answer.split())
    text = line if len(line) <= _SHOWN else line[: _SHOWN - 1] + "…"
    return text.replace("[", "\\[")


def _number(score: float | None) -> str:
    return "-" if score is None else f"{score:.3g}"


def _finite(score: float | None) -> float | None:
    return score if score is not None and math.isfinite(score) else None
