"""Small models of every family, made and computed by transformers: `python transformers_side.py FOLDER` writes them.

It runs in a process of its own, so that transformers and torch are in no other. What it writes of each model is the
checkpoint, by `save_pretrained`, and in `reference.npz` what the model makes of some prompts, in float32 and eager
attention, every text computed whole and without a cache.
"""

import json
import sys
from pathlib import Path
from typing import Any

SEVERAL = {"num_attention_heads": 6, "num_key_value_heads": 3}  # heads 8 wide, an odd number of keys
ONE = {"num_attention_heads": 4, "num_key_value_heads": 1}
TWO = {"num_attention_heads": 8, "num_key_value_heads": 2}
EACH = {"num_attention_heads": 3, "num_key_value_heads": 3}
TIED, UNTIED = {"tie_word_embeddings": True}, {"tie_word_embeddings": False}
MULTIPLIERS = {
    "embedding_multiplier": 3.5,
    "attention_multiplier": 0.21,
    "residual_multiplier": 0.45,
    "logits_scaling": 2.5,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1000.0, "factor": 4.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1000.0,
    "partial_rotary_factor": 0.5,  # of heads 12 wide
    "short_factor": [1.0, 1.25, 3.0],
    "long_factor": [2.0, 5.0, 9.0],
}
LINEAR = {"rope_type": "linear", "rope_theta": 1000.0, "factor": 2.5}
LAYERS = {
    "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 2.5},
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 128,
}

# Name of the model -> (the family's prefix in transformers, what its config says beside the sizes below).
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {**SEVERAL, **UNTIED}),
    "llama-scaled": ("Llama", {**ONE, **TIED, "head_dim": 20, "rope_parameters": LLAMA3}),
    "llama-linear": ("Llama", {**SEVERAL, **UNTIED, "rope_parameters": LINEAR}),
    "mistral": ("Mistral", {**SEVERAL, **UNTIED, "sliding_window": None}),
    "mistral-window": ("Mistral", {**SEVERAL, **UNTIED, "sliding_window": 4}),
    "llama-dynamic": ("Llama", {**ONE, **TIED, "rope_parameters": DYNAMIC}),
    "phi3": ("Phi3", {**SEVERAL, **UNTIED, "sliding_window": 4}),
    "phi3-each": ("Phi3", {**EACH, **UNTIED, "hidden_size": 36}),
    "phi3-partial": (
        "Phi3",
        {**ONE, **TIED, "original_max_position_embeddings": 64, "rope_parameters": LONGROPE},
    ),
    "qwen2": ("Qwen2", {**SEVERAL, **TIED}),
    "qwen2-one": ("Qwen2", {**ONE, **UNTIED, "max_window_layers": 2, "use_sliding_window": True}),
    "qwen2-each": ("Qwen2", {**EACH, **TIED, "sliding_window": 4}),
    "qwen2-window": (
        "Qwen2",
        {**ONE, **UNTIED, "max_window_layers": 0, "use_sliding_window": True, "sliding_window": 3},
    ),
    "qwen2-yarn": ("Qwen2", {**SEVERAL, **TIED, "rope_parameters": YARN}),
    "qwen3-yarn": (
        "Qwen3",
        {
            **ONE,
            **TIED,
            "head_dim": 20,
            "rope_parameters": YARN
            | {"attention_factor": 1.3, "beta_fast": 8, "beta_slow": 2, "truncate": False},
        },
    ),
    "qwen3": ("Qwen3", {**SEVERAL, **TIED, "head_dim": 16}),
    "qwen3-one": ("Qwen3", {**ONE, **UNTIED, "head_dim": 10}),
    "smollm3": ("SmolLM3", {**SEVERAL, **TIED, "no_rope_layers": [1, 0]}),
    "smollm3-one": ("SmolLM3", {**ONE, **UNTIED, "no_rope_layer_interval": 2, "num_hidden_layers": 3}),
    "granite": ("Granite", {**SEVERAL, **TIED, **MULTIPLIERS}),
    "granite-one": ("Granite", {**ONE, **UNTIED, **MULTIPLIERS, "embedding_multiplier": 12}),
    "olmo2": ("Olmo2", {**SEVERAL, **UNTIED}),
    "olmo2-one": ("Olmo2", {**ONE, **TIED}),
    "olmo2-two": ("Olmo2", {**TWO, **TIED}),
    "olmo2-each": ("Olmo2", {**EACH, **UNTIED}),
    "qwen2-some": (
        "Qwen2",
        {
            **ONE,
            **TIED,
            "max_window_layers": 1,
            "use_sliding_window": True,
            "sliding_window": 4,
            "num_hidden_layers": 3,
        },
    ),
    "qwen3-some": (
        "Qwen3",
        {
            **SEVERAL,
            **UNTIED,
            "use_sliding_window": True,
            "sliding_window": 3,
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "smollm3-window": (
        "SmolLM3",
        {**ONE, **TIED, "no_rope_layers": [1, 0], "use_sliding_window": True, "sliding_window": 4},
    ),
    "gemma3": (
        "Gemma3",
        {
            **SEVERAL,
            **TIED,
            "head_dim": 16,
            "num_hidden_layers": 3,
            "sliding_window": 4,
            "sliding_window_pattern": 2,
            "query_pre_attn_scalar": 20,
            "rope_parameters": LAYERS,
        },
    ),
    "gemma3-one": (
        "Gemma3",
        {
            **ONE,
            **UNTIED,
            "head_dim": 10,
            "sliding_window": 3,
            "layer_types": ["full_attention", "sliding_attention"],
            "query_pre_attn_scalar": 10,
            "final_logit_softcapping": 1.5,
        },
    ),
    "gemma3-each": (  # a window that no text reaches, with a base of its own
        "Gemma3",
        {**EACH, **TIED, "head_dim": 16, "sliding_window": 512, "sliding_window_pattern": 2},
    ),
    "gemma3-images": (
        "Gemma3",
        {
            **SEVERAL,
            **TIED,
            "head_dim": 16,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": LAYERS,
            "vision_config": {
                **dict.fromkeys(("hidden_size", "intermediate_size"), 16),
                **dict.fromkeys(("num_hidden_layers", "num_attention_heads"), 1),
                "image_size": 4,
                "patch_size": 2,
            },
        },
    ),
    "gemma2": (
        "Gemma2",
        {
            **SEVERAL,
            **TIED,
            "head_dim": 16,
            "num_hidden_layers": 3,
            "sliding_window": 4,
            "query_pre_attn_scalar": 9,
            "attn_logit_softcapping": 1.5,
            "final_logit_softcapping": 2.0,
        },
    ),
    "gemma2-one": (
        "Gemma2",
        {
            **ONE,
            **UNTIED,
            "head_dim": 10,
            "query_pre_attn_scalar": 10,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
        },
    ),
    "gemma2-each": (
        "Gemma2",
        {
            **EACH,
            **TIED,
            "head_dim": 16,
            "layer_types": ["full_attention", "sliding_attention"],
            "sliding_window": 3,
        },
    ),
}
# Models whose first prompt is longer than the texts that they were trained on.
LONG = {
    "phi3-long": ("Phi3", MODELS["phi3-partial"][1] | {"original_max_position_embeddings": 8}),
    "llama-dynamic-long": ("Llama", MODELS["llama-dynamic"][1] | {"max_position_embeddings": 8}),
}
SIZES = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "vocab_size": 96,
    "max_position_embeddings": 512,
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
}
PROMPTS = (
    13,
    5,
    1,
)  # tokens: a prompt that is read at once, a shorter one, and one whose text is stepped through
NEW = 8  # tokens that are drawn
FAMILIES = (
    "llama",
    "mistral",
    "phi3",
    "qwen2",
    "qwen3",
    "smollm3",
    "granite",
    "olmo2",
    "gemma2",
    "gemma3_text",
)
NUMBERS = ("rms_norm_eps", "num_key_value_heads", "max_position_embeddings", "tie_word_embeddings")


def prompts() -> list[list[int]]:
    """Some token ids, the same every time, which have nothing to do with any model."""
    return [[(7 * i * i + 31 * i + 11 * n) % SIZES["vocab_size"] for i in range(n)] for n in PROMPTS]


def write(folder: Path) -> None:
    """All models, and what config classes say of keys that a config.json leaves out."""
    import numpy as np
    import torch
    import transformers

    torch.manual_seed(0)
    torch.set_num_threads(1)
    for name, (prefix, told) in {**MODELS, **LONG}.items():
        kind = f"{prefix}TextConfig" if prefix == "Gemma3" else f"{prefix}Config"
        said = {**SIZES, **told}
        images = said.pop("vision_config", None)
        config = getattr(transformers, kind)(**said)
        if images:
            config = getattr(transformers, f"{prefix}Config")(
                text_config=config.to_dict(), vision_config=images, mm_tokens_per_image=4
            )
        config._attn_implementation = "eager"
        head = "ConditionalGeneration" if images else "CausalLM"
        model = getattr(transformers, f"{prefix}For{head}")(config).eval()
        with torch.no_grad():
            for key, values in model.named_parameters():
                if "norm" in key:
                    values.uniform_(0.5, 1.5)
                else:  # biases included, which transformers would make 0
                    values.normal_(0, 1.5 * values.shape[-1] ** -0.5)
            model.save_pretrained(folder / name)
            seen = model(torch.tensor(prompts()[:1]), output_attentions=True)
            keeps = (
                name == "llama-dynamic-long"
            )  # keys of earlier tokens as they are, which makes a difference
            drawn = [_greedy(model, prompt, keeps) for prompt in prompts()]
        np.savez(
            folder / name / "reference.npz",
            logits_TV=seen.logits[0].numpy(),
            weights_LNTT=np.stack([layer[0].numpy() for layer in seen.attentions]),
            drawn=np.array(drawn),
        )
    for kind in FAMILIES:
        (folder / f"bare-{kind}").mkdir()
        said = {**{key: SIZES[key] for key in SIZES if key != "max_position_embeddings"}, "model_type": kind}
        said |= {"num_attention_heads": 96, "hidden_size": 960}  # a multiple of all numbers of key heads
        said |= {"num_hidden_layers": 13}
        said |= {"sliding_window": None} if kind == "mistral" else {}
        (folder / f"bare-{kind}" / "config.json").write_text(json.dumps(said))
        config = transformers.AutoConfig.from_pretrained(folder / f"bare-{kind}")
        means = {key: getattr(config, key) for key in NUMBERS}
        rope = config.rope_parameters
        means |= {
            "rope_theta": rope.get("full_attention", rope)["rope_theta"],
            "head_dim": getattr(config, "head_dim", None) or 10,
        }
        if kind.startswith("gemma"):
            layers = enumerate(config.layer_types)
            means["switches"] = {
                "sliding_window": config.sliding_window,
                "global_layers": [i for i, one in layers if one == "full_attention"],
                "rope_local_theta": rope.get("sliding_attention", {}).get("rope_theta", 0.0),
                "attention_softcap": config.attn_logit_softcapping or 0.0,
                "logits_softcap": config.final_logit_softcapping or 0.0,
                "attention_multiplier": float(config.query_pre_attn_scalar - config.head_dim),  # none
            }
        (folder / f"bare-{kind}" / "means.json").write_text(json.dumps(means))


def _greedy(model: Any, prompt: list[int], keeps: bool) -> list[int]:
    """keeps: read every token once, with a cache; else the whole text for each new one."""
    import torch

    ids, past = list(prompt), None
    for _ in range(NEW):
        new = ids[past.get_seq_length() :] if past else ids
        seen = model(torch.tensor([new]), past_key_values=past, use_cache=keeps)
        past = seen.past_key_values if keeps else None
        ids.append(int(seen.logits[0, -1].argmax()))
    return ids[len(prompt) :]


if __name__ == "__main__":
    write(Path(sys.argv[1]))
