"""Matrix products as the array computes them, bit for bit.

An output is a function of its token's activations and its channel's weights alone: inputs in ascending order, one sum
in an exact pass; in a draft pass one sum per group, scaled and added to the groups before it. Neither the number of
tokens nor the size of the array nor anything else that it does can change it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speq.errors import SpeqError
from speq.formats.layout import unpack_codes, unpack_residuals
from speq.formats.tensor import SplitTensor
from speq.hardware.array_parameters import LANES, Gemm
from speq.hardware.e3m0 import pack_draft
from speq.hardware.golden.decoder import decode
from speq.hardware.golden.pe import Accumulator, accumulate, to_float32
from speq.hardware.golden.scaler import multiply_add
from speq.hardware.parameters import AccumulatorParameters


@dataclass(frozen=True, eq=False)
class Weights:
    """A matrix of N channels by K inputs in the format ``e3m0``.

    Attributes:
        codes: uint8 [N, K], sign and bin.
        residuals: uint16 [N, K], 12 bits.
        scales: uint16 [N, G], BF16 bits, one per group of ``group_size`` inputs, the last group possibly shorter.
        table: uint8 [8], the exponents at which the bins begin.
        group_size: inputs that share a scale.

    Raises:
        SpeqError: the shapes do not fit.
    """

    codes: NDArray[np.uint8]
    residuals: NDArray[np.uint16]
    scales: NDArray[np.uint16]
    table: NDArray[np.uint8]
    group_size: int

    def __post_init__(self) -> None:
        channels, inputs = self.codes.shape
        groups = -(-inputs // self.group_size)
        if self.residuals.shape != self.codes.shape or self.scales.shape != (channels, groups):
            raise SpeqError(
                f"weights of {channels} x {inputs} in groups of {self.group_size} need as many residuals and "
                f"{channels} x {groups} scales, not {self.residuals.shape} and {self.scales.shape}"
            )

    @classmethod
    def from_split(cls, tensor: SplitTensor) -> Weights:
        """The weights of a split FP16 matrix in ``e3m0``.

        Raises SpeqError for other formats, and for infinities and NaN, which the planes do not hold.
        """
        spec, (channels, inputs) = tensor.spec, tensor.shape
        if (spec.format, spec.dtype) != ("e3m0", "fp16"):
            raise SpeqError(f"the array computes with e3m0 of FP16, not with {spec.format} of {spec.dtype}")
        if tensor.escapes:
            raise SpeqError(f"{tensor.escapes} weights are infinite or NaN: the array cannot compute with them")
        groups = -(-inputs // spec.group_size)
        scales = tensor.scales.transpose(0, 2, 1).reshape(-1, tensor.scales.shape[1])
        return cls(
            unpack_codes(tensor.codes, spec.dtype)[:channels, :inputs],
            unpack_residuals(tensor.residual, spec.dtype, spec.residual_bits)[:channels, :inputs],
            scales[:channels, :groups],
            (tensor.table >> 10).astype(np.uint8),
            spec.group_size,
        )


def multiply(
    activations: NDArray[np.uint16], weights: Weights, draft: bool, parameters: AccumulatorParameters
) -> NDArray[np.uint32]:
    """FP32 bits [M, N] of FP16 activations [M, K] times weights, as a draft or exactly."""
    if draft:
        return draft_product(activations, weights, parameters)
    exact = decode(weights.codes, weights.residuals, weights.table)
    return exact_product(activations, exact, parameters)


def exact_product(
    activations: NDArray[np.uint16], weights: NDArray[np.uint16], parameters: AccumulatorParameters
) -> NDArray[np.uint32]:
    """FP32 bits [M, N] of FP16 activations [M, K] times FP16 weights [N, K]."""
    sums = Accumulator.zeros((len(activations), len(weights)))
    for k in range(activations.shape[1]):
        operand = np.zeros((len(activations), 1, LANES), np.uint16)
        operand[:, 0, 0] = activations[:, k]
        sums = accumulate(sums, operand, weights[None, :, k], False, k == 0, parameters)
    return to_float32(sums, parameters)


def draft_product(
    activations: NDArray[np.uint16], weights: Weights, parameters: AccumulatorParameters
) -> NDArray[np.uint32]:
    """FP32 bits [M, N] of FP16 activations [M, K] times the draft values of weights."""
    tokens, inputs = activations.shape
    steps, group_steps = -(-inputs // LANES), weights.group_size // LANES
    padding = ((0, 0), (0, steps * LANES - inputs))
    operands = np.pad(activations, padding).reshape(tokens, 1, steps, LANES)
    words = pack_draft(np.pad(weights.codes, padding).reshape(1, -1, steps, LANES))
    sums = Accumulator.zeros((tokens, words.shape[1]))
    partial = np.zeros(sums.mantissa.shape, np.uint32)
    for step in range(steps):
        first, last = step % group_steps == 0, step % group_steps == group_steps - 1 or step == steps - 1
        sums = accumulate(sums, operands[:, :, step], words[:, :, step], True, first, parameters)
        if last:
            scales = weights.scales[:, step // group_steps]
            partial = multiply_add(to_float32(sums, parameters), scales[None, :], partial)
    return partial


def gemm(activations: NDArray[np.uint16], weights: Weights, draft: bool) -> Gemm:
    """The sizes of a product; raises SpeqError if the array cannot do them."""
    channels, inputs = weights.codes.shape
    if activations.shape[1] != inputs:
        raise SpeqError(f"activations of {activations.shape[1]} inputs do not fit weights of {inputs}")
    return Gemm(len(activations), inputs, channels, draft, weights.group_size)
