"""Builds the site of docs/ into site/: `make docs`.

GitHub reads the same pages. What it does and the generator does not is done to copies in build/docs: formulas ($...$
and blocks of `math`) become MathML, which browsers draw without a script, and links out of docs/, as to
`../entropix/metrics.py`, lead to pages with these files, below `source/`. Then MkDocs builds the copies, as mkdocs.yml
says, and fails on any link or anchor that leads nowhere.
"""

import posixpath
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import latex2mathml.converter

ROOT = Path(__file__).parent.parent
COPIES = ROOT / "build" / "docs"
COPIED = (".png", ".svg", ".css")
SOURCE = "source"  # the folder of the site for what is outside docs/
CODE = re.compile(r"(?ms)^(```+).*?^\1$|`+[^`\n]+`+")
LINK = re.compile(r"(?m)((?:\]\(|^\[[^\]\n]+\]: ))([^)\s#]+)")
HIDDEN = "---\nsearch:\n  exclude: true\n---\n"


def main() -> int:
    """Copies, builds; the exit code is that of MkDocs."""
    shutil.rmtree(COPIES, ignore_errors=True)
    for path, text in pages():
        (COPIES / path).parent.mkdir(parents=True, exist_ok=True)
        (COPIES / path).write_text(text, encoding="utf-8")
    for file in (ROOT / "docs").rglob("*"):
        if file.suffix in COPIED:
            shutil.copy(file, COPIES / file.relative_to(ROOT / "docs"))
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(ROOT / "mkdocs.yml")]
    return subprocess.run(command, cwd=ROOT).returncode


def pages() -> Iterator[tuple[str, str]]:
    """(path, text) of every page: those of docs/, and the files outside that they and these lead to."""
    waiting = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))]
    known = set(waiting)
    while waiting:
        file = waiting.pop()
        text = as_markdown(file)
        targets = {target for link in links(text) if (target := target_of(link[2], file)) is not None}
        new = {target for target in targets if not is_copied(target)} - known
        known |= new
        waiting += sorted(new)
        yield place(file), with_mathml(with_links(text, file))


def is_copied(file: str) -> bool:
    """Whether the site has it as it is: pages, pictures and the style of docs/."""
    return file.startswith("docs/") and Path(file).suffix in (".md", *COPIED)


def place(file: str) -> str:
    """Where a file of the repository is in the site's pages."""
    if is_copied(file):
        return file.removeprefix("docs/")
    return f"{SOURCE}/{file}" if file.endswith(".md") else f"{SOURCE}/{file}.md"


def as_markdown(file: str) -> str:
    """A file as a page: Markdown as it is, a folder as a list, anything else as code."""
    path = ROOT / file
    if file.endswith(".md"):
        return path.read_text(encoding="utf-8")
    if path.is_dir():
        names = sorted(child.name for child in path.iterdir() if child.is_file())
        return "\n".join(
            [f"{HIDDEN}# {file}", "", *(f"- [{name}]({path.name}/{name})" for name in names), ""]
        )
    text = path.read_text(encoding="utf-8")
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", text)), 3)
    return f"{HIDDEN}# {file}\n\n{fence}{path.suffix[1:]}\n{text}\n{fence}\n"


def without_code(text: str) -> str:
    """The text with blanks for what is code, every other character at its place."""
    return CODE.sub(lambda m: re.sub(r"\S", " ", m[0]), text)


def links(text: str) -> list[re.Match[str]]:
    """The links of a page that are not in its code; group 2 is where one leads, without the anchor."""
    return list(LINK.finditer(without_code(text)))


def target_of(link: str, file: str) -> str | None:
    """The file of the repository that a link in another one means; None for what is no file of it."""
    if "://" in link:
        return None
    target = posixpath.normpath(posixpath.join(posixpath.dirname(file), link))
    return target if not target.startswith("..") and (ROOT / target).exists() else None


def with_links(text: str, file: str) -> str:
    """The page with links that fit its place in the site."""
    here, parts, end = posixpath.dirname(place(file)), [], 0
    for link in links(text):
        target, (start, stop) = target_of(link[2], file), link.span(2)
        if target is not None:
            parts += [text[end:start], posixpath.relpath(place(target), here or ".")]
            end = stop
    return "".join([*parts, text[end:]])


def with_mathml(text: str) -> str:
    """The page with MathML for its formulas."""
    text = re.sub(
        r"(?ms)^```math\n(.*?)^```$", lambda m: f'<div class="math">{mathml(m[1], "block")}</div>', text
    )
    parts, end = [], 0
    for found in re.finditer(r"\$(?=\S)([^$\n]+?)(?<=\S)\$(?!\d)", without_code(text)):
        # In a span, since Markdown would end a paragraph that begins with <math>.
        parts += [text[end : found.start()], f"<span>{mathml(found[1])}</span>"]
        end = found.end()
    return "".join([*parts, text[end:]])


def mathml(formula: str, display: str = "inline") -> str:
    """A formula of LaTeX as MathML."""
    # What the converter does not know under these names.
    formula = formula.replace("{aligned}", "{align*}").replace(r"\arg\max", r"\operatorname{arg\,max}")
    return (
        latex2mathml.converter.convert(formula, display=display).replace("*", "&#42;").replace("|", "&#124;")
    )


if __name__ == "__main__":
    sys.exit(main())
