"""Converts weights of other formats into a folder that `--weights` of entropix.main takes.

The source is a GGUF file, or a folder with Meta's original files (params.json, consolidated.*.pth,
tokenizer.model; reading those needs torch). A Hugging Face Llama folder is used as it is.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from entropix.console.cli import parse, run
from entropix.paths import is_complete, weights_root


@dataclasses.dataclass(frozen=True)
class Args:
    source: Annotated[Path, tyro.conf.Positional]
    """The .gguf file or the folder to convert."""
    out_dir: Path | None = None
    """The folder to make. Default: weights/ and the name of the source."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Of the matrices. Default: the narrowest that keeps every value (float32 for quantised files)."""
    chat_template: Path | None = None
    """A jinja file to carry along as the chat template, instead of the source's own."""
    force: bool = False
    """Replace weights that are there already."""


def main() -> None:
    args = parse(Args, None, None, __doc__)
    if is_complete(args.source):
        print(f"{args.source} is a Hugging Face folder: use it as it is, with --weights {args.source}")
        return
    from entropix.checkpoint.convert import convert
    from entropix.checkpoint.tokenizer_files import read_vocabulary

    folder = args.out_dir or weights_root() / args.source.name.removesuffix(".gguf").lower()
    convert(args.source, folder, args.dtype, args.chat_template, args.force)
    print(f"weights in {folder}")
    try:
        read_vocabulary(folder)
    except ValueError as error:
        print(f"note: other tools can use this folder, entropix cannot: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run(main))
