"""Reading compiled programs: sizes as arrays lie in memory, what moves, what is exchanged, how often."""

import jax
import jax.numpy as jnp
import pytest

from entropix.tpu import hlo

# A loop of unknown length around one of 32 rounds, as XLA's TPU backend writes it, cut down to what matters.
TEXT = """\
HloModule jit_chunk, is_scheduled=true, entry_computation_layout={(bf16[8,64]{1,0:T(8,128)(2,1)})->f32[8]{0:T(128)}}

%fused_rows (p0.1: bf16[1000,64], p1.1: s32[8]) -> bf16[8,64] {
  %p0.1 = bf16[1000,64]{1,0:T(8,128)(2,1)} parameter(0)
  %p1.1 = s32[8]{0:T(128)} parameter(1)
  ROOT %gather.1 = bf16[8,64]{1,0:T(8,128)(2,1)} gather(%p0.1, %p1.1), offset_dims={1}, slice_sizes={1,64}
}

%fused_write (p0.2: f32[32,128], p1.2: f32[1,128]) -> f32[32,128] {
  %p0.2 = f32[32,128]{1,0:T(8,128)} parameter(0)
  %p1.2 = f32[1,128]{1,0:T(8,128)} parameter(1)
  %zero.2 = s32[]{:T(128)} constant(0)
  ROOT %put.2 = f32[32,128]{1,0:T(8,128)} dynamic-update-slice(%p0.2, %p1.2, %zero.2, %zero.2)
}

%narrow (n.3: (s32[], f32[8])) -> (s32[], f32[8]) {
  %n.3 = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %x.3 = f32[8]{0:T(128)} get-tuple-element(%n.3), index=1
  %sum.3 = f32[8]{0:T(128)S(1)} all-reduce(%x.3), channel_id=1, to_apply=%add, metadata={op_name="jit(chunk)/sampler"}
  ROOT %out.3 = (s32[]{:T(128)}, f32[8]{0:T(128)}) tuple(%x.3, %sum.3)
}

%below_32 (n.4: (s32[], f32[8])) -> pred[] {
  %n.4 = (s32[]{:T(128)}, f32[8]{0:T(128)}) parameter(0)
  %i.4 = s32[]{:T(128)} get-tuple-element(%n.4), index=0
  %bound.4 = s32[]{:T(128)} constant(32)
  ROOT %lt.4 = pred[]{:T(512)} compare(%i.4, %bound.4), direction=LT
}

%body (s.5: (s32[], bf16[1000,64], f32[32,128])) -> (s32[], bf16[1000,64], f32[32,128]) {
  %s.5 = (s32[]{:T(128)}, bf16[1000,64]{1,0:T(8,128)(2,1)}, f32[32,128]{1,0:T(8,128)}) parameter(0)
  %table.5 = bf16[1000,64]{1,0:T(8,128)(2,1)} get-tuple-element(%s.5), index=1
  %log.5 = f32[32,128]{1,0:T(8,128)} get-tuple-element(%s.5), index=2
  %index.5 = s32[8]{0:T(128)S(1)} iota(), iota_dimension=0
  %rows.5 = bf16[8,64]{1,0:T(8,128)(2,1)S(1)} fusion(%table.5, %index.5), kind=kCustom, calls=%fused_rows
  %new.5 = f32[1,128]{1,0:T(8,128)S(1)} broadcast(%rows.5), dimensions={}
  %ahead.5 = (f32[32,128]{1,0:T(8,128)S(1)}, f32[32,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%log.5)
  %there.5 = f32[32,128]{1,0:T(8,128)S(1)} copy-done(%ahead.5)
  %log2.5 = f32[32,128]{1,0:T(8,128)} fusion(%log.5, %new.5), kind=kLoop, calls=%fused_write
  %swap.5 = (f32[4,8]{1,0}, f32[4,8]{1,0}, u32[], u32[]) collective-permute-start(%new.5), channel_id=2
  %inner.5 = (s32[]{:T(128)}, f32[8]{0:T(128)}) while(%s.5), condition=%below_32, body=%narrow
  ROOT %out.5 = (s32[]{:T(128)}, bf16[1000,64]{1,0}, /*index=2*/f32[32,128]{1,0}) tuple(%index.5, %table.5, %log2.5)
}

%any_running (s.6: (s32[], bf16[1000,64], f32[32,128])) -> pred[] {
  %s.6 = (s32[]{:T(128)}, bf16[1000,64]{1,0:T(8,128)(2,1)}, f32[32,128]{1,0:T(8,128)}) parameter(0)
  ROOT %go.6 = pred[]{:T(512)} custom-call(%s.6), custom_call_target="AssumeGatherIndicesInBound"
}

ENTRY %main (p.7: bf16[1000,64]) -> f32[32,128] {
  %p.7 = bf16[1000,64]{1,0:T(8,128)(2,1)} parameter(0), metadata={op_name="weights"}
  %loop.7 = (s32[]{:T(128)}, bf16[1000,64]{1,0}, f32[32,128]{1,0}) while(%p.7), condition=%any_running, body=%body
  ROOT %out.7 = f32[32,128]{1,0:T(8,128)} get-tuple-element(%loop.7), index=2
}
"""


@pytest.fixture(scope="module")
def program() -> hlo.Program:
    return hlo.parse(TEXT)


@pytest.mark.parametrize(
    ("kind", "nbytes", "in_main_memory"),
    [
        ("f32[8,128]{1,0:T(8,128)}", 8 * 128 * 4, True),
        ("bf16[8,64]{1,0:T(8,128)(2,1)}", 8 * 128 * 2, True),  # the inner axis is padded to 128
        ("bf16[8,64]{0,1:T(8,128)(2,1)}", 64 * 128 * 2, True),  # and here it is the other one
        ("f32[2,8,8224]{1,0,2:T(2,128)S(1)}", 8224 * 2 * 128 * 4, False),
        ("f32[3,5]{1,0}", 60, True),
        ("pred[7]{0:T(512)(128)(4,1)}", 512, True),
        ("s32[]{:T(128)}", 512, True),
        ("u32[]{:S(2)}", 4, False),
    ],
)
def test_a_layout_pads_the_innermost_axes_to_whole_tiles(kind, nbytes, in_main_memory):
    [found] = hlo.parse(f"ENTRY %m () -> x {{\n  ROOT %x = {kind} iota()\n}}").computations["m"]["x"].results
    assert (found.nbytes, found.in_main_memory) == (nbytes, in_main_memory)


def test_a_step_is_the_body_of_the_loop_whose_length_only_the_run_knows(program):
    assert hlo.step(program) == "body"
    assert hlo.step(hlo.parse("ENTRY %m () -> x {\n  ROOT %x = f32[3] iota()\n}")) == "m"


def test_a_loop_of_known_length_counts_as_often_as_it_runs(program):
    runs = {instruction.name: times for _, instruction, times in hlo.executed(program, "body")}
    assert runs["sum.3"] == 32
    assert runs["rows.5"] == 1


def test_only_what_goes_through_main_memory_counts_as_moved(program):
    """Eight rows of a table, one row of a log, one copy into the fast memory, 32 reads of a small array."""
    moved = {
        instruction.name: (nbytes, times) for instruction, nbytes, times in hlo.movements(program, "body")
    }
    assert moved == {
        "rows.5": (8 * 128 * 2, 1),  # read from the table; what comes out lies in the fast memory
        "ahead.5": (32 * 128 * 4, 1),
        "log2.5": (8 * 128 * 4, 1),  # a row, padded to a tile
        "swap.5": (4 * 8 * 4, 1),
        "sum.3": (128 * 4, 32),
    }
    assert hlo.traffic(program, "body") == sum(nbytes * times for nbytes, times in moved.values())


BLOCKS = """
%some (p.1: f32[64,512], i.1: s32[]) -> f32[64,128] {
  %p.1 = f32[64,512]{1,0:T(8,128)} parameter(0)
  %i.1 = s32[]{:T(128)S(6)} parameter(1)
  %zero.1 = s32[]{:T(128)} constant(0)
  ROOT %slice.1 = f32[64,128]{1,0:T(8,128)} dynamic-slice(%p.1, %zero.1, %i.1), dynamic_slice_sizes={64,128}
}

%product (q.2: f32[8,64], p.2: f32[64,512], i.2: s32[]) -> f32[8,128] {
  %q.2 = f32[8,64]{1,0:T(8,128)S(1)} parameter(0)
  %p.2 = f32[64,512]{1,0:T(8,128)} parameter(1)
  %i.2 = s32[]{:T(128)S(6)} parameter(2)
  %keys.2 = f32[64,128]{1,0:T(8,128)} fusion(%p.2, %i.2), kind=kLoop, calls=%some
  ROOT %scores.2 = f32[8,128]{1,0:T(8,128)} convolution(%q.2, %keys.2), dim_labels=bf_io->bf
}

%body (s.3: (s32[], f32[8,64], f32[64,512])) -> (s32[], f32[8,64], f32[64,512]) {
  %s.3 = (s32[]{:T(128)S(6)}, f32[8,64]{1,0:T(8,128)S(1)}, f32[64,512]{1,0:T(8,128)}) parameter(0)
  %i.3 = s32[]{:T(128)S(6)} get-tuple-element(%s.3), index=0
  %q.3 = f32[8,64]{1,0:T(8,128)S(1)} get-tuple-element(%s.3), index=1
  %k.3 = f32[64,512]{1,0:T(8,128)} get-tuple-element(%s.3), index=2
  %scores.3 = f32[8,128]{1,0:T(8,128)S(1)} fusion(%q.3, %k.3, %i.3), kind=kOutput, calls=%product
  ROOT %out.3 = (s32[]{:T(128)S(6)}, f32[8,64]{1,0}, f32[64,512]{1,0}) tuple(%i.3, %q.3, %k.3)
}

%go_on (s.4: (s32[], f32[8,64], f32[64,512])) -> pred[] {
  %s.4 = (s32[]{:T(128)S(6)}, f32[8,64]{1,0}, f32[64,512]{1,0}) parameter(0)
  ROOT %go.4 = pred[]{:T(512)} custom-call(%s.4), custom_call_target="AssumeGatherIndicesInBound"
}

ENTRY %main (s.5: (s32[], f32[8,64], f32[64,512])) -> (s32[], f32[8,64], f32[64,512]) {
  %s.5 = (s32[]{:T(128)S(6)}, f32[8,64]{1,0}, f32[64,512]{1,0}) parameter(0)
  ROOT %loop.5 = (s32[], f32[8,64]{1,0}, f32[64,512]{1,0}) while(%s.5), condition=%go_on, body=%body
}
"""


def test_a_product_reads_only_the_block_that_is_sliced_out_for_it():
    """As attention over blocks of keys: the slice lies in a fusion of its own, inside that of the product."""
    blocks = hlo.parse(BLOCKS)
    block = 64 * 128 * 4
    assert hlo.traffic(blocks, "body") == block
    assert hlo.traffic(blocks, "main") == block
    assert hlo.traffic(blocks, "main", rounds=4) == 4 * block


SPACES = """
%put (p.1: f32[32,128], u.1: f32[1,128]) -> f32[32,128] {
  %p.1 = f32[32,128]{1,0:T(8,128)} parameter(0)
  %u.1 = f32[1,128]{1,0:T(8,128)} parameter(1)
  %zero.1 = s32[]{:T(128)} constant(0)
  ROOT %put.1 = f32[32,128]{1,0:T(8,128)} dynamic-update-slice(%p.1, %u.1, %zero.1, %zero.1)
}

ENTRY %main (far: f32[32,128], row: f32[1,128], at: s32[8]) -> f32[32,128] {
  %far = f32[32,128]{1,0:T(8,128)} parameter(0)
  %far_row = f32[1,128]{1,0:T(8,128)} parameter(1)
  %at = s32[8]{0:T(128)S(1)} parameter(2)
  %zero = s32[]{:T(128)S(6)} constant(0)
  %near = f32[32,128]{1,0:T(8,128)S(1)} bitcast(%far)
  %near_row = f32[1,128]{1,0:T(8,128)S(1)} bitcast(%far_row)
  ROOT %found = LINE
}
"""
FAR, NEAR = "{1,0:T(8,128)}", "{1,0:T(8,128)S(1)}"
TILE = 8 * 128 * 4  # bytes: eight rows, and one row with its padding


@pytest.mark.parametrize(
    ("line", "nbytes"),
    [
        (f"f32[32,128]{FAR} dynamic-update-slice(%far, %near_row, %zero, %zero)", TILE),
        (f"f32[32,128]{FAR} dynamic-update-slice(%far, %far_row, %zero, %zero)", 2 * TILE),
        (f"f32[32,128]{NEAR} dynamic-update-slice(%near, %far_row, %zero, %zero)", TILE),
        (f"f32[32,128]{NEAR} dynamic-update-slice(%near, %near_row, %zero, %zero)", 0),
        (f"f32[32,128]{FAR} fusion(%far, %near_row), kind=kLoop, calls=%put", TILE),
        (f"f32[32,128]{NEAR} fusion(%near, %far_row), kind=kLoop, calls=%put", TILE),
        (f"f32[32,128]{NEAR} fusion(%near, %near_row), kind=kLoop, calls=%put", 0),
        (f"f32[1,128]{NEAR} dynamic-slice(%far, %zero, %zero), dynamic_slice_sizes={{1,128}}", TILE),
        (f"f32[1,128]{FAR} dynamic-slice(%near, %zero, %zero), dynamic_slice_sizes={{1,128}}", TILE),
        (f"f32[1,128]{FAR} slice(%far), slice={{[0:1], [0:128]}}", 2 * TILE),
        (f"f32[1,128]{NEAR} slice(%near), slice={{[0:1], [0:128]}}", 0),
        (f"f32[8,128]{NEAR} gather(%far, %at), offset_dims={{1}}, slice_sizes={{1,128}}", TILE),
        (f"f32[8,128]{FAR} gather(%near, %at), offset_dims={{1}}, slice_sizes={{1,128}}", TILE),
    ],
)
def test_a_part_counts_at_each_end_that_is_in_main_memory(line, nbytes):
    """Read there, written there, or both; between two arrays of the fast memory nothing moves."""
    found = hlo.parse(SPACES.replace("LINE", line))
    assert hlo.traffic(found, "main") == nbytes


def test_collectives_are_listed_with_what_they_carry_and_how_often(program):
    assert hlo.collectives(program, "body") == [
        hlo.Collective("all-reduce", "f32[8]", 32, 8, "jit(chunk)/sampler", 32),
        hlo.Collective("collective-permute", "f32[4,8]", 128, 32, "", 1),
    ]
    assert hlo.collectives(program, "fused_rows") == []


@pytest.mark.parametrize(
    "line",
    [
        "%x = token[] outfeed(%a, %b)",
        "%x = (f32[8], u32[], token[]) send(%a, %b), channel_id=1",
        '%x = f32[8] custom-call(%a), custom_call_target="xla_ffi_python_cpu_callback"',
        '%x = f32[8] custom-call(%a), custom_call_target="MoveToHost"',
    ],
)
def test_work_for_the_host_is_seen(program, line):
    assert hlo.host_work(program) == []
    assert hlo.host_work(hlo.parse(f"ENTRY %m () -> x {{\n  ROOT {line}\n}}")) == ["x"]


def test_a_real_program_of_this_machine_can_be_read():
    """Against numbers that need no compiler: an input read, a sum written."""
    compiled = jax.jit(lambda x: jnp.sin(x) + 1).lower(jnp.zeros((100, 10))).compile()
    program = hlo.parse(compiled.as_text())
    assert hlo.traffic(program, hlo.step(program)) == 2 * 4000


def test_what_is_no_program_is_refused():
    with pytest.raises(ValueError, match="not the text of an HLO module"):
        hlo.parse("hello")
