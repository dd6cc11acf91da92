"""The page: what is in it, and the data that its scripts draw from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from entropix import metric_labels, trace
from entropix.report import align, looks, packing, shell, tree
from entropix.trace import Trace

SCRIPTS = ("data.js", "strip.js", "details.js", "tree.js", "charts.js", "page.js")
SHOWN_DIFFERENCES = 6  # of settings, in a trace's heading
_RECORDED = ("alternatives", "head_entropies", "chunk_length")  # settings that change no token


class Named(NamedTuple):
    """A trace and the name of its file."""

    name: str
    trace: Trace


def read(paths: Sequence[str]) -> list[Named]:
    """The traces in these files. Raises a ValueError for what is none."""
    return [Named(Path(path).name, trace.read(path)) for path in paths]


def page(traces: Sequence[Named]) -> str:
    """The HTML document about one or more traces, side by side."""
    shell.require("plotly", "the page")
    from entropix.report import plots

    headers = [named.trace.header for named in traces]
    strategies = _strategies(headers)
    names = trace_names(traces)
    data = data_of(traces)
    body = shell.fragment(
        "page.html.jinja",
        traces=data["traces"],
        metrics=data["metrics"],
        key=looks.lines(names) if len(names) > 1 else [],
        strategies=strategies,
        rows=_row_names(data["traces"]),
    )
    models = ", ".join(dict.fromkeys(header["model"]["name"] for header in headers))
    samplers = ", ".join(dict.fromkeys(header["preset"] for header in headers))
    colors = "".join(f"--strategy-{i}: {color}; " for i, color in enumerate(metric_labels.STRATEGIES))
    return shell.document(
        f"{models}: {samplers}",
        body,
        plots.figures([named.trace for named in traces]),
        data,
        [shell.asset(name) for name in SCRIPTS],
        [f":root {{ {colors}}}", shell.asset("page.css"), shell.asset("tree.css")],
    )


def data_of(traces: Sequence[Named]) -> dict[str, Any]:
    """What the page's scripts draw from, for JSON."""
    from entropix.report import plots

    texts = packing.Texts()
    labels = trace.metric_labels_of([named.trace.header for named in traces])
    notes = differences([named.trace for named in traces])
    names = trace_names(traces)
    rows = [
        _trace_data(named, note, texts, list(labels)) | {"name": name, "look": looks.look(i)._asdict()}
        for i, (named, note, name) in enumerate(zip(traces, notes, names, strict=True))
    ]
    return {
        "traces": rows,
        "texts": texts.packed(),
        "metrics": plots.titles(labels),
        "alignments": alignments([named.trace for named in traces]),
        "places": {
            strategy["name"]: strategy["place"]
            for strategy in _strategies([named.trace.header for named in traces])
        },
        "palette": list(metric_labels.STRATEGIES),
        "marks": list(looks.MARKS),
    }


def trace_names(traces: Sequence[Named]) -> list[str]:
    """What traces are called where they are drawn together: their presets, and the files where two have the same."""
    samplers = [named.trace.header["preset"] for named in traces]
    return [
        f"{sampler}, {named.name}" if samplers.count(sampler) > 1 else sampler
        for sampler, named in zip(samplers, traces, strict=True)
    ]


def alignments(traces: Sequence[Trace]) -> list[dict[str, Any] | None]:
    """For every row how the traces' answers compare; None where there is one answer or the prompts differ."""
    result: list[dict[str, Any] | None] = []
    for row in range(max(len(t.results) for t in traces)):
        present = [t.results[row] for t in traces if row < len(t.results)]
        prompts = {t.header["prompts"][row]["text"] for t in traces if row < len(t.results)}
        if len(present) < len(traces) or len(traces) == 1 or len(prompts) > 1:
            result.append(None)
            continue
        # By bytes, so that the ids of different tokenizers do not matter.
        sequences = [[tuple(r.get("bytes", r["text"].encode())) for r in a.records] for a in present]
        result.append(align.align(sequences)._asdict())
    return result


def differences(traces: Sequence[Trace]) -> list[str]:
    """For each trace the settings in which they are not all alike, like "seed 2, temp 0.7"; the first few of those that
    it has, since other rules have other numbers."""
    settings = [_flat(t.header["generation"]) | t.header["sampler_config"] for t in traces]
    names = dict.fromkeys(name for one in settings for name in one if name not in _RECORDED)
    unlike = [n for n in names if any(one.get(n) != settings[0].get(n) for one in settings)]
    told = []
    for one in settings:
        own = [f"{name} {_plain(one[name])}" for name in unlike if one.get(name) is not None]
        rest = f", and {len(own) - SHOWN_DIFFERENCES} more" if len(own) > SHOWN_DIFFERENCES else ""
        told.append(", ".join(own[:SHOWN_DIFFERENCES]) + rest)
    return told


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with those of their parts, like "branching paths"."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        part = value if isinstance(value, Mapping) else None
        flat |= {name: value} if part is None else {f"{name} {inner}": part[inner] for inner in part}
    return flat


def _plain(value: Any) -> str:
    return " ".join(map(str, value)) or "none" if isinstance(value, list) else str(value)


def _strategies(headers: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """All strategies of all traces: the place that gives its colour, and whether it is all that a sampler does."""
    found: dict[str, dict[str, Any]] = {}
    for header in headers:
        for i, name in enumerate(header["strategies"]):
            place, is_only = i % len(metric_labels.STRATEGIES), len(header["strategies"]) == 1
            found.setdefault(name, {"name": name, "place": place, "is_only": is_only})
    return list(found.values())


def _row_names(traces: Sequence[dict[str, Any]]) -> list[str]:
    """What the rows are called: paths count from 0, as everywhere; other rows from 1."""
    n_rows = max(len(each["rows"]) for each in traces)
    all_paths = [each["paths"]["rows"] for each in traces if each["paths"]]
    if not all_paths:
        return [f"{row + 1} of {n_rows}" for row in range(n_rows)]
    chosen = {row for rows in all_paths for row, path in enumerate(rows) if path["chosen"]}
    return [f"path {row}{', chosen' if row in chosen else ''}" for row in range(n_rows)]


def _trace_data(named: Named, note: str, texts: packing.Texts, metrics: Sequence[str]) -> dict[str, Any]:
    header = named.trace.header
    return {
        "file": named.name,
        "sampler": header["preset"],
        "model": header["model"]["name"],
        "dtype": header["model"]["dtype"],
        "note": note,
        "strategies": header["strategies"],
        "vocabulary": header["model"]["config"].get("vocab_size"),
        "paths": tree.paths(named.trace),
        "rows": [
            {
                "prompt": prompt["text"],
                "prompt_tokens": len(prompt["token_ids"]),
                "text": result.text,
                "finish": result.finish.name.lower(),
                "reason": result.finish.sentence,
                "tree": tree.forks(named.trace, row),
                **packing.pack(result.records, header["strategies"], texts, metrics),
            }
            for row, (prompt, result) in enumerate(zip(header["prompts"], named.trace.results, strict=True))
        ],
    }
