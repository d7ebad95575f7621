"""What a sum would be without any rounding, in fractions, and how far the processing element can be from it.

The bound. Write ``u`` for the worth of the mantissa's last bit, ``2**(exponent - 50 - fraction_bits)``, ``W`` for the
mantissa's width and ``U`` for the largest ``u`` of a run of ``K`` operations.

- A step shifts one of its summands and rounds it to a multiple of the new ``u``: an error of at most ``r u``, with
  r = 1 for truncation and 1/2 for nearest. A carry drops one bit: at most ``u / 2``. So the error is at most
  ``K (r + 1/2) U``.
- The exponent only ever rises to that of a product, or by one at a carry, when the sum before it is at least
  ``2**(W - 2)`` times the old ``u``. So ``U <= max(u of the largest product exponent, 2**(3 - W) P)``, where P is the
  largest partial sum. Normalising only lowers exponents.
- Partial sums are at most the sum S of the products' magnitudes plus the error: ``P <= S + K (r + 1/2) U``. With
  ``q = 2**(3 - W) K (r + 1/2)``, which must be below 1, this gives ``U <= max(u of the largest product exponent,
  2**(3 - W) S / (1 - q))``.

A draft also loses what the alignment of four activations shifts out, less than a unit of ``2**(e - 25)`` of each
activation with a smaller exponent than the largest, e, times the level of its code.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from speq.errors import SpeqError
from speq.hardware.e3m0 import unpack_draft
from speq.hardware.golden.decoder import draft_levels
from speq.hardware.golden.pe import Accumulator, draft_products, exact_product, unpack
from speq.hardware.parameters import EXPONENT_BIAS, AccumulatorParameters


def fp16_value(bits: int) -> Fraction:
    """The value of a finite FP16 pattern."""
    return Fraction(float(np.uint16(bits).view(np.float16)))


def exact_sum(activations: NDArray[np.uint16], weights: NDArray[np.uint16], draft: NDArray[np.bool_]) -> Fraction:
    """The sum of operations [K], with activations [K, 4], words of weights [K] and modes [K]; all finite."""
    total = Fraction(0)
    for four, word, is_draft in zip(activations, weights, draft, strict=True):
        if is_draft:
            levels = draft_levels(unpack_draft(word))
            total += sum(fp16_value(a) * int(level) for a, level in zip(four, levels, strict=True)) / Fraction(64)
        else:
            total += fp16_value(four[0]) * fp16_value(word)
    return total


def accumulator_value(state: Accumulator, parameters: AccumulatorParameters) -> Fraction:
    """The value of one finite sum."""
    return int(state.mantissa) * _power(int(state.exponent) - EXPONENT_BIAS - parameters.fraction_bits)


def error_bound(
    activations: NDArray[np.uint16],
    weights: NDArray[np.uint16],
    draft: NDArray[np.bool_],
    parameters: AccumulatorParameters,
) -> Fraction:
    """How far the accumulator can be from :func:`exact_sum` after these operations.

    Raises SpeqError for sums so long that the accumulator bounds nothing.
    """
    per_step = Fraction(3, 2) if parameters.rounding == "truncate" else Fraction(1)
    carry = _power(3 - parameters.width)
    q = carry * len(weights) * per_step
    if q >= 1:
        raise SpeqError(f"an accumulator of {parameters.width} bits bounds no error of {len(weights)} operations")
    exact, drafted = exact_product(activations[:, 0], weights), draft_products(activations, unpack_draft(weights))
    mantissas, exponents = (np.where(draft, d, e) for d, e in zip(drafted[:2], exact[:2], strict=True))
    magnitudes = sum(
        (abs(int(m)) * _power(int(e) - EXPONENT_BIAS) for m, e in zip(mantissas, exponents, strict=True)), Fraction(0)
    )
    largest = max(
        _power(int(exponents.max(initial=0)) - EXPONENT_BIAS - parameters.fraction_bits), carry * magnitudes / (1 - q)
    )
    return len(weights) * per_step * largest + _alignment_bound(activations[draft], weights[draft])


def _alignment_bound(activations: NDArray[np.uint16], weights: NDArray[np.uint16]) -> Fraction:
    """What aligning the activations of drafts [K, 4] can lose."""
    exponents = unpack(activations)[1]
    largest = exponents.max(axis=-1, initial=0)
    levels = np.abs(draft_levels(unpack_draft(weights)))
    lost = np.where(exponents < largest[:, None], levels, 0).sum(axis=-1)
    return sum((int(n) * _power(int(e) - 25 - 6) for n, e in zip(lost, largest, strict=True)), Fraction(0))


def _power(exponent: int) -> Fraction:
    return Fraction(2) ** exponent
