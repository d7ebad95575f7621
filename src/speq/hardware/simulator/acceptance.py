"""Rounds of a generation without a recorded trace: a stated model of how drafts fare.

Every drafted token is accepted with probability r as long as all before it were. A draft has L tokens, or ends before
its first wrong one with probability s (an early stop that recognises a share s of the wrong tokens and never stops
before a right one). A round that begins with few tokens to go drafts no more than they leave room for.
"""

from __future__ import annotations

from dataclasses import dataclass

from speq.errors import SpeqError

LONGEST_DRAFT = 64


@dataclass(frozen=True)
class Round:
    """Draft passes that propose tokens, then a verify pass that accepts some of them and adds one token.

    Attributes:
        drafted, accepted: tokens.
        passes: rows of each draft pass, and the tokens of the round in the cache before it; ``None`` for a pass over
            one row for each drafted token.
        verify: rows of the verify pass; ``None`` for one more than are drafted.
    """

    drafted: int
    accepted: int
    passes: tuple[tuple[int, int], ...] | None = None
    verify: int | None = None

    @property
    def draft_passes(self) -> tuple[tuple[int, int], ...]:
        """Rows of each draft pass, and the tokens of the round in the cache before it."""
        return tuple((1, step) for step in range(self.drafted)) if self.passes is None else self.passes

    @property
    def verify_rows(self) -> int:
        """Rows of the verify pass."""
        return self.drafted + 1 if self.verify is None else self.verify


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

    def longest(self, left: int) -> int:
        """Most tokens that a round drafts with ``left`` to go, at least 1: the verify pass adds one of its own."""
        return min(self.draft_length, left - 1)

    def outcomes(self, left: int) -> list[tuple[Round, float]]:
        """Every round that can begin with ``left`` tokens to go, at least 1, and its probability; they sum to 1."""
        most = self.longest(left)
        found = [(Round(most, most), self.rate**most)]
        for right in range(most):
            wrong = self.rate**right * (1 - self.rate)
            found.append((Round(most, right), wrong * (1 - self.early_stop)))
            found.append((Round(right, right), wrong * self.early_stop))
        return [(one, probability) for one, probability in found if probability > 0]

    def tokens_per_round(self) -> float:
        """Expected tokens of a round, (1 - r^(L+1)) / (1 - r), whatever the early stop."""
        return sum(self.rate**k for k in range(self.draft_length + 1))
