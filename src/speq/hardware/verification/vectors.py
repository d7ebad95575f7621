"""Random matrix products for tests: ordinary numbers, every special value, and words that no encoder writes."""

from __future__ import annotations

import numpy as np

from speq.hardware.array_parameters import Gemm
from speq.hardware.e3m0 import bin_exponents, split
from speq.hardware.golden.array import Weights
from speq.hardware.golden.memory import Product

SPECIAL = (0x0000, 0x8000, 0x0001, 0x83FF, 0x0400, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7C01, 0xFE00)
"""FP16: both zeros, smallest and largest subnormal, smallest and largest normal, infinities, NaNs."""

SCALES = (0x0000, 0x8000, 0x0D80, 0x3F80, 0xBF80, 0x7F7F, 0x7F80, 0x7FC0)
"""BF16: zeros, the least that formats use, one and minus one, the largest, infinity, NaN."""


def random_product(rng: np.random.Generator, size: Gemm, *, special: float = 0.0) -> Product:
    """A product of this size.

    ``special`` is the share of tokens with a special activation, of channels with a special scale and of weights
    with any code and residual at all.
    """
    tokens, inputs, outputs = size.tokens, size.inputs, size.outputs
    spread = 2.0 ** rng.integers(-8, 6, (tokens, 1))
    activations = (rng.standard_normal((tokens, inputs)) * spread).astype(np.float16).view(np.uint16)
    # With a table this high, words that no encoder writes decode to infinities and NaN as well.
    table = bin_exponents(int(rng.choice([29, 30]) if rng.random() < special else rng.integers(8, 17)))
    weights = (rng.standard_normal((outputs, inputs)) * 0.2).clip(-1.9, 1.9).astype(np.float16).view(np.uint16)
    codes, residuals, _ = split(weights, table)
    any_word = rng.random(codes.shape) < special
    codes = np.where(any_word, rng.integers(0, 16, codes.shape), codes).astype(np.uint8)
    residuals = np.where(any_word, rng.integers(0, 1 << 12, codes.shape), residuals).astype(np.uint16)
    groups = -(-inputs // size.group_size)
    scales = rng.integers(0x3C00, 0x4100, (outputs, groups)).astype(np.uint16)

    for token in np.flatnonzero(rng.random(tokens) < special):
        activations[token, rng.integers(inputs)] = rng.choice(SPECIAL)
    for channel in np.flatnonzero(rng.random(outputs) < special):
        scales[channel, rng.integers(groups)] = rng.choice(SCALES)
    return Product(activations, Weights(codes, residuals, scales, table, size.group_size), size.draft)


def random_size(rng: np.random.Generator, tokens: int, inputs: int, outputs: int, *, drafts: bool = True) -> Gemm:
    """A size up to these, in any mode, in groups of 4 to 32."""
    return Gemm(
        int(rng.integers(1, tokens + 1)),
        int(rng.integers(1, inputs + 1)),
        int(rng.integers(1, outputs + 1)),
        bool(drafts and rng.integers(2)),
        int(rng.choice([4, 8, 16, 32])),
    )
