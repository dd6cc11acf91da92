"""--mesh, --distributed and --profile, in one process with eight simulated devices."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import commands
import jax
import pytest

from entropix import calibrate, compare, distributed, generation, score, sharding, sweep, trace
from entropix.checkpoint import loading
from entropix.metrics import Metrics

RunCommand = Callable[..., tuple[int, str, str]]
SHARED = ("--prompt", "Why?", "--sampler", "min-p")


@pytest.mark.slow
def test_a_mesh_changes_no_token_and_no_metric(command: commands.Command, tmp_path: Path) -> None:
    files = [str(tmp_path / name) for name in ("one.jsonl", "mesh.jsonl")]
    one = command(*SHARED, "--trace", files[0])
    meshed = command(*SHARED, "--trace", files[1], "--mesh", "data=1,model=2")
    assert meshed == one
    assert one.code == 0
    [expected], [found] = (trace.read(file).results for file in files)
    assert found.token_ids == expected.token_ids
    for a, b in zip(found.records, expected.records, strict=True):
        for name in Metrics._fields:
            assert a[name] == pytest.approx(b[name], abs=1e-4), name


@pytest.mark.slow
def test_stats_tell_of_a_mesh_and_only_of_one(command: commands.Command) -> None:
    line = f"{'devices':30}{2:>10}  cpu, as data=1,model=2\n"
    assert command(*SHARED, "--stats", "--mesh", "data=1,model=2").err.endswith(line)
    assert "\ndevices " not in command(*SHARED, "--stats").err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--mesh", "data=0"], "mesh: expected auto or sizes like data=2,model=4"),
        (["--mesh", "rows=2"], "got 'rows=2'"),
        (
            ["--mesh", "data=4,model=4"],
            "mesh: data=4,model=4 takes 16 devices, but there are 8 (cpu); choose sizes",
        ),
        (["--coordinator", "10.0.0.1:1234"], "--coordinator changes nothing without --distributed"),
        (["--num-processes", "2"], "--num-processes changes nothing without --distributed"),
        (["--process-id", "0"], "--process-id changes nothing without --distributed"),
        (["--distributed", "--start-timeout", "0"], "--start-timeout must be at least 1, got 0"),
        (["--distributed", "--heartbeat-timeout", "0"], "--heartbeat-timeout must be at least 1, got 0"),
        (["--distributed", "--coordinator", "host"], "--coordinator takes HOST:PORT, got 'host'"),
        (["--profile", "{file}"], "cannot be made a folder for a profile (File exists)"),
    ],
)
def test_wrong_flags_are_refused(
    command: commands.Command, tmp_path: Path, args: list[str], message: str
) -> None:
    (tmp_path / "file").touch()
    ended = command("--prompt", "a", *(word.format(file=tmp_path / "file") for word in args))
    assert (ended.code, ended.out) == (1, "")
    assert message in ended.err
    assert ended.err.startswith("error: ") and ended.err.count("\n") == 1


@pytest.mark.parametrize("flags", [["--distributed"], ["--profile", "folder"]])
def test_a_chat_is_for_one_process_and_no_profile(command: commands.Command, flags: list[str]) -> None:
    ended = command("--chat", *flags)
    assert ended.code == 1
    assert f"{flags[0]} does not go together with --chat" in ended.err


@pytest.mark.parametrize(
    ("main", "args"),
    [
        (score.main, ("--text", "{file}")),
        (compare.main, ("--prompts", "{file}", "--samplers", "greedy,min-p")),
        (sweep.main, ("--prompts", "{file}", "--sampler", "min-p", "--grid", "min_p=0.1,0.2")),
        (calibrate.main, ("--text", "{file}")),
    ],
)
def test_every_command_loads_the_model_on_the_mesh_and_with_the_adapter_it_is_told(
    run_command: RunCommand,
    toy_folder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    main: Any,
    args: tuple[str, ...],
) -> None:
    def load(folder: str, dtype: str | None, shape: sharding.Shape | None, adapter: str | None) -> Any:
        raise ValueError(f"asked for {shape} with {adapter}")

    monkeypatch.setattr(loading, "load", load)
    (tmp_path / "file").write_text("Why?\n")
    words = [word.format(file=tmp_path / "file") for word in args]
    for text, asked in (("data=2,model=4", "data=2,model=4"), ("auto", "None")):
        code, _, err = run_command(main, *words, "--weights", toy_folder, "--mesh", text, "--adapter", "mine")
        assert (code, err) == (1, f"error: asked for {asked} with mine\n")


@pytest.mark.slow
def test_scores_on_a_mesh_are_those_of_one_device(
    run_command: RunCommand, toy_folder: str, tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("Why is the sky blue?")
    words = ("--text", str(tmp_path / "text.txt"), "--weights", toy_folder, "--format", "jsonl")
    one, meshed = (
        [json.loads(line) for line in run_command(score.main, *words, *mesh)[1].splitlines()]
        for mesh in ((), ("--mesh", "data=1,model=2"))
    )
    assert len(one) == 21
    for a, b in zip(meshed, one, strict=True):
        numbers = {name for name, value in b.items() if isinstance(value, float)}
        assert {name: a[name] for name in numbers} == pytest.approx(
            {name: b[name] for name in numbers}, abs=1e-4
        )


@pytest.mark.slow
@pytest.mark.parametrize("shape", [None, sharding.Shape(2, 2)])
def test_the_weights_of_a_folder_let_the_loop_compile_once(
    toy_folder: str, shape: sharding.Shape | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where a state comes from the host, where it comes from the loop, and after its tail was committed."""
    model = loading.load(toy_folder, mesh=shape)
    options: dict[str, Any] = {"max_new_tokens": 70, "chunk_length": 8, "ignore_stop_tokens": True}
    jax.clear_caches()
    with jax.log_compiles():
        results = generation.generate(model, ["a", "b"], sampler="greedy", **options)
    assert [len(result.token_ids) for result in results] == [70, 70]
    for program in ("prefill", "decode_chunk", "commit"):
        assert caplog.text.count(f"Compiling jit({program}) ") == 1, program


@pytest.mark.slow
def test_a_profile_names_the_stages_and_compiles_nothing(command: commands.Command, tmp_path: Path) -> None:
    usual = command(*SHARED, "--max-new-tokens", "40")  # long enough for a commit
    jax.clear_caches()
    profiled = command(*SHARED, "--max-new-tokens", "40", "--profile", str(tmp_path / "new" / "profile"))
    assert profiled == usual
    [file] = (tmp_path / "new" / "profile").rglob("*.xplane.pb")
    content = file.read_bytes()
    assert b"compile_or_get_cached" not in content  # a function of JAX, which all compiling goes through
    for stage in ("attention", "feed_forward", "unembed", "metrics", "sampler"):
        assert f"/{stage}/".encode() in content, stage
    for program in ("decode_chunk", "prefill", "commit"):
        assert f"jit({program})/".encode() in content, program


def test_alone_a_process_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    assert distributed.is_first()
    assert distributed.from_first(lambda: 7) == 7
    with pytest.raises(OSError, match="no disk"):
        distributed.from_first(functools.partial(_fail, OSError("no disk")))
    distributed.part()


def _fail(error: Exception) -> None:
    raise error


def test_numbers_of_processes_come_from_flags_or_else_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[dict[str, Any]] = []

    def initialize(**options: Any) -> None:
        asked.append(options)
        raise RuntimeError("no cluster here")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "there:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "4")
    monkeypatch.setenv("JAX_PROCESS_ID", "3")
    several: list[dict[str, Any]] = [{}, {"coordinator": "here:2", "n_processes": 2, "process_id": 0}]
    for given in several:
        with pytest.raises(
            ValueError, match=r"--distributed: no cluster here; outside of Cloud TPU, .* give --coord"
        ):
            distributed.join(**given)
    names = ("coordinator_address", "num_processes", "process_id", "heartbeat_timeout_seconds")
    assert [tuple(options[name] for name in names) for options in asked] == [
        ("there:1", 4, 3, 30),
        ("here:2", 2, 0, 30),
    ]
    monkeypatch.setenv("JAX_PROCESS_ID", "last")
    with pytest.raises(ValueError, match=r"\$JAX_PROCESS_ID should be a whole number, but is 'last'"):
        distributed.join()
