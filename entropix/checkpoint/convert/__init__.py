"""Other formats -> the checkpoint folder of `entropix.checkpoint.hf_folder`."""

from pathlib import Path

from entropix.checkpoint.convert.adapter import open_adapted
from entropix.checkpoint.convert.folder import Foreign, check_destination, write_folder
from entropix.checkpoint.convert.gguf_file import open_gguf
from entropix.checkpoint.convert.gguf_header import MAGIC
from entropix.checkpoint.convert.meta import open_meta
from entropix.checkpoint.convert.torch_folder import is_torch_folder, open_torch_folder
from entropix.checkpoint.weight_files import check_file, starts_with
from entropix.files import read_text
from entropix.paths import is_complete, what_is_there

_EXPECTED = (
    "expected a GGUF file, a folder with Meta's params.json, consolidated.*.pth and tokenizer.model, or a Hugging Face "
    "folder with pytorch_model.bin"
)


def convert(
    source: Path,
    destination: Path,
    dtype: str | None = None,
    chat_template: Path | None = None,
    force: bool = False,
    adapter: Path | None = None,
    hf_folder: Path | None = None,
) -> None:
    """Makes a checkpoint folder of a GGUF file, of one of Meta's folders, of one with pytorch_model.bin, or of a
    Hugging Face folder and an adapter: complete, or not at all.

    `dtype` is that of the matrices, by default the narrowest that holds the source's values exactly: its
    own for float16 and bfloat16, float32 for quantised tensors. `chat_template` is a jinja file to carry
    along instead of the source's own. `adapter` is the folder of a LoRA adapter that was trained on the source, whose
    type the matrices keep then. `hf_folder` is that of the model of a GGUF file, with or without its weights, and says
    what the model is; only the tensors are the file's then. Raises a ValueError that says what cannot be converted and
    why.
    """
    destination = destination.resolve()  # of which . has no name
    check_destination(destination, force)
    for used in (source, hf_folder):
        if used is not None and used.resolve().is_relative_to(destination):
            raise ValueError(f"{used} lies in the destination {destination}; choose another destination")
    template = None
    if chat_template is not None:
        check_file(chat_template)
        template = read_text(chat_template)
    if adapter is not None:
        if hf_folder is not None:
            raise ValueError(
                "--hf-folder is for GGUF files, which take no adapter; merge that into what this makes"
            )
        if not is_complete(source) or is_torch_folder(source):
            raise ValueError(f"{source}: an adapter is merged into a Hugging Face folder with safetensors")
        write_folder(open_adapted(source, adapter, template), destination, dtype, force)
        return
    write_folder(_opened(source, template, hf_folder), destination, dtype, force)


def _opened(source: Path, template: str | None, hf_folder: Path | None) -> Foreign:
    """The checkpoint of whatever format the source has; what a file is, its first bytes say and not its name."""
    if not source.is_dir():
        check_file(source)
        if starts_with(source, MAGIC) or source.suffix.lower() == ".gguf":
            return open_gguf(source, template, hf_folder)
        raise ValueError(f"{source}: {_EXPECTED}")
    if hf_folder is not None:
        raise ValueError(f"{source}: --hf-folder describes the model of a GGUF file; this is a folder")
    if (source / "params.json").exists():
        return open_meta(source, template)
    if is_torch_folder(source):
        return open_torch_folder(source, template)
    names = [file.name for file in source.iterdir()]
    if "config.json" in names and any(name.endswith(".safetensors") for name in names):
        raise ValueError(f"{source}: this is a Hugging Face folder, which needs no conversion")
    if not names:
        raise ValueError(f"{source}: the folder is empty; {_EXPECTED}")
    raise ValueError(f"{source}: {what_is_there(names, source)}")
