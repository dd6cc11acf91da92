"""The report without a browser: alignment, packing, regions, figures, and what the command says."""

import base64
import itertools
import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import results
import traces
from PIL import Image

import entropix
from entropix import generation, metric_labels, samplers, trace
from entropix.metrics import Metrics
from entropix.report import figures, packing, page, shell
from entropix.report.__main__ import main
from entropix.report.align import align, first_difference
from entropix.report.regions import RULES, limits, regions
from entropix.samplers.entropix import STRATEGIES, SWAPPED, SamplerConfig, choose

# ----- alignment --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("a", "b", "place"),
    [
        ("", "", None),
        ("abc", "abc", None),
        ("abc", "abd", 2),
        ("abc", "ab", 2),
        ("", "a", 0),
        ("xa", "ya", 0),
    ],
)
def test_the_first_difference_counts_an_end_as_one(a: str, b: str, place: int | None) -> None:
    assert first_difference(a, b) == first_difference(b, a) == place


def test_what_is_shared_ends_at_the_earliest_difference_of_any() -> None:
    assert align(["abcd", "abcx", "abcd", "ax"]) == (1, [None, 3, None, 1])


def test_equal_sequences_share_everything() -> None:
    assert align(["abc", "abc"]) == (3, [None, None])
    assert align(["abc"]) == (3, [None])


def test_traces_are_aligned_by_bytes_and_only_for_the_same_prompt(tmp_path: Path) -> None:
    row = traces.tokens(["a", "b"])
    other = [{**record, "id": 1} for record in traces.tokens(["a", "c"])]
    paths = [
        traces.write(tmp_path / "a.jsonl", row, row),
        traces.write(
            tmp_path / "b.jsonl",
            other,
            other,
            prompts=[traces.PROMPT, {"token_ids": [1], "text": "How?"}],
        ),
    ]
    found = page.alignments([named.trace for named in page.read(paths)])
    assert found == [{"shared": 1, "differences": [None, 1]}, None]


# ----- packing ----------------------------------------------------------------------------------------------


def unpacked_heads(packed: dict[str, Any]) -> np.ndarray:
    levels = np.frombuffer(base64.b64decode(packed["levels"]), np.uint8).astype(np.float64)
    levels[levels == packing.NOT_A_NUMBER] = np.nan
    return (
        levels.reshape(-1, packed["layers"], packed["heads"]) / (packing.NOT_A_NUMBER - 1) * packed["largest"]
    )


def test_head_entropies_come_back_within_half_a_step() -> None:
    rng = np.random.default_rng(0)
    bits_nLN = rng.uniform(0, 11, (40, 5, 3))
    bits_nLN[7, 2, 1] = np.nan
    records = [
        {"head_entropies": [[None if math.isnan(b) else b for b in row] for row in layers]}
        for layers in bits_nLN.tolist()
    ]
    packed = packing.pack_heads(records)
    assert packed is not None
    np.testing.assert_allclose(unpacked_heads(packed), bits_nLN, rtol=0, atol=0.5 * 11 / 254 + 1e-12)


@pytest.mark.parametrize("value", [0.0, 1e-7])
def test_heads_that_are_all_equal_come_back(value: float) -> None:
    packed = packing.pack_heads([{"head_entropies": [[value]]}])
    assert packed is not None and unpacked_heads(packed).item() == pytest.approx(value)


def test_heads_without_any_number_come_back_as_none() -> None:
    packed = packing.pack_heads([{"head_entropies": [[None, None]]}])
    assert packed is not None and np.isnan(unpacked_heads(packed)).all()


def test_heads_are_packed_only_where_every_token_has_them() -> None:
    assert packing.pack_heads([]) is None
    assert packing.pack_heads([{"head_entropies": [[1.0]]}, {}]) is None
    with pytest.raises(ValueError, match="same number"):
        packing.pack_heads([{"head_entropies": [[1.0]]}, {"head_entropies": [[1.0, 2.0]]}])


def test_a_row_comes_back_from_its_columns() -> None:
    records = traces.tokens(["a", " b", "c"], score=-1.5)
    texts = packing.Texts()
    packed = json.loads(json.dumps(packing.pack(records, STRATEGIES, texts), allow_nan=False))
    pool = texts.packed()
    for step, record in enumerate(records):
        assert pool["id"][packed["token"][step]] == record["id"]
        assert pool["text"][packed["token"][step]] == record["text"]
        assert STRATEGIES[packed["strategy"][step]] == record["strategy"]
        for name in (*packing.SETTINGS, *Metrics._fields):
            assert packed["columns"][name][step] == pytest.approx(record[name], rel=1e-5)
        columns = packed["alternatives"]
        found = [
            (pool["id"][columns["token"][i]], columns["logprob"][i], columns["draw_logprob"][i])
            for i in range(columns["start"][step], columns["start"][step + 1])
        ]
        assert found == [(a["id"], a["logprob"], a["draw_logprob"]) for a in record["alternatives"]]


@pytest.mark.parametrize(
    ("value", "short"),
    [
        (1.0, "1"),
        (-0.123456789, "-0.12346"),
        (1.75e-7, "1.75e-07"),
        (None, "null"),
        (math.inf, "null"),
        (49152, "49152"),
    ],
)
def test_numbers_keep_five_digits_and_no_more(value: float | None, short: str) -> None:
    assert json.dumps(packing.rounded(value)) == short


def test_parts_of_a_character_are_shown_at_its_last_and_named_by_their_bytes() -> None:
    parts = [[0xE2, 0x82], [0xAC], [0x24]]
    records = [
        traces.token(step, bytes(data).decode(errors="replace"), bytes=data)
        for step, data in enumerate(parts)
    ]
    texts = packing.Texts()
    assert packing.pack(records, STRATEGIES, texts)["shown"] == {"0": "", "1": "€"}
    assert texts.packed()["text"] == ["⟨e2⟩⟨82⟩", "⟨ac⟩", "$"]


def test_equal_texts_of_different_ids_stay_apart() -> None:
    texts = packing.Texts()
    assert [texts.add({"id": i, "text": "a"}) for i in (1, 2, 1)] == [0, 1, 0]


# ----- regions ----------------------------------------------------------------------------------------------

CONFIGS = [
    SamplerConfig(),
    SamplerConfig(low_ent_thresh=4.0, med_ent_thresh=1.0, low_vent_thresh=3.0, high_vent_thresh=2.0),
    SamplerConfig(low_ent_thresh=0.0, low_vent_thresh=0.0, high_ent_thresh=100.0),
]


@pytest.mark.parametrize(("sampler", "cfg"), list(itertools.product(RULES, CONFIGS)))
def test_every_point_lies_in_the_region_of_what_the_rule_does_there(sampler: str, cfg: SamplerConfig) -> None:
    """At 2,000 random points, so that a threshold that is no edge would show."""
    rng = np.random.default_rng(0)
    right, top = 8.0, 7.0
    x_n, y_n = rng.uniform(0, right, 2000), rng.uniform(0, top, 2000)
    found = regions(sampler, cfg, right, top)
    got_n = found.strategy_YX[
        np.searchsorted(found.varentropy_edges, y_n) - 1, np.searchsorted(found.entropy_edges, x_n) - 1
    ]
    metrics = Metrics(*[jnp.zeros(2000)] * len(Metrics._fields))._replace(
        logits_entropy=jnp.asarray(x_n, jnp.float32), logits_varentropy=jnp.asarray(y_n, jnp.float32)
    )
    np.testing.assert_array_equal(got_n, choose(metrics, cfg, SWAPPED[RULES[sampler]]))
    assert found.entropy_edges[[0, -1]].tolist() == [0, right]


def test_the_samplers_with_regions_exist_and_the_placebo_has_none() -> None:
    assert set(RULES) <= set(samplers.SAMPLERS)
    assert "placebo" not in RULES


# ----- the document -----------------------------------------------------------------------------------------


def test_every_metric_has_a_title_and_a_meaning() -> None:
    assert tuple(metric_labels.METRICS) == Metrics._fields
    assert all(label.title and label.meaning.endswith(".") for label in metric_labels.METRICS.values())


def test_numbers_that_json_does_not_know_are_refused() -> None:
    with pytest.raises(ValueError):
        shell.document("t", "", data={"x": math.nan})


def test_a_document_without_figures_has_no_plotting_library_in_it() -> None:
    assert len(shell.document("t", "<p>b</p>")) < 20_000


def test_titles_are_escaped() -> None:
    assert "<title>&lt;b&gt;</title>" in shell.document("<b>", "")


def test_a_page_names_no_other_place(tmp_path: Path) -> None:
    """Nothing it would load: addresses are only in plotly.js, which the Content-Security-Policy holds back."""
    html = page.page(page.read([traces.write(tmp_path / "a.jsonl", traces.tokens("ab"))]))
    assert len(html) < 2_000_000
    ours = [path.read_text(encoding="utf-8") for path in sorted(shell.ASSETS.glob("*.*"))]
    assert set(re.findall(r"https?://[\w.]+", "".join([html, *ours]))) == set()


@pytest.mark.slow
def test_what_the_program_records_becomes_a_page_and_figures(toy_folder: str, tmp_path: Path) -> None:
    job = generation.prepare(
        entropix.load(toy_folder), ["Why?", "How?"], max_new_tokens=5, alternatives=2, head_entropies=True
    )
    trace.write(tmp_path / "a.jsonl", job, generation.collect(job, generation.run(job)))
    named = page.read([str(tmp_path / "a.jsonl")])
    assert "head_agreement" in page.page(named)
    assert len(figures.write(named, tmp_path)) == 8


def test_traces_tell_in_what_they_differ(tmp_path: Path) -> None:
    row = traces.tokens("a")
    paths = [
        traces.write(tmp_path / f"{seed}.jsonl", row, generation={"seed": seed, "chunk_length": 16})
        for seed in (1, 2)
    ]
    assert page.differences([named.trace for named in page.read(paths)]) == ["seed 1", "seed 2"]
    assert page.differences([page.read(paths)[0].trace]) == [""]


def test_differences_in_parts_are_told_one_by_one_and_what_is_only_recorded_is_none(tmp_path: Path) -> None:
    generations = [
        {
            "seed": 1,
            "alternatives": 0,
            "branching": {"paths": 4, "depth": 4, "strategies": ["flow", "explore"]},
        },
        {"seed": 1, "alternatives": 5, "branching": {"paths": 1, "depth": 4, "strategies": []}},
    ]
    paths = [
        traces.write(tmp_path / f"{i}.jsonl", traces.tokens("a"), generation=generation)
        for i, generation in enumerate(generations)
    ]
    assert page.differences([named.trace for named in page.read(paths)]) == [
        "branching paths 4, branching strategies flow explore",
        "branching paths 1, branching strategies none",
    ]


def test_a_rule_is_not_told_numbers_that_it_has_not(tmp_path: Path) -> None:
    paths = [
        traces.write(tmp_path / f"{i}.jsonl", traces.tokens("a"), sampler_config=numbers)
        for i, numbers in enumerate(({"temp": 0.3, "top_k": 27}, {"temp": 1.0, "min_p": 0.1}))
    ]
    found = page.differences([named.trace for named in page.read(paths)])
    assert found == ["temp 0.3, top_k 27", "temp 1.0, min_p 0.1"]


@pytest.mark.parametrize(("high_ent_thresh", "right"), [(5.0, 5.775), (8.0, 9.24), (100.0, 2.1)])
def test_a_threshold_out_of_reach_does_not_stretch_the_plane(high_ent_thresh: float, right: float) -> None:
    """As the preset of the default model has one, to turn strategies off."""
    header = {"sampler": "entropix", "sampler_config": {"high_ent_thresh": high_ent_thresh}}
    result = results.result(results.record("flow", logits_entropy=2.0, logits_varentropy=10.0))
    assert limits([header], [result]) == (pytest.approx(right), pytest.approx(10.5))


def test_a_page_in_the_place_of_a_trace_is_refused(tmp_path: Path, run_command: Any) -> None:
    path = traces.write(tmp_path / "a.jsonl", traces.tokens("a"))
    before = Path(path).read_bytes()
    code, _, errors = run_command(main, str(path), "-o", str(tmp_path / "." / "a.jsonl"))
    assert code == 1 and "is read from and would be lost" in errors
    assert Path(path).read_bytes() == before


# ----- figures ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_figures_are_images_of_the_stated_size(tmp_path: Path) -> None:
    path = traces.write(tmp_path / "why.jsonl", traces.tokens("abcdef"))
    written = figures.write(page.read([path]), tmp_path / "new" / "folder")
    names = ["why-scatter.png", "why-series.png", "why-timeline.png", "why-heads.png"]
    assert [file.name for file in written] == names
    assert sorted(file.name for file in (tmp_path / "new" / "folder").iterdir()) == sorted(names)
    for file in written[:3]:
        with Image.open(file) as image:
            image.load()
            assert image.width == figures.WIDTH * figures.DPI
            assert round(image.info["dpi"][0]) == figures.DPI
            assert len(image.convert("RGB").getcolors(1 << 24)) > 10  # something is drawn


@pytest.mark.slow
def test_a_scatter_shows_every_region_and_strategy_in_its_colour(tmp_path: Path) -> None:
    """Points and, mixed with white, areas: of the reference's regions all but flow and clarify, too thin to be seen."""
    path = traces.write(tmp_path / "a.jsonl", traces.tokens("abcde"))
    [written, *_] = figures.write(page.read([path]), tmp_path)
    with Image.open(written) as image:
        colors = {color for _, color in image.convert("RGB").getcolors(1 << 24)}
    rgb = {
        name: tuple(int(color[i : i + 2], 16) for i in (1, 3, 5))
        for name, color in zip(STRATEGIES, metric_labels.STRATEGIES, strict=True)
    }
    assert set(rgb.values()) <= colors
    for name in ("explore", "resample", "adaptive"):
        mixed = np.array(rgb[name]) * 0.22 + 255 * 0.78
        assert min(np.abs(mixed - color).max() for color in colors) <= 1, name


@pytest.mark.slow
def test_rows_have_figures_of_their_own_and_empty_ones_have_none(tmp_path: Path) -> None:
    path = traces.write(tmp_path / "a.jsonl", traces.tokens("ab"), [], [traces.token(0, "x")])
    names = [file.name for file in figures.write(page.read([path]), tmp_path / "out", "pdf")]
    row0 = [f"a-row0-{name}.pdf" for name in ("scatter", "series", "timeline", "heads")]
    assert names == [*row0, *(f"a-row2-{name}.pdf" for name in ("scatter", "series", "timeline"))]
    assert all((tmp_path / "out" / name).read_bytes().startswith(b"%PDF") for name in names)


@pytest.mark.slow
def test_a_row_without_a_finite_number_is_drawn(tmp_path: Path) -> None:
    nothing = dict.fromkeys(("temperature", "logprob", "draw_logprob", *Metrics._fields))
    path = traces.write(tmp_path / "a.jsonl", [traces.token(0, "a", head_entropies=[[None]], **nothing)])
    assert len(figures.write(page.read([path]), tmp_path)) == 4


# ----- the command ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_writes_page_and_figures(tmp_path: Path, run_command: Any) -> None:
    path = traces.write(tmp_path / "a.jsonl", traces.tokens("ab"))
    out, png = tmp_path / "report.html", tmp_path / "png"
    code, shown, said = run_command(main, path, path, "-o", str(out))
    assert (code, shown, said) == (0, "", f"{out}: a page of {path} and {path}\n")
    assert out.read_text(encoding="utf-8").startswith("<!doctype html>")
    code, shown, said = run_command(main, path, "--png", str(png), "--pdf", str(png))
    assert (code, shown, said) == (0, "", f"{png}: 4 figures as PNG\n{png}: 4 figures as PDF\n")
    assert len(list(png.iterdir())) == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda args: args[:1], "say what to make"),
        (lambda args: args[1:], "give at least one trace"),
        (lambda args: ["missing.jsonl", *args[1:]], "missing.jsonl: no such file"),
        (lambda args: [args[0], args[0], "--png", args[2]], "two traces are called 'a'"),
        (
            lambda args: [args[0], "-o", "/no/such/folder/report.html"],
            "the folder /no/such/folder does not exist",
        ),
        (lambda args: [args[0], "--png", args[0]], "cannot make this folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_1(
    change: Any, message: str, tmp_path: Path, run_command: Any
) -> None:
    args = [traces.write(tmp_path / "a.jsonl", traces.tokens("ab")), "-o", str(tmp_path / "report.html")]
    code, out, err = run_command(main, *change(args))
    assert (code, out) == (1, "")
    assert message in err and err.startswith("error: ") and err.count("\n") == 1
    assert not (tmp_path / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("library", "flags"), [("plotly", ["-o", "out.html"]), ("matplotlib", ["--png", "figures"])]
)
def test_a_missing_library_is_named_with_the_command_that_installs_it(
    library: str, flags: list[str], tmp_path: Path
) -> None:
    path = traces.write(tmp_path / "a.jsonl", traces.tokens("ab"))
    script = (
        f"import sys; sys.modules['{library}'] = None; from entropix.console import cli; "
        f"from entropix.report.__main__ import main; sys.exit(cli.run(lambda: main({[path, *flags]!r})))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"needs {library}: pip install {library}" in done.stderr
