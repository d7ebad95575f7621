"""Weights of the array come from split tensors, or are refused in one clear line."""

from __future__ import annotations

import numpy as np
import pytest

from speq.errors import SpeqError
from speq.formats import decode, encode
from speq.formats.spec import Spec
from speq.hardware.golden.array import Weights, gemm
from speq.hardware.golden.decoder import decode as decode_words


def some_bits(channels=5, inputs=70):
    return (np.random.default_rng(0).standard_normal((channels, inputs)) * 0.1).astype(np.float16).view(np.uint16)


def test_a_split_tensor_keeps_its_weights_and_scales():
    tensor = encode(some_bits(), Spec.default("e3m0", "fp16", 32))
    weights = Weights.from_split(tensor)
    assert np.array_equal(decode_words(weights.codes, weights.residuals, weights.table), decode(tensor))
    assert weights.scales.shape == (5, 3)
    assert weights.scales[4, 2] == tensor.scales[1, 2, 0]


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (lambda: encode(some_bits(), Spec.default("nested", "fp16", 64)), "nested of fp16"),
        (lambda: encode(some_bits(), Spec.default("e3m0", "bf16", 64)), "e3m0 of bf16"),
        (lambda: encode(np.full((1, 4), 0x7C00, np.uint16), Spec.default("e3m0", "fp16", 64)), "infinite or NaN"),
    ],
)
def test_other_tensors_are_refused(tensor, message):
    with pytest.raises(SpeqError, match=message):
        Weights.from_split(tensor())


def test_shapes_that_do_not_fit_are_refused():
    weights = Weights.from_split(encode(some_bits(), Spec.default("e3m0", "fp16", 64)))
    with pytest.raises(SpeqError, match="activations of 3 inputs"):
        gemm(np.zeros((1, 3), np.uint16), weights, False)
    with pytest.raises(SpeqError, match="5 x 3 scales"):
        Weights(weights.codes, weights.residuals, weights.scales, weights.table, 32)
