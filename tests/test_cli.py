"""How commands end."""

import subprocess
import sys

import pytest

from entropix.cli import run


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


def test_a_reader_that_stops_early_is_no_error() -> None:
    program = "import sys; from entropix.cli import run\nsys.exit(run(lambda: print('x\\n' * 1_000_000)))"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"x\n"
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0
