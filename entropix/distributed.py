"""Several processes as one: each host of a large machine runs the same command on its own part of the devices.

Every process runs the whole program with the same inputs (SPMD), so that all launch the same work in the same order.
What differs is decided here, and nowhere else:

- Process 0 is the one that is seen. The standard output of the others, and what they would note on stderr, lead
  nowhere; only errors come through, under the number of their process. Whoever writes a file asks `is_first`.
- What only one process can know (standard input, a random seed, what a folder holds already) process 0 finds out and
  tells the others: `from_first`.
- A process that dies, or ends early, ends the others. JAX's coordination service sees to that: every process tells
  process 0 that it lives, and is told by it when another does not.

Alone, without `join`, nothing here does anything. JAX is imported only when it is needed.
"""

import json
import os
import sys
import threading
import zlib
from collections.abc import Callable
from typing import Any, TextIO, TypeVar

from entropix.showing import visible

START_SECONDS = 300  # until all have come
HEARTBEAT_SECONDS = 30  # after which a process that is not heard of is dead
_PARTING_SECONDS = 5  # between the ends of two processes, of which one may be in the midst of its work
_BLOCK = 4096  # bytes; messages of about the same length share a program

T = TypeVar("T")


def join(
    coordinator: str | None = None,
    n_processes: int | None = None,
    process_id: int | None = None,
    start_seconds: int = START_SECONDS,
    heartbeat_seconds: int = HEARTBEAT_SECONDS,
    sigterm_ends: bool = True,
) -> None:
    """Meets the other processes, before anything touches a device. From then on this process is one of them.

    coordinator: where process 0 listens, `host:port`. What is None, JAX finds on Cloud TPU, under SLURM, Open MPI and
    Kubernetes; elsewhere it is in $JAX_COORDINATOR_ADDRESS, $JAX_NUM_PROCESSES and $JAX_PROCESS_ID. Raises a ValueError
    where it is nowhere. Where not all have come after `start_seconds`, the process ends with a message.

    sigterm_ends: as usual. If not, SIGTERM is a notice that `multihost_utils.reached_preemption_sync_point` passes on.
    """
    import jax

    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if coordinator is not None and not coordinator.rpartition(":")[2].isdecimal():
        raise ValueError(f"--coordinator takes HOST:PORT, got {coordinator!r}")
    late = threading.Timer(start_seconds, _end_unmet, (process_id, coordinator, start_seconds))
    late.daemon = True
    late.start()
    jax.config.update("jax_enable_preemption_service", not sigterm_ends)
    try:
        jax.distributed.initialize(
            coordinator_address=coordinator,
            num_processes=_number(n_processes, "JAX_NUM_PROCESSES"),
            process_id=_number(process_id, "JAX_PROCESS_ID"),
            initialization_timeout=2 * start_seconds,  # never reached: it would end in a stack trace
            heartbeat_timeout_seconds=heartbeat_seconds,
            shutdown_timeout_seconds=_PARTING_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        why = (
            str(error)
            .rstrip(".")
            .replace("coordinator_address should be defined", "no coordinator was found")
        )
        raise ValueError(
            f"--distributed: {why}; outside of Cloud TPU, SLURM, Open MPI and Kubernetes give --coordinator "
            "HOST:PORT (a free port of process 0's host), --num-processes N and --process-id I (0 to N-1)"
        ) from None
    finally:
        late.cancel()
    _be_seen(jax.process_index() == 0)


def is_first() -> bool:
    """Whether this process prints and writes files: it is alone, or number 0 of several."""
    return not is_joined() or sys.modules["jax"].process_index() == 0


def from_first(find: Callable[[], T]) -> T:
    """What `find` returns in process 0, which alone calls it, in all of them. It must be something that JSON can hold.

    A ValueError or OSError of `find` is a ValueError in all of them.
    """
    if not is_joined():
        return find()
    import numpy as np
    from jax.experimental import multihost_utils

    told = b""
    if is_first():
        try:
            told = json.dumps([find(), None]).encode()
        except (ValueError, OSError) as error:
            told = json.dumps([None, str(error)]).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(told))))
    buffer = np.zeros(-(-size // _BLOCK) * _BLOCK, np.uint8)
    buffer[: len(told)] = np.frombuffer(told, np.uint8)
    heard = np.asarray(multihost_utils.broadcast_one_to_all(buffer)).tobytes()[:size]
    value, fault = json.loads(heard)
    if fault is not None:
        raise ValueError(fault)
    return value


def check_same(flags: str) -> None:
    """Raises a ValueError in all processes unless this text is the same in all."""
    import numpy as np
    from jax.experimental import multihost_utils

    digests = np.asarray(multihost_utils.process_allgather(np.uint32(zlib.crc32(flags.encode()))))
    if different := np.flatnonzero(digests != digests[0]).tolist():
        raise ValueError(
            f"process {different[0]} was started with other flags than process 0; all take the same ones, but for "
            "--process-id"
        )


def part() -> None:
    """Waits until all processes have come here, at the end of their work; process 0 may have had more to do."""
    if is_joined():
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("entropix: the end")


def complain(text: str) -> None:
    """A line on stderr, whichever process this is."""
    if is_joined():
        text = f"process {sys.modules['jax'].process_index()}: {text}"
    print(visible(text), file=errors(), flush=True)


def errors() -> TextIO:
    """Where errors go."""
    return sys.__stderr__ if is_joined() and sys.__stderr__ is not None else sys.stderr


def is_joined() -> bool:
    jax: Any = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def _number(given: int | None, variable: str) -> int | None:
    """A number that was given, or one in the environment, where JAX itself does not look for it."""
    text = os.environ.get(variable)
    if given is not None or text is None:
        return given
    if not text.isdecimal():
        raise ValueError(f"${variable} should be a whole number, but is {text!r}")
    return int(text)


def _be_seen(first: bool) -> None:
    """Process 0 keeps its streams, the others have none, but for `errors`.

    What libraries below Python write to the standard output, as Gloo does when CPU processes meet, is nobody's answer.
    """
    nowhere = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")
    sys.stdout.flush()
    if first:
        usual = sys.stdout
        sys.stdout = os.fdopen(os.dup(1), "w", encoding=usual.encoding, errors=usual.errors)
    else:
        sys.stdout = sys.stderr = nowhere
    os.dup2(nowhere.fileno(), 1)


def _end_unmet(process_id: int | None, coordinator: str | None, seconds: int) -> None:
    """Ends the process, which waits in vain in a call that nothing else could end."""
    who = "this process" if process_id is None else f"process {process_id}"
    where = "" if coordinator is None else f" at {coordinator}"
    print(
        f"error: --distributed: {who} has waited {seconds} seconds for the others{where}, and not all came; have all "
        "been started, with the same --coordinator and --num-processes, and do they reach process 0 there?",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)
