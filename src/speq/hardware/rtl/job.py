"""What the parts of the array tell each other: jobs, requests for operands, steps and results."""

from __future__ import annotations

from amaranth.hdl import Value
from amaranth.lib.data import ArrayLayout, StructLayout

from speq.hardware.array_parameters import LANES, ArrayParameters

ADDRESS_BITS = 32
TOKEN_BITS, INPUT_BITS, OUTPUT_BITS = 16, 17, 20

JOB = StructLayout(
    {
        "draft": 1,
        "tokens": TOKEN_BITS,
        "inputs": INPUT_BITS,
        "outputs": OUTPUT_BITS,
        "group_shift": 3,  # a group of a draft is 4 << group_shift inputs
        "table": ArrayLayout(5, 8),  # e3m0: the exponents at which the bins of the tensor begin
        "codes": ADDRESS_BITS,  # addresses count beats of their own stream
        "residuals": ADDRESS_BITS,
        "scales": ADDRESS_BITS,
        "activations": ADDRESS_BITS,
    }
)
"""One matrix product. Sizes are at least 1."""


def request_layout(array: ArrayParameters) -> StructLayout:
    """``beats`` consecutive beats from ``address`` on, at most ``array.burst``."""
    return StructLayout({"address": ADDRESS_BITS, "beats": range(array.burst + 1)})


def code_layout(array: ArrayParameters) -> ArrayLayout:
    """A code beat: the 4-bit codes of inputs 4j to 4j + 3 for every column, whatever the mode."""
    return ArrayLayout(ArrayLayout(4, LANES), array.columns)


def residual_layout(array: ArrayParameters) -> ArrayLayout:
    """A residual beat: the 12 bits of one input's weights that are not in the code, for every column."""
    return ArrayLayout(12, array.columns)


def scale_layout(array: ArrayParameters) -> ArrayLayout:
    """A scale beat: one BF16 number per column."""
    return ArrayLayout(16, array.columns)


def activation_layout(array: ArrayParameters) -> ArrayLayout:
    """An activation beat: FP16 bits of inputs 4j to 4j + 3 for every row, whatever the mode."""
    return ArrayLayout(ArrayLayout(16, LANES), array.rows)


def sum_layout(array: ArrayParameters) -> StructLayout:
    """What goes with the last step of a sum to the edge of the array."""
    return StructLayout(
        {
            "draft": 1,
            "begins": 1,  # the first sum of its outputs
            "final": 1,  # the last sum of its outputs
            "ends": 1,  # the last sum of its job
            "rows": range(array.rows + 1),
            "columns": range(array.columns + 1),
            "scales": scale_layout(array),
        }
    )


def step_layout(array: ArrayParameters) -> StructLayout:
    """What the array does in a cycle: at most one operation per processing element."""
    return StructLayout(
        {
            "enable": array.rows,  # one bit per row; none: nothing happens
            "draft": 1,
            "first": 1,  # of a sum
            "last": 1,  # of a sum
            "table": ArrayLayout(5, 8),
            "weights": ArrayLayout(16, array.columns),  # four codes (draft), or code and residual << 4 (exact)
            "activations": activation_layout(array),
            "sum": sum_layout(array),  # with the last step of a sum
        }
    )


def result_layout(array: ArrayParameters) -> StructLayout:
    """One token's FP32 outputs of a column block: ``columns`` of them from column 0 on, zeros after them.

    Results come column block by column block, in each of them token by token; ``last`` marks a job's last one.
    """
    return StructLayout(
        {"results": ArrayLayout(32, array.columns), "columns": range(array.columns + 1), "last": 1},
    )


def ceil_shift(value: Value, shift: Value | int) -> Value:
    """``value / 2**shift``, rounded up."""
    ones = (Value.cast(1) << shift) - 1
    return (value + ones) >> shift
