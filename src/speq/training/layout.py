"""The directory that a trained head becomes: ``config.json`` and ``model.safetensors`` in the layout of the
speculators library for EAGLE-3 heads, and ``training.json``, which says how it came about.

The embedding is the model's own and is not stored again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speq.checkpoint.safetensors import write_header
from speq.checkpoint.store import as_bytes
from speq.formats import from_float32
from speq.models.head import HeadConfig, parameter_shapes
from speq.models.head_files import CONFIG, TRAINING, WEIGHTS

_ROPE = ("rope_theta", "rope_scaling", "rope_parameters", "original_max_position_embeddings")


def write_head(
    directory: Path,
    head: HeadConfig,
    parameters: Mapping[str, NDArray[np.float32]],
    known: NDArray[np.int64],
    model: Mapping[str, Any],
    name: str,
    proposals: int,
    training: Mapping[str, Any],
) -> None:
    """Write a head into an existing directory.

    Args:
        head: its sizes.
        parameters: float32 arrays, rounded to BF16 here.
        known: the model's ids of the head's tokens, ascending.
        model: the parsed ``config.json`` of the model.
        name: what the model is called.
        proposals: length of the chains that it was trained for.
        training: what ``training.json`` is to say.
    """
    # The widest type comes first, so that every tensor is aligned.
    arrays: dict[str, tuple[str, NDArray[Any]]] = {"d2t": ("I64", known - np.arange(len(known), dtype=np.int64))}
    for key in parameter_shapes(head):
        arrays[key] = ("BF16", from_float32(np.ascontiguousarray(parameters[key]), "bf16"))
    arrays["t2d"] = ("BOOL", np.isin(np.arange(head.model_vocabulary), known).astype(np.uint8))
    with (directory / WEIGHTS).open("wb") as out:
        write_header(out, {key: (dtype, array.shape) for key, (dtype, array) in arrays.items()})
        for _, array in arrays.values():
            out.write(as_bytes(array))
    _write_json(directory / CONFIG, _config(head, model, name, proposals))
    _write_json(directory / TRAINING, training)


def _config(head: HeadConfig, model: Mapping[str, Any], name: str, proposals: int) -> dict[str, Any]:
    return {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "speculators_config": {
            "algorithm": "eagle3",
            "default_proposal_method": "greedy",
            "proposal_methods": [{"proposal_type": "greedy", "speculative_tokens": proposals}],
            "verifier": {"name_or_path": name, "architectures": list(model.get("architectures") or [])},
        },
        "transformer_layer_config": {
            "model_type": "llama",
            "hidden_size": head.hidden_size,
            "intermediate_size": head.inner,
            "num_hidden_layers": 1,
            "num_attention_heads": head.heads,
            "num_key_value_heads": head.kv_heads,
            "head_dim": head.head_dim,
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "rms_norm_eps": head.norm_eps,
            "vocab_size": head.model_vocabulary,
            "max_position_embeddings": model.get("max_position_embeddings") or head.rotary.context_length,
        }
        | {key: model[key] for key in _ROPE if model.get(key) is not None},
        "draft_vocab_size": head.vocabulary,
        "target_hidden_size": None,
        "norm_before_residual": False,
        "norm_before_fc": False,
        "embed_requires_grad": False,
        "eagle_aux_hidden_state_layer_ids": list(head.taps),
        "tie_word_embeddings": False,
        "dtype": "bfloat16",
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
