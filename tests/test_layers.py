"""Data walks one way through the package: every file imports only from wings above its own, and never in a circle."""

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

import entropix

# The wings from the top down: folders, and files at the package's door. What is new has no place yet: a test says so.
# fmt: off
WINGS = [
    "environment", "showing", "config", "paths", "distributed", "numerics", "results",
    "files", "tables", "backend", "sharding", "presets", "prompts",
    "metrics", "own_metrics", "metric_labels", "filters", "samplers",
    "model", "checkpoint", "decoding",
    "options", "generation", "scoring", "inspection", "cot", "tpu",
    "trace", "console",
    "replay", "logprobs", "report", "score", "lab",
    "main", "__main__", "calibrate", "compare", "sweep", "evaluate", "lm_eval", "download", "convert",
]
# fmt: on
PLACE = {name: place for place, name in enumerate(WINGS)}
THE_PAPER = ("numerics", "metrics", "own_metrics", "filters", "samplers")
SOURCES = {
    ".".join(file.relative_to(entropix.PACKAGE_ROOT).with_suffix("").parts).removesuffix(".__init__"): file
    for file in sorted(entropix.PACKAGE_ROOT.rglob("*.py"))
}
del SOURCES["__init__"]  # the facade, which imports when asked


def imports(source: str, own_name: str = "") -> Iterator[str]:
    """Names of the package's modules that a source imports anywhere in it, without the package's own name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{own_name}: write imports with the package's name, not relative ones"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "entropix":
                known = [".".join(parts[1:end]) for end in range(len(parts), 1, -1)]
                yield from [module for module in known if module in SOURCES][:1]


def wing(name: str) -> str:
    """The folder, or the file at the door, that a module belongs to."""
    return name.partition(".")[0]


@functools.cache
def direct(name: str) -> frozenset[str]:
    """The modules that one imports, also within functions."""
    return frozenset(imports(SOURCES[name].read_text(), name)) - {name}


def reached(name: str) -> set[str]:
    """The modules that one imports, and those that these import, and so on."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        new = direct(waiting.pop()) - found
        found |= new
        waiting += new
    return found


@pytest.mark.parametrize("name", SOURCES)
def test_a_file_imports_only_from_wings_above_its_own(name: str) -> None:
    assert wing(name) in PLACE, f"{wing(name)} has no place in WINGS; give it one"
    below = [other for other in direct(name) if PLACE[wing(other)] > PLACE[wing(name)]]
    assert not below, f"{name} must not import from {', '.join(below)}"
    assert name not in reached(name), f"{name} imports itself by way of others"


def test_no_wing_is_listed_that_is_gone() -> None:
    assert sorted(WINGS) == sorted(set(map(wing, SOURCES)))


@pytest.mark.parametrize("name", [name for name in SOURCES if wing(name) in THE_PAPER])
def test_the_paper_knows_no_model(name: str) -> None:
    """Metrics, filters and samplers see logits and scores, whatever computed them: through any chain of imports."""
    may_know = {*THE_PAPER, "showing", "config", "presets", "paths", "files", "distributed", "sharding"}
    assert set(map(wing, reached(name))) <= may_know


@pytest.mark.parametrize("name", [name for name in SOURCES if wing(name) == "model"])
def test_the_model_knows_neither_files_nor_samplers(name: str) -> None:
    assert not {"files", "checkpoint", "filters", "samplers", "decoding"} & set(map(wing, reached(name)))


def test_only_the_decode_loop_is_compiled() -> None:
    """One place decides what is traced, static and donated; everything else is plain functions. (A layer of the
    model is jitted too, inside the others, so that it is traced once and not thirty times; and a check of the
    compiler itself.)"""
    compiled = {name: file.read_text().count("jax.jit") for name, file in SOURCES.items()}
    assert {name for name, count in compiled.items() if count} == {
        "backend",
        "decoding.loop",
        "model.transformer",
    }
    assert compiled["model.transformer"] == compiled["backend"] == 1


def test_asking_for_a_name_of_the_package_imports_nothing_before() -> None:
    """The package itself, and what the first command uses, come without JAX; every public name is there."""
    script = """
import sys
import entropix, entropix.console.cli, entropix.paths, entropix.checkpoint.download
assert "jax" not in sys.modules
for name in entropix.__all__:
    getattr(entropix, name)
assert "jax" in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import entropix.model.weights", ["model.weights"]),
        ("from entropix import config, filters", ["config", "filters"]),
        ("from entropix.samplers import base", ["samplers.base"]),
        ("from entropix.samplers.base import SamplerInputs", ["samplers.base"]),
        ("from entropix.samplers import SAMPLERS", ["samplers"]),
        ("def f():\n    from entropix.model.transformer import forward", ["model.transformer"]),
        ("import entropix\nfrom entropix import PACKAGE_ROOT\nimport jax.numpy", []),
    ],
)
def test_imports_are_found_in_every_form(source: str, found: list[str]) -> None:
    """The tests above would pass on anything if this did not work."""
    assert list(imports(source)) == found


def test_no_file_is_long_and_no_comment_was_wrapped_into_a_lonely_bracket() -> None:
    """400 lines are two subjects; the formatter wraps a line that its comment makes too long: write it above."""
    wrapped = re.compile(r"[\[({]\n.*\n\s*[\])}]+[,:]?  #(?! fmt:)")
    for name, file in SOURCES.items():
        text = file.read_text()
        assert text.count("\n") <= 400, f"{name} has {text.count(chr(10))} lines; make it two files"
        assert not (found := wrapped.search(text)), f"{name}: write the comment above: {found and found[0]}"
