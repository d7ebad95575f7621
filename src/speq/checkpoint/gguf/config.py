"""What a GGUF file says about its model, in Hugging Face's words: tensor names and ``config.json`` keys."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speq.checkpoint.gguf.file import GGUFFile, GGUFKeys
from speq.checkpoint.gguf.rope import ROPE_TENSORS, rope_scaling
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
_QKV, _ATTENTION = ("attn_q", "attn_k", "attn_v"), ("attn_q", "attn_k", "attn_v", "attn_output")
_FEED_FORWARD = ("ffn_gate", "ffn_up", "ffn_down")
_BIASED = {"llama": _ATTENTION + _FEED_FORWARD, "qwen2": _QKV, "qwen3": _ATTENTION}
"""Which tensors of a layer may have a bias: those that the architecture has one for in Hugging Face's code."""
_HEAD_NORMS = ("attn_q_norm", "attn_k_norm")
_UNREAD: Mapping[str, tuple[float, ...]] = {
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.scale": (0,),
    "attention.sliding_window": (0,),
    "attn_logit_softcapping": (0,),
    "embedding_scale": (0, 1),
    "final_logit_softcapping": (0,),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "rope.scaling.alpha": (0,),
    "rope.scaling.yarn_attn_factor": (1,),
    "rope.scaling.yarn_beta_fast": (32,),
    "rope.scaling.yarn_beta_slow": (1,),
    "rope.scaling.yarn_ext_factor": (1,),
    "rope.scaling.yarn_log_multiplier": (0,),
}
"""Keys that llama.cpp reads for other architectures than these, with the values that would change nothing."""


def hugging_face_name(stored: str, path: Path, architecture: str) -> str | None:
    """The Hugging Face name of a stored tensor; None for one that the config already tells.

    Raises:
        SpeqError: a tensor that the architecture does not have: dropping it would change the model.
    """
    if stored in ROPE_TENSORS and architecture == "llama":
        return None
    layered = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", stored)
    if layered and layered[2] in _LAYER_NAMES:
        layer, stem, kind = layered.groups()
        known = stem in _BIASED[architecture] if kind == "bias" else stem not in _HEAD_NORMS or architecture == "qwen3"
        if known:
            return f"model.layers.{layer}.{_LAYER_NAMES[stem]}.{kind}"
    stem, _, kind = stored.rpartition(".")
    if stem in _GLOBAL_NAMES and kind == "weight":
        return f"{_GLOBAL_NAMES[stem]}.weight"
    raise SpeqError(f"{path}: tensor {stored} belongs to no supported model of the architecture {architecture}")


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
    tensors, keys = file.tensors, GGUFKeys(file)
    architecture = keys.architecture
    if architecture not in ARCHITECTURES:
        raise SpeqError(f"{file.path} holds the architecture {architecture}; supported are {', '.join(ARCHITECTURES)}")
    if file.metadata.get("split.count", 1) not in (0, 1):
        raise SpeqError(f"{file.path} is one part of a split GGUF; merge the parts first (llama-gguf-split --merge)")
    if keys.whole("expert_count", 0, least=0):
        raise SpeqError(f"{file.path} is a mixture of experts, which is not supported")
    if keys.whole("nextn_predict_layers", 0, least=0):
        raise SpeqError(f"{file.path} has layers that predict further tokens, which are not supported")
    if not keys.flag("attention.causal", True):
        raise SpeqError(f"{file.path} attends to later tokens (attention.causal is false), which is not supported")
    for required in ("token_embd.weight", "output_norm.weight"):
        if required not in tensors:
            raise SpeqError(f"{file.path} lacks the tensor {required}; copy or download it again")
    layers = keys.whole("block_count")
    hidden, heads = keys.whole("embedding_length"), keys.whole_of_all_layers("attention.head_count", layers)
    head_dim = keys.whole("attention.key_length", hidden // heads)
    if (
        keys.whole("rope.dimension_count", head_dim) != head_dim
        or keys.whole("attention.value_length", head_dim) != head_dim
    ):
        raise SpeqError(
            f"{file.path} rotates only part of each head (or has unlike keys and values), which is not supported"
        )
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[architecture]],
        "model_type": architecture,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "intermediate_size": keys.whole_of_all_layers("feed_forward_length", layers),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.whole_of_all_layers("attention.head_count_kv", layers, heads),
        "head_dim": head_dim,
        "max_position_embeddings": keys.whole("context_length"),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": keys.number("rope.freq_base", 10000.0),
        "rope_scaling": rope_scaling(file, keys, head_dim),
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    if architecture != "qwen2":  # whose biases are a matter of course
        config |= {"attention_bias": _any_bias(file, _ATTENTION), "mlp_bias": _any_bias(file, _FEED_FORWARD)}
    for role in ("bos", "eos"):
        token = file.metadata.get(f"tokenizer.ggml.{role}_token_id")
        if isinstance(token, int):
            config[f"{role}_token_id"] = token
    return config


def absent_biases(file: GGUFFile, config: Mapping[str, Any]) -> dict[str, int]:
    """Widths of the biases that the file leaves out and its config calls for, by Hugging Face name.

    llama.cpp takes each of them as an addition of its own, in each layer; Hugging Face knows all of a kind or none.
    """
    stems: tuple[str, ...] = _QKV if config["model_type"] == "qwen2" else _ATTENTION if config["attention_bias"] else ()
    stems += _FEED_FORWARD if config.get("mlp_bias") else ()
    widths = {}
    for name, weight in file.tensors.items():
        found = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
        if found and found[2] in stems and f"blk.{found[1]}.{found[2]}.bias" not in file.tensors:
            widths[f"model.layers.{found[1]}.{_LAYER_NAMES[found[2]]}.bias"] = weight.shape[0]
    return widths


def unread_keys(file: GGUFFile) -> list[str]:
    """Keys that would change another model's arithmetic and mean nothing in this architecture, as in llama.cpp."""
    architecture = GGUFKeys(file).architecture
    named = {f"{architecture}.{key}": neutral for key, neutral in _UNREAD.items()}
    return [key for key, neutral in named.items() if file.metadata.get(key, neutral[0]) not in neutral]


def _any_bias(file: GGUFFile, stems: tuple[str, ...]) -> bool:
    biases = re.compile(rf"blk\.\d+\.({'|'.join(stems)})\.bias")
    return any(biases.fullmatch(name) for name in file.tensors)
