"""GGUF files for tests, written with the gguf package's writer; query and key rows in llama.cpp's order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

HEADS, KV_HEADS, HEAD_DIM, HIDDEN, MLP, VOCAB = 4, 2, 64, 256, 512, 48

NAMES = {
    "token_embd": (VOCAB, HIDDEN),
    "blk.0.attn_q": (HEADS * HEAD_DIM, HIDDEN),
    "blk.0.attn_k": (KV_HEADS * HEAD_DIM, HIDDEN),
    "blk.0.attn_v": (KV_HEADS * HEAD_DIM, HIDDEN),
    "blk.0.attn_output": (HIDDEN, HEADS * HEAD_DIM),
    "blk.0.ffn_gate": (MLP, HIDDEN),
    "blk.0.ffn_up": (MLP, HIDDEN),
    "blk.0.ffn_down": (HIDDEN, MLP),
}
HUGGING_FACE = {
    "token_embd": "model.embed_tokens",
    "blk.0.attn_q": "model.layers.0.self_attn.q_proj",
    "blk.0.attn_k": "model.layers.0.self_attn.k_proj",
    "blk.0.attn_v": "model.layers.0.self_attn.v_proj",
    "blk.0.attn_output": "model.layers.0.self_attn.o_proj",
    "blk.0.ffn_gate": "model.layers.0.mlp.gate_proj",
    "blk.0.ffn_up": "model.layers.0.mlp.up_proj",
    "blk.0.ffn_down": "model.layers.0.mlp.down_proj",
    "blk.0.attn_norm": "model.layers.0.input_layernorm",
    "blk.0.ffn_norm": "model.layers.0.post_attention_layernorm",
    "output_norm": "model.norm",
    "output": "lm_head",
}


def llama_cpp_order(weights: NDArray[Any], heads: int) -> NDArray[Any]:
    """How llama.cpp's converter reorders the rows of a Llama's q and k: pair (i, i + half) becomes (2i, 2i + 1)."""
    halves = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return halves.swapaxes(1, 2).reshape(weights.shape)


def random_weights(seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Matrices and norms of a one-layer model, by GGUF stem, rows in Hugging Face order."""
    rng = np.random.default_rng(seed)
    matrices = {name: rng.normal(0, 0.05, shape).astype(np.float32) for name, shape in NAMES.items()}
    norms = {name: rng.normal(1, 0.1, HIDDEN).astype(np.float32) for name in ("blk.0.attn_norm", "blk.0.ffn_norm")}
    return matrices | norms | {"output_norm": rng.normal(1, 0.1, HIDDEN).astype(np.float32)}


def write_gguf(
    path: Path,
    weights: dict[str, NDArray[np.float32]],
    *,
    kind: str = "F16",
    architecture: str = "llama",
    metadata: dict[str, Any] | None = None,
    extra: dict[str, NDArray[Any]] | None = None,
) -> Path:
    """Write a model whose matrices have the type ``kind``; ``metadata`` overrides or (None) drops keys."""
    writer = gguf.GGUFWriter(path, architecture)
    keys: dict[str, Any] = {
        "general.name": "tiny",
        f"{architecture}.block_count": 1,
        f"{architecture}.context_length": 128,
        f"{architecture}.embedding_length": HIDDEN,
        f"{architecture}.feed_forward_length": MLP,
        f"{architecture}.attention.head_count": HEADS,
        f"{architecture}.attention.head_count_kv": KV_HEADS,
        f"{architecture}.attention.layer_norm_rms_epsilon": 1e-5,
        f"{architecture}.rope.freq_base": 100000.0,
    } | (metadata or {})
    for key, value in keys.items():
        add_value(writer, key, value)
    for stem, values in weights.items():
        if architecture == "llama" and stem.endswith(("attn_q", "attn_k")):
            values = llama_cpp_order(values, HEADS if stem.endswith("attn_q") else KV_HEADS)
        if values.ndim == 1:
            writer.add_tensor(f"{stem}.weight", values)
            continue
        quantised = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(f"{stem}.weight", gguf.quants.quantize(values, quantised), raw_dtype=quantised)
    for name, array in (extra or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Add a metadata value of whatever type it has; None adds nothing."""
    adders = {str: writer.add_string, bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    if isinstance(value, list):
        writer.add_array(key, value)
    elif value is not None:
        adders[type(value)](key, value)
