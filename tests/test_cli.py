"""How commands read their flags, and how they end."""

import importlib
import io
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Annotated

import pytest
import tyro

import entropix
from entropix import PACKAGE_ROOT
from entropix.console import cli, signals
from entropix.console.cli import run


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (None, 0, ""),
        (ValueError("temp must be a number"), 1, "error: temp must be a number\n"),
        (OSError("no space left"), 1, "error: no space left\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_exit_codes(
    error: BaseException | None, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        if error is not None:
            raise error

    assert run(main) == code
    assert capsys.readouterr() == ("", message)


def test_a_fault_of_our_own_keeps_its_traceback() -> None:
    def main() -> None:
        raise AssertionError

    with pytest.raises(AssertionError):
        run(main)


@dataclass(frozen=True)
class Group:
    temp: float = 1.0


@dataclass(frozen=True)
class Flags:
    max_new_tokens: int = 5
    prompt: cli.Text = None
    raw: bool = False
    live: bool = True
    group: Group = field(default_factory=Group)


def parse(*args: str) -> Flags:
    return cli.parse(Flags, args, "prog", "")


@pytest.mark.parametrize(
    ("args", "flags"),
    [
        ([], Flags()),
        (["--prompt=-x", "--max_new_tokens", "7"], Flags(prompt="-x", max_new_tokens=7)),
        (["--prompt", "-", "--raw", "--no-live"], Flags(prompt="-", raw=True, live=False)),
        (["--temp", "-1"], Flags(group=Group(-1.0))),
        (["--prompt", "None"], Flags(prompt="None")),
    ],
)
def test_flags_are_read(args: list[str], flags: Flags) -> None:
    assert parse(*args) == flags


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--promt", "a"], "there is no flag --promt; did you mean --prompt?"),
        (["--promt=a"], "there is no flag --promt; did you mean --prompt?"),
        (["--temprature", "1"], "there is no flag --temprature; did you mean --temp?"),
        (["--temperature", "1"], "there is no flag --temperature; did you mean --temp?"),
        (["--nope"], "there is no flag --nope; --help lists all"),
        (["--live"], "there is no flag --live; did you mean --no-live?"),
        (["--times", "2"], "there is no flag --times; --help lists all"),
        (["--zzz"], "there is no flag --zzz; --help lists all"),
        (["--raw", "-x"], "there is no flag -x; --help lists all"),
        (["--prompt", "-x"], "--prompt needs a value; one that begins with a dash is written --prompt=-x"),
        (["--prompt", "--x"], "--prompt needs a value; one that begins with a dash is written --prompt=--x"),
        (["Why?"], "no flag comes before 'Why?'; a value of several words stands in quotes"),
        (
            ["--raw", "--prompt", "a", "b"],
            "no flag comes before 'b'; a value of several words stands in quotes",
        ),
    ],
)
def test_flags_that_do_not_exist_end_with_2_and_a_hint(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        parse(*args)
    assert (end.value.code, *capsys.readouterr()) == (2, "", f"error: {message}\n")


@dataclass(frozen=True, kw_only=True)
class NeededFlags:
    texts: Annotated[tuple[str, ...], cli.flag("what is read", "FILE...")]
    out: Annotated[str, tyro.conf.arg(aliases=["-o"], help="where it goes", metavar="DIR")]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "missing: --texts FILE..., --out DIR; --help says more"),
        (["--texts", "a", "b"], "missing: --out DIR; --help says more"),
        (["a b"], "no flag comes before 'a b'; did you mean --texts 'a b'?"),
    ],
)
def test_flags_that_must_be_there_are_named(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.parse(NeededFlags, args, "prog", "")
    assert (end.value.code, *capsys.readouterr()) == (2, "", f"error: {message}\n")
    given = cli.parse(NeededFlags, ["--texts", "a", "b", "-o", "c"], "prog", "")
    assert given == NeededFlags(texts=("a", "b"), out="c")


def test_every_command_tells_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.parse(NeededFlags, ["--version"], "prog", "")
    assert (end.value.code, *capsys.readouterr()) == (0, f"entropix {entropix.__version__}\n", "")


def test_a_signal_while_an_extension_is_imported_is_no_fault_of_the_extension() -> None:
    program = """
import signal
from importlib.machinery import ExtensionFileLoader
from entropix.console import cli
class Loader(ExtensionFileLoader):
    def exec_module(self, module):
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException:
            raise ImportError
cli.leave(cli.run(lambda: Loader("x", "x").exec_module(None)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "interrupted\n")


def test_a_signal_that_python_would_drop_comes_once_more() -> None:
    def _xla_gc_callback() -> None:
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(signals.Ended), signals.raising():
        _xla_gc_callback()
        time.sleep(30)


def test_after_a_signal_the_process_ends_without_taking_anything_down() -> None:
    """XLA may still be compiling in a thread; what was printed is not lost."""
    program = """
import atexit, signal
from entropix.console import cli, signals
atexit.register(print, "taken down")
def main():
    print("kept", end="")
    raise signals.Ended(signal.SIGTERM)
cli.leave(cli.run(main))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (143, "kept", "interrupted\n")


@dataclass(frozen=True)
class FileFlags:
    out: Annotated[str | None, tyro.conf.arg(aliases=["-o"])] = None


def test_a_short_name_is_a_flag_too(capsys: pytest.CaptureFixture[str]) -> None:
    for args in (["-o", "a.json"], ["--out", "a.json"]):
        assert cli.parse(FileFlags, args, "prog", "") == FileFlags("a.json")
    with pytest.raises(SystemExit):
        cli.parse(FileFlags, ["-o", "-a"], "prog", "")
    assert capsys.readouterr().err.startswith(
        "error: -o needs a value; one that begins with a dash is written "
    )


def test_the_help_is_as_wide_as_the_terminal_and_keeps_examples_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first paragraph stands before the flags, the others behind them."""
    example = (
        "    python -m prog --an-option that-is-long     " + "not wrapped " * 10 + "\n    python -m prog"
    )
    text = f"What it does.\n\n{example}\n\n{'Several words, ' * 20}and\nan --option-with-dashes.\n"
    for columns, widest in ((50, 50), (500, 120)):
        monkeypatch.setenv("COLUMNS", str(columns))
        with pytest.raises(SystemExit) as end:
            cli.parse(Flags, ["--help"], "python -m prog", text)
        shown = capsys.readouterr().out
        flags, _, prose = shown.partition(f"\n\n{example}\n\n")
        assert end.value.code == 0
        assert (
            flags.index("usage: python -m prog ") < flags.index("\n\nWhat it does.\n\n") < flags.index("exit")
        )
        assert prose.startswith("Several words, ") and prose.endswith("--option-with-dashes.\n")
        assert widest - len(" Several") < max(map(len, prose.splitlines())) <= widest


@pytest.mark.parametrize(
    "name",
    [
        *("entropix.report.__main__", "entropix.logprobs"),
        *("run_grid", "compile_tpu", "bench_decode", "bench_forks", "bench_branching"),
    ],
)
def test_the_help_of_commands_with_much_to_say_fits_a_terminal(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(PACKAGE_ROOT.parent / "scripts")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit):
        importlib.import_module(name).main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 10 and [line for line in lines if len(line) > 100] == []


@pytest.mark.parametrize("command", ["main", "score", "calibrate"])
def test_the_help_does_not_wait_for_the_model(command: str) -> None:
    """What takes long to import is imported when flags are understood."""
    late = ("entropix.decoding.loop", "entropix.checkpoint.loading")
    program = f"""
import sys
from entropix import {command}
try:
    {command}.main(["--help"])
finally:
    print([name for name in sys.modules if name in {late}], file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n" and "usage: " in done.stdout


def test_a_reader_that_stops_early_is_no_error() -> None:
    program = (
        "import sys; from entropix.console.cli import run\nsys.exit(run(lambda: print('x\\n' * 1_000_000)))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"x\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


@pytest.mark.slow
def test_the_package_itself_is_the_main_command() -> None:
    """`python -m entropix` is `python -m entropix.main`, exit codes included."""
    for flags, code in ((["--sampler", "help"], 0), (["--prompt-file", "nowhere.txt"], 1), (["--bogus"], 2)):
        short, long = (
            subprocess.run([sys.executable, "-m", name, *flags], capture_output=True, text=True)
            for name in ("entropix", "entropix.main")
        )
        assert (short.returncode, short.stdout, short.stderr) == (code, long.stdout, long.stderr)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["entropix main", "entropix.main", "entropix logprobs", "entropix.logprobs"])
def test_the_help_names_the_command_as_it_was_typed(name: str) -> None:
    command = [sys.executable, "-m", *name.split(), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"usage: python -m {name} [-h] ")


@pytest.mark.parametrize(
    ("redirection", "code", "out"),
    [
        (">&-", 0, ""),
        ("2>&-", 0, "é?\n"),
        ("<&-", 0, "é?\n"),
        ("", 0, "é?\n"),
    ],
)
def test_closed_streams_and_poor_encodings_end_nothing(redirection: str, code: int, out: str) -> None:
    """Latin-1 has é and not the snowman."""
    program = "from entropix.console.cli import run; import sys; sys.exit(run(lambda: print('\u00e9\u2603')))"
    done = subprocess.run(
        f'exec {sys.executable} -c "{program}" {redirection}',
        shell=True,
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "latin-1"},
    )
    assert (done.returncode, done.stdout.decode("latin-1"), done.stderr) == (code, out, b"")


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_json_loses_no_text_to_a_poor_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="replace")
    monkeypatch.setattr(sys, "stdout", out)
    line = cli.json_line({"text": "\u00e9\u2603"})
    assert line == {"ascii": r'{"text": "\u00e9\u2603"}', "utf-8": '{"text": "\u00e9\u2603"}'}[encoding]
