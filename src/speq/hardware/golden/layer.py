"""Draft products of whole layers, with the bits of :func:`speq.hardware.golden.array.draft_product` but much sooner.

All groups of a product advance together, a step of four inputs at a time, and every number is a float that holds it
exactly. The exponents of a sum follow from the activations alone as long as no addition carries out of the mantissa, so
a step is one small matrix product, scaled by powers of two and rounded to whole numbers as the accumulator rounds.
The few sums that do carry are computed again by the golden model.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from speq.errors import SpeqError
from speq.hardware.array_parameters import LANES
from speq.hardware.golden import array
from speq.hardware.golden.decoder import draft_levels
from speq.hardware.golden.pe import align
from speq.hardware.parameters import DRAFT_EXPONENT, EXPONENT_BIAS, PRODUCT_BITS, AccumulatorParameters

_BLOCK = 1 << 16  # running sums that are worked on at a time: they stay in the cache of a core


class Layer:
    """The draft values of a matrix, ready for products with many activations.

    Raises:
        SpeqError: a sum of ``parameters`` is truncated, normalised or wider than a float64.
    """

    def __init__(self, weights: array.Weights, parameters: AccumulatorParameters | None = None) -> None:
        self.weights, self.parameters = weights, parameters or AccumulatorParameters()
        if self.parameters.rounding != "nearest_even" or self.parameters.normalise or self.parameters.width > 50:
            raise SpeqError("whole layers are drafted with sums of at most 50 bits, rounded to nearest and as they are")
        channels, inputs = weights.codes.shape
        self._groups = -(-inputs // weights.group_size)
        self._padding = self._groups * weights.group_size - inputs
        codes = np.pad(weights.codes, ((0, 0), (0, self._padding)))
        shape = (channels, self._groups, weights.group_size // LANES, LANES)
        levels = (2 * draft_levels(codes)).astype(np.float32).reshape(shape)
        self._levels = np.ascontiguousarray(levels.transpose(1, 2, 3, 0))  # [groups, steps, lanes, channels]
        scales = np.where(weights.scales >> 7 & 0xFF, weights.scales, 0).astype(np.uint32) << 16
        self._scales = scales.astype(np.uint32).view(np.float32).astype(np.float64).T  # [groups, channels]

    def draft(self, activations: NDArray[np.uint16]) -> NDArray[np.uint32]:
        """FP32 bits [M, N] of FP16 activations [M, K] times the draft values."""
        result = np.empty((len(activations), self._levels.shape[-1]), np.uint32)
        finite = (activations >> np.uint16(10) & np.uint16(31) < 31).all(axis=1)
        if not finite.all():
            result[~finite] = array.draft_product(activations[~finite], self.weights, self.parameters)
        if finite.any():
            result[finite] = self._draft(activations[finite])
        return result

    def _draft(self, activations: NDArray[np.uint16]) -> NDArray[np.uint32]:
        tokens, (_, steps, _, channels) = len(activations), self._levels.shape
        operands = np.pad(activations, ((0, 0), (0, self._padding))).reshape(tokens, self._groups, steps, LANES)
        significands, exponents, _ = align(operands)
        exponents = np.where(exponents == 0, 0, exponents + DRAFT_EXPONENT)
        after = np.maximum.accumulate(exponents, axis=-1)
        before = np.concatenate([np.zeros_like(after[..., :1]), after[..., :-1]], axis=-1)
        scaled = np.ldexp(
            significands.astype(np.float32), (self.parameters.fraction_bits + exponents - after)[..., None]
        )
        largest = np.abs(scaled).sum(axis=(2, 3)).max() * 128  # of any sum, before roundings of at most 1/2 each
        may_carry = bool(largest + 2 * steps >= self._limit)
        scaled = np.ascontiguousarray(scaled.transpose(1, 2, 0, 3), np.float32)  # [groups, steps, tokens, lanes]
        shrink = np.ldexp(1.0, before - after).transpose(1, 2, 0)  # [groups, steps, tokens]
        unit = np.ldexp(1.0, after[..., -1] - EXPONENT_BIAS - self.parameters.fraction_bits).T[..., None]
        result = np.empty((tokens, channels), np.uint32)
        block = max(1, _BLOCK // (self._groups * tokens))
        for begin in range(0, channels, block):
            part = slice(begin, begin + block)
            sums, carried = self._sums(scaled, shrink, part, may_carry)
            rounded = (sums * unit).astype(np.float32) + np.float32(0)  # a sum of 0 is +0
            partial = np.zeros((tokens, rounded.shape[-1]), np.float32)
            for group, scales in enumerate(self._scales[:, part]):
                partial = _fused(rounded[group].astype(np.float64) * scales, partial)
            result[:, part] = partial.view(np.uint32)
            for token, channel in zip(*np.nonzero(carried), strict=True):
                result[token, begin + channel] = self._one(activations[token], begin + int(channel))
        return result

    @property
    def _limit(self) -> int:
        """Where a sum carries."""
        return 1 << PRODUCT_BITS + self.parameters.fraction_bits + self.parameters.integer_bits - 1

    def _sums(
        self, scaled: NDArray[np.float32], shrink: NDArray[np.float64], part: slice, may_carry: bool
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Mantissas [groups, tokens, channels] of the sums, and which results [tokens, channels] had a carry in one."""
        groups, steps, tokens, _ = scaled.shape
        levels = self._levels[..., part]
        sums = np.zeros((groups, tokens, levels.shape[-1]))
        products = np.empty(sums.shape, np.float32)
        carried = np.zeros(sums.shape[1:], np.bool_)
        for step in range(steps):
            np.matmul(scaled[:, step], levels[:, step], out=products)
            np.rint(products, out=products)
            smaller = np.nonzero(shrink[:, step] < 1)
            if len(smaller[0]):
                sums[smaller] = np.rint(sums[smaller] * shrink[:, step][smaller][:, None])
            sums += products
            if may_carry and (sums.max() >= self._limit or sums.min() < -self._limit):
                carried |= ((sums >= self._limit) | (sums < -self._limit)).any(axis=0)
        return sums, carried

    def _one(self, activations: NDArray[np.uint16], channel: int) -> np.uint32:
        """One result by the golden model."""
        row, own = slice(channel, channel + 1), self.weights
        weights = array.Weights(own.codes[row], own.residuals[row], own.scales[row], own.table, own.group_size)
        bits: np.uint32 = array.draft_product(activations[None], weights, self.parameters)[0, 0]
        return bits


def _fused(product: NDArray[np.float64], addend: NDArray[np.float32]) -> NDArray[np.float32]:
    """FP32 sums, rounded once to nearest even: a float64 sum that is not exact is made odd before that."""
    wide = addend.astype(np.float64)
    total = wide + product
    second = total - wide
    lost = (wide - (total - second)) + (product - second)
    bits = total.view(np.int64)
    even = (lost != 0) & (bits & 1 == 0)
    bits += np.where(even, np.where((lost > 0) == (total > 0), 1, -1), 0)
    return total.astype(np.float32)
