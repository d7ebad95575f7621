"""Running estimates of what passes cost: a drafted token, and a verify pass over n tokens.

A controller decides by the difference between two lengths of a verify pass, a few per cent of a pass, on machines whose
speed changes by more than that from second to second. So a verify pass is measured in drafted tokens of its own round,
which meet the same machine; and all lengths share a line, from which one of them departs as far as enough rounds of
it say. All estimates forget, so they follow a growing context.
"""

from __future__ import annotations

_MEMORY = 0.05  # weight of a new measurement once twenty have been taken
_BEGINNING = 4  # measurements among which one may be cold
_DRAFT_PRIOR = 0.3  # of a plain pass: a quarter of the bytes, and overheads
_SLOPE_PRIOR = 0.03  # of a plain pass, for each further token of a verify pass
_SLOPE_WEIGHT = 10.0  # of the prior slope: as if so many squared tokens of difference had been seen
_LINE_WEIGHT = 5  # of the line against the mean of one length: as if so many rounds of that length had been seen


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


class Line:
    """A straight line through points (x, y) that forgets the old ones, as :class:`Average` does in x and in y."""

    def __init__(self) -> None:
        self._x, self._y = Average(), Average()
        self._xx = self._xy = 0.0  # sums of squares and products about the means

    @property
    def count(self) -> int:
        return self._x.count

    def add(self, x: float, y: float) -> None:
        if self.count:
            y = min(y, 2 * self._y.value)
            dx, dy = x - self._x.value, y - self._y.value
            self._xx = self._xx * (1 - _MEMORY) + dx * dx
            self._xy = self._xy * (1 - _MEMORY) + dx * dy
        self._x.add(x)
        self._y.add(y)

    def at(self, x: float, prior_slope: float) -> float:
        """Its y at x; it neither falls nor rises faster than in proportion to x."""
        slope = (self._xy + _SLOPE_WEIGHT * prior_slope) / (self._xx + _SLOPE_WEIGHT)
        return self._y.value + min(max(slope, 0.0), self._y.value / self._x.value) * (x - self._x.value)


class Costs:
    """Seconds per drafted token and per verify pass."""

    def __init__(self) -> None:
        self._draft, self._plain = Average(), Average()
        self._line = Line()  # of verify passes, in drafted tokens
        self._lengths: dict[int, Average] = {}  # the same of each length alone

    def observe(self, drafted: int, draft_seconds: float, verify_seconds: float) -> None:
        """Take the times of one round; its verify pass was over ``drafted + 1`` tokens."""
        if not drafted:
            self._plain.add(verify_seconds)
            return
        draft = max(draft_seconds / drafted, 1e-9)
        self._draft.add(draft)
        self._line.add(drafted + 1, verify_seconds / draft)
        self._lengths.setdefault(drafted + 1, Average()).add(verify_seconds / draft)

    @property
    def draft(self) -> float:
        """Seconds for one drafted token."""
        return self._draft.value if self._draft.count else _DRAFT_PRIOR * self.verify(1)

    def verify(self, tokens: int) -> float:
        """Seconds for a verify pass over ``tokens`` tokens; ``verify(1)`` is a plain step. 1 before any measurement."""
        plain = self._plain.value if self._plain.count else None
        if not self._line.count:
            return (plain or 1.0) * (1 + _SLOPE_PRIOR * (tokens - 1))
        several = self._several(max(tokens, 2)) * self.draft
        if tokens > 1:
            return several
        return min(plain, several) if plain else several

    def _several(self, tokens: int) -> float:
        """Of two tokens and more, in drafted tokens."""
        cost = self._line.at(tokens, _SLOPE_PRIOR / _DRAFT_PRIOR)
        if tokens in self._lengths:
            length = self._lengths[tokens]
            rounds = min(length.count, 1 / _MEMORY)
            cost += (length.value - cost) * rounds / (rounds + _LINE_WEIGHT)
        return cost


class PassCosts:
    """Seconds of the passes of one level: a part that any pass takes, and one that grows with the rows."""

    def __init__(self) -> None:
        self._line = Line()

    def observe(self, rows: int, seconds: float) -> None:
        """Take the time of one pass."""
        self._line.add(rows, seconds)

    def fixed_part(self, rows: int) -> float:
        """What share of a pass over so many rows a pass over none would take, 0 .. 1; 1 before any measurement."""
        if not self._line.count:
            return 1.0
        slope = _SLOPE_PRIOR * self._line.at(1, 0.0)
        whole = self._line.at(rows, slope)
        return min(max(self._line.at(0, slope) / whole, 0.0), 1.0) if whole > 0 else 1.0
