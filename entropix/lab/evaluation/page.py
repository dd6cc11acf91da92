"""The page of an evaluation."""

from collections.abc import Sequence
from pathlib import Path

from entropix import files
from entropix.checkpoint.loading import Model
from entropix.lab.evaluation.protocol import Protocol
from entropix.lab.evaluation.telling import Table, Told
from entropix.report import looks, shell


def write(path: Path, title: str, protocol: Protocol, model: Model, parts: Sequence[Told]) -> None:
    """Writes one self-contained HTML document. Replaces a file of that name only when complete."""
    drawn = {plot.name: plot.figure for part in parts for section in part.sections for plot in section.plots}
    body = shell.fragment(
        "evaluation.html.jinja",
        model={"name": model.name, "dtype": model.dtype.name},
        digest=protocol.digest,
        summary=f"{len(protocol.tasks)} tasks, {len(protocol.arms)} arms, {len(protocol.seeds)} seeds",
        parts=[part._replace(tables=[_signed(table) for table in part.tables]) for part in parts],
    )
    styles = [shell.asset("comparison.css")]
    files.write_text(path, [shell.document(title, body, drawn, styles=styles)], "a page")


def _signed(table: Table) -> Table:
    """With true minus signs in front of numbers."""
    rows = [[row[0], *map(looks.signed, row[1:])] for row in table.rows]
    return table._replace(rows=[[cell if cell != looks.MINUS else "–" for cell in row] for row in rows])
