"""The sizes of the array and the timing constants that its RTL and its cycle formula share."""

from __future__ import annotations

from dataclasses import dataclass

from speq.errors import SpeqError

LANES = 4
"""Draft products of a processing element per cycle, and FP16 values of one row in an activation beat."""

GROUP_SIZES = tuple(LANES << shift for shift in range(8))
"""Inputs that may share a scale; the formats use 32, 64 and 128."""

SCALER_LATENCY = 3
"""Cycles from a group's sum to its scaled and added result: multiply, add, round."""

GROUP_SPACING = SCALER_LATENCY + 1
"""Least cycles between the last steps of two groups of the same outputs: the second adds to what the first wrote."""

COMMAND_TO_STEP = 4
"""Cycles from a job's transfer to its first step: queue, request, buffer, step. Beats arrive from the next cycle on."""

STEP_TO_RESULT = 4 + SCALER_LATENCY
"""Cycles from the last step of an output to its transfer, besides the latency of the processing element: operand
register, captured sum, normalised sum, scaler, output queue."""


@dataclass(frozen=True)
class ArrayParameters:
    """Sizes of the array.

    Attributes:
        rows: tokens computed at once; each row of processing elements has one token's activations.
        columns: output channels computed at once; each column of processing elements has one channel's weights.
        pe_latency: cycles from the operands of a processing element to its accumulator, ``LATENCY`` of the variant.
        burst: beats per request; the buffer of each operand holds two bursts, one in use and one under way.

    Raises:
        SpeqError: a size is out of range.
    """

    rows: int = 8
    columns: int = 16
    pe_latency: int = 3
    burst: int = 16

    def __post_init__(self) -> None:
        for name, low, high in (("rows", 1, 1024), ("columns", 1, 1024), ("pe_latency", 1, 64), ("burst", 8, 4096)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise SpeqError(f"array: {name} is {value!r}; it must be an integer from {low} to {high}")


@dataclass(frozen=True)
class Gemm:
    """One job of the array: ``[tokens, inputs] @ [inputs, outputs]``, as a draft from codes or exactly.

    ``group_size`` is the number of consecutive inputs that share a scale, a power of two from 4 to 512; only drafts use
    it.

    Raises:
        SpeqError: a size is out of range.
    """

    tokens: int
    inputs: int
    outputs: int
    draft: bool
    group_size: int = 64

    def __post_init__(self) -> None:
        for name, high in (("tokens", 1 << 16), ("inputs", 1 << 17), ("outputs", 1 << 20)):
            value = getattr(self, name)
            if not 1 <= value < high:
                raise SpeqError(f"matrix product: {name} is {value}; it must be from 1 to {high - 1}")
        if self.group_size not in GROUP_SIZES:
            raise SpeqError(f"matrix product: group size {self.group_size} is not a power of two from 4 to 512")
