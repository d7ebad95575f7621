"""Tiny random models, built by transformers from the same ``config.json`` that speq reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM

SIZES = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}


@dataclass
class TinyModel:
    """A transformers model, the config.json it was built from, and its weights: split matrices and float32 vectors."""

    config: dict[str, Any]
    weights: dict[str, Any]
    model: Any

    def widened(self) -> dict[str, Any]:
        """The weights with float32 matrices, whose activations no product rounds."""
        from speq.formats import SplitTensor, decode, to_float32

        return {
            name: to_float32(decode(weight), weight.spec.dtype) if isinstance(weight, SplitTensor) else weight
            for name, weight in self.weights.items()
        }

    def logits(self, ids: list[int]) -> NDArray[np.float32]:
        with torch.no_grad():
            return self.model(torch.tensor([ids])).logits[0].numpy()


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., TinyModel]:
    """A function from config.json entries (over ``SIZES``) to a TinyModel; matrices rounded to ``dtype``."""
    return _build


def _build(dtype: str = "bf16", seed: int = 0, **entries: Any) -> TinyModel:
    from speq.formats import Spec, encode, from_float32, to_float32

    config = {**SIZES, **entries}
    torch.manual_seed(seed)
    hf_config = AutoConfig.for_model(**{key: _copy(value) for key, value in config.items()})
    model = AutoModelForCausalLM.from_config(hf_config, attn_implementation="eager", dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, Any] = {}
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        matrix = parameter.ndim == 2
        value = noise * (2 / parameter.shape[1] ** 0.5 if matrix else 0.2) + (0 if matrix or "bias" in name else 1)
        bits = from_float32(value.numpy(), dtype)
        parameter.data = torch.from_numpy(to_float32(bits, dtype).copy())
        weights[name] = (
            encode(bits, Spec.default("nested", dtype, 32), threads=1) if matrix else to_float32(bits, dtype)
        )
    return TinyModel(config, weights, model)


def _copy(value: Any) -> Any:
    return dict(value) if isinstance(value, dict) else value
