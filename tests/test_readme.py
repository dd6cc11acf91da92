"""README and docs keep up with the code."""

import importlib.util
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_tables_of_the_configuration_page_are_those_of_the_code() -> None:
    spec = importlib.util.spec_from_file_location("readme_tables", ROOT / "scripts" / "readme_tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert text == module.updated_configuration(text), "run scripts/readme_tables.py"


@pytest.mark.parametrize(
    "page", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
)
def test_every_link_to_a_file_leads_somewhere(page: str) -> None:
    text = re.sub(r"(?ms)^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"))
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    missing = [link for link in links if link and not ((ROOT / page).parent / link).exists()]
    assert not missing


def test_git_ignores_what_the_commands_of_the_readme_write(tmp_path: Path) -> None:
    blocks = "".join(re.findall(r"(?ms)^```\w*\n(.*?)^```", README))
    written = set(re.findall(r"(?:--out|-o|--trace|--png|--pdf) (\S+)", blocks))
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
