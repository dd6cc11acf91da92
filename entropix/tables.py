"""Rows as a table in a file, CSV or Parquet by its ending: `write("tokens.csv", rows)`.

An object in a row is columns of its own, `{"scores": {"p": 1}}` a column `scores.p`; a list is there as JSON. None is
an empty cell.
"""

import csv
import importlib.util
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from entropix import distributed, files
from entropix.results import Result

Row = Mapping[str, Any]
ENDINGS = (".csv", ".parquet")
_WRITERS = ("pyarrow", "polars")  # of Parquet, the first that is installed


def check(path: str | Path | None) -> None:
    """Raises a ValueError where a table could not be written in the end; for calling before the work. None is fine."""
    if path is None:
        return
    ending = Path(path).suffix
    if ending not in ENDINGS:
        raise ValueError(f"{path}: a table is a {' or '.join(ENDINGS)} file, by its ending")
    if ending == ".parquet" and _writer() is None:
        raise ValueError(
            f"{path}: Parquet needs {' or '.join(_WRITERS)} (pip install pyarrow); CSV needs nothing"
        )
    files.check_writable(path, "a table")


def write(path: str | Path, rows: Iterable[Row]) -> None:
    """Writes a row each; columns are in the order in which they come. Replaces a file of that name only when complete.

    Of several processes only the first writes. Raises the ValueErrors of `check`.
    """
    if not distributed.is_first():
        return
    check(path)
    found = [dict(_flat(row)) for row in rows]
    names = list(dict.fromkeys(name for row in found for name in row))
    parts = {name[:end] for name in names for end, letter in enumerate(name) if letter == "."}
    names = [name for name in names if name not in parts]  # an object that some rows lack
    if Path(path).suffix == ".csv":
        lines: list[list[Any]] = [names, *([row.get(name) for name in names] for row in found)]
        files.write_text(path, (f"{line(cells)}\n" for cells in lines), "a table")
        return
    columns = {name: _of_one_type([_plain(row.get(name)) for row in found]) for name in names}
    with files.replacing(path) as temporary:
        _write_parquet(temporary, columns)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns, the first to the left and the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def line(cells: Sequence[Any]) -> str:
    """The cells as a line of CSV."""
    written = io.StringIO()
    # It quotes what its own end of a line is made of.
    csv.writer(written).writerow([_plain(cell) for cell in cells])
    return written.getvalue().removesuffix("\r\n")


def tokens(results: Sequence[Result], places: Sequence[Row] = ()) -> Iterator[Row]:
    """A row for each token of these results: `row` and `step` as in a trace, then the fields of its record.

    places: what to say of each result before that, if anything.
    """
    for row, result in enumerate(results):
        place = places[row] if places else {}
        for step, record in enumerate(result.records):
            yield {"row": row, "step": step, **place, **record}


def _flat(row: Row, before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _plain(value: Any) -> Any:
    """What a cell holds."""
    if isinstance(value, bool) or value is None or isinstance(value, str | int | float):
        return value
    return json.dumps(value, ensure_ascii=False)


def _of_one_type(values: list[Any]) -> list[Any]:
    """Whole numbers among others as such: a column of Parquet has one type."""
    return [float(v) if type(v) is int else v for v in values] if float in map(type, values) else values


def _writer() -> str | None:
    return next((name for name in _WRITERS if importlib.util.find_spec(name) is not None), None)


def _write_parquet(path: Path, columns: Mapping[str, list[Any]]) -> None:
    if _writer() == "pyarrow":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table(dict(columns)), path)
    else:
        import polars

        polars.DataFrame(dict(columns)).write_parquet(path)
