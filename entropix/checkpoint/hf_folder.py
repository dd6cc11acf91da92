"""The one folder layout every model is read from: a plain Hugging Face folder.

    config.json                                            the architecture
    *.safetensors (+ model.safetensors.index.json)         the tensors
    tokenizer.json or tokenizer.model                      the vocabulary
    tokenizer_config.json, special_tokens_map.json, added_tokens.json    what completes it (`special_tokens`)
    generation_config.json                                 stop tokens
    chat_template.jinja, or in other files (`chat`)        the chat template

A downloaded Hugging Face repository is such a folder already; `entropix.checkpoint.convert` makes one of other
formats. `families` says which architectures there are, and what each adds to Llama. What this package would not compute
exactly (other biases, some rotary scalings) is refused by name.
"""

import itertools
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from entropix.checkpoint import families, rotary, special_tokens, values
from entropix.checkpoint.special_tokens import END_TOKENS, added_token_ids
from entropix.checkpoint.values import MOST_TOKENS, positive, whole
from entropix.config import ModelConfig
from entropix.files import is_there, read_json, write_json

# What is read of a folder besides its tensors; those that copy or fetch one take all of it.
CONFIG = ("config.json", "generation_config.json")
VOCABULARY = (
    *("tokenizer.json", "tokenizer.model", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json"),
)
TEMPLATES = ("chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja")


# ----- config.json ------------------------------------------------------------------------------------------

# More than any model has; what a file claims beyond this is not worth an attempt at making room for it.
_MOST_LAYERS, _MOST_WIDTH = 10_000, 1 << 22


def read_config(folder: Path) -> ModelConfig:
    """The architecture in the folder's config.json.

    Reads the classic keys (`rope_theta`, `rope_scaling`) and those of transformers 5 (`rope_parameters`).
    Raises a ValueError that names the key, its value and the reason when the model is not exactly one of `families`.
    """
    path = folder / "config.json"
    return config_of(read_json(path), path)


def config_of(raw: Mapping[str, Any], path: Path) -> ModelConfig:
    """The architecture in an object such as config.json has. path: of the file, for errors; see `read_config`."""
    raw = families.of_text(raw, path)
    family = families.family(raw, path)
    raw = {**family.defaults, **raw}
    n_layers = whole(raw, "num_hidden_layers", path, _MOST_LAYERS)
    families.refuse(raw, family, n_layers, path)

    width = whole(raw, "hidden_size", path, _MOST_WIDTH)
    n_heads = whole(raw, "num_attention_heads", path, _MOST_WIDTH)
    if raw.get("head_dim") is None and width % n_heads:
        raise ValueError(
            f"{path}: there is no head_dim, and hidden_size / num_attention_heads is {width}/{n_heads}"
        )
    if family.local_theta:
        raw, local_theta = rotary.of_layers(raw, path, family.local_theta)
    theta, scaling = rotary.read(raw, path, family.rope_theta)
    only, its_class = family.scaling or ("", object)
    if scaling is not None and not isinstance(scaling, its_class):
        raise ValueError(f"{path}: a {raw['model_type']} scales its rotary frequencies by {only} alone")
    length = whole(raw, "max_position_embeddings", path, rotary.MOST_POSITIONS)
    fields: dict[str, Any] = {
        "n_layers": n_layers,
        "dim": width,
        "n_heads": n_heads,
        "n_kv_heads": whole(raw, "num_key_value_heads", path, _MOST_WIDTH, default=n_heads),
        "head_dim": whole(raw, "head_dim", path, _MOST_WIDTH, default=width // n_heads),
        "ffn_dim": whole(raw, "intermediate_size", path, _MOST_WIDTH),
        "vocab_size": whole(raw, "vocab_size", path, MOST_TOKENS),
        "context_length": length if family.local_theta else rotary.longest(scaling, length),
        "rope_theta": theta,
        "norm_eps": positive(raw, "rms_norm_eps", path),
        "tied_embeddings": values.flag(raw, "tie_word_embeddings", path),
        **rotary.fields(scaling),
        **families.window(raw, family, n_layers, path),
        **families.switches(raw, family, n_layers, path),
    }
    if (part := rotary.fraction(raw, path)) != 1:
        if not family.partial_rotary:
            raise ValueError(
                f"{path}: partial_rotary_factor is {part}: partial rotary embeddings are not supported in this family"
            )
        fields["rotary_dim"] = int(fields["head_dim"] * part)
        if fields["rotary_dim"] < 2:
            raise ValueError(f"{path}: partial_rotary_factor is {part}: nothing of a head would be rotated")
    if "sliding_window" in fields and family.local_theta:
        fields["rope_local_theta"] = local_theta
    elif fields.get("sliding_window", 0) >= fields["context_length"]:  # which no text reaches
        fields |= {"sliding_window": 0, "global_layers": ()}
    try:
        return ModelConfig(**fields)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def write_config(
    path: Path,
    cfg: ModelConfig,
    dtype: str,
    bos_id: int | None,
    stop_ids: tuple[int, ...],
    model_type: str = "llama",
) -> None:
    """Writes a config.json that `read_config` and transformers read as `cfg`, which is of this one of `families`.

    (Of transformers, 4.43 and later for a Llama.) Raises a ValueError that names what the family does not have.
    """
    family = families.FAMILIES[model_type]
    scaling = cfg.rope_scaling
    values = {
        "architectures": [f"{family.prefix}ForCausalLM"],
        "model_type": model_type,
        "hidden_size": cfg.dim,
        "intermediate_size": cfg.ffn_dim,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "num_key_value_heads": cfg.n_kv_heads,
        "head_dim": cfg.head_dim,
        "vocab_size": cfg.vocab_size,
        "max_position_embeddings": cfg.context_length,
        "rms_norm_eps": cfg.norm_eps,
        "rope_theta": cfg.rope_theta,
        "rope_scaling": scaling
        and {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context_length,
        },
        "tie_word_embeddings": cfg.tied_embeddings,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": bos_id,
        "eos_token_id": list(stop_ids),
        "torch_dtype": dtype,
        **families.written(family, cfg),
    }
    if (read := config_of(values, path)) != cfg:
        other = [name for name, value in vars(cfg).items() if value != getattr(read, name)]
        raise ValueError(
            f"{path}: a config.json of {model_type} cannot say what this model has: {', '.join(other)}"
        )
    write_json(path, values)


# ----- stop tokens ------------------------------------------------------------------------------------------


def stop_token_ids(folder: Path, tokens: Mapping[str, int] | None = None) -> tuple[int, ...]:
    """Ids that end a generation, ascending; empty when the checkpoint knows none.

    These are all that any file names: the `eos_token_id` of generation_config.json and of config.json, the
    tokenizer's `eos_token`, and every added token that is in `END_TOKENS`, because fine-tuned checkpoints forget to
    list the token that ends their turns. (`chat.end_of_turn_id` knows what the chat template ends turns with.)

    tokens: the ids of the folder's added tokens, if they are known already.
    """
    files = (folder / "generation_config.json", folder / "config.json")
    found = [values.token_ids(read_json(path), "eos_token_id", path) for path in files if is_there(path)]
    tokens = added_token_ids(folder) if tokens is None else tokens
    eos = special_tokens.read_special_tokens(folder).named.get("eos_token")
    ends = [tokens[token] for token in (*END_TOKENS, eos or "") if token in tokens]
    return tuple(sorted({*itertools.chain.from_iterable(found), *ends}))


def check_stop_ids(folder: Path, ids: Collection[int], vocab_size: int) -> None:
    """Raises a ValueError for an end token beyond the embedding."""
    if beyond := [i for i in ids if i >= vocab_size]:
        raise ValueError(
            f"{folder}: the end token {beyond[0]} (eos_token_id of config.json or generation_config.json) is beyond "
            f"the vocab_size {vocab_size} of config.json"
        )
