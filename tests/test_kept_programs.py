"""Programs that are kept whole: read by a later process, the same numbers, and never another program's."""

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy
from test_layers import direct, reached, wing

from entropix import backend, samplers
from entropix.decoding import kept_programs, loop
from entropix.decoding.state import BranchPlan, Program, RecordOptions
from entropix.generation import generate
from entropix.own_metrics import Metric
from entropix.samplers.entropix import SamplerConfig
from entropix.samplers.registry import SAMPLERS


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where programs are kept meanwhile, and no others are."""
    folder = tmp_path / "whole"
    folder.mkdir()
    monkeypatch.setattr(backend, "programs_folder", lambda: folder)
    for program in (loop.decode_chunk, loop.prefill):
        monkeypatch.setattr(program, "_programs", {})
    return folder


def as_in_a_new_process():
    """Forgets what this process has compiled or read."""
    jax.clear_caches()
    for program in (loop.decode_chunk, loop.prefill):
        program._programs.clear()


def answer(model, **options):
    return generate(model, ["Why?", "How so?"], max_new_tokens=40, chunk_length=16, seed=1, **options)


def assert_same(results, others):
    for result, other in zip(results, others, strict=True):
        jax.tree.map(np.testing.assert_array_equal, result.records, other.records)


def kinds(folder):
    return sorted(file.name.partition("-")[0] for file in folder.iterdir())


@pytest.mark.slow
def test_a_later_process_reads_what_an_earlier_one_compiled(toy_model, folder, caplog, monkeypatch):
    """Over several chunks, so that the donated state goes on; what is damaged is compiled and written anew."""
    with monkeypatch.context() as nothing_kept:
        nothing_kept.setattr(backend, "programs_folder", lambda: None)
        answer(toy_model)
        as_in_a_new_process()
        usual = answer(toy_model)  # by programs from JAX's cache, which cannot be written again
    assert_same(answer(toy_model), usual)
    assert kinds(folder) == ["decode_chunk", "prefill"]
    as_in_a_new_process()
    with jax.log_compiles(), caplog.at_level("WARNING"):
        assert_same(answer(toy_model), usual)
    assert "jit(row_keys)" in caplog.text
    assert not re.search(
        r"decode_(chunk|step)|prefill", caplog.text
    )  # neither traced nor lowered nor compiled

    chunk, prefill = sorted(folder.iterdir())
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:9999] + bytes([whole[9999] ^ 1]) + whole[10000:])
    prefill.write_bytes(b"")
    as_in_a_new_process()
    assert_same(answer(toy_model), usual)
    assert sorted(folder.iterdir()) == [chunk, prefill] and prefill.read_bytes()
    assert kept_programs._DIGEST(chunk.read_bytes()[32:]).digest() == chunk.read_bytes()[:32]


@pytest.mark.slow
def test_a_rule_of_ones_own_is_compiled_as_usual_and_the_unused_make_room(toy_model, folder, monkeypatch):
    greedy = samplers.get("greedy")
    own = greedy._replace(name="own", step=lambda *args: greedy.step(*args))
    assert_same(answer(toy_model, sampler=own), answer(toy_model, sampler="greedy"))
    assert kinds(folder) == ["decode_chunk", "prefill"]
    (folder / "somebody's").mkdir()
    monkeypatch.setattr(kept_programs, "MOST", 1)
    answer(toy_model, sampler="min-p")
    assert kinds(folder) == ["decode_chunk", "somebody's"]


def plain(x_B):
    return x_B + 1.0


def test_what_jax_is_told_meanwhile_counts_and_traced_arguments_go_by(folder):
    program = kept_programs.KeptProgram(jax.jit(plain), static=())
    numbers = jnp.zeros(2)
    assert program(numbers).dtype == jnp.float32
    with jax.enable_x64(True):
        assert program(jnp.asarray(np.zeros(2))).dtype == jnp.float64
    with jax.default_matmul_precision("float32"):
        program(numbers)
    assert len(list(folder.iterdir())) == 3
    assert jax.eval_shape(program, numbers).shape == (2,)
    np.testing.assert_array_equal(jax.vmap(program)(numbers), [1, 1])


def test_where_nothing_can_be_kept_a_line_says_so_and_the_work_goes_on(folder, capsys):
    folder.rmdir()
    folder.write_text("")
    kept_programs._complain.cache_clear()
    for width in (3, 4):
        np.testing.assert_array_equal(kept_programs.KeptProgram(jax.jit(plain), ())(jnp.zeros(width)), 1)
    errors = capsys.readouterr().err
    assert errors.count("some compiled programs cannot be kept") == errors.count("\n") == 1


def test_whatever_makes_another_program_makes_another_name():
    cfg, greedy = toy.config(), samplers.get("greedy")
    programs = [
        *(Program(cfg, samplers.get(name)) for name in SAMPLERS),
        *(Program(toy.config(**changes), greedy) for changes in toy.VARIANTS.values()),
        Program(cfg, greedy, n_draft=1),
        Program(cfg, greedy, record=RecordOptions(alternatives=1)),
        Program(cfg, greedy, record=RecordOptions(head_entropies=True)),
        Program(cfg, greedy, branching=BranchPlan(2, 3)),
        Program(cfg, greedy, branching=BranchPlan(3, 2)),
        Program(cfg, greedy, branching=BranchPlan(3, 2, among_kept=False)),
    ]
    arrays = [
        jnp.zeros(3),
        jnp.zeros(4),
        jnp.zeros((3, 1)),
        jnp.zeros(3, jnp.int32),
        jax.lax.full_like(jnp.zeros(3), 2.0),
        [jnp.zeros(3)],
        {"a": jnp.zeros(3)},
        {"b": jnp.zeros(3)},
        *(SamplerConfig(max_top_k=n) for n in (64, 128)),
    ]
    numbers = [jax.tree.map(jnp.asarray, array) for array in arrays]
    names = [kept_programs._name((program,), numbers[0]) for program in programs]
    names += [kept_programs._name((), array) for array in numbers]
    same = {kept_programs._name((Program(cfg, greedy),), numbers[0])}
    assert len(set(names)) == len(names) - 2, (
        "full_like is the plain array, the first variant is the toy itself"
    )
    assert same <= set(names)


def of_the_tests(logits_BTV, attention):
    """A number."""
    return logits_BTV[..., 0]


@pytest.mark.parametrize(
    "value",
    [
        of_the_tests,
        lambda: None,
        partial(of_the_tests),
        Metric("own", of_the_tests),
        (samplers.get("min-p")._replace(step=of_the_tests),),
        dataclasses.make_dataclass("Numbers", []),
        object(),
    ],
)
def test_code_from_elsewhere_has_no_name(value):
    with pytest.raises(kept_programs.Unnameable):
        kept_programs._fingerprint(value)


def test_the_digest_is_of_all_code_that_a_program_can_come_from():
    made_of = direct("decoding.loop") - {"decoding.kept_programs"}
    assert {wing(name) for name in made_of.union(*map(reached, made_of))} <= set(kept_programs.SOURCES)
