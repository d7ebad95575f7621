"""The moments that calibration takes against those that hooks on a transformers model find."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from speq.conversion import observe as observe_module
from speq.conversion.observe import block_width, observe
from speq.conversion.samples import Sample

SAMPLES = [
    Sample(np.array([3, 14, 15, 92, 65, 35, 8, 9], np.int32), 0),
    Sample(np.array([3, 14, 79, 32, 38, 46], np.int32), 2),
    Sample(np.array([26], np.int32), 0),
]


@pytest.mark.parametrize(
    "entries",
    [
        {"model_type": "llama"},
        {"model_type": "qwen2", "tie_word_embeddings": True, "hidden_size": 384, "intermediate_size": 520},
        {"model_type": "qwen3", "head_dim": 24},
    ],
    ids=lambda entries: entries["model_type"],
)
def test_moments_are_those_of_transformers(tiny_model, entries, monkeypatch):
    monkeypatch.setattr(observe_module, "WIDEST", 256)  # so that there are several blocks
    tiny = tiny_model(dtype="fp16", **entries)  # whose activations are not rounded
    inputs: dict[str, list[np.ndarray]] = {}

    def hook(name):
        return lambda module, args: inputs.setdefault(name, []).append(args[0][0].numpy())

    handles = [
        module.register_forward_pre_hook(hook(f"{name}.weight"))
        for name, module in tiny.model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    for sample in SAMPLES:
        tiny.logits(sample.tokens.tolist())
    for handle in handles:
        handle.remove()
    if entries.get("tie_word_embeddings"):
        inputs["model.embed_tokens.weight"] = inputs.pop("lm_head.weight")

    found = {
        name: moments for segment in observe(tiny.config, tiny.weights, SAMPLES, 2) for name, moments in segment.items()
    }
    assert found.keys() == inputs.keys()
    for name, parts in inputs.items():
        x = np.concatenate([part[sample.known :] for part, sample in zip(parts, SAMPLES, strict=True)])
        width = block_width(x.shape[1])
        assert found[name].shape == (-(-x.shape[1] // width), width, width)
        for i, block in enumerate(found[name]):
            part = x[:, i * width : (i + 1) * width]
            expected = np.zeros((width, width))
            expected[: part.shape[1], : part.shape[1]] = part.T @ part / len(x)
            np.testing.assert_allclose(block, expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())
