"""Parameters that the golden model and the RTL share: the format of the running sum.

A product of two FP16 numbers, or the sum of four products of FP16 numbers with draft levels, is an integer of at most
``PRODUCT_BITS`` bits and a sign, times ``2**(exponent - EXPONENT_BIAS)``. The running sum is a two's-complement
mantissa and an exponent: it has ``fraction_bits`` more bits below a product's last one and ``integer_bits`` above its
first one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from speq.errors import SpeqError

Rounding: TypeAlias = Literal["truncate", "nearest_even"]

PRODUCT_BITS = 22
"""Bits of the product of two significands of 11 bits."""

EXPONENT_BIAS = 50
"""A product with exponent ``e`` has a last bit worth ``2**(e - 50)``: twice FP16's bias of 15 and twice its 10 bits."""

EXPONENT_BITS = 7
"""Products have exponents of at most 62, and a carry out of the mantissa adds one: 2**60 products do not overflow."""

DRAFT_EXPONENT = 18
"""Added to an activation's exponent in a draft: its last bit, ``2**(e - 25)``, times ``2**-7``, in which level ``c`` is
``2**c``."""

LARGEST_WIDTH = 62
"""What the golden model's 64-bit integers can hold, with room for a carry and a rounding bit."""


@dataclass(frozen=True)
class AccumulatorParameters:
    """The format of the running sum and how it is rounded.

    Attributes:
        fraction_bits: bits of the mantissa below the last bit of a product, at least 0.
        integer_bits: bits above the first bit of a product, sign not counted, at least 1: one of them catches the
            carry of an addition.
        rounding: of the operand that is shifted right to meet the other one: ``truncate`` towards minus infinity,
            or ``nearest_even``. A carry out of the mantissa, which shifts the sum by one bit, truncates in both.
        normalise: shift redundant sign bits out after every addition, as a chain of floating-point additions does;
            otherwise the exponent never falls within a sum.

    Raises:
        SpeqError: a field is outside its range, or the mantissa would be wider than 62 bits.
    """

    fraction_bits: int = 3
    integer_bits: int = 1
    rounding: Rounding = "nearest_even"
    normalise: bool = False

    def __post_init__(self) -> None:
        if self.fraction_bits < 0:
            raise SpeqError(f"an accumulator with {self.fraction_bits} fraction bits is not possible; use 0 or more")
        if self.integer_bits < 1:
            raise SpeqError(f"an accumulator needs at least 1 integer bit to catch a carry, not {self.integer_bits}")
        if self.width > LARGEST_WIDTH:
            raise SpeqError(f"an accumulator of {self.width} bits is too wide; use at most {LARGEST_WIDTH}")
        if self.rounding not in get_args(Rounding):
            choices = ", ".join(get_args(Rounding))
            raise SpeqError(f"unknown accumulator rounding '{self.rounding}'; choose from {choices}")

    @property
    def width(self) -> int:
        """Bits of the two's-complement mantissa."""
        return 1 + self.integer_bits + PRODUCT_BITS + self.fraction_bits
