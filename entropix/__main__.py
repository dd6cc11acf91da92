"""`python -m entropix` is `python -m entropix.main`."""

import sys

from entropix.console import cli
from entropix.main import main

if __name__ == "__main__":
    sys.exit(cli.run(lambda: main(prog="python -m entropix")))
