"""docs/samplers.md keeps up with the code."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from entropix.samplers import SAMPLERS

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "samplers.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"(?ms)^### (\S+)\n(.*?)(?=^##|\Z)", PAGE))


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("readme_tables", ROOT / "scripts" / "readme_tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_of_the_samplers_page_are_those_of_code_and_presets(tables: ModuleType) -> None:
    assert tables.updated_samplers(PAGE) == PAGE, "run scripts/readme_tables.py"


def test_every_sampler_has_a_section_with_its_strategies_and_its_numbers() -> None:
    assert set(SECTIONS) == set(SAMPLERS)
    for name, sampler in SAMPLERS.items():
        family = sampler.strategies == SAMPLERS["entropix"].strategies
        section = PAGE if family else SECTIONS[name]
        assert len(sampler.strategies) == 1 or all(
            f"`{strategy}`" in section for strategy in sampler.strategies
        )
        assert f"<!-- table: {name} -->" in SECTIONS[name] or name in (
            "greedy",
            "entropix-torch",
            "entropix-logits",
        )


def test_every_source_that_is_named_is_listed_and_the_other_way_round() -> None:
    listed = set(re.findall(r"(?m)^\| \[([a-z.-]+)\] \|", PAGE))
    text = re.sub(r"(?m)^\| \[[a-z.-]+\] \||^\[.*$", "", PAGE)
    assert set(re.findall(r"\[([a-z.-]+)\](?!\()", text)) == listed
    assert set(re.findall(r"(?m)^\[([a-z.-]+)\]: #sources$", PAGE)) == listed


def test_no_table_has_a_column_that_says_nothing() -> None:
    for name, section in SECTIONS.items():
        rows = [line.split("|")[1:-1] for line in section.splitlines() if line.startswith("| `")]
        assert all(any(cell.strip() for cell in column) for column in zip(*rows, strict=True)), name
