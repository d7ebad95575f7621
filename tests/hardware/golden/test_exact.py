"""The error of a sum stays within what golden/exact.py proves, and can come near it."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from speq.errors import SpeqError
from speq.hardware.golden.exact import accumulator_value, error_bound, exact_sum
from speq.hardware.golden.pe import Accumulator, accumulate
from speq.hardware.parameters import AccumulatorParameters

FORMATS = [
    AccumulatorParameters(),
    AccumulatorParameters(normalise=True),
    AccumulatorParameters(0, 1, "truncate"),
    AccumulatorParameters(5, 3, "truncate", normalise=True),
    AccumulatorParameters(8, 4, "nearest_even"),
]


def operations(rng, kind, steps):
    """Finite operations of both modes: activations [K, 4], words [K], modes [K]."""
    draft = rng.random(steps) < {"exact": 0, "draft": 1}.get(kind, 0.5)
    if kind == "any bits":
        activations, weights = rng.integers(0, 1 << 16, (steps, 4)), rng.integers(0, 1 << 16, steps)
    else:
        spread = 2.0 ** rng.normal(0, 3, (steps, 4))
        activations = (rng.normal(0, 1, (steps, 4)) * spread).astype(np.float16).view(np.uint16)
        weights = rng.normal(0, 0.02, steps).astype(np.float16).view(np.uint16)
        if kind == "cancelling":
            activations[steps // 2 :] = activations[: steps - steps // 2] ^ 0x8000
            weights[steps // 2 :], draft[steps // 2 :] = weights[: steps - steps // 2], draft[: steps - steps // 2]

    def finite(bits):
        return np.where(bits & 0x7C00 == 0x7C00, bits ^ 0x0400, bits).astype(np.uint16)

    weights = np.where(draft, rng.integers(0, 1 << 16, steps), finite(weights)).astype(np.uint16)
    if kind == "cancelling":
        weights[steps // 2 :] = weights[: steps - steps // 2]
    return finite(activations), weights, draft


def run(activations, weights, draft, parameters):
    state = Accumulator.zeros()
    for k, word in enumerate(weights):
        state = accumulate(state, activations[k], word, bool(draft[k]), k == 0, parameters)
    return accumulator_value(state, parameters)


@pytest.mark.parametrize("parameters", FORMATS, ids=str)
@pytest.mark.parametrize("kind", ["exact", "draft", "cancelling", "any bits"])
def test_error_is_within_the_bound(parameters, kind):
    rng = np.random.default_rng(5)
    for steps in (1, 2, 7, 64):
        case = operations(rng, kind, steps)
        error = run(*case, parameters) - exact_sum(*case)
        assert abs(error) <= error_bound(*case, parameters)


def test_truncation_comes_near_the_bound():
    """Products that lose nearly a unit each: 1 and then many of just below -2**-21, of which no bit fits."""
    parameters = AccumulatorParameters(0, 1, "truncate")
    steps = 200
    activations = np.zeros((steps, 4), np.uint16)
    activations[:, 0] = np.float16(-(2.0**-11)).view(np.uint16)
    weights = np.full(steps, np.float16(2.0**-14).view(np.uint16))
    activations[0, 0], weights[0] = np.float16(1).view(np.uint16), np.float16(1).view(np.uint16)
    case = (activations, weights, np.zeros(steps, np.bool_))
    error = abs(run(*case, parameters) - exact_sum(*case))
    assert error_bound(*case, parameters) / 2 < error <= error_bound(*case, parameters)


def test_sums_that_fit_are_exact():
    """Products of numbers of one or two exponents fit into 62 bits whatever the order."""
    rng = np.random.default_rng(0)
    parameters = AccumulatorParameters(fraction_bits=30, integer_bits=9)
    activations = (rng.integers(1024, 4096, (300, 4)) | 0x3C00).astype(np.uint16)
    weights = rng.integers(0, 1 << 16, 300).astype(np.uint16)
    draft = np.ones(300, np.bool_)
    assert run(activations, weights, draft, parameters) != Fraction(0)
    aligned = activations & 0xFFFE  # the smaller of two exponents loses one bit
    assert run(aligned, weights, draft, parameters) == exact_sum(aligned, weights, draft)


def test_sums_that_are_too_long_for_a_bound():
    parameters = AccumulatorParameters(0, 1, "truncate")
    steps = 1 << 21
    with pytest.raises(SpeqError, match="24 bits bounds no error"):
        error_bound(np.zeros((steps, 4), np.uint16), np.zeros(steps, np.uint16), np.zeros(steps, np.bool_), parameters)
