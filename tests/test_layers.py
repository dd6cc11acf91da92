"""Data walks one way through the package: each file imports only from files above it."""

import ast
import subprocess
import sys
from collections.abc import Iterator

import pytest

import entropix

# From the top down. A file that is not in this list has no place yet, and the test below says so.
# fmt: off
ORDER = [
    "paths", "distributed", "cli", "backend", "palette", "coloring", "live", "calibration", "calibration.targets",
    "config",
    "cot", "cot.answers", "cot.selection", "cot.plan", "cot.flags", "search_flags",
    "checkpoint",
    "bpe", "tokenizer_files", "tokenizer",
    "chat",
    "sharding", "weights", "kv", "layout", "attention",
    "convert.folder", "convert.gguf_file", "convert.meta", "convert",
    "download",
    "model",
    "metrics",
    "filters",
    "samplers.base", "samplers.branching", "samplers.backtracking", "samplers.baselines",
    "samplers.truncation", "samplers.adaptive", "samplers.entropix", "samplers.controls", "samplers.guard",
    "samplers", "samplers.knobs",
    "calibration.solver",
    "speculation",
    "drawing", "forking", "decode",
    "loading",
    "text_cache", "request", "session",
    "hlo", "ahead", "roofline",
    "scoring",
    "generation", "batching",
    "cot.parallel",
    "trace",
    "replay", "logprobs",
    "statistics", "terminal", "cot.output",
    "report", "report.shell", "report.regions", "report.align", "report.packing", "report.tree", "report.plots",
    "report.page",
    "report.figures", "report.__main__",
    "main", "__main__",
    "score", "calibration.fitting", "calibrate",
    "grids", "grids.measures", "grids.results", "grids.summary", "grids.engine", "report.comparison",
    "grids.running", "grids.variants", "grids.command", "compare", "sweep", "grids.file", "grids.merging",
]
# fmt: on
PLACE = {name: place for place, name in enumerate(ORDER)}
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


@pytest.mark.parametrize("name", SOURCES)
def test_a_file_imports_only_from_files_above_it(name: str) -> None:
    assert name in PLACE, f"{name} has no place in ORDER; give it one"
    below = [other for other in imports(SOURCES[name].read_text(), name) if PLACE[other] >= PLACE[name]]
    assert not below, f"{name} must not import from {', '.join(below)}"


def test_the_order_lists_no_file_that_is_gone() -> None:
    assert sorted(ORDER) == sorted(SOURCES)


@pytest.mark.parametrize("name", [name for name in SOURCES if name.startswith("samplers")])
def test_samplers_know_nothing_of_the_model(name: str) -> None:
    """They see logits and metrics, whatever computed them."""
    assert set(imports(SOURCES[name].read_text())) <= {"config", "sharding", "metrics", "filters"} | {
        other for other in SOURCES if other.startswith("samplers")
    }


def test_only_the_decode_loop_is_compiled() -> None:
    """One place decides what is traced, static and donated; everything else is plain functions. (A layer of the
    model is jitted too, inside the others, so that it is traced once and not thirty times.)"""
    compiled = {name: file.read_text().count("jax.jit") for name, file in SOURCES.items()}
    assert {name for name, count in compiled.items() if count} == {"decode", "model"}
    assert compiled["model"] == 1


def test_asking_for_a_name_of_the_package_imports_nothing_before() -> None:
    """The package itself, and what the first command uses, come without JAX; every public name is there."""
    script = """
import sys
import entropix, entropix.cli, entropix.paths, entropix.download
assert "jax" not in sys.modules
for name in entropix.__all__:
    getattr(entropix, name)
assert "jax" in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import entropix.model", ["model"]),
        ("from entropix import model, filters", ["model", "filters"]),
        ("from entropix.samplers import base", ["samplers.base"]),
        ("from entropix.samplers.base import Context", ["samplers.base"]),
        ("from entropix.samplers import SAMPLERS", ["samplers"]),
        ("def f():\n    from entropix.model import forward", ["model"]),
        ("import entropix\nfrom entropix import PACKAGE_ROOT\nimport jax.numpy", []),
    ],
)
def test_imports_are_found_in_every_form(source: str, found: list[str]) -> None:
    """The tests above would pass on anything if this did not work."""
    assert list(imports(source)) == found
