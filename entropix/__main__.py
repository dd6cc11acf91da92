"""The command `entropix`, also `python -m entropix`: `entropix.main`, or, where the first word names it, another one.

entropix --prompt "Why?"          python -m entropix.main --prompt "Why?"
entropix compare --prompts ...    python -m entropix.compare --prompts ...
"""

import importlib
import sys

import entropix
from entropix.console import cli

# What is done by a word of its own: the module, and a line about it.
COMMANDS = {
    "main": ("main", "answer prompts, or chat; the default"),
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


def main(prog: str = "entropix") -> int:
    """The exit code of the command that the process's words ask for. prog: what was typed to start it."""
    words = sys.argv[1:]
    if words[:1] == ["--version"]:
        return cli.run(lambda: print(f"entropix {entropix.__version__}"))
    if not words:
        listed = "".join(f"  {name:10} {about}\n" for name, (_, about) in COMMANDS.items())
        usage = f"usage: {prog} COMMAND [FLAGS]; {prog} COMMAND --help says more"
        return cli.run(lambda: print(f"{usage}\n\n{listed}", end="")) or 2
    is_named = words[0] in COMMANDS
    module = importlib.import_module(f"entropix.{COMMANDS[words[0] if is_named else 'main'][0]}")
    if is_named and words[0] != "main":
        return cli.run(lambda: module.main(words[1:]))
    return cli.run(lambda: module.main(words[1:] if is_named else words, prog=prog))


if __name__ == "__main__":
    sys.exit(main("python -m entropix"))
