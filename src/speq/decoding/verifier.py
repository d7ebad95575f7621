"""Verification: one exact pass over the drafted tokens that keeps what plain decoding would have produced.

Row j of the pass holds the exact logits after j drafted tokens. Its draw is, by induction, the token of plain decoding
as long as all drafted tokens before it equalled theirs, so the longest equal prefix and the draw after it are kept, and
the cache is cut back to them. An empty draft makes this an ordinary decoding step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from speq.decoding.engine import Engine
from speq.decoding.sampling import Sampling, choose


@dataclass(frozen=True)
class Verdict:
    """``tokens`` are the exact next tokens: ``accepted`` drafted ones and one more."""

    tokens: list[int]
    accepted: int


def verify(engine: Engine, sampling: Sampling, tokens: Sequence[int], drafted: Sequence[int]) -> Verdict:
    """Run the exact pass over the last of ``tokens`` (not in the cache yet) and ``drafted``.

    Afterwards the cache holds ``tokens`` and the accepted ones. ``sampling`` must be seeded.

    Raises:
        SpeqError: logits are not finite.
    """
    start = engine.length
    logits = engine.forward([tokens[-1], *drafted], logits="all")
    exact: list[int] = []
    for row, position in enumerate(range(len(tokens), len(tokens) + len(drafted) + 1)):
        exact.append(choose(logits[row], sampling, position, with_confidence=False).token)
        if row < len(drafted) and exact[row] != drafted[row]:
            break
    engine.truncate(start + len(exact))
    return Verdict(exact, len(exact) - 1)
