"""Fetch weights for --weights: `python -m entropix.download`, or with `--model-id ORG/NAME`.

What is there already is not fetched again.

Exit codes: 0 done; 1 bad input, or no network; 2 bad flags.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from entropix.checkpoint.download import download_listed, download_repository
from entropix.console import cli
from entropix.console.cli import Text, flag
from entropix.paths import is_complete, weights_root

_PROG = "python -m entropix.download"
_DESCRIPTION = """Fetch weights, as a folder that --weights takes.

Without flags it is the default model, SmolLM2-135M-Instruct: 93 MB to fetch, 540 MB on disk. With --model-id it is any
repository of Hugging Face that holds a model of a known family:

  python -m entropix.download --model-id meta-llama/Llama-3.2-1B-Instruct

Gated repositories need their licence accepted on their page and a token, from HF_TOKEN or `hf auth login`. What is
there already is not fetched again; an interrupted download resumes when the command is repeated. Exit codes: 0 done; 1
bad input, or no network; 2 bad flags."""


@dataclass(frozen=True)
class Flags:
    """What can be asked for."""

    name: Annotated[
        tyro.conf.Positional[str], flag("of the weights, as listed in weights/manifest.toml", "NAME", None)
    ] = "smollm2-135m-instruct"
    model_id: Annotated[Text, flag("a repository of Hugging Face instead", "ORG/NAME")] = None
    out_dir: Annotated[
        Path | None,
        flag(
            "the folder to make",
            "DIR",
            "(default: NAME, or the last part of the repository's, where weights are looked up)",
        ),
    ] = None
    revision: Annotated[str, flag("branch, tag or commit of the repository", "REVISION", None)] = "main"
    original: Annotated[
        bool, flag("also fetch the repository's subfolder original/, with Meta's own files")
    ] = False
    force: Annotated[bool, flag("replace weights that are there already")] = False


def main(args: Sequence[str] | None = None, prog: str = _PROG) -> None:
    """Does what the flags (by default those of the process) say. Raises a ValueError for what cannot be had."""
    flags = cli.parse(Flags, args, prog, _DESCRIPTION)
    _check(flags)
    _perform(flags)


def _check(flags: Flags) -> None:
    """Raises a ValueError for flags of which some would say nothing."""
    usual = Flags()
    if flags.model_id is not None and flags.name != usual.name:
        raise ValueError(
            f"{flags.name!r} and --model-id name two different weights; fetch them one after the other"
        )
    for name in ("revision", "original"):
        if flags.model_id is None and getattr(flags, name) != getattr(usual, name):
            raise ValueError(f"--{name} is about a repository; name one with --model-id")


def _perform(flags: Flags) -> None:
    folder = flags.out_dir or weights_root() / (flags.model_id or flags.name).split("/")[-1]
    if is_complete(folder) and not flags.force:
        print(f"{folder} is there already (--force fetches it again)")
        return
    if flags.model_id is not None:
        download_repository(flags.model_id, folder, flags.revision, flags.original, flags.force)
    else:
        download_listed(flags.name, folder, flags.force)
    print(f"weights in {folder}")


if __name__ == "__main__":
    cli.leave(cli.run(main))
