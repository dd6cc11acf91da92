"""What every command shares: how its flags are read and how it ends."""

import contextlib
import gc
import inspect
import io
import itertools
import json
import math
import os
import shutil
import signal
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import tyro
from tyro.conf import UseAppendAction

import entropix
from entropix import distributed, environment
from entropix.console import signals
from entropix.console.signals import Ended
from entropix.console.words import VERSION, spelled, wrong
from entropix.distributed import HEARTBEAT_SECONDS, START_SECONDS
from entropix.showing import visible

Flags = TypeVar("Flags")
_SIGNALLED = 128  # an exit code above it tells of a signal, as shells count
_SAID_BY_OTHERS = {  # of flags and their values
    "Missing required argument group:": "nothing is asked; give one of",
    "invalid literal for int() with base 10:": "expected a whole number, got",
    "could not convert string to float:": "expected a number, got",
}
# Between two searches for garbage in cycles. A start makes a million objects that stay; by Python's default, 700, the
# searches among them take a sixth of the main thread's time until the first token.
_NEW_OBJECTS = 50_000
_PAGE_WIDTH = 120  # columns of the help's prose, at most


def flag(help: str, metavar: str | None = None, hint: str | None = "") -> Any:
    """Documentation of a flag. `hint` tells its default: None for the value itself, nothing by default."""
    return tyro.conf.arg(help=help, metavar=metavar, help_behavior_hint=hint)


def _text(read: Callable[[str], str], metavar: str) -> tyro.constructors.PrimitiveConstructorSpec[str | None]:
    """How tyro reads an optional string; left to itself it would take the word None to mean no string."""
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda words: read(words[0]),
        is_instance=lambda value: value is None or isinstance(value, str),
        str_from_instance=lambda value: [str(value)],
    )


def _one_of(*known: str) -> tyro.constructors.PrimitiveConstructorSpec[str | None]:
    """A string that is one of these."""

    def read(word: str) -> str:
        if word not in known:
            raise ValueError(f"expected {', '.join(known[:-1])} or {known[-1]}, got {word!r}")
        return word

    return _text(read, "|".join(known))


# Text as it is typed, and the name of a type of numbers.
Text = Annotated[str | None, _text(str, "TEXT")]
_DTYPES = ("float32", "bfloat16", "float16")
DtypeName = Annotated[str | None, _one_of(*_DTYPES)]
Weights = Annotated[
    Text, flag("a name below weights/ or a checkpoint folder", "NAME|DIR", "(default: smollm2-135m-instruct)")
]
Adapter = Annotated[
    Text,
    flag("the folder of a LoRA adapter (PEFT) that is merged into the weights as they are loaded", "DIR"),
]
TableFile = Annotated[
    Text, flag("write the rows as a table here too, CSV or Parquet by the ending", "FILE.csv|FILE.parquet")
]
TemplateArg = Annotated[
    UseAppendAction[tuple[str, ...]],
    flag(
        "what the chat template reads beside the conversation, like enable_thinking=false: true, false, null, a "
        "number, or else a text",
        "NAME=VALUE",
        "(repeatable)",
    ),
]
Dtype = Annotated[
    str | None,
    _one_of(*_DTYPES, "int8"),
    flag(
        "of the weights; int8: matrices so, all else as by default, half the memory on accelerators",
        hint="(default: float32 on CPU, else bfloat16)",
    ),
]


@dataclass(frozen=True)
class DeviceFlags:
    """Where the model runs: on one device, on all of a machine, or on those of several machines (docs/tpu.md)."""

    mesh: Annotated[
        str,
        flag(
            "how many groups of devices divide the rows of a batch (data), and how many devices of a group divide the "
            "model (model); what is left out is 1; auto makes groups as large as the model's sizes allow, but of a "
            "single CPU's devices takes one",
            "data=N,model=N|auto",
            None,
        ),
    ] = "auto"
    distributed: Annotated[
        bool, flag("be one of several processes, each started with this command; process 0 prints and writes")
    ] = False
    coordinator: Annotated[
        Text, flag("where process 0 listens", "HOST:PORT", "(default: $JAX_COORDINATOR_ADDRESS, or found)")
    ] = None
    num_processes: Annotated[
        int | None, flag("how many processes there are", "N", "(default: $JAX_NUM_PROCESSES, or found)")
    ] = None
    process_id: Annotated[
        int | None, flag("which one this is, from 0", "I", "(default: $JAX_PROCESS_ID, or found)")
    ] = None
    start_timeout: Annotated[
        int, flag("give up when not all processes have come after this time [seconds]", "N", None)
    ] = START_SECONDS
    heartbeat_timeout: Annotated[
        int, flag("end when another process has not been heard of for this time [seconds]", "N", None)
    ] = HEARTBEAT_SECONDS


def describe(metadata: Mapping[str, Any]) -> str:
    """Help, unit and range of a field of a config."""
    low, high, unit = metadata["low"], metadata["high"], metadata["unit"]
    extent = f"at least {low:g}" if high >= 2**31 - 1 else f"{low:g} to {high:g}"
    if high == 2**32 - 1:
        extent = f"{low:g} to {high}"
    facts = ([unit] if unit else []) + ([] if math.isinf(low) else [extent])
    return metadata["help"] + (f" [{', '.join(facts)}]" if facts else "")


def template_args(words: Sequence[str]) -> dict[str, Any]:
    """The names with their values, of words NAME=VALUE. Raises a ValueError for any other word, for a name that comes
    twice, and for what Python calls false, which as a text would count as true."""
    found: dict[str, Any] = {}
    for word in words:
        name, equals, text = word.partition("=")
        if not (equals and name.isidentifier()):
            raise ValueError(f"--template-arg takes NAME=VALUE, like enable_thinking=false, got {word!r}")
        if name in found:
            raise ValueError(f"--template-arg {name} is there twice; give it once")
        if text in ("True", "False", "None"):
            meant = {"True": "true", "False": "false", "None": "null"}[text]
            raise ValueError(f"--template-arg {word} would be a text; write {name}={meant}")
        found[name] = _json(name, text) if name in ("tools", "documents") else _plain(text)
    return found


def _json(name: str, text: str) -> Any:
    """What the text says as JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f'--template-arg {name} takes a JSON list of objects, as from a file by {name}="$(cat FILE)"; this is no '
            f"JSON: {error}"
        ) from None


def _plain(text: str) -> bool | int | float | str | None:
    """What JSON calls true, false, null or a finite number; any other text as it is."""
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError):
        return text
    is_plain = value is None or (isinstance(value, int | float) and math.isfinite(value))
    return value if is_plain else text


def parse(
    flags: type[Flags],
    args: Sequence[str] | None,
    prog: str | None,
    description: str | None,
    examples: bool = False,
) -> Flags:
    """The flags in `args`, by default those of the process.

    flags: a dataclass with a flag a field; a field that is such a dataclass is a group. prog: what is typed to start
    the command; None is the script's name. description: a line that comes before the flags in the help, and paragraphs
    that come after them, of which indented ones keep their lines; examples: the first paragraph that is indented comes
    before them too. Ends the process with 2, after a message on stderr,
    for flags that do not exist, stray words and values of the wrong type, with 0 after --help and --version.
    """
    words = sys.argv[1:] if args is None else list(args)
    if VERSION in words:
        print(f"entropix {entropix.__version__}")
        sys.exit(0)
    if error := wrong(words, flags):
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    style = (tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes)
    summary, *paragraphs = inspect.cleandoc(description or "").split("\n\n")
    if examples and paragraphs and paragraphs[0].startswith(" "):
        summary = f"{summary}\n\n{paragraphs.pop(0)}"
    try:
        found: Flags = read_words(flags, prog=prog, description=summary, args=words, config=style)
        return found
    except SystemExit as end:
        if end.code == 0:  # it was --help, whose prose tyro does not wrap
            print("".join(f"\n{_wrapped(paragraph)}\n" for paragraph in paragraphs), end="")
        raise


def read_words(flags: Any, **options: Any) -> Any:
    """`tyro.cli`, which says what is wrong in one sentence and not in a box."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(flags, **options)
    except SystemExit as end:
        if end.code != 0:
            print(f"error: {_without_box(said.getvalue())}; --help lists all flags", file=sys.stderr)
        raise


def _without_box(text: str) -> str:
    """What tyro says in a box, as a sentence: of the parts between lines the first after the title."""
    lines = [line.strip("│ ") for line in text.splitlines()]
    is_border = [line.startswith("╭") or not line.strip("─-╰╯") for line in lines]
    parts = [" ".join(group) for border, group in _grouped(lines, is_border) if not border]
    title_stands_alone = bool(lines) and not lines[0].startswith("╭")
    sentence = parts[title_stands_alone and len(parts) > 1].replace("• ", "").rstrip(".") if parts else text
    for said, meant in _SAID_BY_OTHERS.items():
        sentence = sentence.replace(said, meant)
    return (sentence[:1].lower() + sentence[1:]).removeprefix("error parsing ")


def _grouped(lines: Sequence[str], is_border: Sequence[bool]) -> Iterator[tuple[bool, list[str]]]:
    """Runs of lines that are border or are not."""
    for border, pairs in itertools.groupby(zip(is_border, lines, strict=True), key=lambda pair: pair[0]):
        yield border, [line for _, line in pairs]


def _wrapped(paragraph: str) -> str:
    """As wide as the terminal and no wider than a page; what is indented stays as it is."""
    if paragraph.startswith(" "):
        return paragraph
    width = min(shutil.get_terminal_size().columns, _PAGE_WIDTH)
    return textwrap.fill(paragraph, width, break_long_words=False, break_on_hyphens=False)


def join(flags: Any, apart: Sequence[str] = (), sigterm_ends: bool = True) -> None:
    """With --distributed, meets the other processes; to be called before anything touches a device.

    flags: of a command, with `DeviceFlags` as `devices`. They must be the same in all processes, but for those named in
    `apart`. Raises a ValueError where they are not, or where they say something without --distributed.
    sigterm_ends: see `distributed.join`.
    """
    devices: DeviceFlags = flags.devices
    if not devices.distributed:
        for name, value in vars(devices).items():
            if name != "mesh" and value != getattr(DeviceFlags, name):
                raise ValueError(f"{spelled(name)} changes nothing without --distributed")
        return
    for name in ("start_timeout", "heartbeat_timeout"):
        if getattr(devices, name) < 1:
            raise ValueError(f"{spelled(name)} must be at least 1, got {getattr(devices, name)}")
    signals.give_back()

    from entropix import backend  # imports JAX, for which bad flags do not wait

    backend.avoid_wrong_sums()
    distributed.join(
        devices.coordinator,
        devices.num_processes,
        devices.process_id,
        devices.start_timeout,
        devices.heartbeat_timeout,
        sigterm_ends,
    )
    shared = {name: value for name, value in vars(flags).items() if name not in ("devices", *apart)}
    distributed.check_same(repr((shared, devices.mesh)))


def mend_streams() -> None:
    """Makes the standard streams such that nothing dies of them: one that was closed when the process began leads
    nowhere, what an encoding cannot print is replaced, and what is read may be no text."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - it stays open
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="surrogateescape" if name == "stdin" else "replace")


def json_line(value: Any, allow_nan: bool = True) -> str:
    """The value as one line of JSON for stdout: what its encoding may not hold is escaped, so that no text is lost."""
    is_unicode = (sys.stdout.encoding or "").lower().startswith("utf")
    return json.dumps(value, ensure_ascii=not is_unicode, allow_nan=allow_nan)


def run(main: Callable[[], None]) -> int:
    """Calls `main` and returns the exit code of the process. Within it a signal that ends a process is an `Ended`.

    0 after a return; 1 after bad input or a failing disk or network, explained in one message on stderr
    without a traceback; 128 + n, as shells count it, after a signal, 130 for Ctrl-C. (Bad flags end in 2, which is
    `parse`'s doing.) A reader that closes the pipe early, like `head`, is no error.
    """
    mend_streams()
    gc.set_threshold(_NEW_OBJECTS)
    try:
        with signals.raising(), warnings.catch_warnings():
            warnings.showwarning = lambda message, *_, **__: print(
                f"warning: {visible(str(message))}", file=sys.stderr
            )
            main()
        sys.stdout.flush()
        distributed.part()
    except KeyboardInterrupt as end:
        distributed.complain("interrupted")
        return end.exit_code if isinstance(end, Ended) else _SIGNALLED + signal.SIGINT
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit fails again
    except (ValueError, OSError) as error:
        distributed.complain(f"error: {environment.refused(error) or error}")
        return 1
    except BaseException:
        sys.stderr = distributed.errors()  # for the traceback
        raise
    return 0


def leave(code: int) -> NoReturn:
    """Ends the process with the exit code that `run` has returned.

    After a signal at once: one of XLA's threads may still be compiling what the signal has interrupted the wait for,
    and would crash the process once the interpreter, on its way out, takes the device from it.
    """
    if code > _SIGNALLED:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)
