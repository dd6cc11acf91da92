"""Converts weights of other formats: `python -m entropix.convert`, under the name that it has in a checkout."""

from entropix.console import cli
from entropix.convert import main

if __name__ == "__main__":
    cli.leave(cli.run(main))
