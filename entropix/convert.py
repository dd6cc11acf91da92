"""Make a folder for --weights of other formats: `python -m entropix.convert SOURCE`.

What is in the source is told from what it holds. A Hugging Face folder with safetensors is only checked: it is used as
it is.

Exit codes: 0 done; 1 bad input; 2 bad flags.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from entropix.console import cli
from entropix.console.cli import DtypeName, flag
from entropix.paths import is_complete, weights_root

_PROG = "python -m entropix.convert"
_DESCRIPTION = """Make a folder for --weights of a GGUF file, of Meta's original files, or of pytorch_model.bin.

  python -m entropix.convert model.gguf --out-dir weights/mine
  python -m entropix.convert Llama3.2-1B-Instruct/ --chat-template configs/chat/llama3.jinja
  python -m entropix.convert gemma-3-1b-it-Q8_0.gguf --hf-folder gemma-3-1b-it/

A Hugging Face folder with safetensors is used as it is; it is only checked, or gets an adapter merged into it:

  python -m entropix.convert weights/1B-Instruct --adapter my-lora/ --out-dir weights/1B-mine

Exit codes: 0 done; 1 bad input; 2 bad flags."""


@dataclass(frozen=True)
class Flags:
    """What can be asked for."""

    source: Annotated[
        tyro.conf.Positional[Path],
        flag(
            "the GGUF file; or the folder with params.json, consolidated.*.pth and tokenizer.model, or with "
            "pytorch_model.bin",
            "SOURCE",
        ),
    ]
    out_dir: Annotated[
        Path | None,
        flag("the folder to make", "DIR", "(default: the name of the source, where weights are looked up)"),
    ] = None
    dtype: Annotated[
        DtypeName,
        flag(
            "of the matrices",
            hint="(default: the narrowest that keeps every value; float32 for quantised files)",
        ),
    ] = None
    chat_template: Annotated[
        Path | None, flag("a jinja file to carry along, instead of the source's own template", "FILE")
    ] = None
    adapter: Annotated[
        Path | None,
        flag("the folder of a LoRA adapter (PEFT) to merge into the source, a Hugging Face folder", "DIR"),
    ] = None
    hf_folder: Annotated[
        Path | None,
        flag(
            "of a GGUF file's model, its Hugging Face folder, where the file alone does not say all of the model: "
            "config.json and the tokenizer are taken from it; its weights are not needed",
            "DIR",
        ),
    ] = None
    force: Annotated[bool, flag("replace weights that are there already")] = False


def main(args: Sequence[str] | None = None, prog: str = _PROG) -> None:
    """Does what the flags (by default those of the process) say. Raises a ValueError for what cannot be converted."""
    flags = cli.parse(Flags, args, prog, _DESCRIPTION)
    _perform(flags)


def _perform(flags: Flags) -> None:
    from entropix.checkpoint.convert import convert
    from entropix.checkpoint.convert.torch_folder import is_torch_folder
    from entropix.checkpoint.vocabulary.files import read_vocabulary

    source = flags.source
    asked = flags.adapter or flags.hf_folder
    if asked is None and is_complete(source) and not is_torch_folder(source):
        from entropix.checkpoint.hf_folder import read_config
        from entropix.checkpoint.tensors import check

        check(source, read_config(source))
        read_vocabulary(source)
        print(f"{source} is a Hugging Face folder: use it as it is, with --weights {source}")
        return
    folder = flags.out_dir or _default_folder(flags.adapter or source)
    convert(source, folder, flags.dtype, flags.chat_template, flags.force, flags.adapter, flags.hf_folder)
    print(f"weights in {folder}")
    try:
        read_vocabulary(folder)
    except ValueError as error:
        print(f"note: other tools can use this folder, entropix cannot: {error}", file=sys.stderr)


def _default_folder(source: Path) -> Path:
    """Where weights are looked up, under the name of the source; beside it where the source lies there itself."""
    name = source.resolve().name.lower().removesuffix(".gguf")
    folder = weights_root() / name
    return folder if folder.resolve() != source.resolve() else weights_root() / f"{name}-safetensors"


if __name__ == "__main__":
    cli.leave(cli.run(main))
