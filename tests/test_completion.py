"""`entropix completion`: what the shell offers at each place."""

import subprocess

import pytest

from entropix.console import completion
from entropix.console.commands import COMMANDS

_ASK = """
eval "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _entropix; echo "${COMPREPLY[*]}"
"""


@pytest.fixture(scope="module")
def script() -> str:
    return completion.script({name: completion.flags_of(name) for name in COMMANDS})


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (("co",), "compare convert completion"),
        (("compare", "--sa"), "--samplers"),
        (("--prompt", "hi", "--min"), "--min-p"),
        (("main", "--help"), "--help --help-all"),
        (("--sampler", "top-"), "top-h top-k top-n-sigma top-p"),
        (("sweep", "--dtype", "f"), "float32 float16"),
        (("score", "--format", ""), "table jsonl csv"),
        (("completion", ""), "bash zsh"),
        (("score", "--text", ""), ""),  # names of files, by bash itself
    ],
)
def test_the_shell_offers_commands_flags_and_values(
    script: str, typed: tuple[str, ...], offered: str
) -> None:
    words = ["bash", "-c", _ASK, "bash", script, "entropix", *typed]
    found = subprocess.run(words, capture_output=True, text=True, check=True)
    assert (found.stdout.strip(), found.stderr) == (offered, "")


def test_every_command_s_script_names_its_flags(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    completion.main(["zsh"])
    assert capsys.readouterr().out == "autoload -Uz bashcompinit && bashcompinit\n" + script
    for name in COMMANDS:
        assert all(f" {flag} " in f" {script} ".replace('"', " ") for flag in completion.flags_of(name))
