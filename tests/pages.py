"""README and the pages of docs/ as what tests ask of them: links, anchors, examples. No site generator is needed."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
DOCS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
PAGES = ["README.md", "CONTRIBUTING.md", "weights/README.md", *DOCS]
_FENCED = re.compile(r"(?ms)^```([^\n]*)\n(.*?)^```$")


class Block(NamedTuple):
    """What stands between two fences."""

    language: str  # empty for what is typed into a shell
    title: str  # the name of the file that it is
    text: str


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    """All that is fenced on a page, in order."""
    found = []
    for head, text in _FENCED.findall(read(page)):
        language, _, rest = head.partition(" ")
        title = re.fullmatch(r'title="([^"]+)"', rest)
        found.append(Block(language, title[1] if title else "", text))
    return found


def files(page: str) -> dict[str, str]:
    """The files that a page shows, by name."""
    return {block.title: block.text for block in blocks(page) if block.title}


def prose(page: str) -> str:
    """The page without what is code."""
    return re.sub(r"`[^`\n]+`", "", _FENCED.sub("", read(page)))


def links(page: str) -> list[tuple[str, str]]:
    """(file, anchor) of every link on a page that stays in the repository; an empty file is the page itself."""
    text = prose(page)
    found = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?m)^\[[^\]\n]+\]: (\S+)", text)
    parts = [link.partition("#") for link in found if "://" not in link]
    return [(file, anchor) for file, _, anchor in parts]


def anchors(page: str) -> set[str]:
    """Where links can lead on a page: its headings, as GitHub and the site spell them."""
    headings = re.findall(r"(?m)^#+ (.+)$", _FENCED.sub("", read(page)))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def commands(page: str) -> list[list[str]]:
    """What is typed on a page after `python`, word by word; comments, output and where it goes are left out."""
    shell = "".join(block.text for block in blocks(page) if not block.language)
    lines = re.sub(r"\\\n\s*", " ", shell).splitlines()
    typed = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("python ")]
    return [words[: words.index(">")] if ">" in words else words for words in typed]
