"""The command `entropix`, also `python -m entropix`: `entropix.main`, or, where the first word names it, another one.

entropix --prompt "Why?"          python -m entropix.main --prompt "Why?"
entropix compare --prompts ...    python -m entropix.compare --prompts ...
"""

import difflib
import importlib
import sys
from typing import NoReturn

import entropix
from entropix.console import cli
from entropix.console.commands import COMMANDS


def main(prog: str = "entropix") -> NoReturn:
    """Runs the command that the process's words ask for, and ends the process. prog: what was typed to start it."""
    cli.leave(_run(prog))


def _run(prog: str) -> int:
    words = sys.argv[1:]
    if words[:1] == ["--version"]:
        return cli.run(lambda: print(f"entropix {entropix.__version__}"))
    if not words or words[0] in ("--help", "-h"):
        listed = "".join(f"  {name:11} {about}\n" for name, (_, about) in COMMANDS.items())
        usage = (
            f"usage: {prog} COMMAND [FLAGS]; {prog} COMMAND --help says more, {prog} main --help of --prompt"
        )
        return cli.run(lambda: print(f"{usage}\n\n{listed}", end="")) or (0 if words else 2)
    if not words[0].startswith("-") and words[0] not in COMMANDS:
        near = difflib.get_close_matches(words[0], COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"{prog} --help lists them."
        print(
            f"error: no command is called {words[0]!r}; {hint} A prompt stands behind --prompt",
            file=sys.stderr,
        )
        return 2
    if words[0] not in COMMANDS:
        words = ["main", *words]
    module = f"entropix.{COMMANDS[words[0]][0]}"  # imported within, so that a signal is heard meanwhile
    return cli.run(lambda: importlib.import_module(module).main(words[1:], prog=f"{prog} {words[0]}"))


if __name__ == "__main__":
    main("python -m entropix")
