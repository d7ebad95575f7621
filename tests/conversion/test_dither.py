"""Noise within quantisation steps: the steps against the values they separate, and the noise's distribution."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_models import random_weights, write_gguf
from hf_models import MakeModel, llama_tensors

from speq.checkpoint.sources.opening import open_source
from speq.conversion.dither import DITHERABLE, DitheredSource, step_sizes
from speq.errors import SpeqError

SCALES = {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "Q4_1": (0, 2),
    "Q5_1": (0, 2),
}


@pytest.mark.parametrize("kind", DITHERABLE)
def test_steps_are_the_distances_between_neighbouring_values(kind: str) -> None:
    quantised = gguf.GGMLQuantizationType[kind]
    _, block_bytes = gguf.GGML_QUANT_SIZES[quantised]
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, (16, 8 * block_bytes), dtype=np.uint8)
    blocks = data.reshape(-1, block_bytes)
    for offset in SCALES.get(kind, (0,)):
        blocks[:, offset : offset + 2] = rng.uniform(-0.01, 0.01, (len(blocks), 1)).astype(np.float16).view(np.uint8)
    values = gguf.quants.dequantize(data, quantised).astype(np.float64)
    steps = step_sizes(kind, data).astype(np.float64)
    assert values.size % steps.size == 0
    groups = values.reshape(16, steps.shape[1], -1)
    for group, step in zip(groups.reshape(steps.size, -1), steps.reshape(-1), strict=True):
        distances = np.diff(np.unique(group))
        if step == 0:
            assert np.ptp(group) == 0
            continue
        # Every distance is a whole number of steps, and the step is no multiple of the true one: some are neighbours.
        assert np.allclose(distances / step, np.rint(distances / step), atol=1e-3)
    nearest = np.array([np.diff(np.unique(group)).min(initial=np.inf) for group in groups.reshape(steps.size, -1)])
    usable = np.isfinite(nearest) & (steps.reshape(-1) > 0)
    # Sixteen to 32 values out of at most 256 levels: in most groups (Q8_0, Q6_K: in some) two are neighbours.
    assert np.isclose(nearest[usable] / steps.reshape(-1)[usable], 1, atol=1e-3).mean() > (
        0.9 if kind[1] < "6" else 0.2
    )


def test_noise_is_uniform_within_the_step(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", random_weights(), kind="Q4_0", architecture="qwen2")
    plain, dithered = open_source(path), DitheredSource(path, 7)
    name = "model.layers.0.mlp.gate_proj.weight"
    stored = next(t for t in gguf.GGUFReader(path).tensors if t.name == "blk.0.ffn_gate.weight")
    steps = np.repeat(step_sizes("Q4_0", np.array(stored.data)), 32, axis=1)
    fraction = (dithered.read(name).astype(np.float64) - plain.read(name)) / steps
    assert np.abs(fraction).max() <= 0.5 + 1e-3
    counts, _ = np.histogram(fraction, bins=20, range=(-0.5, 0.5))
    expected = fraction.size / 20
    assert ((counts - expected) ** 2 / expected).sum() < 50  # chi-square, 19 degrees of freedom: p < 1e-4 beyond
    assert abs(np.corrcoef(fraction[:, :-1].ravel(), fraction[:, 1:].ravel())[0, 1]) < 0.01


def test_noise_depends_on_seed_and_name_but_not_on_the_reading(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", random_weights(), kind="Q8_0")
    one, again, other = (DitheredSource(path, seed) for seed in (1, 1, 2))
    name = "model.layers.0.self_attn.q_proj.weight"
    whole = one.read(name)
    parts = [again.read(name, start, start + 11) for start in range(0, 256, 11)]
    assert np.array_equal(whole, np.concatenate(parts))
    assert not np.array_equal(whole, other.read(name))
    assert np.array_equal(one.read("model.norm.weight"), random_weights()["output_norm"])
    assert "dithered with seed 1" in one.notes[1]


def test_types_without_even_steps_are_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", random_weights(), kind="MXFP4")
    open_source(path)
    with pytest.raises(SpeqError, match="MXFP4, which --dither cannot spread; it can: Q4_0"):
        DitheredSource(path, 1)
    with pytest.raises(SpeqError, match="unquantised"):
        DitheredSource(write_gguf(tmp_path / "f.gguf", random_weights(), kind="F16"), 1)


def test_dither_is_for_quantised_files(make_model: MakeModel) -> None:
    with pytest.raises(SpeqError, match="--dither"):
        DitheredSource(make_model(llama_tensors()), 1)
