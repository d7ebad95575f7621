"""Rounds of a generation without a recorded trace: a stated model of how drafts fare.

Every drafted token is accepted with probability r as long as all before it were. A draft has L tokens, or ends before
its first wrong one with probability s (an early stop that recognises a share s of the wrong tokens and never stops
before a right one). Rounds draw from a two-dimensional low-discrepancy sequence instead of random numbers, so the
averages of a generation are those of the model without noise, and the same at every run.

Source of the sequence: M. Roberts, "The unreasonable effectiveness of quasirandom sequences" (2018), R2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from speq.errors import SpeqError

LONGEST_DRAFT = 64
_PLASTIC = 1.324717957244746  # root of x^3 = x + 1
_STEP = (1 / _PLASTIC, 1 / _PLASTIC**2)


@dataclass(frozen=True)
class Round:
    """``drafted`` draft passes, then a verify pass that accepts ``accepted`` of them and adds one token."""

    drafted: int
    accepted: int


@dataclass(frozen=True)
class Acceptance:
    """The model above: ``rate`` is r, ``draft_length`` is L, ``early_stop`` is s.

    Raises:
        SpeqError: a value is out of range.
    """

    rate: float
    draft_length: int
    early_stop: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise SpeqError(f"acceptance rate {self.rate:g} is out of range: use 0 to 1")
        if not 1 <= self.draft_length <= LONGEST_DRAFT:
            raise SpeqError(f"draft length {self.draft_length} is out of range: use 1 to {LONGEST_DRAFT}")
        if not 0 <= self.early_stop <= 1:
            raise SpeqError(f"early stop {self.early_stop:g} is out of range: use 0 to 1")

    def rounds(self) -> Iterator[Round]:
        """Rounds without end."""
        index = 0
        while True:
            index += 1
            first, second = ((0.5 + index * step) % 1 for step in _STEP)
            right = self._right(first)
            drafted = min(self.draft_length, right) if second < self.early_stop else self.draft_length
            yield Round(drafted, min(drafted, right))

    def _right(self, uniform: float) -> int:
        """How many tokens are right before the first wrong one, were the draft endless: P(right >= k) = r^k."""
        if self.rate >= 1:
            return LONGEST_DRAFT
        if self.rate <= 0:
            return 0
        return min(LONGEST_DRAFT, int(math.log(1 - uniform) / math.log(self.rate)))

    def tokens_per_round(self) -> float:
        """Expected tokens of a round, (1 - r^(L+1)) / (1 - r), whatever the early stop."""
        if self.rate >= 1:
            return self.draft_length + 1.0
        return float((1 - self.rate ** (self.draft_length + 1)) / (1 - self.rate))
