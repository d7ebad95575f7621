"""Hugging Face checkpoints for tests, written with the official safetensors library."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 50,
    "tie_word_embeddings": True,
}
SHAPES = {"q_proj": (64, 64), "k_proj": (32, 64), "v_proj": (32, 64), "o_proj": (64, 64)}

Tensors = dict[str, tuple[str, NDArray[Any]]]


def llama_tensors(dtype: str = "BF16", seed: int = 0) -> Tensors:
    """Random tensors of a two-layer Llama by Hugging Face name: the safetensors type and the bits or values."""
    rng = np.random.default_rng(seed)

    def random(*shape: int) -> tuple[str, NDArray[Any]]:
        values = rng.normal(0, 0.05, shape).astype(np.float32)
        if dtype == "BF16":
            return dtype, (values.view(np.uint32) >> 16).astype(np.uint16)
        return dtype, values.astype(np.float16).view(np.uint16) if dtype == "F16" else values

    tensors = {"model.embed_tokens.weight": random(50, 64)}
    for layer in range(2):
        prefix = f"model.layers.{layer}"
        for name, shape in SHAPES.items():
            tensors[f"{prefix}.self_attn.{name}.weight"] = random(*shape)
        tensors[f"{prefix}.mlp.gate_proj.weight"] = random(96, 64)
        tensors[f"{prefix}.mlp.up_proj.weight"] = random(96, 64)
        tensors[f"{prefix}.mlp.down_proj.weight"] = random(64, 96)
        tensors[f"{prefix}.input_layernorm.weight"] = random(64)
        tensors[f"{prefix}.post_attention_layernorm.weight"] = random(64)
    tensors["model.norm.weight"] = random(64)
    return tensors


def save(path: Path, tensors: Tensors) -> None:
    """Write a safetensors file with the official library; BF16, which it takes from frameworks only, is named after."""
    content = safetensors.numpy.save({name: array for name, (_, array) in tensors.items()}, {"format": "pt"})
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    for name, (kind, _) in tensors.items():
        header[name]["dtype"] = kind
    encoded = json.dumps(header).encode()
    path.write_bytes(len(encoded).to_bytes(8, "little") + encoded + content[8 + size :])


MakeModel = Callable[..., Path]
