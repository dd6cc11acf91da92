"""A Hugging Face folder with a LoRA adapter merged in: a model like any other, which traces tell from its base."""

from pathlib import Path

from entropix.checkpoint import values
from entropix.checkpoint.adapter import adapted
from entropix.checkpoint.convert.folder import Foreign, common_dtype, copy_texts
from entropix.checkpoint.families import of_text
from entropix.checkpoint.hf_folder import read_config, stop_token_ids
from entropix.checkpoint.tensors import DTYPES, check, check_tied, tensor_shapes
from entropix.files import read_json


def open_adapted(base: Path, adapter: Path, chat_template: str | None = None) -> Foreign:
    """The checkpoint of `base`, a folder with safetensors, with the adapter of another folder merged in, in the base's
    type. Vocabulary and chat template are the base's.

    Raises a ValueError as `adapted` does.
    """
    cfg = read_config(base)
    stored = check(base, cfg)
    check_tied(base, cfg, stored)
    merged = adapted(base, cfg, stored, adapter)
    matrices = [name for name, shape in tensor_shapes(cfg).items() if len(shape) > 1]
    config = of_text(read_json(base / "config.json"), base / "config.json")
    return Foreign(
        source=adapter,
        config=cfg,
        dtype=common_dtype(DTYPES[stored[name].dtype] for name in matrices),
        tensor=lambda name: merged[name].read(),
        bos_id=next(iter(values.token_ids(config, "bos_token_id", base / "config.json")), None),
        stop_ids=stop_token_ids(base),
        write_vocabulary=lambda target: copy_texts(base, target, chat_template),
        config_json={key: value for key, value in config.items() if key != "dtype"},
    )
