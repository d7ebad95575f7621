"""P0, the baseline: one FP16 x FP16 product per cycle by a radix-4 Booth multiplier.

It is the smallest of the multipliers that were tried in this flow: yosys' own for ``*`` and an array of 11 rows of AND
gates are a tenth larger.
"""

from __future__ import annotations

from typing import ClassVar

from amaranth.hdl import Module, Value

from speq.hardware.rtl.booth import booth_product
from speq.hardware.rtl.core import Core


class P0(Core):
    """An FP16 multiplier and the accumulator."""

    DRAFTS: ClassVar[bool] = False

    def mantissa(self, m: Module) -> Value:
        return booth_product(m, self.row.significands[0], self.row.negative[0], self.weights)
