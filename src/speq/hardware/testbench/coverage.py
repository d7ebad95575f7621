"""What a set of tests has exercised: PE variants, modes and kinds of numbers, as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

MODES = ("exact", "draft")


class Coverage:
    """Counts operands by variant, mode and kind."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str, str]] = Counter()

    def add(
        self, variant: str, draft: bool, activations: NDArray[np.uint16], weights: NDArray[np.uint16 | np.uint8]
    ) -> None:
        """FP16 activations with FP16 weights (exact) or 4-bit codes (draft), of any shapes."""
        mode = MODES[draft]
        kinds = {f"activation {kind}": count for kind, count in fp16_kinds(activations).items()}
        if draft:
            codes = np.bincount(np.asarray(weights).ravel() & 15, minlength=16)
            kinds |= {
                "code zero": int(codes[0] + codes[8]),
                "code positive": int(codes[1:8].sum()),
                "code negative": int(codes[9:].sum()),
            }
        else:
            kinds |= {f"weight {kind}": count for kind, count in fp16_kinds(np.asarray(weights)).items()}
        for kind, count in kinds.items():
            self.counts[variant, mode, kind] += count

    def table(self) -> list[str]:
        """Lines: a kind of number, and how often each variant met it in each mode; '-' where a mode has none."""
        columns = sorted(
            {(variant, mode) for variant, mode, _ in self.counts}, key=lambda c: (c[0], -MODES.index(c[1]))
        )
        kinds = list(dict.fromkeys(kind for _, _, kind in self.counts))
        lines = [" " * 21 + "".join(f"{f'{variant} {mode}':>14}" for variant, mode in columns)]
        for kind in sorted(kinds):
            cells = [self.counts.get((variant, mode, kind)) for variant, mode in columns]
            lines.append(f"{kind:21}" + "".join(f"{'-' if cell is None else f'{cell:,}':>14}" for cell in cells))
        return lines


def fp16_kinds(bits: NDArray[np.uint16 | np.uint8]) -> Mapping[str, int]:
    """How many FP16 patterns are zero, subnormal, normal, infinite and NaN."""
    field, fraction = bits >> 10 & 31, bits & 1023
    kinds = {
        "zero": (field == 0) & (fraction == 0),
        "subnormal": (field == 0) & (fraction != 0),
        "normal": (field > 0) & (field < 31),
        "infinite": (field == 31) & (fraction == 0),
        "NaN": (field == 31) & (fraction != 0),
    }
    return {kind: int(np.count_nonzero(found)) for kind, found in kinds.items()}
