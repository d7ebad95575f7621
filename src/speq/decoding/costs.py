"""Running estimates of what passes cost: a drafted token, and a verify pass over n tokens.

Each number is an average that turns into an exponential one, so it follows a growing context and a busy machine. What
was not measured yet is taken from the nearest measurement by a prior shape. A pass over fewer tokens never costs more
than one over more tokens, which takes the sting out of a single slow measurement.
"""

from __future__ import annotations

_MEMORY = 0.05  # weight of a new measurement once twenty have been taken
_BEGINNING = 4  # measurements among which one may be cold
_DRAFT_PRIOR = 0.3  # of a plain pass: a quarter of the bytes, and overheads
_TOKEN_PRIOR = 0.03  # of a plain pass, for each further token of a verify pass


class Average:
    """A mean of the first measurements that forgets the old ones later.

    A busy machine makes single measurements far too long, never too short. So a measurement counts as twice the mean at
    most, and a mean that began with a long one is replaced by the first that is less than half of it.
    """

    def __init__(self) -> None:
        self.count = 0
        self.value = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        if self.count == 1 or (self.count <= _BEGINNING and value < self.value / 2):
            self.value = value
        else:
            self.value += (min(value, 2 * self.value) - self.value) * max(_MEMORY, 1 / self.count)


class Costs:
    """Seconds per drafted token and per verify pass."""

    def __init__(self) -> None:
        self._draft = Average()
        self._verify: dict[int, Average] = {}

    def observe(self, drafted: int, draft_seconds: float, verify_seconds: float) -> None:
        """Take the times of one round; its verify pass was over ``drafted + 1`` tokens."""
        if drafted:
            self._draft.add(draft_seconds / drafted)
        self._verify.setdefault(drafted + 1, Average()).add(verify_seconds)

    @property
    def draft(self) -> float:
        """Seconds for one drafted token."""
        return self._draft.value if self._draft.count else _DRAFT_PRIOR * self.verify(1)

    def verify(self, tokens: int) -> float:
        """Seconds for a verify pass over ``tokens`` tokens; ``verify(1)`` is a plain step. 1 before any measurement."""
        if not self._verify:
            return _shape(tokens)
        at_most = min((a.value for n, a in self._verify.items() if n >= tokens), default=None)
        if tokens in self._verify and at_most is not None:
            return at_most
        nearest = min(self._verify, key=lambda n: (abs(n - tokens), n))
        guess = self._verify[nearest].value * _shape(tokens) / _shape(nearest)
        return guess if at_most is None else min(guess, at_most)


def _shape(tokens: int) -> float:
    return 1 + _TOKEN_PRIOR * (tokens - 1)
