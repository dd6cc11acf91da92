"""Writes the tables of docs/configuration.md and docs/samplers.md that follow from the code and the presets.

With `--check` nothing is written; the exit code is 1 where a table is out of date.
"""

import argparse
import dataclasses
import math
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from entropix.config import GenerateConfig
from entropix.samplers import SAMPLERS, RuleConfig, about, names, parameters
from entropix.samplers.controls import PlaceboConfig
from entropix.samplers.entropix import SamplerConfig

ROOT = Path(__file__).parent.parent
CONFIGURATION, SAMPLERS_PAGE = ROOT / "docs" / "configuration.md", ROOT / "docs" / "samplers.md"


# ----- docs/configuration.md --------------------------------------------------------------------------------


def fields_table(cls: Any) -> str:
    """One row a field: name, default, range with unit, meaning. A field that is a config has a table of its own."""
    rows, parts = ["| field | default | range | meaning |", "|---|---|---|---|"], []
    fields = parameters(cls) if issubclass(cls, RuleConfig) else dataclasses.fields(cls)
    for field in fields:
        default = str(field.default) if isinstance(field.default, int | float) else repr(field.default)
        shown = f"`{default}`"
        if dataclasses.is_dataclass(field.default):
            shown = "below"
            parts.append(f"\nThe fields of `{field.name}`:\n\n{fields_table(type(field.default))}")
        rows.append(f"| `{field.name}` | {shown} | {extent(field)} | {field.metadata['help']} |")
    return "\n".join(rows + parts)


def extent(field: Any) -> str:
    """A field's range and unit, where it has them."""
    low, high, unit = (field.metadata[key] for key in ("low", "high", "unit"))
    if isinstance(field.default, bool | str | tuple) or math.isinf(low):
        span = ""
    elif high >= 2**31 - 1:  # no bound but that of 32 bits
        span = f"≥ {low:g}"
    else:
        span = f"{low:g} to {high:g}"
    return " ".join(part for part in (span, unit) if part)


def samplers_table() -> str:
    """One row a preset."""
    rows = ["| preset | rule |", "|---|---|"]
    rows += [f"| `{name}` | {about(name)} |" for name in names()]
    return "\n".join(rows)


def updated_configuration(text: str) -> str:
    """The page about the configuration with fresh tables."""
    tables = {
        "sampler fields": fields_table(SamplerConfig),
        "generation fields": fields_table(GenerateConfig),
    }
    return filled(text, tables, CONFIGURATION.name)


def filled(text: str, tables: Mapping[str, str], source: str) -> str:
    """The text with these tables between `<!-- table: NAME -->` and `<!-- end -->`."""
    for name, table in tables.items():
        block = re.compile(rf"(<!-- table: {name} -->\n).*?(\n?<!-- end -->)", re.DOTALL)
        assert len(block.findall(text)) == 1, f"{source} should have one table {name!r}"
        text = block.sub(rf"\g<1>{table}\n<!-- end -->", text)
    return text


# ----- docs/samplers.md -------------------------------------------------------------------------------------


def numbers_table(name: str) -> str:
    """One row a number of a rule or of the guard: its usual value, range, meaning, and what others set it to.

    Placebo shows only what it has beyond entropix.
    """
    rule = RuleConfig if name == "guard" else SAMPLERS[name].config
    known = {field.name for field in dataclasses.fields(RuleConfig)} if rule is not RuleConfig else set()
    if rule is PlaceboConfig:
        known |= {field.name for field in dataclasses.fields(SamplerConfig)}
    fields = [field for field in parameters(rule) if field.name not in known]
    heads = ["number", "usual", "range", "meaning"]
    rows = [
        [f"`{field.name}`", usual(field.default), extent(field), field.metadata["help"]] for field in fields
    ]
    if any(field.metadata["source"] for field in fields):
        heads.append("elsewhere")
        rows = [[*row, field.metadata["source"]] for row, field in zip(rows, fields, strict=True)]
    lines = [f"| {' | '.join(row)} |" for row in (heads, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(heads), *lines[1:]])


def usual(value: Any) -> str:
    """A default as the tables have it."""
    return f"{value:g}" if isinstance(value, int | float) else f"`{value!r}`"


def updated_samplers(text: str) -> str:
    """The page about the samplers with fresh tables."""
    wanted = re.findall(r"<!-- table: (\S+) -->", text)
    tables = {name: samplers_table() if name == "presets" else numbers_table(name) for name in wanted}
    return filled(text, tables, SAMPLERS_PAGE.name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check, stale = parser.parse_args().check, False
    for page, fresh in ((CONFIGURATION, updated_configuration), (SAMPLERS_PAGE, updated_samplers)):
        text = page.read_text(encoding="utf-8")
        stale |= fresh(text) != text
        if not check:
            page.write_text(fresh(text), encoding="utf-8")
    return int(check and stale)


if __name__ == "__main__":
    sys.exit(main())
