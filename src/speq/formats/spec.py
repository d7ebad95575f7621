"""A split format, described completely: dtype, group size, where the bins begin and what a code is worth in a draft.

A 16-bit float's magnitude ``m = bits & 0x7fff`` is an integer that grows with ``|w|``. A code is ``sign << 3 | c``
with a bin ``c`` in 0..7; bin ``c`` begins at the integer ``T[c]`` and the weight is ``sign << 15 | (T[c] +
residual)``. The formats differ in where ``T`` comes from: ``nested`` computes it from real-valued edges and the scale
of a group of weights, ``e3m0`` keeps one table of exponents per tensor. The bins of ``nested`` overlap, so that an
encoder may choose among them. See docs/formats.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast, get_args

import numpy as np

from speq.errors import SpeqError

Format: TypeAlias = Literal["nested", "e3m0"]
Dtype: TypeAlias = Literal["fp16", "bf16"]

GROUP_SIZES = (32, 64, 128)
SMALLEST_EDGE = 2.0**-20
LARGEST_EDGE = 2.0**20

NESTED_MAGNITUDES: dict[Dtype, tuple[int, ...]] = {
    "fp16": (2, 6, 12, 19, 27, 36, 47, 64),
    "bf16": (2, 7, 12, 18, 25, 33, 43, 58),
}
"""Least squared error on weights of two language models and on normal ones, scales searched."""

NESTED_FIRST_EDGE: dict[Dtype, float] = {"fp16": 0.051, "bf16": 12 / 64}
"""Where bin 0 ends. Lower means fewer escapes, and fewer weights that may choose between bins 0 and 1."""

E3M0_MAGNITUDES = (0, 1, 2, 4, 8, 16, 32, 64)
"""Powers of two; the lowest bin, 9 exponents below the highest, is worth nothing."""


@dataclass(frozen=True)
class Spec:
    """Everything a decoder must know besides the planes of a tensor.

    Attributes:
        format: ``nested`` or ``e3m0``.
        dtype: the 16-bit float that is stored, ``fp16`` (IEEE binary16) or ``bf16``.
        group_size: weights of one row that share a scale: 32, 64 or 128.
        edges: 8 bin edges as multiples of the scale, float32 values; zeros for ``e3m0``. An edge is 0 or in [2**-20,
            2**20], so that ``edge * scale`` is never a subnormal float32 and a processor that flushes those computes
            the same bins.
        drops: 8 integers in 0..32767, subtracted from the bits of ``edge * scale``; zeros for ``e3m0``.
        levels: 16 integers in [-64, 64]; code ``q`` is worth ``levels[q] * scale / 64`` in a draft.

    Raises:
        SpeqError: a field is outside these ranges.
    """

    format: Format
    dtype: Dtype
    group_size: int
    edges: tuple[float, ...]
    drops: tuple[int, ...]
    levels: tuple[int, ...]

    def __post_init__(self) -> None:
        _require(self.format in get_args(Format), f"unknown format '{self.format}'; choose nested or e3m0")
        _require(self.dtype in get_args(Dtype), f"unknown dtype '{self.dtype}'; choose fp16 or bf16")
        _require(self.group_size in GROUP_SIZES, f"group size {self.group_size} is not supported; choose 32, 64 or 128")
        object.__setattr__(self, "edges", tuple(float(np.float32(edge)) for edge in self.edges))
        object.__setattr__(self, "drops", tuple(int(drop) for drop in self.drops))
        object.__setattr__(self, "levels", tuple(int(level) for level in self.levels))
        _require(
            len(self.edges) == 8 and all(_is_edge(edge) for edge in self.edges),
            "a split format needs 8 edges, each 0 or between 2**-20 and 2**20",
        )
        _require(
            len(self.drops) == 8 and all(0 <= drop <= 0x7FFF for drop in self.drops),
            "a split format needs 8 drops between 0 and 32767",
        )
        _require(
            len(self.levels) == 16 and all(-64 <= level <= 64 for level in self.levels),
            "a split format needs 16 levels between -64 and 64",
        )

    @classmethod
    def default(cls, format: Format = "nested", dtype: Dtype = "bf16", group_size: int = 64) -> Spec:
        """The format as speq writes it."""
        if format == "e3m0":
            return cls(format, dtype, group_size, (0.0,) * 8, (0,) * 8, _signed(E3M0_MAGNITUDES))
        magnitudes = NESTED_MAGNITUDES[dtype]
        # A weight may take the level above it, and any below it within reach of the residual.
        edges = (NESTED_FIRST_EDGE[dtype], *(level / 64 for level in magnitudes[:-1]))
        drops = (1 << residual_bits(format, dtype),) + (0,) * 7
        return cls(format, dtype, group_size, edges, drops, _signed(magnitudes))

    @property
    def residual_bits(self) -> int:
        """Bits of a residual: 10 for nested BF16, 12 otherwise."""
        return residual_bits(self.format, self.dtype)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON-able values."""
        return {
            "format": self.format,
            "dtype": self.dtype,
            "group_size": self.group_size,
            "edges": list(self.edges),
            "drops": list(self.drops),
            "levels": list(self.levels),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Spec:
        """The inverse of :meth:`to_dict`; raises SpeqError for missing or wrong fields."""
        try:
            return cls(
                cast(Format, fields["format"]),
                cast(Dtype, fields["dtype"]),
                int(fields["group_size"]),
                tuple(float(edge) for edge in fields["edges"]),
                tuple(int(drop) for drop in fields["drops"]),
                tuple(int(level) for level in fields["levels"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise SpeqError(
                f"the description of the split format is damaged ({error}); convert the model again"
            ) from error


def residual_bits(format: Format, dtype: Dtype) -> int:
    """Bits of a residual in a format: 10 for nested BF16, 12 otherwise."""
    return 10 if (format, dtype) == ("nested", "bf16") else 12


def _signed(magnitudes: tuple[int, ...]) -> tuple[int, ...]:
    return magnitudes + tuple(-magnitude for magnitude in magnitudes)


def _is_edge(edge: float) -> bool:
    return math.isfinite(edge) and (edge == 0 or SMALLEST_EDGE <= edge <= LARGEST_EDGE)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise SpeqError(message)
