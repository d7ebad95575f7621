"""Error feedback: later weights of a row are drafted so that they make up for the errors of earlier ones.

A product with the activations x is what counts, not the weights themselves. For a row w drafted as d the expected
squared error of the product is (w - d) M (w - d)^T with the second moments M = E[x x^T]. With M = R R^T, R upper
triangular, and U = R / diag(R) with ones on its diagonal, the error is sum_k R[k, k]^2 (sum_j<=k (w - d)[j] U[j, k])^2.
So column k is drafted as near as can be to

    w[k] + sum over j < k of (w[j] - d[j]) U[j, k],

one column after the other. This is the LDLQ rounding of QuIP (arXiv 2307.13304), which is equivalent to GPTQ (arXiv
2210.17323). Columns influence each other within blocks; between blocks M is taken as zero.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from speq.bits.bins import nearest_bin, nested_bins
from speq.bits.floats import INFINITY_BITS, to_float32
from speq.bits.spec import Spec

DAMPING = 0.01
"""Share of the mean diagonal that is added to the diagonal of M, so that it has a Cholesky factor."""


def feedback_of(moments: NDArray[np.float32]) -> NDArray[np.float32]:
    """Influence of each column's error on later columns.

    Args:
        moments: float32 [B, C, C], E[x x^T] of B blocks of C columns; rows and columns of padding are 0.

    Returns:
        float32 [B, C, C]: entry [b, j, k] is U[j, k] for j < k in block b, 0 elsewhere.

    Raises:
        numpy.linalg.LinAlgError: moments that no activations have, or that are not finite.
    """
    damped = moments.astype(np.float64)
    diagonal = np.einsum("bii->bi", damped)
    # Columns that are never active are independent of the others, whatever their own moment.
    diagonal += DAMPING * diagonal.mean(axis=1, keepdims=True) + (diagonal == 0)
    factor = np.linalg.cholesky(damped[:, ::-1, ::-1])[:, ::-1, ::-1]
    return np.asarray(np.triu(factor / np.einsum("bii->bi", factor)[:, None, :], 1).astype(np.float32))


def codes_with_feedback(
    bits: NDArray[np.uint16], scales: NDArray[np.uint16], feedback: NDArray[np.float32], spec: Spec
) -> tuple[NDArray[np.uint8], NDArray[np.uint16], NDArray[np.bool_]]:
    """Bins, residuals and escape marks [n, k] of rows of 16-bit patterns [n, k] with scales [n, groups].

    The definition of what the native encoder computes: all arithmetic is float32 without contraction, and errors are
    added in the order of their columns. A weight that is not finite has no error.
    """
    columns, size = bits.shape[1], feedback.shape[1]
    magnitudes = (bits & 0x7FFF).astype(np.int32)
    finite = magnitudes < INFINITY_BITS[spec.dtype]
    weights = np.where(finite, to_float32(np.where(finite, bits, np.uint16(0)), spec.dtype), np.float32(0))
    targets = weights.copy()
    bins, residuals = np.zeros(bits.shape, np.uint8), np.zeros(bits.shape, np.uint16)
    escapes = np.zeros(bits.shape, np.bool_)
    levels = np.array(spec.levels, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for k in range(columns):
            scale = scales[:, k // spec.group_size]
            step = to_float32(scale, "bf16") * np.float32(1 / 64)
            signs = bits[:, k] >> 15 << 3
            drafts = levels[signs[:, None] | np.arange(8, dtype=np.uint16)] * step[:, None]
            bins[:, k], residuals[:, k], escapes[:, k] = nearest_bin(
                magnitudes[:, k], nested_bins(spec, scale), spec.residual_bits, targets[:, k], drafts
            )
            codes = np.where(escapes[:, k], 0, bins[:, k] | signs)
            error = np.where(finite[:, k], weights[:, k] - levels[codes] * step, np.float32(0))
            end = min(columns, (k // size + 1) * size)
            targets[:, k + 1 : end] += error[:, None] * feedback[k // size, k % size, k % size + 1 :][: end - k - 1]
    return bins, residuals, escapes
