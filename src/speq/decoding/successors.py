"""A table of successors: what a model last found probable after a token, remembered for the next time.

Every draft and exact pass computes distributions of next tokens; the table keeps the few most probable of each, under
the last two tokens and under the last one alone. It needs no training, and a proposal from it costs a look into a
dictionary. Texts of one model may share a table: it says nothing about what a model draws, only what is worth checking.
But it holds traces of all texts that it has seen, so whoever serves several people gives each their own.
"""

from __future__ import annotations

from speq.runtime.sampling import Likely

_CAPACITY = 1 << 15  # contexts, each with a handful of successors
_KEPT = 6  # successors of a context
_KEEP = 0.5  # weight of what was known of a context when a new distribution comes


class SuccessorTable:
    """Successors by the last two tokens, or else by the last one.

    Not locked: passes of one model run one at a time, and whoever runs them fills the table.

    Args:
        capacity: most contexts to remember; the one that was not renewed for longest makes room.
    """

    def __init__(self, capacity: int = _CAPACITY) -> None:
        self._capacity = capacity
        self._known: dict[tuple[int, ...], Likely] = {}

    def __len__(self) -> int:
        return len(self._known)

    def learn(self, before: int | None, token: int, likely: Likely) -> None:
        """Take the distribution that followed ``token``, which came after ``before``."""
        if not likely:
            return
        self._renew((token,), likely)
        if before is not None:
            self._renew((before, token), likely)

    def successors(self, before: int | None, token: int) -> Likely:
        """What is likely to follow ``token`` after ``before``; empty if nothing is known."""
        return self._known.get((before, token) if before is not None else (token,)) or self._known.get((token,), ())

    def _renew(self, context: tuple[int, ...], likely: Likely) -> None:
        known = self._known.pop(context, None)
        if known is None:
            merged = list(likely)
            if len(self._known) >= self._capacity:
                del self._known[next(iter(self._known))]
        else:
            weights = {token: _KEEP * weight for token, weight in known}
            for token, weight in likely:
                weights[token] = weights.get(token, 0.0) + (1 - _KEEP) * weight
            merged = sorted(weights.items(), key=lambda item: (-item[1], item[0]))
        self._known[context] = merged[:_KEPT]
