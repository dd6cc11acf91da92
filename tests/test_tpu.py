"""The programs that the TPU compiler makes: for Llama 3.2 1B, of which two layers, on four v5e chips.

Compiled once, in a process of its own, which knows nothing of the test session's settings.
"""

import dataclasses
import importlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from entropix import PACKAGE_ROOT
from entropix.model import attention
from entropix.tpu import ahead, hlo
from entropix.tpu.hlo import Collective, Instruction
from entropix.tpu.roofline import Report, Usage

pytestmark = pytest.mark.slow

sys.path.append(str(PACKAGE_ROOT.parent / "scripts"))
compile_tpu = importlib.import_module("compile_tpu")

MODEL, TOPOLOGY, MESH = "llama-3.2-1b", "v5e:2x2", "data=1,model=4"
LAYERS, BATCH, SLOTS, DEVICES = 2, 8, 8192, 4
WIDTH, FFN, VOCABULARY, HEADS, KV_HEADS, HEAD_DIM = 2048, 8192, 128256, 32, 8, 64
WEIGHTS = VOCABULARY * WIDTH + LAYERS * WIDTH * ((2 * HEADS + 2 * KV_HEADS) * HEAD_DIM + 3 * FFN)  # elements
CACHE = LAYERS * 2 * BATCH * SLOTS * KV_HEADS * HEAD_DIM
LAYER_CACHE = CACHE // LAYERS // 2 // DEVICES  # elements: the keys of one layer on one device

LIBTPU = str(Path(sys.prefix, "libtpu"))  # the folder into which `make test` puts it

COMPILE = f"""
import dataclasses, json, sys
from pathlib import Path
from entropix.tpu import ahead, roofline
target = ahead.target({MODEL!r}, {TOPOLOGY!r}, {MESH!r}, {BATCH}, {SLOTS})
target = dataclasses.replace(target, model=dataclasses.replace(target.model, n_layers={LAYERS}))
programs = {{}}
for compiled in ahead.programs(target):
    programs[compiled.name] = dataclasses.asdict(roofline.usage(compiled))
    Path(sys.argv[1], compiled.name).write_text(compiled.executable.as_text())
Path(sys.argv[1], "usage.json").write_text(json.dumps(programs))
"""


@dataclasses.dataclass(frozen=True)
class Built:
    """What came out."""

    usage: dict[str, Usage]
    program: dict[str, hlo.Program]
    stderr: str


@pytest.fixture(scope="module", autouse=True)
def compiler() -> Iterator[None]:
    """Lets this process find libtpu too, as long as this file's tests run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(LIBTPU)
        yield


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("tpu")
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("XLA_", "JAX_", "TPU_"))
    }
    clean["PYTHONPATH"] = LIBTPU
    command = [sys.executable, "-c", COMPILE, str(folder)]
    ran = subprocess.run(command, env=clean, capture_output=True, text=True, timeout=500)
    assert ran.returncode == 0, ran.stderr
    usage = {}
    for name, values in json.loads((folder / "usage.json").read_text()).items():
        values["collectives"] = [Collective(*each) for each in values["collectives"]]
        usage[name] = Usage(**values)
    program = {name: hlo.parse((folder / name).read_text()) for name in usage}
    return Built(usage, program, ran.stderr)


def instructions(program: hlo.Program) -> Iterator[Instruction]:
    """All of them, inside fusions too."""
    for computation in program.computations.values():
        yield from computation.values()


# ----- memory -----------------------------------------------------------------------------------------------


def test_weights_cache_and_temporaries_fit_into_a_chip(built):
    peak = {name: usage.peak_bytes for name, usage in built.usage.items()}
    assert set(peak) == {"prefill", "decode", "commit", "grow"}
    assert max(peak.values()) < ahead.CHIPS["v5e"].hbm_bytes


def test_weights_and_cache_lie_in_memory_without_padding(built):
    """Heads of 64, where a tile is 128 wide: padded, the cache would be twice as large."""
    expected = 2 * (WEIGHTS + CACHE) // DEVICES
    assert expected <= built.usage["decode"].argument_bytes < 1.01 * expected
    assert built.usage["prefill"].held_bytes >= expected


@pytest.mark.parametrize("name", ["prefill", "commit"])
def test_the_cache_is_updated_in_place(built, name):
    usage = built.usage[name]
    assert usage.aliased_bytes >= 2 * CACHE // DEVICES
    assert usage.output_bytes - usage.aliased_bytes < 10_000


def test_a_commit_makes_no_copy_of_a_cache_array(built):
    assert built.usage["commit"].temporary_bytes < LAYER_CACHE // 2
    assert built.usage["commit"].moved_bytes < LAYER_CACHE // 2


def test_a_step_keeps_nothing_as_large_as_a_layers_cache(built):
    usage = built.usage["decode"]
    assert usage.temporary_bytes < 2 * LAYER_CACHE
    assert usage.output_bytes < 2 * LAYER_CACHE


# ----- what a step does -------------------------------------------------------------------------------------


def test_a_step_moves_little_more_than_weights_and_cache(built):
    """Metrics and sampler included: scores and logits stay in the fast memory."""
    least = 2 * (WEIGHTS + CACHE) // DEVICES
    assert least <= built.usage["decode"].moved_bytes < 1.05 * least


def test_a_steps_flops_are_those_of_its_matrices_and_of_attention(built):
    """Two for each weight and row, and four for each slot, head and number of a head; a tenth for all else."""
    attention = LAYERS * 4 * BATCH * (SLOTS + 32) * HEADS * HEAD_DIM
    least = (2 * BATCH * WEIGHTS + attention) / DEVICES
    assert least <= built.usage["decode"].flops < 1.1 * least


def test_a_prefills_scores_never_leave_the_fast_memory(built):
    """At once they would take 0.6 GB a layer. What it moves besides weights are keys and values, once for each of eight
    blocks of queries (the last layer needs none of the older ones), and activations."""
    usage, n_new = built.usage["prefill"], 512
    scores = 4 * BATCH * n_new * SLOTS * HEADS // DEVICES
    weights = 2 * (WEIGHTS - VOCABULARY * WIDTH) // DEVICES
    keys_and_values = n_new // attention.QUERIES * 2 * 2 * LAYER_CACHE * (LAYERS - 1)
    assert usage.temporary_bytes < scores // 4
    assert keys_and_values < usage.moved_bytes < weights + keys_and_values + 1.2e9


def test_a_prefills_flops_are_those_of_its_matrices_and_of_attention(built):
    """The last layer ends with its keys and values."""
    n_new, last = 512, (HEADS * HEAD_DIM * 2 + 3 * FFN) * WIDTH
    matrices = 2 * BATCH * n_new * (WEIGHTS - VOCABULARY * WIDTH - last)
    attended = (LAYERS - 1) * 4 * BATCH * n_new * (SLOTS + n_new) * HEADS * HEAD_DIM
    assert built.usage["prefill"].flops == pytest.approx((matrices + attended) / DEVICES, rel=0.1)


def test_nothing_leaves_a_device_for_the_host_inside_the_chunk(built):
    assert {name: usage.host_work for name, usage in built.usage.items()} == {
        name: [] for name in built.usage
    }


def test_products_of_weights_and_of_the_cache_take_bfloat16(built):
    program = built.program["decode"]
    products = {}
    for computation in program.computations.values():
        for instruction in computation.values():
            if instruction.opcode in ("convolution", "dot") and "->" in instruction.origin:
                taken = {array.dtype for name in instruction.operands for array in computation[name].results}
                products.setdefault(instruction.origin.split("/")[-2], set()).update(taken)
    weighted = {equation: taken for equation, taken in products.items() if not equation.startswith("...")}
    assert set(weighted) >= {"BTI,OI->BTO", "BTD,VD->BTV", "BKGTH,BKHS->BKGTS", "BKGTS,BKSH->BKGTH"}
    assert all(taken == {"bf16"} for taken in weighted.values()), weighted


def test_metrics_and_scores_are_computed_in_float32(built):
    found = {
        array.dtype
        for instruction in instructions(built.program["decode"])
        if "/metrics/" in instruction.origin
        for array in instruction.results
    }
    assert "f32" in found
    assert not found & {"bf16", "f16"}


# ----- what devices exchange --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["prefill", "decode", "commit", "grow"])
def test_no_collective_carries_a_vocabulary_or_a_cache(built, name):
    """What it carries are activations [B, T, D], and [L, B, S] means over heads, a sixteenth of a layer's keys."""
    for each in built.usage[name].collectives:
        axes = {
            int(n)
            for shape in each.arrays.split()
            for n in shape.partition("[")[2].strip("]").split(",")
            if n
        }
        assert not axes & {VOCABULARY, VOCABULARY // DEVICES, SLOTS}, each
        if name != "prefill":
            assert each.largest <= max(LAYERS * BATCH * (SLOTS + 32), LAYER_CACHE // 16), each


def test_commit_and_growth_exchange_nothing(built):
    assert built.usage["commit"].collectives == built.usage["grow"].collectives == []


def test_a_step_exchanges_two_sums_a_layer_and_few_more(built):
    """None of them in a loop of a filter: the candidates are on every device, which filters them for itself."""
    exchanges = built.usage["decode"].collectives
    layers = [each for each in exchanges if "transformer_layer" in each.origin]
    assert sum(each.times for each in layers) == 2 * LAYERS
    assert sum(each.times for each in exchanges) - 2 * LAYERS < 20


def test_sharded_logits_are_seen_by_these_tests_if_gathered():
    """The test above would not see it if a collective's arrays were read wrongly."""
    gathered = hlo.parse(
        f"ENTRY %m (p: f32[8,{VOCABULARY // 4}]) -> f32[8,{VOCABULARY}] {{\n"
        f"  %p = f32[8,{VOCABULARY // 4}]{{1,0}} parameter(0)\n"
        f"  ROOT %x = f32[8,{VOCABULARY}]{{1,0}} all-gather(%p), dimensions={{1}}\n}}"
    )
    assert hlo.collectives(gathered, "m") == [
        Collective("all-gather", f"f32[8,{VOCABULARY}]", 4 * 8 * VOCABULARY, 8 * VOCABULARY, "", 1)
    ]


def test_the_compiler_is_quiet(built):
    assert built.stderr == ""


# ----- the command ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "llama-9"], "llama-9"),
        (["--model", MODEL, "--topology", "v9:2x2"], "expected a chip (v5e, v5p, v6e) and a layout"),
        (
            ["--model", MODEL, "--topology", "v5e:3x5"],
            "topology: libtpu has no v5e:3x5, but for example 1x1, 2x2",
        ),
        (["--model", MODEL, "--mesh", "data=3"], "data=3,model=1 takes 3 devices, but v5e:2x4 has 8"),
        (["--model", MODEL, "--mesh", "data=8", "--batch", "4"], "batch: expected a multiple of 8"),
        (
            ["--model", MODEL, "--context", "1000"],
            "context: a cache has 1024 slots for so many, give such a size; got 1000",
        ),
        (["--model", MODEL, "--context", "1048576"], "context: llama-3.2-1b was trained for"),
        (["--model", MODEL, "--sampler", "entropic"], "entropic"),
        ([], "model: expected a name in configs/models"),
    ],
)
def test_what_cannot_be_compiled_is_said_in_one_line(run_command, words, message):
    code, out, error = run_command(compile_tpu.main, *words)
    assert (code, out) == (1, "")
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_missing_compiler_is_said_with_what_to_install(run_command, monkeypatch):
    monkeypatch.setattr(ahead.importlib.util, "find_spec", lambda name: None)
    code, _, error = run_command(compile_tpu.main, "--model", MODEL)
    assert code == 1
    assert "pip install -e '.[tpu]'" in error


def test_memory_that_is_not_enough_is_said_in_a_sentence(monkeypatch):
    target = ahead.target("toy", "v5e:2x2", "auto", 4, 256)

    def refuse(*_: object, **__: object) -> None:
        raise jax.errors.JaxRuntimeError(
            "RESOURCE_EXHAUSTED: Ran out of memory. Used 20.1G of 15.75G hbm. Exceeded"
        )

    monkeypatch.setattr(ahead.loop.prefill, "lower", refuse, raising=False)
    with pytest.raises(
        ValueError, match=r"prefill does not fit: it takes 20.1G of the 15.75G that a v5e has"
    ):
        next(ahead.programs(target))


def usage_of(flops: float, moved: int, **changes: int) -> Usage:
    """A program made by hand."""
    sizes = {"held": 0, "argument": 4, "output": 3, "aliased": 2, "temporary": 5, "code": 1} | changes
    named = {f"{name}_bytes": size for name, size in sizes.items()}
    return Usage(
        compile_seconds=1.0, flops=flops, moved_bytes=moved, host_work=[],
        collectives=[Collective("all-reduce", "f32[8]", 32, 8, "jit(f)/while/body/metrics/sum", 3)], **named,
    )  # fmt: skip


def report_of(batch: int = 8) -> Report:
    """For a chip of 20 bytes that reads 100 bytes and does 1,000 operations a second."""
    programs = {
        "decode": usage_of(500, 200),
        "prefill": usage_of(3000, 100),
        "commit": usage_of(0, 0, held=7),
    }
    return Report(
        model="m", topology="v5e:2x2", mesh="data=1,model=4", n_devices=4, batch=batch, context=256, sampler="entropix",
        hbm_bytes=20, weights_bytes=3, cache_bytes=2, least_bytes=100, programs=programs,
        bytes_per_second=100, flops_per_second=1000,
    )  # fmt: skip


def test_a_roofline_is_the_slower_of_flops_and_bytes():
    report = report_of()
    assert (report.seconds("decode"), report.seconds("prefill")) == (2, 3)
    assert report.decode_tokens_per_second == 4
    assert report.prefill_tokens_per_second == 8 * 256 / 3


def test_what_is_there_at_once_is_arguments_temporaries_new_outputs_and_all_code():
    """The 7 that are held when a commit starts, of which it takes 4; 5 + 3 - 2 more; and three programs."""
    assert report_of().peak_bytes == 7 + 6 + 3
    assert dataclasses.replace(report_of(), hbm_bytes=16).fits
    assert not dataclasses.replace(report_of(), hbm_bytes=15).fits


def test_a_row_goes_into_the_place_of_the_same_configuration():
    page = "before\n<!-- table: compiled -->\n<!-- end -->\nafter\n"
    first, second = compile_tpu.row(report_of()), compile_tpu.row(report_of(batch=16))
    page = compile_tpu.with_row(compile_tpu.with_row(page, first.replace("fits", "")), second)
    again = compile_tpu.with_row(page, first.replace("| 500 |", "| 501 |"))
    assert compile_tpu.with_row(again, first) == page
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    cells = compile_tpu.rows_of(page)
    assert len(cells) == 2
    args = compile_tpu.of_row(cells[1], compile_tpu.Args())
    assert (args.model, args.topology, args.mesh) == ("m", "v5e:2x2", "data=1,model=4")
    assert (args.batch, args.context) == (16, 256)


def test_a_page_without_a_table_is_refused(run_command, tmp_path):
    (tmp_path / "page.md").write_text("no table here")
    code, _, error = run_command(compile_tpu.main, "--model", MODEL, "--table", str(tmp_path / "page.md"))
    assert code == 1
    assert "table: the page has no <!-- table: compiled -->" in error


def test_a_page_whose_table_has_no_row_does_not_say_what_to_compile(run_command, tmp_path):
    (tmp_path / "page.md").write_text("<!-- table: compiled -->\n<!-- end -->\n")
    code, out, error = run_command(compile_tpu.main, "--table", str(tmp_path / "page.md"))
    assert (code, out) == (1, "")
    assert error == (
        "error: model: expected a name in configs/models, like --model llama-3.1-8b, since the table of "
        f"{tmp_path / 'page.md'} has no row\n"
    )


@pytest.mark.parametrize(
    ("topology", "n"), [("v5e:1x1", 1), ("v5e:2x4", 8), ("v5p:2x2x2", 8), ("v6e:1x1", 1), ("v6e:4x4", 16)]
)
def test_a_topology_has_a_stand_in_for_every_chip(topology, n):
    """A v5p has two cores, which are one device."""
    chip, devices = ahead.topology_devices(topology)
    assert (chip.name, len(devices)) == (topology[:3], n)


def test_a_report_says_everything_and_its_json_too():
    shown = "\n".join(compile_tpu.lines(report_of()))
    assert "at most" in shown
    assert "fits" in shown
    assert "3 × all-reduce" in shown
    assert "metrics/sum" in shown
    found = json.loads(compile_tpu.as_json(report_of()))
    assert (found["peak_bytes"], found["fits"], found["decode_tokens_per_second"]) == (16, True, 4)
    assert found["programs"]["decode"]["collectives"][0]["arrays"] == "f32[8]"


@pytest.mark.parametrize("chip", ahead.CHIPS.values(), ids=lambda chip: chip.name)
def test_a_chips_figures_have_a_source_and_are_of_the_right_order(chip):
    assert chip.source.startswith("https://cloud.google.com/tpu/docs/")
    assert 1e11 < chip.hbm_bytes_per_second < 1e13 < chip.flops_per_second < 1e16
    assert math.log2(chip.hbm_bytes / 1e9) > 3
