"""What every HTML page of this package shares: one self-contained document, its theme and its plots."""

import base64
import functools
import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jinja2
from markupsafe import Markup

from entropix.paths import PACKAGE_ROOT

if TYPE_CHECKING:
    import plotly.graph_objects

ASSETS = PACKAGE_ROOT / "report" / "assets"


def document(
    title: str,
    body: str,
    figures: Mapping[str, "plotly.graph_objects.Figure"] = {},
    data: Mapping[str, object] = {},
    scripts: Sequence[str] = (),
    styles: Sequence[str] = (),
) -> str:
    """An HTML document that needs no other file and no network, light or dark as the reader likes.

    title: plain text, for the window and the heading.
    body: HTML that is trusted as it is; make it with `fragment`, which escapes what it fills in. In it,
        `<div class="figure" id="NAME" role="img" aria-label="what is to be seen"></div>` is where figure NAME goes.
        assets/shell.css styles headings, `table.numbers` and `p.note`, and gives colours: `var(--text)`, `--muted`,
        `--line`, `--surface`, `--accent`.
    figures: by name. Background, fonts and axes follow the theme; a colour written "var(--text)" does too. A figure
        whose name has no place in the body is for a script to draw.
    data: what `json.dumps` takes; None stands for numbers that are not finite. Scripts find it in `report.data`.
    scripts: JavaScript sources, run in order when the document is there; assets/start.js unpacks them. They have

            report.data              `data`
            report.figures           `figures`, as {data, layout}
            report.plot(div, figure) draws or redraws, in the theme's colours; a promise
            report.shapes(div, list) puts plotly's shapes over a plot, which is faster
            report.colour("accent")  a colour of the theme now
            report.onTheme(f)        calls f whenever the theme changes

    styles: CSS sources.

    The page's Content-Security-Policy lets nothing be fetched and no script run but those given here, by their hashes:
    text that should slip into the page as HTML stays inert. Raises a ValueError if there are figures and plotly is not
    installed.
    """
    sources = [
        *([_plotly()] if figures else []),
        asset("shell.js"),
        *scripts,
    ]
    start = asset("start.js")
    payload = {"data": data, "figures": {name: _figure(figure) for name, figure in figures.items()}}
    carried = json.dumps({"sources": sources, "payload": payload}, allow_nan=False, separators=(",", ":"))
    packed = zlib.compress(carried.encode(), 9)
    return (
        _environment()
        .get_template("shell.html.jinja")
        .render(
            title=title,
            body=Markup(body),
            policy=_policy([start, *sources]),
            start=Markup(start),
            packed=Markup(_letters(packed)),
            length=len(packed),
            styles=[Markup(asset("shell.css")), *map(Markup, styles)],
        )
    )


def fragment(template: str, **values: object) -> Markup:
    """HTML from a Jinja template in assets/; every value is escaped, but for `Markup`."""
    return Markup(_environment().get_template(template).render(**values))


def asset(name: str) -> str:
    """The text of a file in assets/."""
    return (ASSETS / name).read_text(encoding="utf-8")


def _letters(data: bytes) -> str:
    """Bytes as text that needs no escape in HTML, five letters for four of them; assets/start.js reads it."""
    return base64.b85encode(data, pad=True).decode().replace("<", "/")


def require(module: str, what: str) -> Any:
    """The module, which the extra `plot` brings. Raises a ValueError that says how to get it."""
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError:
        package = module.split(".")[0]
        raise ValueError(f"{what} needs {package}: pip install {package}") from None


def _plotly() -> str:
    """The source of plotly.js, which the Python package brings."""
    source: str = require("plotly.offline", "the page").get_plotlyjs()
    return source


def _figure(figure: "plotly.graph_objects.Figure") -> dict[str, Any]:
    """Data and layout without plotly's template, whose colours the theme's replace."""
    parsed: dict[str, Any] = json.loads(figure.to_json())
    parsed["layout"].pop("template", None)
    return parsed


def _policy(sources: Sequence[str]) -> str:
    """A Content-Security-Policy. plotly writes style attributes, and makes images of plots as data and blob URLs."""
    hashes = (base64.b64encode(hashlib.sha256(source.encode()).digest()).decode() for source in sources)
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


@functools.cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
