"""The command `entropix`, also `python -m entropix`: `entropix.main`, or, where the first word names it, another one.

entropix --prompt "Why?"          python -m entropix.main --prompt "Why?"
entropix compare --prompts ...    python -m entropix.compare --prompts ...
"""

import importlib
import sys
from typing import NoReturn

import entropix
from entropix.console import cli

# What is done by a word of its own: the module, and a line about it.
COMMANDS = {
    "main": ("main", "answer prompts, or chat; what is done without a COMMAND"),
    "score": ("score", "metrics and log-probabilities of a given text"),
    "compare": ("compare", "several samplers on the same prompts"),
    "sweep": ("sweep", "every combination of a sampler's numbers"),
    "calibrate": ("calibrate", "thresholds fitted to a model"),
    "report": ("report.__main__", "traces as one page, or as figures"),
    "replay": ("replay", "a trace generated again and compared"),
    "logprobs": ("logprobs", "a trace as OpenAI's logprobs"),
    "download": ("download", "fetch the default model, or one of Hugging Face"),
    "convert": ("convert", "GGUF files and Meta's originals to a folder for --weights"),
}


def main(prog: str = "entropix") -> NoReturn:
    """Runs the command that the process's words ask for, and ends the process. prog: what was typed to start it."""
    cli.leave(_run(prog))


def _run(prog: str) -> int:
    words = sys.argv[1:]
    if words[:1] == ["--version"]:
        return cli.run(lambda: print(f"entropix {entropix.__version__}"))
    if not words or words[0] in ("--help", "-h"):
        listed = "".join(f"  {name:10} {about}\n" for name, (_, about) in COMMANDS.items())
        usage = f"usage: {prog} COMMAND [FLAGS]; {prog} COMMAND --help says more"
        return cli.run(lambda: print(f"{usage}\n\n{listed}", end="")) or (0 if words else 2)
    if words[0] not in COMMANDS:
        words = ["main", *words]
    module = f"entropix.{COMMANDS[words[0]][0]}"  # imported within, so that a signal is heard meanwhile
    return cli.run(lambda: importlib.import_module(module).main(words[1:], prog=f"{prog} {words[0]}"))


if __name__ == "__main__":
    main("python -m entropix")
