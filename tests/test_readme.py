"""README and docs keep up with the code."""

import importlib.util
import re
import subprocess
from pathlib import Path

import pages
from pages import PAGES, ROOT


def test_the_tables_of_the_configuration_page_are_those_of_the_code() -> None:
    spec = importlib.util.spec_from_file_location("readme_tables", ROOT / "scripts" / "readme_tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert text == module.updated_configuration(text), "run scripts/readme_tables.py"


def test_git_ignores_what_the_commands_of_the_pages_write(tmp_path: Path) -> None:
    typed = " ".join(word for page in PAGES for words in pages.commands(page) for word in words)
    written = set(re.findall(r"(?:--out|-o|--trace|--png|--pdf) ([^/\s]+)/?(?=\s|$)", typed))
    assert {"a.jsonl", "report.html", "mine.toml", "comparison"} <= written
    (tmp_path / ".gitignore").write_text((ROOT / ".gitignore").read_text())
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    for name in written:
        target = tmp_path / name
        if target.suffix:
            target.touch()
        else:
            target.mkdir(exist_ok=True)
            (target / "file").touch()
    status = ["git", "-C", str(tmp_path), "status", "--porcelain", "--untracked-files=all"]
    left = subprocess.run(status, check=True, capture_output=True, text=True).stdout.splitlines()
    assert left == ["?? .gitignore"]
