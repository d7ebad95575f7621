"""A matrix of 16-bit floats, split into planes.

The planes are stored, memory-mapped and read by the kernels as they are. Rows are padded to a multiple of 4 (a *row
block*) and columns to a multiple of 64 (a *block*), so that the smallest thing a kernel reads is a 4 x 64 tile.
docs/formats.md gives the place of every bit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speq.errors import SpeqError
from speq.formats.spec import Spec

ROWS = 4
"""Rows of a row block."""

COLUMNS = 64
"""Columns of a block."""

MAX_COLUMNS = 65536
"""Escapes store their column in 16 bits."""

MAX_WEIGHTS = (1 << 32) - 1
"""Offsets into the list of escapes have 32 bits."""

PLANES = ("codes", "residual", "scales", "escape_rows", "escape_columns", "escape_values", "table")


@dataclass(frozen=True, eq=False)
class SplitTensor:
    """N rows and K columns of 16-bit floats; RB = ceil(N / 4) row blocks of B = ceil(K / 64) blocks, G scales per row.

    Attributes:
        spec: the format.
        shape: (N, K).
        codes: uint8 [RB, B, 4, 32], two 4-bit codes per byte: what a draft reads, together with ``scales``.
        residual: uint8 [RB, B, 4 * (64 + H)], low bytes then high bits of the residuals; H = 32 for 12 bits, 16 for
            10 bits.
        scales: uint16 [RB, G, 4], BF16 bits; one per group of ``spec.group_size`` columns.
        escape_rows: uint32 [4 * RB + 1], the escapes of row n are ``escape_rows[n]`` to ``escape_rows[n + 1]``
            (exclusive).
        escape_columns: uint16 [escapes], ascending within a row.
        escape_values: uint16 [escapes], the true bits.
        table: uint16 [8], T of ``e3m0``; zeros for ``nested``.
    """

    spec: Spec
    shape: tuple[int, int]
    codes: NDArray[np.uint8]
    residual: NDArray[np.uint8]
    scales: NDArray[np.uint16]
    escape_rows: NDArray[np.uint32]
    escape_columns: NDArray[np.uint16]
    escape_values: NDArray[np.uint16]
    table: NDArray[np.uint16]

    @classmethod
    def from_planes(cls, spec: Spec, shape: tuple[int, int], planes: Mapping[str, NDArray[Any]]) -> SplitTensor:
        """A tensor from stored planes, without a copy; raises SpeqError if one is missing or does not fit."""
        missing = [name for name in PLANES if name not in planes]
        if missing:
            raise SpeqError(f"plane '{missing[0]}' is missing; convert the model again")
        if not can_be_split(*shape):
            raise SpeqError(f"no split matrix has the shape {list(shape)}; convert the model again")
        escapes = planes["escape_columns"].size
        for name, (dimensions, dtype) in plane_layout(spec, shape, escapes).items():
            plane = planes[name]
            if plane.shape != dimensions or plane.dtype != dtype:
                raise SpeqError(
                    f"plane '{name}' is {plane.dtype}{list(plane.shape)}, not {dtype}{list(dimensions)}; "
                    "convert the model again"
                )
            if not plane.flags.aligned:
                raise SpeqError(f"plane '{name}' is not aligned; convert the model again")
        first, columns = planes["escape_rows"], planes["escape_columns"]
        if first[0] != 0 or first[-1] != escapes or (first[1:] < first[:-1]).any() or (columns >= shape[1]).any():
            raise SpeqError("the list of escapes points outside the matrix; convert the model again")
        falls = np.flatnonzero(columns[1:] <= columns[:-1]) + 1  # only where a row begins
        if not np.isin(falls, first).all():
            raise SpeqError("the escapes of a row are not in order; convert the model again")
        return cls(spec, shape, **{name: planes[name] for name in PLANES})

    def rows(self, start: int, stop: int) -> SplitTensor:
        """Rows ``start`` to ``stop`` (exclusive) as views of the planes; ``start`` is a multiple of ``ROWS``."""
        if start % ROWS:
            raise ValueError(f"row {start} is within a row block")
        first, last = start // ROWS, -(-stop // ROWS)
        escape_rows = self.escape_rows[first * ROWS : last * ROWS + 1]
        escapes = slice(int(escape_rows[0]), int(escape_rows[-1]))
        return SplitTensor(
            self.spec,
            (stop - start, self.shape[1]),
            self.codes[first:last],
            self.residual[first:last],
            self.scales[first:last],
            escape_rows - escape_rows[0],
            self.escape_columns[escapes],
            self.escape_values[escapes],
            self.table,
        )

    @classmethod
    def of_rows(cls, spec: Spec, shape: tuple[int, int], parts: Sequence[Mapping[str, NDArray[Any]]]) -> SplitTensor:
        """A tensor from the planes of its rows: parts in order, all but the last of whole row blocks, of ``nested``,
        whose rows are coded independently of each other.
        """
        if len(parts) == 1:
            return cls.from_planes(spec, shape, parts[0])
        planes = {name: np.concatenate([part[name] for part in parts]) for name in PLANES}
        counts = np.concatenate([np.diff(part["escape_rows"]) for part in parts])
        planes["escape_rows"] = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint32)
        planes["table"] = parts[0]["table"]
        return cls.from_planes(spec, shape, planes)

    @property
    def escapes(self) -> int:
        """Weights kept in the side list."""
        return len(self.escape_columns)

    @property
    def bits_per_weight(self) -> float:
        """Bits of all planes, padding included, per weight of the matrix."""
        return self._per_weight(*PLANES)

    @property
    def draft_bits_per_weight(self) -> float:
        """Bits per weight that a draft reads: codes and scales."""
        return self._per_weight("codes", "scales")

    def planes(self) -> dict[str, NDArray[Any]]:
        """The planes by name, in the order of ``PLANES``."""
        return {name: getattr(self, name) for name in PLANES}

    def _per_weight(self, *names: str) -> float:
        planes = self.planes()
        stored = sum(int(planes[name].nbytes) for name in names)
        return 8.0 * stored / (self.shape[0] * self.shape[1])


def can_be_split(rows: int, columns: int) -> bool:
    """Whether a matrix is within the limits of the format."""
    return rows >= 1 and 1 <= columns <= MAX_COLUMNS and rows * columns <= MAX_WEIGHTS


def plane_layout(spec: Spec, shape: tuple[int, int], escapes: int) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Shape and dtype of every plane of an N x K matrix with so many escapes."""
    row_blocks, blocks, groups = grid(spec, shape)
    residual_bytes = ROWS * (COLUMNS + COLUMNS * (spec.residual_bits - 8) // 8)
    return {
        "codes": ((row_blocks, blocks, ROWS, COLUMNS // 2), np.dtype(np.uint8)),
        "residual": ((row_blocks, blocks, residual_bytes), np.dtype(np.uint8)),
        "scales": ((row_blocks, groups, ROWS), np.dtype(np.uint16)),
        "escape_rows": ((ROWS * row_blocks + 1,), np.dtype(np.uint32)),
        "escape_columns": ((escapes,), np.dtype(np.uint16)),
        "escape_values": ((escapes,), np.dtype(np.uint16)),
        "table": ((8,), np.dtype(np.uint16)),
    }


def grid(spec: Spec, shape: tuple[int, int]) -> tuple[int, int, int]:
    """Row blocks, blocks per row and groups per row of an N x K matrix."""
    blocks = -(-shape[1] // COLUMNS)
    return -(-shape[0] // ROWS), blocks, -(-blocks * COLUMNS // spec.group_size)
