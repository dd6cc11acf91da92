"""Other formats -> the checkpoint folder of `entropix.checkpoint.hf_folder`."""

from pathlib import Path

from entropix.checkpoint.convert.folder import check_destination, write_folder
from entropix.checkpoint.convert.gguf_file import open_gguf
from entropix.checkpoint.convert.meta import open_meta
from entropix.files import read_text


def convert(
    source: Path,
    destination: Path,
    dtype: str | None = None,
    chat_template: Path | None = None,
    force: bool = False,
) -> None:
    """Makes a checkpoint folder of a GGUF file or of one of Meta's folders: complete, or not at all.

    `dtype` is that of the matrices, by default the narrowest that holds the source's values exactly: its
    own for float16 and bfloat16, float32 for quantised tensors. `chat_template` is a jinja file to carry
    along instead of the source's own. Raises a ValueError that says what cannot be converted and why.
    """
    check_destination(destination, force)
    if source.resolve().is_relative_to(destination.resolve()):
        raise ValueError(f"{source} lies in the destination {destination}; choose another destination")
    template = read_text(chat_template) if chat_template else None
    if source.suffix == ".gguf" and source.is_file():
        foreign = open_gguf(source, template)
    elif (source / "params.json").is_file():
        foreign = open_meta(source, template)
    else:
        raise ValueError(
            f"{source}: expected a .gguf file, or a folder with Meta's params.json, consolidated.*.pth and "
            "tokenizer.model (Hugging Face Llama folders need no conversion)"
        )
    write_folder(foreign, destination, dtype, force)
