"""Matrix products as the array's memories hold them: beats per operand, and the jobs that point to them.

A beat is everything that one transfer of a stream carries, as one integer. Matrices are padded to whole beats; what is
in the padding does not matter, and tests fill it with anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speq.hardware.array_parameters import LANES, ArrayParameters
from speq.hardware.golden.array import Weights, gemm

OPERANDS = ("codes", "residuals", "scales", "activations")

Filler = Callable[[tuple[int, ...]], NDArray[Any]]
"""What padding of a shape consists of; values are cut to the width of their place."""


@dataclass(frozen=True)
class Product:
    """Activations [M, K], FP16 bits, times weights, as a draft or exactly."""

    activations: NDArray[np.uint16]
    weights: Weights
    draft: bool


@dataclass
class Memory:
    """Beats by operand and address, and one job per product: the fields of ``speq.hardware.rtl.job.JOB``."""

    beats: dict[str, list[int]] = field(default_factory=lambda: {operand: [] for operand in OPERANDS})
    jobs: list[dict[str, Any]] = field(default_factory=list)


def store(products: Sequence[Product], array: ArrayParameters, filler: Filler = np.zeros) -> Memory:
    """Memories that hold these products one after the other; raises SpeqError for one that the array cannot do."""
    memory = Memory()
    for product in products:
        weights, size = product.weights, gemm(product.activations, product.weights, product.draft)
        job = {name: len(beats) for name, beats in memory.beats.items()}
        memory.jobs.append(
            {
                **job,
                "draft": int(size.draft),
                "tokens": size.tokens,
                "inputs": size.inputs,
                "outputs": size.outputs,
                "group_shift": (size.group_size // LANES).bit_length() - 1,
                "table": weights.table.tolist(),
            }
        )
        by_input = {
            "codes": _lines(weights.codes, array.columns, LANES, 4, filler),
            "residuals": _lines(weights.residuals, array.columns, 1, 12, filler),
            "scales": _lines(weights.scales, array.columns, 1, 16, filler),
            "activations": _lines(product.activations, array.rows, LANES, 16, filler),
        }
        for name, beats in by_input.items():
            memory.beats[name] += beats
    return memory


def _lines(values: NDArray[Any], lines: int, columns: int, bits: int, filler: Filler) -> list[int]:
    """A matrix as beats of ``lines`` rows by ``columns`` columns, row blocks one after the other.

    The lowest bits of a beat are the first column of the first row, the next ones the second column of it.
    """
    rows, width = (-(-size // block) * block for size, block in zip(values.shape, (lines, columns), strict=True))
    padded = filler((rows, width)).astype(np.int64) & (1 << bits) - 1
    padded[: values.shape[0], : values.shape[1]] = values
    beats = padded.reshape(rows // lines, lines, width // columns, columns).transpose(0, 2, 1, 3)
    return [_join(beat, bits) for beat in beats.reshape(-1, lines * columns).tolist()]


def _join(values: Sequence[int], bits: int) -> int:
    total = 0
    for value in reversed(values):
        total = total << bits | value
    return total
