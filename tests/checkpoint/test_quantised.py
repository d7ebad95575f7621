"""Quantised checkpoints are told by the names of their tensors, whatever their config says."""

from __future__ import annotations

import numpy as np
import pytest
from hf_models import MakeModel, Tensors, llama_tensors

from speq.checkpoint.sources.opening import open_source
from speq.errors import SpeqError

STEM = "model.layers.0.self_attn.q_proj"


def array(kind: str, *shape: int) -> tuple[str, np.ndarray]:
    dtypes = {"U32": "u4", "I32": "i4", "U8": "u1", "I8": "i1", "F32": "f4", "F16": "u2", "I64": "i8", "F8_E4M3": "u1"}
    return kind, np.ones(shape, dtypes[kind])


METHODS: dict[str, Tensors] = {
    "MLX": {".weight": array("U32", 64, 8), ".scales": array("F16", 64, 1), ".biases": array("F16", 64, 1)},
    "GPTQ": {
        ".qweight": array("I32", 8, 64),
        ".qzeros": array("I32", 1, 8),
        ".scales": array("F16", 1, 64),
        ".g_idx": array("I32", 64),
    },
    "AWQ": {".qweight": array("I32", 64, 8), ".qzeros": array("I32", 1, 8), ".scales": array("F16", 1, 64)},
    "compressed-tensors": {
        ".weight_packed": array("I32", 64, 8),
        ".weight_scale": array("F16", 64, 1),
        ".weight_shape": array("I64", 2),
    },
    "bitsandbytes": {
        ".weight": array("U8", 2048, 1),
        ".weight.absmax": array("F32", 64),
        ".weight.quant_map": array("F32", 16),
        ".weight.quant_state.bitsandbytes__nf4": array("U8", 99),
    },
    "bitsandbytes ": {".weight": array("I8", 64, 64), ".SCB": array("F32", 64)},
    "FP8": {".weight": array("F8_E4M3", 64, 64), ".weight_scale_inv": array("F32", 1, 1)},
    "FP8 ": {".weight": array("F8_E4M3", 64, 64), ".weight_scale": array("F32", 1)},
}


@pytest.mark.parametrize("method", METHODS)
def test_the_method_is_named(make_model: MakeModel, method: str) -> None:
    tensors = llama_tensors() | {STEM + ending: value for ending, value in METHODS[method].items()}
    if ".weight" not in METHODS[method]:
        del tensors[f"{STEM}.weight"]
    with pytest.raises(SpeqError, match=f"quantised with {method.strip()}") as caught:
        open_source(make_model(tensors))
    assert STEM in str(caught.value)
    assert "16-bit" in str(caught.value)


def test_a_plain_checkpoint_is_none_of_them(make_model: MakeModel) -> None:
    tensors = llama_tensors() | {
        f"{STEM}.bias": ("F32", np.ones(64, np.float32)),
        "scales": ("F32", np.ones(3, np.float32)),
    }
    assert open_source(make_model(tensors)).tensors
