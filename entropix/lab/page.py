"""A page of figures and tables, such as that of an evaluation."""

from collections.abc import Sequence
from pathlib import Path

from entropix import files
from entropix.lab.telling import Table, Told
from entropix.report import looks, shell


def write(path: Path, title: str, about: str, parts: Sequence[Told]) -> None:
    """Writes one self-contained HTML document. Replaces a file of that name only when complete.

    about: a sentence on what was run.
    """
    drawn = {plot.name: plot.figure for part in parts for section in part.sections for plot in section.plots}
    body = shell.fragment(
        "told.html.jinja",
        about=about,
        parts=[part._replace(tables=[_signed(table) for table in part.tables]) for part in parts],
    )
    styles = [shell.asset("comparison.css")]
    files.write_text(path, [shell.document(title, body, drawn, styles=styles)], "a page")


def _signed(table: Table) -> Table:
    """With true minus signs in front of numbers."""
    rows = [[row[0], *map(looks.signed, row[1:])] for row in table.rows]
    return table._replace(rows=[[cell if cell != looks.MINUS else "–" for cell in row] for row in rows])
