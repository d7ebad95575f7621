"""Rotary positions of GGUF files against the arithmetic of ggml's rope, written down here a second time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_models import HEAD_DIM, random_weights, write_gguf
from numpy.typing import NDArray
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from speq.checkpoint.sources.opening import open_source
from speq.models.config import model_config

BASE, CONTEXT = 100000.0, 128
DIVISORS = np.linspace(0.5, 8, HEAD_DIM // 2).astype(np.float32)
TYPE, FACTOR, OLD_FACTOR = "rope.scaling.type", "rope.scaling.factor", "rope.scale_linear"
ATTENTION, ORIGINAL = "rope.scaling.attn_factor", "rope.scaling.original_context_length"

FILES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "none with a factor": {TYPE: "none", FACTOR: 4.0},
    "linear": {TYPE: "linear", FACTOR: 4.0},
    "factor without type": {FACTOR: 4.0},
    "linear without factor": {TYPE: "linear"},
    "old factor": {OLD_FACTOR: 4.0},
    "old factor with a type": {TYPE: "linear", OLD_FACTOR: 3.0},
    "both factors": {FACTOR: 4.0, OLD_FACTOR: 2.0},
    "factor zero and the old one": {FACTOR: 0.0, OLD_FACTOR: 2.0},
    "factor below one": {FACTOR: 0.5},
    "none with an old factor": {TYPE: "none", OLD_FACTOR: 4.0},
    "base": {"rope.freq_base": 500.0, FACTOR: 2.0},
    "no base": {"rope.freq_base": None},
    "attention factor alone": {ATTENTION: 1.25},
    "attention factor and linear": {FACTOR: 4.0, ATTENTION: 0.75},
    "yarn": {TYPE: "yarn", FACTOR: 4.0, ORIGINAL: 32},
    "yarn of the whole context": {TYPE: "yarn", FACTOR: 4.0},
    "yarn with the original context zero": {TYPE: "yarn", FACTOR: 4.0, ORIGINAL: 0},
    "yarn with an old factor": {TYPE: "yarn", OLD_FACTOR: 4.0, ORIGINAL: 32},
    "yarn without factor": {TYPE: "yarn", ORIGINAL: 32},
    "yarn below one": {TYPE: "yarn", FACTOR: 0.5, ORIGINAL: 32},
    "yarn attention factor": {TYPE: "yarn", FACTOR: 4.0, ORIGINAL: 32, ATTENTION: 0.75},
    "yarn keys of other architectures": {
        TYPE: "yarn",
        FACTOR: 4.0,
        ORIGINAL: 32,
        "rope.scaling.yarn_beta_fast": 8.0,
        "rope.scaling.yarn_beta_slow": 2.0,
        "rope.scaling.yarn_log_multiplier": 0.1,
        "rope.scaling.yarn_attn_factor": 2.0,
        "rope.scaling.yarn_ext_factor": 0.5,
    },
    "divisors": {"divisors": DIVISORS},
    "divisors and linear": {"divisors": DIVISORS, FACTOR: 4.0},
    "divisors and attention factor": {"divisors": DIVISORS, ATTENTION: 0.75},
    "divisors without scaling": {"divisors": DIVISORS, TYPE: "none", FACTOR: 4.0},
    "divisors of one": {"divisors": np.ones(HEAD_DIM // 2, np.float32)},
    "longrope": {TYPE: "longrope", "short": DIVISORS, "long": 2 * DIVISORS, ORIGINAL: 64},
    "longrope and linear": {TYPE: "longrope", "short": DIVISORS, "long": 2 * DIVISORS, FACTOR: 2.0, ATTENTION: 1.5},
}
TENSORS = {
    "divisors": "rope_freqs.weight",
    "short": "rope_factors_short.weight",
    "long": "rope_factors_long.weight",
}


def ggml_rope(given: dict[str, Any]) -> tuple[NDArray[np.float64], float]:
    """Angles per position and the factor on cosine and sine, as llama.cpp sets up and ggml computes them."""
    kind, base = given.get(TYPE, "linear"), given.get("rope.freq_base", BASE) or 10000.0
    given_factor = given.get(FACTOR, given.get(OLD_FACTOR, 0.0))
    freq_scale = 1.0 if not given_factor or kind == "none" else 1 / given_factor
    original = given.get(ORIGINAL) or CONTEXT
    ext_factor, attn_factor = float(kind == "yarn"), 1.0
    if ext_factor:
        factor = 1 / freq_scale
        attn_factor = (0.1 * math.log(factor) + 1 if factor > 1 else 1.0) / (1 + 0.1 * math.log(factor))
    attn_factor *= given.get(ATTENTION, 1.0)

    def corr_dim(rotations: float) -> float:
        return HEAD_DIM * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = max(0, math.floor(corr_dim(32))), min(HEAD_DIM - 1, math.ceil(corr_dim(1)))
    angles = []
    for pair in range(HEAD_DIM // 2):
        divisor = given.get("divisors", given.get("short", np.ones(HEAD_DIM // 2)))[pair]
        extrapolated = base ** (-2 * pair / HEAD_DIM) / divisor
        ramp = (1 - min(1, max(0, (pair - low) / max(0.001, high - low)))) * ext_factor
        angles.append(freq_scale * extrapolated * (1 - ramp) + extrapolated * ramp)
    return np.array(angles), attn_factor * (1 + 0.1 * math.log(1 / freq_scale) if ext_factor else 1)


@pytest.mark.parametrize("name", FILES)
def test_frequencies_are_those_of_ggml(tmp_path: Path, name: str) -> None:
    given = FILES[name]
    metadata = {f"llama.{key}": value for key, value in given.items() if key not in TENSORS}
    extra = {TENSORS[key]: value for key, value in given.items() if key in TENSORS}
    source = open_source(write_gguf(tmp_path / "m.gguf", random_weights(), metadata=metadata, extra=extra))
    angles, scale = ggml_rope(given)

    mine = model_config(source.config).rotary
    np.testing.assert_allclose(mine.inv_freq, angles, rtol=2e-6)
    assert mine.scale == pytest.approx(scale, rel=1e-6)

    theirs = LlamaConfig(**{key: value for key, value in source.config.items() if key != "model_type"})
    kind = theirs.rope_parameters["rope_type"]
    if kind != "default":
        inv_freq, their_scale = ROPE_INIT_FUNCTIONS[kind](theirs, device="cpu")
        np.testing.assert_allclose(inv_freq.numpy(), angles, rtol=1e-5)
        assert their_scale == pytest.approx(scale, rel=1e-6)


@pytest.mark.parametrize(
    ("name", "context"),
    [("nothing", 128), ("divisors and linear", 128), ("longrope", 64), ("longrope and linear", 128)],
)
def test_the_context_ends_where_the_frequencies_would_change(tmp_path: Path, name: str, context: int) -> None:
    given = FILES[name]
    metadata = {f"llama.{key}": value for key, value in given.items() if key not in TENSORS}
    extra = {TENSORS[key]: value for key, value in given.items() if key in TENSORS}
    source = open_source(write_gguf(tmp_path / "m.gguf", random_weights(), metadata=metadata, extra=extra))
    assert model_config(source.config).context_length == context
