"""The command that varies numbers: what its grid means, one program for all of it, and its plots."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from entropix import samplers, sweep
from entropix.decoding import loop
from entropix.lab import sweep_figures
from entropix.samplers import SAMPLERS
from entropix.sweep import expand, parse_axes, parse_values

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(run_command: Command, toy_folder: str, tmp_path: Path) -> Command:
    path = tmp_path / "prompts.txt"
    path.write_text("Why?\nHow so?\n")
    flags = ("--prompts", str(path), "--weights", toy_folder, "--seeds", "2", "--max-new-tokens", "6")
    return partial(run_command, sweep.main, *flags)


@pytest.mark.parametrize(
    ("name", "text", "values"),
    [
        ("temp", "0.5,1,2e0", [0.5, 1.0, 2.0]),
        ("temp", "0.1:0.5:5", [0.1, 0.2, 0.3, 0.4, 0.5]),
        ("temp", "1:0.5:2", [1.0, 0.5]),
        ("temp", "0.01:1:3:log", [0.01, 0.1, 1.0]),
        ("top_k", "1,20", [1, 20]),
        ("top_k", "10:30:3", [10, 20, 30]),
        ("top_k", "1:100:3:log", [1, 10, 100]),
        ("clarifier", " ...,Wait", [" ...", "Wait"]),
    ],
)
def test_values_are_listed_or_ranges(name: str, text: str, values: list[Any]) -> None:
    found = parse_values(name, text, SAMPLERS["entropix"])
    assert found == values
    assert list(map(type, found)) == list(map(type, values))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "nothing to vary: give --grid FIELD=a,b,c or "),
        (["temp"], "--grid temp: expected FIELD=a,b,c"),
        (["temp="], "--grid temp=: expected FIELD=a,b,c"),
        (["tempp=1"], "--grid: unknown field 'tempp'; did you mean 'temp'?"),
        (["temp=hot"], "--grid temp=hot: expected"),
        (["temp=1,,2"], "--grid temp=1,,2: expected"),
        (["temp=1:2"], "--grid temp=1:2: expected"),
        (["temp=1:2:1"], "--grid temp=1:2:1: expected .* n of at least 2"),
        (["temp=0:2:3:log"], "--grid temp=0:2:3:log: expected .* positive ends"),
        (["temp=1:2:3:exp"], "--grid temp=1:2:3:exp: expected"),
        (["top_k=1:4:3"], r"top_k takes whole numbers, but this range has \[1.0, 2.5, 4.0\]; list them"),
        (["top_k=1.5"], "--grid top_k=1.5: expected"),
        (["temp=1", "temp=2"], "--grid temp=2: temp is varied already; give all its values at once"),
    ],
)
def test_a_grid_that_means_nothing_is_refused(texts: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_axes(texts, SAMPLERS["entropix"])


def test_every_combination_is_a_variant_and_nothing_else_changes() -> None:
    variants = expand(samplers.resolve("min-p"), {"min_p": [0.1, 0.2], "temp": [1.0, 2.0]})
    assert [variant.label for variant in variants] == [
        "min_p=0.1 temp=1.0",
        "min_p=0.1 temp=2.0",
        "min_p=0.2 temp=1.0",
        "min_p=0.2 temp=2.0",
    ]
    preset = samplers.resolve("min-p").numbers
    changed = [
        {
            name: value
            for name, value in vars(variant.sampler.numbers).items()
            if value != getattr(preset, name)
        }
        for variant in variants
    ]
    assert {variant.sampler.name for variant in variants} == {"min-p"}
    assert changed[3] == {"min_p": 0.2, "temp": 2.0}


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"top_p": [0.5, 1.5]}, "--grid top_p=1.5: top_p must be between 0.0 and 1.0, got 1.5"),
        ({"top_k": [500]}, r"--grid: top_k has no effect with top-p; it is used by top-k, entropix, "),
        ({"temp": [float("nan")]}, "--grid temp=nan: temp must be between"),
        (
            {"temp": [1.0, 2.0], "min_p": [0.1, 0.2]},
            "--grid: min_p has no effect with top-p; it is used by min-p, entropix, entropix-torch and 2 more, "
            "see docs/samplers.md$",
        ),
        (
            {"n_adaptive_samples": [1, 2]},
            "--grid: n_adaptive_samples has no effect with top-p; it is used by ",
        ),
        ({"clarifier": ["a", "b"]}, "--grid: clarifier has no effect with top-p; it is used by "),
        ({"dry_base": [1.5, 2.0]}, "--grid: dry_base has no effect while dry_multiplier is 0; set that too"),
    ],
)
def test_a_value_out_of_range_and_a_field_without_effect_are_refused_before_any_work(
    axes: dict[str, list[Any]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        expand(samplers.resolve("top-p"), axes)


def test_a_field_of_the_guard_may_be_varied_with_the_guard() -> None:
    assert (
        len(expand(samplers.resolve("greedy"), {"dry_multiplier": [0.0, 0.8], "dry_base": [1.5, 2.0]})) == 4
    )


@pytest.mark.slow
def test_a_sweep_compiles_one_program(command: Command, tmp_path: Path) -> None:
    before = loop.decode_chunk._cache_size()
    flags = (
        "--sampler",
        "xtc",
        "--batch",
        "16",
        "--grid",
        "temp=0.5:1.5:3",
        "--grid",
        "xtc_threshold=0.1,0.2,0.3",
    )
    code, out, _ = command(*flags, "--json")
    assert code == 0
    assert len(json.loads(out)["variants"]) == 9
    assert loop.decode_chunk._cache_size() == before + 1


@pytest.mark.slow
def test_a_guard_that_is_on_and_off_makes_two_programs(command: Command) -> None:
    before = loop.decode_chunk._cache_size()
    code, _, _ = command(
        "--sampler", "top-n-sigma", "--batch", "3", "--grid", "repetition_penalty=1,1.1,1.2,1.3"
    )
    assert code == 0
    assert loop.decode_chunk._cache_size() == before + 2


@pytest.mark.slow
def test_the_page_draws_lines_over_one_field_and_heat_maps_over_two(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn, usual = [], sweep_figures.sweep
    monkeypatch.setattr(sweep_figures, "sweep", lambda *args: drawn.append(usual(*args)) or drawn[-1])
    temps = "temp=0.5,1.0,2.0"
    for number, grid in enumerate(
        ((temps,), (temps, "min_p=0.1,0.2"), (temps, "min_p=0,1", "repetition_penalty=1,2"))
    ):
        flags = [word for text in grid for word in ("--grid", text)]
        assert command("--sampler", "min-p", *flags, "--out", str(tmp_path / str(number)))[0] == 0
    assert len(drawn) == 2
    lines, maps = ([plot.figure.to_dict()["data"][0] for plot in section.plots] for section in drawn)
    assert [trace["type"] for trace in lines] == ["scatter"] * 4
    assert [trace["type"] for trace in maps] == ["heatmap"] * 4
    assert list(lines[0]["x"]) == [0.5, 1.0, 2.0]
    assert (maps[0]["x"], maps[0]["y"]) == (["0.1", "0.2"], ["0.5", "1.0", "2.0"])
    assert (len(maps[0]["z"]), len(maps[0]["z"][0])) == (3, 2)
    titles = [plot.figure.layout.xaxis.title.text for section in drawn for plot in section.plots]
    assert set(titles) == {"temp", "min_p (ratio)"}
