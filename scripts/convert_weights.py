"""Converts weights of other formats: `python -m entropix.convert`, under the name that it has in a checkout."""

import sys

from entropix.console.cli import run
from entropix.convert import main

if __name__ == "__main__":
    sys.exit(run(main))
