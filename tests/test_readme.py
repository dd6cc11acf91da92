"""The README keeps up with the code."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_tables_of_the_readme_are_those_of_the_code():
    spec = importlib.util.spec_from_file_location("readme_tables", ROOT / "scripts" / "readme_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert text == module.updated(text), "run scripts/readme_tables.py"
