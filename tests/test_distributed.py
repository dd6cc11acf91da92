"""Two processes on the loopback address, with two simulated devices each, as the two hosts of a machine would be."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import folders
import pytest

from entropix import trace
from entropix.metrics import Metrics
from entropix.trace import Trace

pytestmark = pytest.mark.slow

MESH = ("--mesh", "data=2,model=2")
SAMPLER = ("--sampler", "min-p")
PROMPTS = "Why?\nHow long is it?\n"
HEARTBEAT = 4  # seconds after which a silent process is dead
PARTING = 5  # seconds between an end that came too early and that of the others
SLACK = 5  # seconds for a busy machine to notice, and to end a process
REPOSITORY = Path(__file__).parent.parent


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def environment(n_devices: int) -> dict[str, str]:
    """Of a process of its own: so many simulated devices, and no proxy, of which JAX would warn."""
    kept = {name: value for name, value in os.environ.items() if "_proxy" not in name.lower()}
    flags = (
        f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={n_devices}"  # the last one counts
    )
    return kept | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(REPOSITORY)}


class Ended(NamedTuple):
    code: int
    out: str
    err: str
    files: list[str]  # in the folder that it worked in


class Process:
    """A command under way, in a folder of its own."""

    def __init__(
        self, cwd: Path, *words: str, n_devices: int = 1, variables: dict[str, str] | None = None
    ) -> None:
        cwd.mkdir(parents=True, exist_ok=True)
        self._cwd, self._before = cwd, set(cwd.iterdir())
        self._popen = subprocess.Popen(
            (sys.executable, "-m", *words),
            env=environment(n_devices) | (variables or {}),
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    @property
    def stdout(self) -> IO[bytes]:
        assert self._popen.stdout is not None
        return self._popen.stdout

    def send(self, what: int) -> None:
        self._popen.send_signal(what)

    def kill(self) -> None:
        self._popen.kill()
        self._popen.communicate()

    def end(self, stdin: str = "", seconds: float = 200) -> Ended:
        out, err = self._popen.communicate(stdin.encode(), seconds)
        files = sorted(path.name for path in set(self._cwd.iterdir()) - self._before)
        return Ended(self._popen.returncode, out.decode(), err.decode(), files)


def pair(tmp_path: Path, *words: str) -> list[Process]:
    """The same command as processes 0 and 1, one told by flags which it is, the other by its environment."""
    where = (
        "--distributed",
        "--coordinator",
        f"127.0.0.1:{free_port()}",
        "--heartbeat-timeout",
        str(HEARTBEAT),
    )
    by_flags = (*words, *where, "--num-processes", "2", "--process-id", "0")
    variables = {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
    return [
        Process(tmp_path / "0", *by_flags, n_devices=2),
        Process(tmp_path / "1", *words, *where, n_devices=2, variables=variables),
    ]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of a toy all of whose sizes two devices can divide, with a long context."""
    folder = tmp_path_factory.mktemp("weights") / "toy"
    return str(folders.write_checkpoint(folder, vocab_size=260, max_position_embeddings=2048))


class Run(NamedTuple):
    together: list[Ended]
    alone: Ended
    traces: list[Trace]  # of process 0, and of the process that was alone


@pytest.fixture(scope="module")
def run(weights: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Prompts from the standard input and no seed: the two processes, with a row each, and then one with their seed."""
    folder = tmp_path_factory.mktemp("runs")
    files = ("--prompt-file", "/dev/stdin", "--trace", "trace.jsonl")
    words = ("entropix.main", "--weights", weights, *SAMPLER, "--max-new-tokens", "24", *files)
    processes = pair(folder, *words, *MESH)
    together = [process.end(text) for process, text in zip(processes, (PROMPTS, "Another!\n"), strict=True)]
    assert together[0].code == 0, together
    seed = together[0].err.splitlines()[0].removeprefix("seed: ")
    alone = Process(folder / "alone", *words, "--seed", seed).end(PROMPTS)
    traces = [trace.read(folder / name / "trace.jsonl") for name in ("0", "alone")]
    return Run(together, alone, traces)


def test_two_processes_answer_as_one_does(run: Run) -> None:
    assert run.together[0] == run.alone
    assert run.alone.code == 0
    assert run.alone.files == ["trace.jsonl"]
    several, one = (read.results for read in run.traces)
    assert [result.token_ids for result in several] == [result.token_ids for result in one]
    assert [result.prompt_ids for result in several] == [result.prompt_ids for result in one]
    assert sum(len(result.token_ids) for result in several) > 24


def test_metrics_of_two_processes_are_those_of_one(run: Run) -> None:
    several, one = ([record for result in read.results for record in result.records] for read in run.traces)
    for a, b in zip(several, one, strict=True):
        assert {name: a[name] for name in Metrics._fields} == pytest.approx(
            {name: b[name] for name in Metrics._fields}, abs=1e-4
        )


def test_the_second_process_prints_and_writes_nothing(run: Run) -> None:
    assert run.together[1] == Ended(0, "", "", [])


def test_a_text_is_scored_by_two_processes_as_by_one(weights: str, tmp_path: Path) -> None:
    """The text is a file that only process 0 has."""
    words = ("entropix.score", "--weights", weights, "--text", "text.txt", "--format", "jsonl")
    for name in ("0", "alone"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "text.txt").write_text("The sky is blue.")
    alone = Process(tmp_path / "alone", *words)
    first, second = (process.end() for process in pair(tmp_path, *words, *MESH))
    assert second == Ended(0, "", "", [])
    assert first.code == 0, first.err
    lines, expected = (map(json.loads, text.splitlines()) for text in (first.out, alone.end().out))
    for line, wanted in zip(lines, expected, strict=True):
        assert line.keys() == wanted.keys()
        for name, value in wanted.items():
            close = pytest.approx(value, rel=1e-4, abs=1e-4) if isinstance(value, float) else value
            assert line[name] == close, name


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--prompt", "a", "--trace", "nowhere/trace.jsonl"),
            "nowhere/trace.jsonl: cannot write a trace there",
        ),
        (("--prompt", "a", "--mesh", "data=3"), "mesh: data=3,model=1 takes 3 devices, but there are 4"),
    ],
)
def test_bad_input_ends_both_with_the_same_message(
    weights: str, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    """The folder for the trace is there for process 1, but it is not the one that writes."""
    (tmp_path / "1" / "nowhere").mkdir(parents=True)
    processes = pair(tmp_path, "entropix.main", "--weights", weights, *words)
    for number, ended in enumerate(process.end() for process in processes):
        assert ended.code == 1, ended.err
        assert ended.out == ""
        assert ended.err.startswith(f"process {number}: error: {message}"), ended.err
        assert ended.err.count("\n") == 1, ended.err


def test_processes_with_different_flags_refuse_to_run(weights: str, tmp_path: Path) -> None:
    port = str(free_port())
    where = ("--distributed", "--coordinator", f"127.0.0.1:{port}", "--num-processes", "2")
    words = ("entropix.main", "--weights", weights, "--prompt", "a", *where, "--max-new-tokens")
    processes = [
        Process(tmp_path / str(i), *words, str(10 + i), "--process-id", str(i), n_devices=2) for i in (0, 1)
    ]
    for number, ended in enumerate(process.end() for process in processes):
        assert ended.code == 1
        assert ended.err.startswith(f"process {number}: error: process 1 was started with other flags")


@pytest.mark.parametrize("process_id", [0, 1])
def test_a_process_whose_others_never_come_gives_up_in_time(
    weights: str, tmp_path: Path, process_id: int
) -> None:
    where = ("--distributed", "--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", "2")
    waiting = ("--process-id", str(process_id), "--start-timeout", "1")
    process = Process(tmp_path, "entropix.main", "--weights", weights, "--prompt", "a", *where, *waiting)
    ended = process.end(seconds=60)
    assert ended.code == 1
    assert f"error: --distributed: process {process_id} has waited 1 seconds for the others" in ended.err
    assert "Traceback" not in ended.err


PROGRAM = """
import sys, time
from entropix import distributed
from entropix.console import cli

def main():
    address, process_id, what = sys.argv[1:]
    if what == "parting":
        distributed._PARTING_SECONDS = 1
    distributed.join(address, 2, int(process_id), heartbeat_seconds=4)
    if what == "parting" and distributed.is_first():
        time.sleep(3)
    print("written", flush=True)
    while what == "talking":
        distributed.from_first(time.time)

sys.exit(cli.run(main))
"""


def small_pair(tmp_path: Path, what: str) -> list[Process]:
    """Two processes without a model, that start sooner."""
    (tmp_path / "program.py").write_text(PROGRAM)
    variables = {"PYTHONPATH": f"{REPOSITORY}:{tmp_path}"}
    address = f"127.0.0.1:{free_port()}"
    return [Process(tmp_path / i, "program", address, i, what, variables=variables) for i in ("0", "1")]


def test_at_the_end_the_others_wait_for_process_0(tmp_path: Path) -> None:
    """Which has files to write, and may take longer over them than ends may lie apart."""
    ended = [process.end() for process in small_pair(tmp_path, "parting")]
    assert ended == [Ended(0, "written\n", "", []), Ended(0, "", "", [])]


@pytest.fixture
def generating(weights: str, tmp_path: Path) -> Iterator[list[Process]]:
    """Two processes in the midst of a long answer, for every layer of which each needs the other."""
    words = ("entropix.main", "--weights", weights, *SAMPLER, "--prompt", "a", "--seed", "1")
    processes = pair(
        tmp_path, *words, "--mesh", "model=4", "--max-new-tokens", "2000", "--ignore-stop-tokens"
    )
    assert processes[0].stdout.read(8)
    yield processes
    for process in processes:
        process.kill()


@pytest.fixture
def talking(tmp_path: Path) -> Iterator[list[Process]]:
    """Two processes without a model that work together without an end."""
    processes = small_pair(tmp_path, "talking")
    assert processes[0].stdout.readline() == b"written\n"
    yield processes
    for process in processes:
        process.kill()


def test_a_process_that_is_killed_ends_the_other(generating: list[Process]) -> None:
    assert_ends_the_other(generating, 1, signal.SIGKILL)


@pytest.mark.parametrize(
    ("victim", "what"),
    [
        (0, signal.SIGSTOP),  # it hangs: nothing but its silence tells
        (0, signal.SIGINT),  # Ctrl-C in one process alone
        (1, signal.SIGTERM),
    ],
)
def test_a_process_that_ends_early_ends_the_other(talking: list[Process], victim: int, what: int) -> None:
    assert_ends_the_other(talking, victim, what)


def assert_ends_the_other(processes: list[Process], victim: int, what: int) -> None:
    """In time, with a message and not as if all were well."""
    began = time.monotonic()
    processes[victim].send(what)
    other = processes[1 - victim].end(seconds=60)
    assert time.monotonic() - began < HEARTBEAT + PARTING + SLACK
    assert other.code != 0
    assert "another task died" in other.err, other.err
