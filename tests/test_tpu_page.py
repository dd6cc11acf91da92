"""docs/tpu.md: its figures are those of its formulas."""

import math
import re

import pytest

from entropix import PACKAGE_ROOT, presets
from entropix.checkpoint import tensors


def test_the_table_for_a_whole_pod_is_what_its_formula_says() -> None:
    page = (PACKAGE_ROOT.parent / "docs" / "tpu.md").read_text(encoding="utf-8")
    cfg = presets.read_model("llama-3.1-8b")
    parameters = sum(map(math.prod, tensors.tensor_shapes(cfg).values()))
    read = 2 * (parameters - cfg.vocab_size * cfg.dim)
    row = 1024 * 2 * 2 * cfg.n_layers * cfg.n_kv_heads * cfg.head_dim
    table = [re.findall(r"[\d.,]+", line) for line in re.findall(r"(?m)^\| \d+ \| [\d.]+ GB .*$", page)]
    assert [int(cells[0]) for cells in table] == [32, 64, 128]
    for cells in table:
        rows, memory, chips, host, group, pod = (float(cell.replace(",", "")) for cell in cells)
        assert memory == pytest.approx((2 * parameters + rows * row) / 4 / 1e9, abs=0.05)
        assert chips == pytest.approx((read + rows * row) / (4 * 819e9) * 1e3, abs=0.05)
        assert host == pytest.approx(rows * 47e-3, abs=0.05)
        exact = rows / (((read + rows * row) / (4 * 819e9)) + rows * 47e-6)
        assert group == pytest.approx(exact, abs=50)
        assert pod == pytest.approx(64 * exact, abs=500)
