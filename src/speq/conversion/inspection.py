"""Figures about a converted model: sizes, exponents, escapes and how far the draft values are from the weights.

Matrices are decoded a few thousand rows at a time, so a model larger than memory can be inspected.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from speq.formats import SplitTensor, decode, draft_values, to_float32

if TYPE_CHECKING:
    from speq.checkpoint.store import Converted

_CHUNK = 1 << 23  # weights decoded at a time
_MANTISSA_BITS = {"fp16": 10, "bf16": 7}
_LAYER = re.compile(r"\.layers\.(\d+)\.")

ZERO = "zero or subnormal"
NOT_FINITE = "infinite or NaN"


@dataclass
class Figures:
    """Totals over some matrices.

    Attributes:
        weights, escapes, not_finite: counts.
        bits, draft_bits: stored bits, and those of them that a draft pass reads.
        exponents: count per exponent of two, ``ZERO`` and ``NOT_FINITE``.
        error, energy: sums of squares of (draft value - weight) and of the weights, over the finite weights.
    """

    weights: int = 0
    escapes: int = 0
    not_finite: int = 0
    bits: float = 0.0
    draft_bits: float = 0.0
    exponents: Counter[int | str] = field(default_factory=Counter)
    error: float = 0.0
    energy: float = 0.0

    @property
    def draft_error(self) -> float:
        """Relative root mean square error of the draft values."""
        return math.sqrt(self.error / self.energy) if self.energy else 0.0

    def add(self, other: Figures) -> None:
        for name in ("weights", "escapes", "not_finite", "bits", "draft_bits", "error", "energy"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.exponents.update(other.exponents)

    def to_dict(self) -> dict[str, Any]:
        weights = max(self.weights, 1)
        return {
            "weights": self.weights,
            "bits_per_weight": self.bits / weights,
            "draft_bits_per_weight": self.draft_bits / weights,
            "escapes": self.escapes,
            "escape_rate": self.escapes / weights,
            "not_finite": self.not_finite,
            "draft_error": self.draft_error,
        }


def inspect_model(
    model: Converted, progress: Callable[[str, int, int], None] | None = None
) -> tuple[Figures, dict[str, Figures]]:
    """Figures of all matrices together, and of each layer (``layer 0``; outside of layers, each tensor by its name)."""
    total, layers = Figures(), dict[str, Figures]()
    all_weights = sum(rows * columns for rows, columns in (tensor.shape for tensor in model.split.values()))
    for name, tensor in sorted(model.split.items(), key=lambda item: _order(item[0])):
        figures = inspect_tensor(tensor)
        layers.setdefault(_layer(name), Figures()).add(figures)
        total.add(figures)
        if progress:
            progress("inspecting", total.weights, all_weights)
    return total, layers


def inspect_tensor(tensor: SplitTensor) -> Figures:
    """Figures of one matrix."""
    size = tensor.shape[0] * tensor.shape[1]
    figures = Figures(size, tensor.escapes, 0, tensor.bits_per_weight * size, tensor.draft_bits_per_weight * size)
    for part in _row_parts(tensor):
        patterns = decode(part)
        figures.exponents.update(_exponents(patterns, tensor.spec.dtype))
        weights, draft = to_float32(patterns, tensor.spec.dtype), draft_values(part)
        finite = np.isfinite(weights)
        if not finite.all():
            weights, draft = weights[finite], draft[finite]
        draft -= weights
        figures.error += float(np.vdot(draft, draft))
        figures.energy += float(np.vdot(weights, weights))
    figures.not_finite = figures.exponents[NOT_FINITE]
    return figures


def _row_parts(tensor: SplitTensor) -> Iterator[SplitTensor]:
    """Cut a matrix into runs of row blocks of about ``_CHUNK`` weights; the planes are views."""
    blocks = max(1, _CHUNK // (4 * tensor.shape[1]))
    for first in range(0, len(tensor.codes), blocks):
        last = min(first + blocks, len(tensor.codes))
        offsets = tensor.escape_rows[4 * first : 4 * last + 1]
        escapes = slice(int(offsets[0]), int(offsets[-1]))
        yield replace(
            tensor,
            shape=(min(4 * last, tensor.shape[0]) - 4 * first, tensor.shape[1]),
            codes=tensor.codes[first:last],
            residual=tensor.residual[first:last],
            scales=tensor.scales[first:last],
            escape_rows=offsets - offsets[0],
            escape_columns=tensor.escape_columns[escapes],
            escape_values=tensor.escape_values[escapes],
        )


def _exponents(patterns: np.ndarray[Any, np.dtype[np.uint16]], dtype: str) -> dict[int | str, int]:
    """Count bit patterns by exponent."""
    bits = _MANTISSA_BITS[dtype]
    fields = 1 << (15 - bits)
    counts = np.bincount((patterns.ravel() & 0x7FFF) >> bits, minlength=fields)
    names: list[int | str] = [ZERO, *range(1 - (fields // 2 - 1), fields // 2), NOT_FINITE]
    return {name: int(count) for name, count in zip(names, counts, strict=True) if count}


def _layer(name: str) -> str:
    match = _LAYER.search(name)
    return f"layer {match[1]}" if match else name


def _order(name: str) -> tuple[int, str]:
    match = _LAYER.search(name)
    return (int(match[1]) if match else -1 if "embed" in name else 1 << 30, name)
