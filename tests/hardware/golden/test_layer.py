"""Drafts of whole layers have the bits of the golden model, whatever the activations."""

from __future__ import annotations

import numpy as np
import pytest

from speq.errors import SpeqError
from speq.hardware.golden.array import Weights, draft_product
from speq.hardware.golden.layer import Layer
from speq.hardware.parameters import AccumulatorParameters

PARAMETERS = AccumulatorParameters()


def random_weights(rng, channels, inputs, group_size, codes=16):
    groups = -(-inputs // group_size)
    scales = (rng.lognormal(-4, 2, (channels, groups)).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return Weights(
        rng.integers(0, codes, (channels, inputs)).astype(np.uint8),
        np.zeros((channels, inputs), np.uint16),
        scales,
        np.zeros(8, np.uint8),
        group_size,
    )


ACTIVATIONS = {
    "usual": lambda rng, shape: rng.standard_normal(shape),
    "of one sign, which carry": lambda rng, shape: rng.uniform(0.9, 1.0, shape),
    "of all magnitudes": lambda rng, shape: rng.standard_normal(shape) * 2.0 ** rng.integers(-24, 15, shape),
    "with outliers and zeros": lambda rng, shape: (
        rng.standard_normal(shape) * rng.choice([0, 1, 300], shape, p=[0.3, 0.6, 0.1])
    ),
    "all zero": lambda rng, shape: np.zeros(shape),
}


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize(("inputs", "group_size"), [(192, 64), (200, 128), (31, 32), (1028, 128)])
def test_a_layer_has_the_bits_of_the_golden_model(kind, inputs, group_size):
    rng = np.random.default_rng(inputs)
    activations = ACTIVATIONS[kind](rng, (5, inputs)).astype(np.float16).view(np.uint16)
    weights = random_weights(rng, 23, inputs, group_size, codes=8 if "carry" in kind else 16)
    expected = draft_product(activations, weights, PARAMETERS)
    assert np.array_equal(Layer(weights).draft(activations), expected)


def test_sums_that_carry_are_left_to_the_golden_model(monkeypatch):
    rng = np.random.default_rng(0)
    activations = ACTIVATIONS["of one sign, which carry"](rng, (5, 192)).astype(np.float16).view(np.uint16)
    weights = random_weights(rng, 23, 192, 64, codes=8)
    weights.codes[:4] = 7
    asked = []

    def one(self, row, channel, compute=Layer._one):
        asked.append(channel)
        return compute(self, row, channel)

    monkeypatch.setattr(Layer, "_one", one)
    assert np.array_equal(Layer(weights).draft(activations), draft_product(activations, weights, PARAMETERS))
    assert {0, 1, 2, 3} <= set(asked)
    asked.clear()
    wider = AccumulatorParameters(integer_bits=9)
    assert np.array_equal(Layer(weights, wider).draft(activations), draft_product(activations, weights, wider))
    assert asked == []


def test_tokens_that_are_not_finite_spoil_their_own_results_alone():
    rng = np.random.default_rng(1)
    activations = rng.standard_normal((4, 64)).astype(np.float16)
    activations[1, 7], activations[2, 8] = np.inf, np.nan
    weights = random_weights(rng, 9, 64, 64)
    bits = Layer(weights).draft(activations.view(np.uint16))
    assert np.array_equal(bits, draft_product(activations.view(np.uint16), weights, PARAMETERS))
    assert np.isnan(bits.view(np.float32)).all(axis=1).tolist() == [False, True, True, False]


def test_blocks_of_channels_meet(monkeypatch):
    rng = np.random.default_rng(2)
    activations = rng.standard_normal((3, 128)).astype(np.float16).view(np.uint16)
    weights = random_weights(rng, 50, 128, 64)
    monkeypatch.setattr("speq.hardware.golden.layer._BLOCK", 3 * 2 * 7)
    assert np.array_equal(Layer(weights).draft(activations), draft_product(activations, weights, PARAMETERS))


@pytest.mark.parametrize("options", [{"rounding": "truncate"}, {"normalise": True}, {"fraction_bits": 30}])
def test_other_sums_are_refused(options):
    with pytest.raises(SpeqError, match="at most 50 bits"):
        Layer(random_weights(np.random.default_rng(3), 2, 64, 64), AccumulatorParameters(**options))
