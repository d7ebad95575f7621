"""Error feedback: the weights of a row are drafted so that they make up for each other's errors.

A product with the activations x is what counts, not the weights themselves. For a row w drafted as d with the errors
e = w - d the expected squared error of the product is e M e^T with the second moments M = E[x x^T]. It is made small in
two steps, each of which drafts one column after the other as near as can be to a target.

First, later columns make up for earlier ones. With M = R R^T, R upper triangular, and U = R / diag(R) with ones on its
diagonal, the error is sum_k R[k, k]^2 (sum_j<=k e[j] U[j, k])^2, so that the target is

    w[k] + sum over j < k of e[j] U[j, k].

This is the LDLQ rounding of QuIP (arXiv 2307.13304), which is equivalent to GPTQ (arXiv 2210.17323). Then a few passes
of coordinate descent: with all other columns as they are, the error is least at

    w[k] + sum over j != k of e[j] M[j, k] / M[k, k].

Columns influence each other within blocks; between blocks M is taken as zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from speq.formats.bins import nearest_bin, nested_bins
from speq.formats.floats import INFINITY_BITS, to_float32
from speq.formats.spec import Spec

DAMPING = 1.0
"""Share of the mean diagonal that is added to the diagonal of M: the moments come from a few thousand tokens, and what
only seems to be correlated in them must not be drafted for."""

PASSES = 2
"""How often coordinate descent goes over the codes."""


@dataclass(frozen=True)
class Feedback:
    """How columns count in each other's targets, float32 [B, C, C] for B blocks of C columns.

    Attributes:
        influence: entry [b, j, k] is U[j, k] for j < k in block b, 0 elsewhere.
        coupling: entry [b, j, k] is M[j, k] / M[k, k] for j != k in block b, 0 on the diagonal.
    """

    influence: NDArray[np.float32]
    coupling: NDArray[np.float32]


def feedback_of(moments: NDArray[np.float32]) -> Feedback:
    """Feedback for activations with these moments.

    Args:
        moments: float32 [B, C, C], E[x x^T] of B blocks of C columns; rows and columns of padding are 0.

    Raises:
        numpy.linalg.LinAlgError: moments that no activations have, or that are not finite.
    """
    influence, coupling = np.empty_like(moments), np.empty_like(moments)
    for block, out, other in zip(moments, influence, coupling, strict=True):
        damped = block.astype(np.float64)
        diagonal = np.einsum("ii->i", damped)
        # Columns that are never active are independent of the others, whatever their own moment.
        diagonal += DAMPING * diagonal.mean() + (diagonal == 0)
        # One thread: the same factor whatever the number of cores, and no threads that wait for each other when others
        # use the machine, which takes several times as long.
        with threadpool_limits(1, user_api="blas"):
            factor = np.linalg.cholesky(damped[::-1, ::-1])[::-1, ::-1]
        np.divide(factor, np.diagonal(factor), out=out, casting="same_kind")
        np.divide(damped, diagonal, out=other, casting="same_kind")
        np.einsum("ii->i", out)[:] = 0
        np.einsum("ii->i", other)[:] = 0
    return Feedback(influence, coupling)


class _Rows:
    """Rows of 16-bit patterns whose bins are being chosen."""

    def __init__(self, bits: NDArray[np.uint16], scales: NDArray[np.uint16], spec: Spec) -> None:
        self.scales, self.spec = scales, spec
        self.signs = bits >> 15 << 3
        self.magnitudes = (bits & 0x7FFF).astype(np.int32)
        self.finite = self.magnitudes < INFINITY_BITS[spec.dtype]
        finite = np.where(self.finite, bits, np.uint16(0))
        self.weights = np.where(self.finite, to_float32(finite, spec.dtype), np.float32(0))
        self.errors = np.zeros(bits.shape, np.float32)
        self.bins, self.residuals = np.zeros(bits.shape, np.uint8), np.zeros(bits.shape, np.uint16)
        self.escapes = np.zeros(bits.shape, np.bool_)
        self.levels = np.array(spec.levels, np.float32)

    def choose(self, k: int, targets: NDArray[np.float32]) -> None:
        """The bins of column ``k`` whose drafts are nearest to the targets."""
        scale = self.scales[:, k // self.spec.group_size]
        step = to_float32(scale, "bf16") * np.float32(1 / 64)
        drafts = self.levels[self.signs[:, k, None] | np.arange(8, dtype=np.uint16)] * step[:, None]
        self.bins[:, k], self.residuals[:, k], self.escapes[:, k] = nearest_bin(
            self.magnitudes[:, k], nested_bins(self.spec, scale), self.spec.residual_bits, targets, drafts
        )
        codes = np.where(self.escapes[:, k], 0, self.bins[:, k] | self.signs[:, k])
        error = self.weights[:, k] - self.levels[codes] * step
        self.errors[:, k] = np.where(self.finite[:, k], error, np.float32(0))

    def sweep(self, first: int, influence: NDArray[np.float32], *, later: bool) -> None:
        """Choose the bins of the block that begins with column ``first``, in order.

        With ``later``, later columns count with the errors that they have so far, and are the first to be added.
        """
        targets = self.weights[:, first : first + len(influence)].copy()
        errors = self.errors[:, first:]
        for j in range(targets.shape[1] if later else 0):
            targets[:, :j] += errors[:, j, None] * influence[j, :j]
        for k in range(targets.shape[1]):
            self.choose(first + k, targets[:, k])
            targets[:, k + 1 :] += errors[:, k, None] * influence[k, k + 1 : targets.shape[1]]


def codes_with_feedback(
    bits: NDArray[np.uint16], scales: NDArray[np.uint16], feedback: Feedback, spec: Spec
) -> tuple[NDArray[np.uint8], NDArray[np.uint16], NDArray[np.bool_]]:
    """Bins, residuals and escape marks [n, k] of rows of 16-bit patterns [n, k] with scales [n, groups].

    The definition of what the native encoder computes: all arithmetic is float32 without contraction, and errors are
    added in the order of their columns. A weight that is not finite has no error.
    """
    rows = _Rows(bits, scales, spec)
    size = feedback.influence.shape[1]
    with np.errstate(over="ignore", invalid="ignore"):
        for first in range(0, bits.shape[1], size):
            rows.sweep(first, feedback.influence[first // size], later=False)
            for _ in range(PASSES):
                rows.sweep(first, feedback.coupling[first // size], later=True)
    return rows.bins, rows.residuals, rows.escapes
