"""What all processing elements share: exponents, special values, the product register and the accumulator.

A variant only says how it forms the mantissa of an operation. There are no registers for operands in an element:
activations are registered at the edge of their row and weights at the head of their column, from where they are
broadcast. The product is registered, for all variants alike.
"""

from __future__ import annotations

from typing import Any, ClassVar

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from speq.hardware.parameters import DRAFT_EXPONENT, PRODUCT_BITS, AccumulatorParameters
from speq.hardware.rtl.accumulator import Accumulate
from speq.hardware.rtl.operands import PRODUCT, ROW_OPERANDS, accumulator_layout
from speq.hardware.rtl.row_edge import Unpacked


class Core(wiring.Component):
    """A processing element without its operand registers.

    ``row`` and ``weights`` belong to the same operation: FP16 bits in exact mode, four codes in draft mode. The
    accumulator holds it ``LATENCY`` cycles later.
    """

    LATENCY: ClassVar[int] = 2
    DRAFTS: ClassVar[bool] = True
    """Whether the variant has a draft mode; one that has not ignores ``row.draft``."""

    def __init__(self, parameters: AccumulatorParameters) -> None:
        self.parameters = parameters
        super().__init__(
            {"row": In(ROW_OPERANDS), "weights": In(16), "accumulator": Out(accumulator_layout(parameters))}
        )

    def mantissa(self, m: Module) -> Value:
        """The mantissa of the operation's product, signed, ``PRODUCT_BITS + 1`` bits."""
        raise NotImplementedError

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.accumulate = accumulate = Accumulate(self.parameters)
        row, weight = self.row, Unpacked(self.weights)
        draft = row.draft if self.DRAFTS else 0
        product = Signal(PRODUCT)
        m.d.comb += product.mantissa.eq(self.mantissa(m)[: PRODUCT_BITS + 1])

        # A product of zero must not raise the exponent of the sum, so it has exponent 0.
        row_zero = ~row.exponent.any()
        summand = Mux(draft, DRAFT_EXPONENT, weight.exponent)
        zero = row_zero | (weight.zero & ~Value.cast(draft))
        m.d.comb += product.exponent.eq(Mux(zero, 0, row.exponent + summand))

        finite_weight = Value.cast(draft) | ~row.valid
        infinite = row.infinite | (weight.infinite & ~finite_weight)
        nan = row.nan | (weight.nan & ~finite_weight) | (infinite & zero)
        negative = row.negative[0] ^ self.weights[15]
        m.d.comb += product.flags.eq(Cat(nan | (infinite & ~negative), nan | (infinite & negative)))
        m.d.comb += product.first.eq(row.first)

        # Nothing behind the row's edge needs a reset: a sum begins with ``first``.
        registered = Signal(PRODUCT, reset_less=True)
        m.d.sync += registered.eq(product)
        m.d.comb += accumulate.product.eq(registered)
        m.d.comb += self.accumulator.eq(accumulate.accumulator)
        return m
