"""What was tried besides: the forks inside a row, what was taken back, and the paths from each prompt as a tree.

All words and numbers of the page's sections "Paths" and "Branches" come from here; assets/tree.js draws them.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from entropix.report import looks
from entropix.report.packing import rounded
from entropix.results import Result
from entropix.trace import Trace, run_statistics

# What forks are judged by, and its unit.
SCORES = {
    "logprob": ("mean log-probability", "nats"),
    "margin": ("mean margin", ""),
    "certainty": ("mean self-certainty", "nats"),
    "entropy": ("mean log-probability less a penalty for entropy", "nats"),
}
# Selectors of whole paths: what the number is called, and its unit.
SELECTORS = {
    "answer-margin": ("answer margin Δ", ""),
    "margin-sum": ("sum of answer margins Δ", ""),
    "mean-logprob": ("mean log-probability", "nats"),
    "self-certainty": ("mean self-certainty", "nats"),
    "borda": ("Borda vote", ""),
    "tail-confidence": ("tail confidence", "nats"),
    "majority": ("count of votes", ""),
}
# Whose number is that of all paths with the same answer.
VOTES = frozenset({"margin-sum", "borda", "majority"})


# ----- forks inside a row -----------------------------------------------------------------------------------


def forks(trace: Trace, row: int) -> dict[str, Any] | None:
    """What a row tried and took back, for JSON; None if it did neither.

    summary        totals, as a sentence
    measure, unit  what paths were judged by
    forks          each with `step`, `why` the winner won, `cost`, how many tokens of the winner were `kept`, and
                   `paths`, the drawn token's first: `text`, `score` (null for one that broke down), `tokens`, `chosen`
    returns        each time that tokens were taken back: `step` of the first of them, `text`, `tokens`
    """
    records = trace.results[row].records
    branching = trace.header["generation"].get("branching") or {}
    score, keep = branching.get("score", "logprob"), branching.get("keep", "path")
    found: list[dict[str, Any]] = [
        {
            "step": step,
            "why": why_branch(record["branches"], score),
            "cost": cost(record["branches"], keep),
            "kept": _kept(record["branches"], keep) + 1,
            "paths": [
                {
                    "text": path["text"],
                    "score": rounded(path["score"]),
                    "tokens": len(path["ids"]),
                    "chosen": path["chosen"],
                }
                for path in record["branches"]
            ],
        }
        for step, record in enumerate(records)
        if record.get("branches")
    ]
    texts = known_texts(trace.results)
    returns: list[dict[str, Any]] = [
        {"step": step, "text": "".join(texts.get(i, f"⟨{i}⟩") for i in ids), "tokens": len(ids)}
        for step, record in enumerate(records)
        for ids in record.get("taken_back", [])
    ]
    if not found and not returns:
        return None
    measure, unit = SCORES.get(score, (score, ""))
    return {
        "summary": summary(trace.results[row], keep),
        "measure": measure,
        "unit": unit,
        "forks": found,
        "returns": returns,
    }


def why_branch(branches: Sequence[Mapping[str, Any]], score: str) -> str:
    """Why the chosen path of a fork won, as a sentence with the number it won by. score: what paths are judged by."""
    name, unit = SCORES.get(score, (score, ""))
    place = next((i for i, path in enumerate(branches) if path["chosen"]), 0)
    own = branches[place]["score"]
    others = [path["score"] for i, path in enumerate(branches) if i != place and path["score"] is not None]
    if own is None:
        return "Every path broke down, so the drawn token stayed."
    if not others:
        return f"Path {place + 1} won as the only one with finite numbers: {name} {number(own, unit)}."
    best = max(others)
    against = f"{number(own, unit)} against {number(best)} of the best other"
    if own == best:
        return f"Path {place + 1} won by {name}, {against}; of equals the first counts."
    return f"Path {place + 1} won by {name}, {against}."


def cost(branches: Sequence[Mapping[str, Any]], keep: str) -> str:
    """What a fork cost: tokens computed ahead, and how many of them became text.

    The first token of a path is not counted: all paths' first tokens come from one position.
    """
    rolled = sum(len(path["ids"]) - 1 for path in branches)
    paths = count(len(branches), "path")
    kept = _kept(branches, keep)
    return (
        f"{count(rolled, 'token')} computed ahead on {paths}: {kept} in the text, {rolled - kept} discarded."
    )


def _kept(branches: Sequence[Mapping[str, Any]], keep: str) -> int:
    return sum(len(path["ids"]) - 1 for path in branches if path["chosen"]) if keep == "path" else 0


def computed_tokens(result: Result, keep: str, start: int = 0) -> int:
    """Tokens that a row took from its `start` on: its own, those of discarded paths and those that were taken back."""
    own = Result(result.prompt_ids, records=result.records[start:])
    return len(own.records) + run_statistics.discarded_tokens([own], keep)


def summary(result: Result, keep: str) -> str:
    """Totals of a row: "2 forks with 4 discarded paths; 10 of 22 computed tokens are in the text (45 %)."."""
    tried = [record["branches"] for record in result.records if record.get("branches")]
    returns = [ids for record in result.records for ids in record.get("taken_back", [])]
    parts = []
    if tried:
        parts.append(
            f"{count(len(tried), 'fork')} with {count(sum(map(len, tried)) - len(tried), 'discarded path')}"
        )
    if returns:
        tokens = count(sum(map(len, returns)), "token")
        parts.append(f"{tokens} taken back in {count(len(returns), 'return')}")
    return f"{', '.join(parts)}; {_share(len(result.records), computed_tokens(result, keep), 'in the text')}."


def known_texts(results: Sequence[Result]) -> dict[int, str]:
    """Texts of the token ids that a trace tells somewhere; of what was taken back it has the ids alone."""
    texts: dict[int, str] = {}
    for record in (record for result in results for record in result.records):
        for path in record.get("branches", ()):
            if len(path["ids"]) == 1:
                texts.setdefault(path["ids"][0], path["text"])
        for token in (record, *record.get("alternatives", ())):
            texts[token["id"]] = token["text"]
    return texts


# ----- paths from a prompt ----------------------------------------------------------------------------------


def paths(trace: Trace) -> dict[str, Any] | None:
    """The paths of a trace whose rows are such, for the template and for JSON; None for other traces.

    why, summary   sentences: why the winner won (of several prompts each one's), and the totals
    measure, unit  what the score that chose is called
    selectors      names of the scores, the one that chose first
    rows           each with `prompt`, `parent`, `position`, `lane` in the drawing, `fork` in words, `answer`, `scores`
                   as texts in the order of `selectors`, `score` (the one that chose, as a number), `tokens`,
                   `computed`, `forward_passes`, `finish`, `reason`, `chosen`
    """
    found, results = trace.header["paths"], trace.results
    if not found:
        return None
    selection = trace.header["selection"]
    select = selection.get("select", "")
    names = dict.fromkeys(name for path in found for name in path["scores"])
    selectors = sorted(names, key=lambda name: name != select)
    keep = (trace.header["generation"].get("branching") or {}).get("keep", "path")
    prompts = [path.get("prompt", 0) for path in found]
    several = len(set(prompts)) > 1
    places = tree_lanes([path["parent"] for path in found], [path["position"] for path in found])
    rows = [
        {
            "prompt": path.get("prompt", 0),
            "parent": path["parent"],
            "position": path["position"],
            "lane": lane,
            "fork": _origin(path, several),
            "answer": path["answer"],
            "scores": [number(path["scores"].get(name)) for name in selectors],
            "score": rounded(path["scores"].get(select)),
            "tokens": len(result.records),
            "computed": computed_tokens(result, keep, path["position"]),
            "forward_passes": path["forward_passes"],
            "finish": result.finish.name.lower().replace("_", " "),
            "reason": result.finish.sentence,
            "chosen": path["chosen"],
        }
        for path, result, lane in zip(found, results, places, strict=True)
    ]
    kept = sum(row["tokens"] for row in rows if row["chosen"])
    share = _share(
        kept, sum(row["computed"] for row in rows), "on the chosen path" + ("s" if several else "")
    )
    total = count(len(rows), "path") + (f" of {len(set(prompts))} prompts" if several else "")
    early = ", some ended early because the vote was decided" if selection.get("decided_early") else ""
    return {
        "why": why_paths(found, prompts, select) if several else why_path(found, select),
        "summary": f"{total}{early}; {share}.",
        "selectors": selectors,
        "select": select,
        "measure": SELECTORS.get(select, (select, ""))[0],
        "unit": SELECTORS.get(select, (select, ""))[1],
        "rows": rows,
    }


def _origin(path: Mapping[str, Any], several: bool) -> str:
    """Where a path parts from what came before."""
    if path["parent"] is not None:
        return f"path {path['parent']}, token {path['position'] + 1}"
    return f"prompt {path.get('prompt', 0) + 1}" if several else "–"


def why_paths(found: Sequence[Mapping[str, Any]], prompts: Sequence[int], select: str) -> str:
    """Why each prompt's chosen path was chosen, a line each. Paths are counted through all prompts, whose paths come
    together."""
    sentences = []
    for prompt in dict.fromkeys(prompts):
        mine = [i for i, other in enumerate(prompts) if other == prompt]
        why = why_path([found[i] for i in mine], select, mine[0])
        sentences.append(f"Prompt {prompt + 1}: {why[:1].lower()}{why[1:]}")
    return "\n".join(sentences)


def why_path(found: Sequence[Mapping[str, Any]], select: str, start: int = 0) -> str:
    """Why the chosen path was chosen, as a sentence with the selector's number and that of the next best.

    start: the number of the first path.
    """
    name, unit = SELECTORS.get(select, (select, ""))
    chosen = next((i for i, path in enumerate(found) if path["chosen"]), None)
    if chosen is None:
        return "No path was chosen."
    answer = found[chosen]["answer"]
    score = found[chosen]["scores"].get(select)
    if score is None:
        best = number(found[chosen]["scores"].get("mean-logprob"), "nats")
        return f"Path {start + chosen} was chosen by mean log-probability, {best}: no path has a number for {select}."
    rivals = [
        (path["scores"][select], -i)
        for i, path in enumerate(found)
        if i != chosen
        and path["scores"].get(select) is not None
        and (answer is None or path["answer"] is not None)  # without an answer none wins against one with
        and not (select in VOTES and path["answer"] == answer)
    ]
    subject = f"Its answer ‘{answer}’ has" if select in VOTES else "It has"
    told = (
        f"Path {start + chosen} was chosen by {select}. {subject} the largest {name}, {number(score, unit)}"
    )
    if not rivals:
        return f"{told}; no other {'answer was' if select in VOTES else 'path was to be'} compared."
    best, place = max(rivals)
    rival = f"‘{found[-place]['answer']}’" if select in VOTES else f"path {start - place}"
    if best == score:
        return f"{told}, as {rival} has; the tie went its way."
    return f"{told}; next is {rival} with {number(best, unit)}."


# ----- drawing ----------------------------------------------------------------------------------------------


def tree_lanes(parents: Sequence[int | None], positions: Sequence[int]) -> list[int]:
    """For each path its lane, so that no line from a parent down to a child crosses another path.

    A child comes below its parent, and of siblings those that part later come first. A parent that does not come
    before its child, as in no trace that was written, counts as none.
    """
    children: dict[int | None, list[int]] = {}
    for i, parent in enumerate(parents):
        children.setdefault(parent if parent is not None and 0 <= parent < i else None, []).append(i)
    result = [0] * len(parents)
    waiting = [*reversed(children.get(None, []))]
    for lane in range(len(parents)):
        i = waiting.pop()
        result[i] = lane
        # The last is next: of equal positions the earlier path.
        waiting += sorted(children.get(i, []), key=lambda child: (positions[child], -child))
    return result


# ----- words ------------------------------------------------------------------------------------------------


def number(value: float | None, unit: str = "") -> str:
    """Four significant digits with a true minus sign, as the page's scripts write them; a dash for no number."""
    if value is None:
        return "–"
    return looks.signed(f"{value:.4g}") + (f" {unit}" if unit else "")


def count(n: int, what: str) -> str:
    """ "1 fork", "2 forks"."""
    return f"{n} {what}{'' if n == 1 else 's'}"


def _share(kept: int, computed: int, where: str) -> str:
    share = f" ({100 * kept / computed:.0f} %)" if computed else ""
    return f"{kept} of {count(computed, 'computed token')} are {where}{share}"
