"""Writes the tables of the README that follow from the code: sampler presets and configuration fields.

With `--check` nothing is written; the exit code is 1 where a table is out of date.
"""

import argparse
import dataclasses
import math
import re
import sys
from pathlib import Path

from entropix.config import GenerateConfig, SamplerConfig, preset_names, read_preset
from entropix.samplers import SAMPLERS

README = Path(__file__).parent.parent / "README.md"


def fields_table(cls: type) -> str:
    """One row a field: name, default, range with unit, meaning."""
    rows = ["| field | default | range | meaning |", "|---|---|---|---|"]
    for field in dataclasses.fields(cls):
        low, high, unit = (field.metadata[key] for key in ("low", "high", "unit"))
        if isinstance(field.default, bool | str | tuple) or math.isinf(low):
            extent = ""
        elif high >= 2**31 - 1:  # no bound but that of 32 bits
            extent = f"≥ {low:g}"
        else:
            extent = f"{low:g} to {high:g}"
        span = " ".join(part for part in (extent, unit) if part)
        default = str(field.default) if isinstance(field.default, int | float) else repr(field.default)
        rows.append(f"| `{field.name}` | `{default}` | {span} | {field.metadata['help']} |")
    return "\n".join(rows)


def samplers_table() -> str:
    """One row a preset."""
    rows = ["| preset | rule |", "|---|---|"]
    rows += [f"| `{name}` | {SAMPLERS[read_preset(name)[0]].summary} |" for name in preset_names("samplers")]
    return "\n".join(rows)


def updated(text: str) -> str:
    """The README with fresh tables between `<!-- table: NAME -->` and `<!-- end -->`."""
    tables = {
        "samplers": samplers_table(),
        "sampler fields": fields_table(SamplerConfig),
        "generation fields": fields_table(GenerateConfig),
    }
    for name, table in tables.items():
        block = re.compile(rf"(<!-- table: {name} -->\n).*?(\n<!-- end -->)", re.DOTALL)
        text, found = block.subn(rf"\g<1>{table}\g<2>", text)
        assert found == 1, f"README.md should have one table {name!r}"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    text = README.read_text(encoding="utf-8")
    if check:
        return int(updated(text) != text)
    README.write_text(updated(text), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
