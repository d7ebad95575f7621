"""What the formats cost and how near their drafts come: sizes against the promises, scales against float64."""

from __future__ import annotations

import numpy as np
import pytest

from speq.formats import Spec, SplitTensor, decode, draft_values, encode, from_float32, to_float32
from speq.formats.bins import nested_bins
from speq.formats.scales import candidates

RNG = np.random.default_rng(11)
SHAPE = (256, 4096)
WEIGHTS = {
    "normal": RNG.normal(0, 0.02, SHAPE).astype(np.float32),
    "laplace": RNG.laplace(0, 0.02, SHAPE).astype(np.float32),
}


def split(name: str, spec: Spec) -> SplitTensor:
    bits = from_float32(WEIGHTS[name], spec.dtype)
    tensor = encode(bits, spec)
    assert np.array_equal(decode(tensor), bits)
    return tensor


@pytest.mark.parametrize("name", WEIGHTS)
def test_sizes_at_groups_of_64(name):
    assert split(name, Spec.default("nested", "fp16", 64)).bits_per_weight <= 16.75
    assert split(name, Spec.default("nested", "bf16", 64)).bits_per_weight <= 14.6


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_e3m0_is_16_bits_and_scales(name, dtype, group_size):
    tensor = split(name, Spec.default("e3m0", dtype, group_size))
    row_offsets = (tensor.escape_rows.nbytes + tensor.table.nbytes) * 8 / np.prod(SHAPE)
    assert tensor.escapes == 0
    assert tensor.bits_per_weight == pytest.approx(16 + 16 / group_size + row_offsets)
    assert tensor.draft_bits_per_weight == 4 + 16 / group_size


@pytest.mark.parametrize(("format", "bound"), [("nested", 0.008), ("e3m0", 0.037)])
@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_relative_error_of_the_draft(format, bound, dtype):
    tensor = split("normal", Spec.default(format, dtype, 64))
    x = to_float32(from_float32(WEIGHTS["normal"], dtype), dtype)
    error = draft_values(tensor) - x
    assert np.square(error).sum() < bound * np.square(x).sum()


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_nested_scale_is_the_best_candidate(dtype):
    """Draft errors for every candidate, computed from the definition in float64, escapes as code 0."""
    spec = Spec.default("nested", dtype, 64)
    importance = RNG.random(64).astype(np.float32)
    bits = from_float32(RNG.standard_t(4, (40, 64)).astype(np.float32), dtype)
    tensor = encode(bits, spec, column_weights=importance)
    x = to_float32(bits, dtype).astype(np.float64)
    costs = (importance * (draft_values(tensor) - x) ** 2).sum(axis=1)
    for row in range(len(x)):
        largest = np.abs(x[row]).max()
        for candidate in candidates(spec):
            scale = to_float32(from_float32(np.array([largest * candidate], np.float32), "bf16"), "bf16")[0]
            starts = nested_bins(spec, from_float32(np.array(scale), "bf16"))
            residuals = (bits[row] & 0x7FFF).astype(int)[:, None] - starts
            holds = (residuals >= 0) & (residuals < 1 << spec.residual_bits)
            drafts = np.array(spec.levels)[(bits[row] >> 15 << 3)[:, None] + np.arange(8)] * float(scale) / 64
            code = np.where(holds, np.abs(drafts - x[row][:, None]), np.inf).argmin(axis=1)
            value = np.where(holds.any(axis=1), drafts[np.arange(64), code], spec.levels[0] * float(scale) / 64)
            assert costs[row] <= (importance * (value - x[row]) ** 2).sum() * (1 + 1e-5)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_e3m0_scale_is_least_squares(dtype):
    tensor = split("normal", Spec.default("e3m0", dtype, 64))
    x = to_float32(from_float32(WEIGHTS["normal"], dtype), dtype).astype(np.float64).reshape(-1, 64)
    draft = draft_values(tensor).astype(np.float64).reshape(-1, 64)
    best = (draft * x).sum(axis=1) / (draft * draft).sum(axis=1)
    assert np.abs(best - 1).max() < 1 / 250


def test_e3m0_levels_are_powers_of_two():
    tensor = split("normal", Spec.default("e3m0", "fp16", 128))
    x = to_float32(from_float32(WEIGHTS["normal"], "fp16"), "fp16")
    drawn = np.abs(draft_values(tensor)[0, :128])
    ratios = np.log2(drawn[drawn > 0] / drawn.max())
    assert np.array_equal(ratios, np.round(ratios))
    finest = tensor.table[7] >> 10
    assert finest in (np.abs(x).max().view(np.uint32) >> 23) - 112 - np.arange(4)
