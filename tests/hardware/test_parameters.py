"""Accumulator parameters that cannot be, and what is said about them."""

from __future__ import annotations

import pytest

from speq.errors import SpeqError
from speq.hardware.parameters import AccumulatorParameters


@pytest.mark.parametrize(
    ("fields", "culprit"),
    [
        ({"fraction_bits": -1}, "-1 fraction bits"),
        ({"integer_bits": 0}, "integer bit"),
        ({"fraction_bits": 40}, "64 bits is too wide"),
        ({"rounding": "up"}, "'up'"),
    ],
)
def test_impossible_parameters_are_one_clear_line(fields, culprit):
    with pytest.raises(SpeqError, match=culprit) as error:
        AccumulatorParameters(**fields)
    assert "\n" not in str(error.value)


def test_width_counts_sign_integer_product_and_fraction_bits():
    assert AccumulatorParameters(fraction_bits=3, integer_bits=1).width == 27
    assert AccumulatorParameters(fraction_bits=38, integer_bits=1).width == 62
