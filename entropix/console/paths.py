"""What the command line shows of several paths: the chosen text on stdout, how it was chosen on stderr."""

import contextlib
import dataclasses
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from entropix import tables, trace
from entropix.config import BATCH_ROWS
from entropix.console import cli, coloring, signals, terminal
from entropix.console.terminal import Show
from entropix.console.thinking import told
from entropix.cot import parallel, selection
from entropix.cot.parallel import CotPath, CotResult
from entropix.cot.plan import NONE, Plan
from entropix.decoding.request import GenerationRequest
from entropix.results import FinishReason, cut_off
from entropix.trace import run_statistics

_SHOWN = 24  # characters of an answer in the table
_WIDTH = 160  # characters of the table where stderr is no terminal


def answer(
    request: GenerationRequest, plan: Plan, show: Show, most_rows: int = BATCH_ROWS
) -> list[CotResult]:
    """Decodes and prints, prompt after prompt, with at most so many paths in a batch.

    Ctrl-C, SIGTERM or SIGHUP ends it early, and what there is then is chosen from. Whatever happens, the trace of what
    was printed is written. Raises a ValueError, after all, where the logits of every path of a prompt were not finite.
    """
    start = time.perf_counter()
    n_prompts = len(request.prompt_ids)
    batches, results = parallel.ParallelPaths(request, plan, most_rows), list[CotResult]()
    what = f"decoding {plan.paths} paths" + (f" of each of {n_prompts} prompts" if n_prompts > 1 else "")
    try:
        with contextlib.ExitStack() as waiting:
            waiting.enter_context(terminal.status(what))
            for result in batches.run(signals.until_signal):
                waiting.close()  # it would print over what is printed
                results.append(result)
                _print(result, None if n_prompts == 1 else len(results) - 1, show)
                waiting.enter_context(terminal.status(what))
    finally:
        if show.trace is not None and results:
            write_trace(show.trace, results)
        if show.table is not None:
            places = [
                {"prompt": number, "path": path, "chosen": path == result.chosen}
                for number, result in enumerate(results)
                for path in range(len(result.paths))
            ]
            tables.write(show.table, tables.tokens([p.result for r in results for p in r.paths], places))
    if show.stats:
        terminal.note(stats(results, batches.n_passes, time.perf_counter() - start))
        terminal.note_devices(request.model)
    for number, result in enumerate(results, start=1):
        if result.winner.result.finish == FinishReason.NAN:
            which = f"prompt {number}: " if n_prompts > 1 else ""
            raise ValueError(which + FinishReason.NAN.sentence)
    return results


def _print(result: CotResult, row: int | None, show: Show) -> None:
    """The answer on stdout; on stderr the table of the paths, or, of one prompt of several, what can be said in lines.

    row: the prompt's number among several.
    """
    answer = result.text
    if show.hide_thinking and not show.json:
        thinking = terminal.thinking_of(result.request, result.chosen)
        answer = thinking.push(result.text) + thinking.flush()
        which = "" if row is None else f"prompt {row + 1}: "
        terminal.note_thinking(told(thinking, result.winner.result.records), show, which)
    answer = coloring.visible(answer) if sys.stdout.isatty() else answer
    if show.json:
        answer = cli.json_line(json_object(result, row or 0))
    elif row is not None:
        answer = ("\n" if row else "") + f"==> prompt {row + 1} <==\n{answer}"
    sys.stdout.write(answer + "\n")
    sys.stdout.flush()
    if row is None:
        console = Console(stderr=True, width=None if sys.stderr.isatty() else _WIDTH)
        shown = scores_that_fit(result, console)
        console.print(table(result, shown))
        for line in notes(result, len(shown)):
            terminal.note(line)
        return
    for line in notes(result, len(selection.SELECTORS)):
        terminal.note(f"prompt {row + 1}: {line}")


def write_trace(path: Path, results: Sequence[CotResult]) -> None:
    """Writes the trace of all paths, those of each prompt after those of the one before."""
    requests = [result.request for result in results]
    paths: list[dict[str, Any]] = []
    for number, result in enumerate(results):
        paths += tree(result, number, len(paths))
    trace.write(
        path,
        dataclasses.replace(requests[0], rows=tuple(row for request in requests for row in request.rows)),
        [path.result for result in results for path in result.paths],
        selection=selection_header(results[0])
        | {"decided_early": any(result.decided_early for result in results)},
        paths=paths,
    )


def json_object(result: CotResult, row: int = 0) -> dict[str, Any]:
    """All paths with all scores, as `--json` prints them. row: the prompt's number, from 0."""
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
        for path, facts in zip(result.paths, tree(result, row), strict=True)
    ]
    chosen = result.winner.result
    return {
        "row": row,
        "text": result.text,
        "token_ids": chosen.token_ids,
        "finish": chosen.finish.name.lower(),
        "reason": chosen.finish.sentence,
        "answer": result.winner.answer,
        "chosen": result.chosen,
        **selection_header(result),
        "prompt_tokens": len(chosen.prompt_ids),
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
        **({"above": plan.above} if plan.above else {}),
        "decided_early": result.decided_early,
    }


def tree(result: CotResult, prompt: int = 0, before: int = 0) -> list[dict[str, Any]]:
    """Where each path comes from and what became of it, as JSON and traces tell it.

    prompt: its number. before: rows of earlier prompts, by which those of this one are counted.
    """
    return [
        {
            "prompt": prompt,
            "parent": None if path.parent is None else before + path.parent,
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
        yield result.winner.result.stopped
    if finish == FinishReason.INTERRUPTED and not any(path.result.records for path in result.paths):
        return  # there was nothing to choose from
    if n_scores < len(selection.SELECTORS):
        yield f"{n_scores} of {len(selection.SELECTORS)} scores fit here; --json or a wider terminal has all"
    yield (
        f"chose path {result.chosen} of {len(result.paths)} by {_reason(result)}; kept {result.kept_tokens} of "
        f"{result.computed_tokens} tokens"
    )
    if len(result.paths) < result.plan.paths and finish not in (FinishReason.NAN, FinishReason.INTERRUPTED):
        yield (
            f"no token of the first sample had more than {result.plan.above:g} bits of entropy, so it is the only one"
            if result.plan.fork == NONE
            else f"the first answer had no more than {len(result.paths) - 1} places to fork at"
        )
    if (n_cut := cut_off([path.result for path in result.paths])) and finish != FinishReason.INTERRUPTED:
        yield f"{n_cut} of {len(result.paths)} paths were cut off by max_new_tokens or a full context"
    if all(path.answer is None for path in result.paths):
        yield f"no path has an answer that {result.plan.extract!r} finds; --extract says what to look for"
    if result.decided_early:
        yield "paths were ended early, as they could not change the vote any more"


def _reason(result: CotResult) -> str:
    """The selector, or what it falls back on where no path has a score of its own."""
    scored = any(path.scores[result.plan.select] is not None for path in result.paths)
    return result.plan.select if scored else selection.FALLBACK


def stats(results: Sequence[CotResult], n_passes: int, seconds: float) -> str:
    """Lines of cost, and of the chosen paths' strategies and metrics, as `--stats` prints them."""
    chosen = [result.winner.result for result in results]
    kept, computed = (sum(getattr(r, name) for r in results) for name in ("kept_tokens", "computed_tokens"))
    rows = [
        ("prompt tokens", str(sum(len(result.prompt_ids) for result in chosen)), ""),
        ("paths", str(sum(len(result.paths) for result in results)), ""),
        run_statistics.of_ends(
            run_statistics.Totals(path.result for result in results for path in result.paths)
        ),
        ("tokens kept", str(kept), ""),
        ("tokens computed", str(computed), f"{100 * kept / computed:.1f} % kept" if computed else ""),
        ("forward passes", str(n_passes), ""),
        ("total time", f"{seconds:.4g}", "s, compilation included"),
        ("speed", f"{computed / seconds:.4g}", "tokens/s of all paths"),
        *run_statistics.of_tokens(run_statistics.Totals(chosen), results[0].request.sampler.strategies),
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
