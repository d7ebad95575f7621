"""Random models and heads, small enough that every test takes a second or two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from speq.formats import Spec, encode, from_float32, to_float32
from speq.models.config import model_config
from speq.models.decoder import weight_shapes
from speq.models.head import HeadConfig, parameter_shapes
from speq.training.head import Head
from speq.training.target import Target, default_taps

SIZES = {
    "model_type": "llama",
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}


@pytest.fixture(autouse=True)
def _one_thread():
    """Sums in one order, and nobody else's processors."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def random_model() -> Callable[..., tuple[dict[str, Any], dict[str, Any]]]:
    """A function from config.json entries (over ``SIZES``) to a config and weights: split matrices and vectors."""

    def build(**entries: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        config = {**SIZES, **entries}
        rng = np.random.default_rng(0)
        weights: dict[str, Any] = {}
        for name, shape in weight_shapes(model_config(config)).items():
            spread = 2 / shape[-1] ** 0.5 if len(shape) == 2 else 0.2
            values = rng.standard_normal(shape).astype(np.float32) * np.float32(spread)
            if len(shape) == 1 and "bias" not in name:
                values += np.float32(1)
            bits = from_float32(values, "bf16")
            spec = Spec.default("nested", "bf16", 32)
            weights[name] = encode(bits, spec, threads=1) if len(shape) == 2 else to_float32(bits, "bf16")
        return config, weights

    return build


@pytest.fixture(scope="session")
def random_head(random_model) -> tuple[Target, Head, torch.Tensor]:
    """A model, a head with random weights for it, and the model's ids of the head's 40 tokens."""
    config, weights = random_model()
    target = Target(config, weights, "cpu")
    sizes = HeadConfig.of(target.config, 80, 40, default_taps(3))
    generator = torch.Generator().manual_seed(1)
    parameters = {
        name: torch.randn(shape, generator=generator) * (1.5 / shape[-1] ** 0.5 if len(shape) == 2 else 0.2)
        + (len(shape) == 1)
        for name, shape in parameter_shapes(sizes).items()
    }
    known = torch.sort(torch.randperm(97, generator=generator)[:40]).values
    return target, Head(sizes, parameters, target.embedding), known
