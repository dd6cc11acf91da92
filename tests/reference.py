"""The same mathematics a second time, slowly: float64 numpy, no cache, no batch, no jit.

A plain Llama over a whole text, one head at a time; every metric as its definition reads; the filter chain on
sorted lists. It shares no code with the package and reads tensors by their Hugging Face names, so that
neither a formula nor a fused matrix can be wrong on both sides.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from entropix.config import ModelConfig
from entropix.model.weights import Weights

Tensors = Mapping[str, np.ndarray]


class Pass(NamedTuple):
    """A forward pass over a whole text."""

    logits_TV: np.ndarray
    scores_LNTT: np.ndarray  # q·k/√H of every query with every key, future ones included


# ----- the model --------------------------------------------------------------------------------------------


def forward(tensors: Tensors, tokens_T: Sequence[int], cfg: ModelConfig) -> Pass:
    """Logits and raw scores at every position of one text."""
    length, H = len(tokens_T), cfg.head_dim
    rotation_TH = np.exp(1j * np.outer(np.arange(length), frequencies(cfg)))
    x_TD = tensor(tensors, "model.embed_tokens")[list(tokens_T)]
    scores = np.zeros((cfg.n_layers, cfg.n_heads, length, length))
    for layer in range(cfg.n_layers):
        p = f"model.layers.{layer}"
        h_TD = norm(x_TD, tensor(tensors, f"{p}.input_layernorm"), cfg.norm_eps)
        q, k, v = (h_TD @ tensor(tensors, f"{p}.self_attn.{name}_proj").T for name in "qkv")
        heads = []
        for n in range(cfg.n_heads):
            g = n // (cfg.n_heads // cfg.n_kv_heads)  # the key/value head that query head n listens to
            q_TH = rotated(q[:, n * H : (n + 1) * H], rotation_TH)
            k_TH = rotated(k[:, g * H : (g + 1) * H], rotation_TH)
            scores[layer, n] = q_TH @ k_TH.T / math.sqrt(H)
            mix_TH = np.zeros((length, H))
            for t in range(length):
                mix_TH[t] = softmax(scores[layer, n, t, : t + 1]) @ v[: t + 1, g * H : (g + 1) * H]
            heads.append(mix_TH)
        x_TD = x_TD + np.concatenate(heads, axis=1) @ tensor(tensors, f"{p}.self_attn.o_proj").T
        h_TD = norm(x_TD, tensor(tensors, f"{p}.post_attention_layernorm"), cfg.norm_eps)
        gate, up = (h_TD @ tensor(tensors, f"{p}.mlp.{name}_proj").T for name in ("gate", "up"))
        x_TD = x_TD + (gate / (1 + np.exp(-gate)) * up) @ tensor(tensors, f"{p}.mlp.down_proj").T
    unembed = "model.embed_tokens" if cfg.tied_embeddings else "lm_head"
    logits_TV = norm(x_TD, tensor(tensors, "model.norm"), cfg.norm_eps) @ tensor(tensors, unembed).T
    return Pass(logits_TV, scores)


def frequencies(cfg: ModelConfig) -> np.ndarray:
    """Angle per position of each rotary pair, case by case as in Meta's release of Llama 3.1."""
    plain = [cfg.rope_theta ** (-2 * i / cfg.head_dim) for i in range(cfg.head_dim // 2)]
    if cfg.rope_scaling is None:
        return np.array(plain)
    s, out = cfg.rope_scaling, []
    for frequency in plain:
        wavelength = 2 * math.pi / frequency
        if wavelength < s.original_context_length / s.high_freq_factor:
            out.append(frequency)
        elif wavelength > s.original_context_length / s.low_freq_factor:
            out.append(frequency / s.factor)
        else:
            smooth = (s.original_context_length / wavelength - s.low_freq_factor) / (
                s.high_freq_factor - s.low_freq_factor
            )
            out.append((1 - smooth) * frequency / s.factor + smooth * frequency)
    return np.array(out)


def rotated(x_TH: np.ndarray, rotation_TH: np.ndarray) -> np.ndarray:
    """Components i and i + H/2 as one complex number, turned by the position's angle."""
    half = x_TH.shape[1] // 2
    z = (x_TH[:, :half] + 1j * x_TH[:, half:]) * rotation_TH
    return np.concatenate([z.real, z.imag], axis=1)


def norm(x_TD: np.ndarray, weight_D: np.ndarray, eps: float) -> np.ndarray:
    return x_TD / np.sqrt((x_TD**2).mean(axis=1, keepdims=True) + eps) * weight_D


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max())
    return e / e.sum()


def tensor(tensors: Tensors, name: str) -> np.ndarray:
    return tensors[f"{name}.weight"].astype(np.float64)


def named_tensors(weights: Weights, cfg: ModelConfig) -> dict[str, np.ndarray]:
    """Our pytree taken apart into a checkpoint's tensors, [out, in] each."""
    weights = jax.tree.map(np.asarray, weights)
    out = {"model.embed_tokens": weights.embed_VD, "model.norm": weights.norm_D}
    if weights.unembed_VD is not None:
        out["lm_head"] = weights.unembed_VD
    for i, layer in enumerate(weights.layers):
        by_head = layer.qkv[:, :-2], layer.qkv[:, -2], layer.qkv[:, -1]
        query, key, value = (part.reshape(-1, cfg.dim) for part in by_head)
        out |= {
            f"model.layers.{i}.input_layernorm": layer.attn_norm_D,
            f"model.layers.{i}.self_attn.q_proj": query,
            f"model.layers.{i}.self_attn.k_proj": key,
            f"model.layers.{i}.self_attn.v_proj": value,
            f"model.layers.{i}.self_attn.o_proj": layer.attn_out.reshape(cfg.dim, -1),
            f"model.layers.{i}.post_attention_layernorm": layer.ffn_norm_D,
            f"model.layers.{i}.mlp.gate_proj": layer.gate_up[0, 0],
            f"model.layers.{i}.mlp.up_proj": layer.gate_up[0, 1],
            f"model.layers.{i}.mlp.down_proj": layer.down,
        }
    return {f"{name}.weight": values for name, values in out.items()}


# ----- the metrics ------------------------------------------------------------------------------------------


def metrics(logits_V: np.ndarray, scores_LNS: np.ndarray) -> dict[str, float]:
    """Every metric at one position, from its logits and its raw scores with the keys it sees, in order."""
    L, N, n = scores_LNS.shape
    p = softmax(logits_V.astype(np.float64))
    H = entropy(p)
    a = np.array([[softmax(row) for row in layer] for layer in scores_LNS.astype(np.float64)])
    E = np.array([[entropy(row) for row in layer] for layer in a])
    deviation = strength = previous = 0.0
    divergence, variance = [], []
    for layer in range(L):
        mean = sum(a[layer, h] for h in range(N)) / N
        mean_entropy = sum(E[layer]) / N
        divergence.append(entropy(mean) - mean_entropy)
        variance.append(sum((e - mean_entropy) ** 2 for e in E[layer]) / N)
        for h in range(N):
            previous += a[layer, h, n - 2] / (L * N) if n > 1 else 0.0
            for j in range(n):
                deviation += abs(a[layer, h, j] - mean[j]) / (L * N * n)
                strength += abs(scores_LNS[layer, h, j]) / (L * N * n)
    largest = sorted(p, reverse=True)
    return {
        "logits_entropy": H,
        "logits_varentropy": sum(q * (math.log2(q) + H) ** 2 for q in p if q > 0),
        "attn_entropy": E.mean(),
        "attn_varentropy": sum(variance) / L,
        "agreement": deviation,
        "interaction_strength": strength,
        "attn_entropy_normalized": E.mean() / math.log2(n) if n > 1 else 0.0,
        "head_agreement": 1 - sum(divergence) / L / math.log2(N) if N > 1 else 1.0,
        "top_prob": largest[0],
        "margin": largest[0] - largest[1],
        "previous_token_attention": previous,
        "self_certainty": sum(math.log(1 / len(p)) - math.log(q) for q in p) / len(p),
    }


def entropy(p: np.ndarray) -> float:
    """In bits."""
    return -sum(q * math.log2(q) for q in p if q > 0)


# ----- the filters ------------------------------------------------------------------------------------------


def filtered(
    logits_V: np.ndarray,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int | None = None,
    min_p: float = 0.0,
) -> np.ndarray:
    """The distribution that temperature, min-p, top-k and top-p leave, in this order."""
    p = softmax(np.asarray(logits_V, np.float64) / temperature)
    kept = [i for i in np.argsort(-p, kind="stable") if p[i] >= min_p * p.max()]
    kept = kept[:top_k]
    rest, mass, prefix = p[kept].sum(), 0.0, []
    for i in kept:
        prefix.append(i)
        mass += p[i] / rest
        if mass >= top_p:
            break
    out = np.zeros_like(p)
    out[prefix] = p[prefix] / p[prefix].sum()
    return out
