"""What a GGUF file says about its model, in Hugging Face's words: tensor names and ``config.json`` keys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speq.checkpoint.gguf_file import GGUFFile
from speq.errors import SpeqError

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}

_GLOBAL_NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_ROPE_FREQUENCIES = "rope_freqs.weight"


def hugging_face_name(stored: str, path: Path) -> str | None:
    """The Hugging Face name of a stored tensor; None for one that the config already tells.

    Raises:
        SpeqError: a tensor that no supported model has: dropping it would change the model.
    """
    if stored == _ROPE_FREQUENCIES:
        return None
    layered = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", stored)
    if layered and layered[2] in _LAYER_NAMES:
        return f"model.layers.{layered[1]}.{_LAYER_NAMES[layered[2]]}.{layered[3]}"
    stem, _, kind = stored.rpartition(".")
    if stem in _GLOBAL_NAMES and kind in ("weight", "bias"):
        return f"{_GLOBAL_NAMES[stem]}.{kind}"
    raise SpeqError(f"{path}: tensor {stored} belongs to no supported model ({', '.join(ARCHITECTURES)})")


def stored_name(name: str) -> str:
    """The GGUF name of a tensor by its Hugging Face name: the inverse of :func:`hugging_face_name`.

    Raises:
        SpeqError: a tensor that no supported model has.
    """
    stem, _, kind = name.rpartition(".")
    for stored, known in _GLOBAL_NAMES.items():
        if stem == known:
            return f"{stored}.{kind}"
    layered = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", stem)
    for stored, known in _LAYER_NAMES.items():
        if layered and layered[2] == known:
            return f"blk.{layered[1]}.{stored}.{kind}"
    raise SpeqError(f"tensor {name} belongs to no model that GGUF files hold ({', '.join(ARCHITECTURES)})")


def rotary_row_order(rows: int, heads: int) -> NDArray[np.intp]:
    """For each row of a Llama's query or key matrix in Hugging Face order, its place in a GGUF file.

    llama.cpp puts the two rows that one rotary pair needs side by side.
    """
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(rows)


def build_config(file: GGUFFile) -> dict[str, Any]:
    """The ``config.json`` of the model in a GGUF file.

    Raises:
        SpeqError: an architecture or variant that is not supported, by name; a split file; missing keys.
    """
    metadata, tensors = file.metadata, file.tensors
    architecture = str(metadata.get("general.architecture"))
    if architecture not in ARCHITECTURES:
        raise SpeqError(f"{file.path} holds the architecture {architecture}; supported are {', '.join(ARCHITECTURES)}")
    if metadata.get("split.count", 1) not in (0, 1):
        raise SpeqError(f"{file.path} is one part of a split GGUF; merge the parts first (llama-gguf-split --merge)")

    def get(key: str, default: Any = None) -> Any:
        value = metadata.get(f"{architecture}.{key}", default)
        if value is None:
            raise SpeqError(f"{file.path} lacks the metadata key {architecture}.{key}; convert it again")
        if isinstance(value, list):
            raise SpeqError(f"{file.path}: {architecture}.{key} differs per layer, which is not supported")
        return _shortest(value) if isinstance(value, float) else value

    def count(key: str, default: int | None = None) -> int:
        value = get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise SpeqError(f"{file.path}: {architecture}.{key} is {value!r}, must be a positive whole number")
        return value

    if get("expert_count", 0):
        raise SpeqError(f"{file.path} is a mixture of experts, which is not supported")
    for required in ("token_embd.weight", "output_norm.weight"):
        if required not in tensors:
            raise SpeqError(f"{file.path} lacks the tensor {required}; copy or download it again")
    hidden, heads = count("embedding_length"), count("attention.head_count")
    head_dim = count("attention.key_length", hidden // heads)
    if count("rope.dimension_count", head_dim) != head_dim or count("attention.value_length", head_dim) != head_dim:
        raise SpeqError(
            f"{file.path} rotates only part of each head (or has unlike keys and values), which is not supported"
        )
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[architecture]],
        "model_type": architecture,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": count("feed_forward_length"),
        "num_hidden_layers": count("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": count("attention.head_count_kv", heads),
        "head_dim": head_dim,
        "max_position_embeddings": count("context_length"),
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
        "rope_theta": get("rope.freq_base", 10000.0),
        "rope_scaling": _rope_scaling(file, get, head_dim),
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    if architecture != "qwen2":  # whose biases are a matter of course
        config |= {"attention_bias": "blk.0.attn_q.bias" in tensors, "mlp_bias": "blk.0.ffn_gate.bias" in tensors}
    if architecture == "llama" and (window := get("attention.sliding_window", 0)):
        config |= {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": window}
    for role in ("bos", "eos"):
        token = metadata.get(f"tokenizer.ggml.{role}_token_id")
        if token is not None:
            config[f"{role}_token_id"] = int(token)
    return config


def _shortest(value: float) -> float:
    """The shortest decimal of a float32, as the original config has it: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _rope_scaling(file: GGUFFile, get: Any, head_dim: int) -> dict[str, Any] | None:
    kind = str(get("rope.scaling.type", "none"))
    original = int(get("rope.scaling.original_context_length", get("context_length")))
    if _ROPE_FREQUENCIES in file.tensors:
        return _llama3_scaling(file, float(get("rope.freq_base", 10000.0)), head_dim)
    if kind == "none":
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": get("rope.scaling.factor")}
    if kind == "yarn":
        scaling = {
            "rope_type": "yarn",
            "factor": get("rope.scaling.factor"),
            "original_max_position_embeddings": original,
        }
        for key, name in (
            ("attn_factor", "attention_factor"),
            ("yarn_beta_fast", "beta_fast"),
            ("yarn_beta_slow", "beta_slow"),
        ):
            if f"{file.metadata['general.architecture']}.rope.scaling.{key}" in file.metadata:
                scaling[name] = get(f"rope.scaling.{key}")
        return scaling
    raise SpeqError(f"{file.path} scales RoPE by {kind}, which is not supported; supported are linear, yarn and llama3")


def _llama3_scaling(file: GGUFFile, base: float, head_dim: int) -> dict[str, Any]:
    """Llama 3's scaling from its per-frequency divisors, the only trace that GGUF keeps of it.

    Every published model has the same three other parameters, so only the factor is open; the divisors must then agree.
    """
    divisors = file.tensors[_ROPE_FREQUENCIES].data.reshape(-1).view("<f4")
    factor, low, high, original = float(np.round(divisors.max(), 4)), 1.0, 4.0, 8192
    wavelength = 2 * np.pi * base ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((original / wavelength - low) / (high - low), 0, 1)
    expected = 1 / ((1 - smooth) / factor + smooth)
    if divisors.shape != expected.shape or not np.allclose(divisors, expected, rtol=1e-4):
        raise SpeqError(f"{file.path}: {_ROPE_FREQUENCIES} follows no known RoPE scaling; use the original checkpoint")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
