"""Downloads weights: `python -m entropix.download`, under the name that it has in a checkout."""

import sys

from entropix.console.cli import run
from entropix.download import main

if __name__ == "__main__":
    sys.exit(run(main))
