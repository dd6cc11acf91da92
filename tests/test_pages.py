"""The pages of docs/: their links lead somewhere, their examples run, and none is missing from the site."""

import importlib
import importlib.util
import io
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pages
import pytest
from pages import PAGES, ROOT

import entropix
from entropix import own_metrics
from entropix.checkpoint import loading
from entropix.checkpoint.loading import Model
from entropix.console import cli

RUN = ["README.md", *(page for page in PAGES if page.startswith(("docs/start", "docs/how-to/")))]
NETWORK = ("download", "convert")  # commands that want a file or a repository of the reader's


@pytest.mark.parametrize("page", PAGES)
def test_every_link_and_every_anchor_leads_somewhere(page: str) -> None:
    lost = []
    for file, anchor in pages.links(page):
        target = ((ROOT / page).parent / file).resolve() if file else ROOT / page
        if not target.exists():
            lost.append(file)
        elif anchor and anchor not in pages.anchors(target.relative_to(ROOT).as_posix()):
            lost.append(f"{file}#{anchor}")
    assert not lost


def test_every_page_of_docs_is_in_the_navigation_and_the_contents() -> None:
    in_docs = {page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")}
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2].partition("\nvalidation:")[0]
    assert set(re.findall(r"[\w/-]+\.md", navigation)) == in_docs
    listed = {file for file, _ in pages.links("docs/index.md") if not file.startswith("../")}
    assert {file for file in listed if file.endswith(".md")} == in_docs - {"index.md"}


def test_the_reference_has_every_public_name_and_no_other() -> None:
    shown = re.findall(r"(?m)^::: (\S+)$", pages.read("docs/reference/python.md"))
    assert {f"entropix.{name}" for name in entropix.__all__} <= set(shown)
    for name in [*shown, *re.findall(r"(?m)^::: (\S+)$", pages.read("docs/reference/rules.md"))]:
        module, _, what = name.rpartition(".")
        found = getattr(importlib.import_module(module), what, None)
        assert found is not None or importlib.util.find_spec(name) is not None, name


def test_the_site_asks_the_network_for_nothing() -> None:
    """`font: false` keeps the theme from doing so; the style is our own."""
    settings = (ROOT / "mkdocs.yml").read_text()
    assert "font: false" in settings and "//" not in settings
    for path in (ROOT / "docs").rglob("*.css"):
        assert "url(" not in path.read_text() and "@import" not in path.read_text()


# ----- examples ---------------------------------------------------------------------------------------------


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory of a reader who has made all that the pages show."""
    for page in RUN:
        for name, text in pages.files(page).items():
            (tmp_path / name).write_text(text, encoding="utf-8")
    (tmp_path / "mine.toml").write_text('sampler = "entropix"\nhigh_ent_thresh = 4.0\n')
    (tmp_path / "LICENSE").write_text("A short text, with its few words. " * 5)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "calibration-prompts.txt").write_text("Why?\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "scripts")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in ("my_rule", "wide_heads"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def model(toy_folder: str) -> Model:
    return loading.load(toy_folder)


@pytest.mark.slow
@pytest.mark.usefixtures("desk")
@pytest.mark.parametrize("page", RUN)
def test_what_a_page_says_in_python_runs_from_top_to_bottom(
    page: str, model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entropix, "load", lambda *_, **__: model, raising=False)
    names: dict[str, Any] = {"__name__": "page"}
    try:
        for block in pages.blocks(page):
            if block.language == "python" and not block.title:
                exec(compile(block.text, page, "exec"), names)
    finally:
        for metric in own_metrics.registered():
            own_metrics.unregister(metric.name)


@pytest.mark.parametrize("page", sorted({*PAGES} - {*RUN}))
def test_python_elsewhere_is_python(page: str) -> None:
    for block in pages.blocks(page):
        if block.language == "python":
            compile(block.text, page, "exec")


@pytest.mark.slow
@pytest.mark.usefixtures("desk")
@pytest.mark.parametrize("page", RUN[1:])  # what the README says to type is on these pages as well
def test_what_a_page_says_to_type_runs_from_top_to_bottom(
    page: str,
    run_command: Callable[..., tuple[int, str, str]],
    toy_folder: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for words in pages.commands(page):
        known = command(words) if words[0] == "-m" else None
        if known is None or known[1] in NETWORK:
            continue
        module, name, flags = known
        # A small model and few short answers; of a flag that is there twice, the last counts.
        if {"--weights", "--help", "help"}.isdisjoint(flags) and name not in ("report", "logprobs"):
            flags += ["--weights", toy_folder]
        elif "--weights" in flags:
            flags[flags.index("--weights") + 1] = toy_folder
        if name in ("main", "compare", "sweep", "calibrate"):
            flags += ["--max-new-tokens", "3"]
        if name in ("compare", "sweep"):
            flags += ["--seeds", "1"]
        if name == "calibrate" and "answers" not in flags:
            flags += ["--text", "LICENSE"]
        elif name == "calibrate":
            flags += ["--items", "1", "--seeds", "1", "--budget", "1", "--opponents", "", "--free", "temp"]
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Hi\n")))
        try:
            code, _, err = run_command(module.main, *flags)
        except SystemExit as end:  # as --help does
            code, err = int(end.code or 0), ""
        assert code == 0, (words, err)


@pytest.mark.usefixtures("desk")
@pytest.mark.parametrize("page", PAGES)
def test_every_flag_that_a_page_names_in_a_command_is_there(page: str) -> None:
    for words in pages.commands(page):
        known = command(words)
        if known is None or {"--help", "help"} & {*words}:
            continue
        module, name, flags = known
        if name == "main":
            module.parse(flags, "entropix")
        elif (kind := getattr(module, "Flags", None) or getattr(module, "Args", None)) is not None:
            cli.parse(kind, flags, name, module.__doc__)


def command(words: list[str]) -> tuple[ModuleType, str, list[str]] | None:
    """(module, its name, flags) of what is typed after `python`; None for what is no command of this repository."""
    if words[0] == "-m":
        package, _, name = words[1].partition(".")
        if package != "entropix":
            return None
        module = importlib.import_module(
            f"entropix.{'report.__main__' if name == 'report' else name or 'main'}"
        )
        return module, name or "main", words[2:]
    folder, _, name = words[0].removesuffix(".py").partition("/")
    return (importlib.import_module(name), name, words[1:]) if folder == "scripts" else None
