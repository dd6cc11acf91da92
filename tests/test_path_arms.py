"""Several paths an answer as arms of grids and comparisons, and what they have cost."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from grid_files import HEAD, SAMPLED, lines_of, tokens_of

from entropix import compare
from entropix.checkpoint.loading import load
from entropix.cot import parallel
from entropix.cot.plan import Plan
from entropix.generation import prepare
from entropix.lab.experiments import engine, file, merging, variants
from entropix.lab.experiments.results import Store
from entropix.lab.experiments.summary import CUT_OFF

sys.path.append(str(Path(__file__).parent.parent / "scripts"))
import run_grid

pytestmark = pytest.mark.slow

ARMS = (
    HEAD
    + SAMPLED
    + """
[[samplers]]
sampler = "top-p"
temp = 0.7
best_of = [2, 3]
select = "majority"
extract = "text"

[[samplers]]
sampler = "entropix"
cot = 3
"""
)
LABELS = [
    "temperature temp=0.5",
    "temperature temp=1.5",
    "top-p temp=0.7 best_of=2 select=majority extract=text",
    "top-p temp=0.7 best_of=3 select=majority extract=text",
    "entropix cot=3",
]


@pytest.fixture(scope="module")
def grid_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("arms") / "grid.toml"
    path.write_text(ARMS)
    return path


@pytest.fixture(scope="module")
def folder(grid_file: Path, toy_folder: str) -> Path:
    """The whole grid in batches of four answers."""
    return computed(grid_file, toy_folder, "whole")


def computed(
    grid_file: Path, toy_folder: str, name: str, part: tuple[int, int] = (1, 1), stop: int = 99
) -> Path:
    toy = load(toy_folder)
    grid = file.grid(file.read(grid_file), toy, 4, part)
    folder = grid_file.parent / name
    with Store(folder, engine.manifest(grid, toy), engine.keys(grid)) as store:
        for count, _ in enumerate(engine.run(toy, grid, store), start=1):
            if count == stop:
                break
    return folder


def test_an_answer_is_the_chosen_one_of_the_paths_of_its_prompt_alone(folder: Path, toy_folder: str) -> None:
    toy = load(toy_folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert [variant["label"] for variant in manifest["variants"]] == LABELS
    assert ["paths" in variant for variant in manifest["variants"]] == [False, False, True, True, True]
    arms = {
        LABELS[3]: (
            Plan(3, "none", "majority", "text"),
            {"sampler": "top-p", "sampler_config": {"temp": 0.7}},
        ),
        LABELS[4]: (Plan(3), {"sampler": "entropix"}),
    }
    n_compared = 0
    for line in lines_of(folder):
        assert ("paths" in line) == (line["variant"] in LABELS[2:])
        if line["variant"] not in arms:
            continue
        plan, options = arms[line["variant"]]
        prompt = manifest["prompts"][line["prompt"]]["token_ids"]
        found = parallel.run(prepare(toy, prompt, seed=line["seed"], max_new_tokens=10, **options), plan)
        assert (line["text"], line["token_ids"]) == (found.text, found.winner.result.token_ids)
        assert (line["answer"], line["paths"]) == (found.winner.answer, 3)
        cost = found.computed_tokens, found.forward_passes
        assert (line["computed_tokens"], line["forward_passes"]) == cost
        n_compared += 1
    assert n_compared == 12


def test_a_folder_that_was_interrupted_and_one_of_parts_have_the_same_answers(
    folder: Path, grid_file: Path, toy_folder: str
) -> None:
    computed(grid_file, toy_folder, "resumed", stop=4)
    parts = [computed(grid_file, toy_folder, f"part-{i}", (i, 2)) for i in (1, 2)]
    merging.merge(list(map(str, parts)), str(grid_file.parent / "merged"))
    computed(grid_file, toy_folder, "resumed")
    for other in ("resumed", "merged"):
        assert list(tokens_of(grid_file.parent / other).items()) == list(tokens_of(folder).items())
        assert (grid_file.parent / other / "manifest.json").read_bytes() == (
            folder / "manifest.json"
        ).read_bytes()


def test_the_table_has_the_cost_where_an_arm_has_paths(
    run_command: Any, folder: Path, grid_file: Path, toy_folder: str
) -> None:
    flags = ("--weights", toy_folder, "--out", str(folder), "--batch", "4")
    code, table, _ = run_command(run_grid.main, str(grid_file), *flags)
    assert code == 0
    head, *rows = table.splitlines()[: 1 + len(LABELS)]
    assert head.split()[:6] == ["answers", "tokens", "cut", "off", "paths", "computed"]
    for label, row in zip(LABELS, rows, strict=True):
        mine = [line for line in lines_of(folder) if line["variant"] == label]
        tokens = str(sum(line["new_tokens"] for line in mine))
        cost = str(sum(line.get("computed_tokens", line["new_tokens"]) for line in mine))
        paths = f"{mine[0]['paths']:.1f}" if "paths" in mine[0] else "-"
        cut_off = str(sum(line["finish"] in CUT_OFF for line in mine))
        assert row.removeprefix(label).split()[:5] == ["6", tokens, cut_off, paths, cost]


def test_a_comparison_names_its_arms(run_command: Any, toy_folder: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("Why?\nHow?\n")
    names = ["top-p", "top-p+self-consistency=3+extract=text", "top-p+best_of=2"]
    flags = ("--prompts", str(tmp_path / "prompts.txt"), "--seeds", "1", "--max-new-tokens", "4")
    words = ("--samplers", ",".join(names), "--weights", toy_folder, "--json", *flags)
    code, out, _ = run_command(compare.main, *words)
    assert code == 0
    told = json.loads(out)["variants"]
    assert [(found["label"], found["paths"]) for found in told] == list(zip(names, (None, 3, 2), strict=True))
    assert told[0]["computed_tokens"] == told[0]["tokens"] < told[1]["computed_tokens"]


@pytest.mark.parametrize(
    ("name", "plan"),
    [
        ("entropix", None),
        ("entropix+cot=4", Plan(4)),
        ("entropix+cot=4+cot-at=explore+cot_entropy=1", Plan(4, "explore", entropy=1.0)),
        ("top-p+best-of=8+select=majority", Plan(8, "none", "majority")),
        ("top-p+self_consistency=5+extract=phrase:1 + 1 =", Plan(5, "none", "majority", "phrase:1 + 1 =")),
    ],
)
def test_a_name_says_what_an_arm_does(name: str, plan: Plan | None) -> None:
    found = variants.named(name)
    assert (found.label, found.plan) == (name, plan)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("top-p+coot=4", r"top-p\+coot=4: 'coot' is no setting of several paths; did you mean 'cot'"),
        ("top-p+cot=four", "cot must be a number, got 'four'"),
        ("top-p+cot=2+cot=3", "cot is there twice"),
        ("top-p+cot=2+best_of=3", "cot and best_of contradict each other"),
        ("top-p+select=borda", "select is about several paths; give cot, best_of or self_consistency too"),
        ("top-p+best_of=0", "best_of must be between 1 and 1024, got 0"),
        ("top-p+best_of=2+select=best", "no selector 'best'"),
    ],
)
def test_a_bad_arm_is_one_line_that_names_it(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        variants.named(name)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('cot = "4"', "number 1: cot must be of type int, got '4'"),
        ("cot = true", "number 1: cot must be of type int, got True"),
        ("cot = []", "number 1: cot has no value"),
        ('select = "borda"', "number 1: select is about several paths"),
        ('best_of = 2\nextract = "nmber"', "number 1: no extractor 'nmber'"),
    ],
)
def test_a_bad_arm_of_a_file_is_one_line_that_names_it(tmp_path: Path, lines: str, message: str) -> None:
    path = tmp_path / "grid.toml"
    path.write_text(f'prompts = ["a"]\n[[samplers]]\nsampler = "top-p"\n{lines}\n')
    with pytest.raises(ValueError, match=message):
        file.read(path)
