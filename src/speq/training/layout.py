"""The directory that a trained head becomes: ``config.json`` and ``model.safetensors`` in the layout of the
speculators library for EAGLE-3 heads, and ``training.json``, which says how it came about.

The embedding is the model's own and is not stored again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speq.checkpoint.safetensors import SafetensorsFile, write_header
from speq.checkpoint.storage import read_json
from speq.checkpoint.store import as_bytes
from speq.errors import SpeqError
from speq.formats import from_float32, to_float32
from speq.models.rope import rotary_frequencies
from speq.training.head import HeadConfig, parameter_shapes

CONFIG, WEIGHTS, TRAINING = "config.json", "model.safetensors", "training.json"
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


@dataclass(frozen=True)
class StoredHead:
    """A head as it was read.

    Attributes:
        config: its sizes.
        parameters: float32 arrays by name.
        known: the model's ids of its tokens, ``[vocabulary]``.
        name: what its model is called.
    """

    config: HeadConfig
    parameters: dict[str, NDArray[np.float32]]
    known: NDArray[np.int64]
    name: str


def read_head(directory: Path) -> StoredHead:
    """Read a head that was written here.

    Raises:
        SpeqError: missing or damaged files, or a head of another kind.
    """
    content = read_json(directory / CONFIG, f"{directory} is no trained head: it has no {CONFIG}")
    if content.get("speculators_model_type") != "eagle3":
        raise SpeqError(f"{directory / CONFIG} does not describe an EAGLE-3 head in the layout of speculators")
    file = SafetensorsFile(directory / WEIGHTS)
    try:
        layer = content["transformer_layer_config"]
        config = HeadConfig(
            hidden_size=int(layer["hidden_size"]),
            heads=int(layer["num_attention_heads"]),
            kv_heads=int(layer["num_key_value_heads"]),
            head_dim=int(layer["head_dim"]),
            norm_eps=float(layer["rms_norm_eps"]),
            rotary=rotary_frequencies(layer, int(layer["head_dim"]), int(layer["max_position_embeddings"])),
            inner=int(layer["intermediate_size"]),
            vocabulary=int(content["draft_vocab_size"]),
            model_vocabulary=int(layer["vocab_size"]),
            taps=tuple(int(tap) for tap in content["eagle_aux_hidden_state_layer_ids"]),
        )
        name = str(content["speculators_config"]["verifier"]["name_or_path"])
    except (KeyError, TypeError, ValueError):
        raise SpeqError(f"{directory / CONFIG} is damaged; train the head again") from None
    parameters = {}
    for key, shape in parameter_shapes(config).items():
        entry = file.entries.get(key)
        if entry is None or entry.shape != shape or entry.dtype != "BF16":
            raise SpeqError(f"{file.path}: tensor {key} is missing or does not fit {CONFIG}; train the head again")
        parameters[key] = to_float32(file.array(key), "bf16")
    known = file.array("d2t") + np.arange(config.vocabulary, dtype=np.int64)
    return StoredHead(config, parameters, known, name)


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
