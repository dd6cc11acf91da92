"""Downloads weights: `python -m entropix.download`, under the name that it has in a checkout."""

from entropix.console import cli
from entropix.download import main

if __name__ == "__main__":
    cli.leave(cli.run(main))
