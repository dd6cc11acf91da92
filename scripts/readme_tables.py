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

from entropix.samplers.knobs import traced

from entropix.config import GenerateConfig, SamplerConfig
from entropix.presets import preset_names, read_preset
from entropix.samplers import SAMPLERS, about, guarded

ROOT = Path(__file__).parent.parent
CONFIGURATION, SAMPLERS_PAGE = ROOT / "docs" / "configuration.md", ROOT / "docs" / "samplers.md"

# What others set the knobs to. A word in brackets is a source at the end of docs/samplers.md.
PUBLISHED = {
    ("top-k", "top_k"): "40 [llama.cpp], 50 [transformers]",
    ("top-p", "top_p"): "0.95 [llama.cpp]",
    ("min-p", "min_p"): "0.05 [llama.cpp]; typically 0.01 to 0.2 [transformers]",
    ("typical", "typical_p"): "0.9 [typical]; off [llama.cpp]",
    ("epsilon", "epsilon_cutoff"): "0.0003 to 0.0009, by size of the model [transformers]",
    ("eta", "eta_cutoff"): "0.0003 to 0.002, by size of the model [transformers]",
    ("top-n-sigma", "top_n_sigma"): "1 [top-n-sigma]",
    ("top-h", "top_h_alpha"): "0.4 [top-h]; typically 0.3 to 0.6 [transformers]",
    ("dynamic-temperature", "temp"): "0.8 [llama.cpp]",
    ("dynamic-temperature", "dynatemp_range"): "0, off [llama.cpp]",
    ("dynamic-temperature", "dynatemp_exponent"): "1 [llama.cpp]",
    ("edt", "temp"): "tuned for each task [edt]",
    ("edt", "edt_theta"): "tuned for each task [edt]",
    ("edt", "edt_base"): "0.8 [edt]",
    ("mirostat", "mirostat_tau"): "3 [mirostat], 5 [llama.cpp]",
    ("mirostat", "mirostat_eta"): "0.1 [llama.cpp]; 1, of the first algorithm [mirostat]",
    ("xtc", "xtc_threshold"): "0.1 [llama.cpp]",
    ("xtc", "xtc_probability"): "0.5 when proposed [llama.cpp], 0 (off) today",
    ("greedy-threshold", "greedy_threshold"): "not found",
    ("guard", "repetition_penalty"): "about 1.2 [ctrl]; 1, off [llama.cpp]",
    ("guard", "dry_multiplier"): "0.8 where on, 0 (off) by default [llama.cpp]",
    ("guard", "dry_base"): "1.75 [llama.cpp]",
    ("guard", "dry_allowed_length"): "2 [llama.cpp]",
}


# ----- docs/configuration.md --------------------------------------------------------------------------------


def fields_table(cls: type) -> str:
    """One row a field: name, default, range with unit, meaning. A field that is a config has a table of its own."""
    rows, parts = ["| field | default | range | meaning |", "|---|---|---|---|"], []
    for field in dataclasses.fields(cls):
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
    rows += [f"| `{name}` | {about(name)} |" for name in preset_names("samplers")]
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


def knobs_table(name: str) -> str:
    """One row a knob of a sampler or of the guard: its value in the preset, range, meaning, and what others set it to.

    Relatives of entropix show only what they have beyond it.
    """
    rule = guarded(SAMPLERS["greedy"]) if name == "guard" else SAMPLERS[name]
    known = traced(SAMPLERS["entropix"]) if name == "placebo" else []
    cfg = read_preset("greedy" if name == "guard" else name)[1]
    fields = {field.name: field for field in dataclasses.fields(SamplerConfig)}
    used = [knob for knob in traced(rule) if knob not in known]
    unknown = [knob for where, knob in PUBLISHED if where == name and knob not in used]
    assert not unknown, f"PUBLISHED has {unknown} for {name!r}, which does not use them"
    heads = ["knob", "preset", "range", "meaning"]
    rows = [
        [f"`{knob}`", f"{getattr(cfg, knob):g}", extent(fields[knob]), fields[knob].metadata["help"]]
        for knob in used
    ]
    if any((name, knob) in PUBLISHED for knob in used):
        heads.append("elsewhere")
        rows = [[*row, PUBLISHED.get((name, knob), "")] for row, knob in zip(rows, used, strict=True)]
    lines = [f"| {' | '.join(row)} |" for row in (heads, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(heads), *lines[1:]])


def updated_samplers(text: str) -> str:
    """The page about the samplers with fresh tables."""
    names = re.findall(r"<!-- table: (\S+) -->", text)
    tables = {name: samplers_table() if name == "presets" else knobs_table(name) for name in names}
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
