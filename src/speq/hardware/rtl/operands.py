"""What travels between the edge of a row, a processing element's multiplier and its accumulator."""

from __future__ import annotations

from amaranth.hdl import signed
from amaranth.lib import data

from speq.hardware.parameters import EXPONENT_BITS, PRODUCT_BITS, AccumulatorParameters

LANES = 4

ROW_OPERANDS = data.StructLayout(
    {
        "valid": 1,
        "draft": 1,
        "first": 1,
        "significands": data.ArrayLayout(11, LANES),
        "negative": LANES,
        "exponent": 5,
        "infinite": 1,
        "nan": 1,
    }
)
"""One operation's activations, unpacked once for all elements of a row.

Exact mode has the same significand and sign in every lane; draft mode has four that are aligned to one exponent. The
exponent is 0 exactly when all of them are zero. Without ``valid``, everything but ``draft`` is zero, which adds nothing
to a sum.
"""

PRODUCT = data.StructLayout({"mantissa": signed(PRODUCT_BITS + 1), "exponent": 6, "flags": 2, "first": 1})
"""What one operation adds: ``mantissa * 2**(exponent - 50)``; flags as in the golden model."""


def accumulator_layout(parameters: AccumulatorParameters) -> data.StructLayout:
    """The running sum: ``mantissa * 2**(exponent - 50 - fraction_bits)``; flags as in the golden model."""
    return data.StructLayout({"mantissa": signed(parameters.width), "exponent": EXPONENT_BITS, "flags": 2})
