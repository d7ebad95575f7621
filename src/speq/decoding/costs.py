"""Running estimates of what passes cost, by level and rows, relative to one another.

A controller decides by the difference between two sizes of a pass, a few per cent of it, on machines whose speed
changes by more than that from second to second. So the machine's speed of the moment is followed apart, and costs are
what is left, in passes of one row at the exact level. Kernels take rows in tiles, so the cost climbs unevenly, and many
sizes are rare: what one costs is read off a line through those near it. All estimates forget, so they follow a growing
context.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from speq.runtime.batch import Level

_MEMORY = 0.05  # weight of a new measurement once twenty have been taken
_SPEED_MEMORY = 0.2  # of the machine's speed
_BEGINNING = 4  # measurements among which one may be cold
_PRIORS: Mapping[Level, tuple[float, float]] = {"exact": (1.0, 0.03), "draft": (0.3, 0.02)}
"""What a pass of one row costs, and each further row: modest beliefs, so that sizes are tried before they are known."""
_KNOWN = 3  # measurements of a size that make it known
_SLOPE_WEIGHT = 10.0  # of the prior slope: as if so many squared rows of difference had been seen
_NEAR = 2.0  # rows in which the weight of a size falls to 1 / e


class Average:
    """A mean of the first measurements that forgets the old ones later.

    A busy machine makes single measurements far too long, never too short. So a measurement counts as twice the mean at
    most, and a mean that began with a long one is replaced by the first that is less than half of it.

    Args:
        memory: weight of a new measurement in the long run.
    """

    def __init__(self, memory: float = _MEMORY) -> None:
        self.count = 0
        self.value = 0.0
        self._memory = memory

    def add(self, value: float) -> None:
        self.count += 1
        if self.count == 1 or (self.count <= _BEGINNING and value < self.value / 2):
            self.value = value
        else:
            self.value += (min(value, 2 * self.value) - self.value) * max(self._memory, 1 / self.count)


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
        """Its y at x."""
        return self._y.value + self.slope(prior_slope) * (x - self._x.value)

    def slope(self, prior_slope: float) -> float:
        """It neither falls nor rises faster than in proportion to x."""
        slope = (self._xy + _SLOPE_WEIGHT * prior_slope) / (self._xx + _SLOPE_WEIGHT)
        return min(max(slope, 0.0), self._y.value / self._x.value)


class _LevelCosts:
    """Costs of the passes of one level, by rows."""

    def __init__(self, one: float, slope: float) -> None:
        self._one, self._slope = one, slope
        self.is_cold = True  # until the first pass, which brings the weights into memory
        self._line = Line()
        self.sizes: dict[int, Average] = {}
        self._known: dict[float, float] = {}  # what of() has found since the last pass

    def add(self, rows: int, cost: float) -> None:
        self._line.add(rows, cost)
        self.sizes.setdefault(rows, Average()).add(cost)
        self._known.clear()

    def of(self, rows: float) -> float:
        """Of a pass over so many rows: a line through the sizes near it, which is as steep as that through all of them
        as far as these do not say. One row is what all else is compared with, so it counts alone.
        """
        if rows in self._known:
            return self._known[rows]
        if not self.sizes:
            cost = self.on_line(rows)
        elif rows == 1 and 1 in self.sizes:
            cost = self.sizes[1].value
        else:
            cost = self._near(rows)
        self._known[rows] = cost
        return cost

    def _near(self, rows: float) -> float:
        nearest = min(abs(size - rows) for size in self.sizes)
        whole = x = y = xx = xy = 0.0
        for size, mean in self.sizes.items():
            weight = min(mean.count, 1 / _MEMORY) * math.exp((nearest - abs(size - rows)) / _NEAR)
            whole, x, y = whole + weight, x + weight * size, y + weight * mean.value
            xx, xy = xx + weight * size * size, xy + weight * size * mean.value
        x, y = x / whole, y / whole
        slope = (xy - whole * x * y + _SLOPE_WEIGHT * self._line.slope(self._slope)) / (
            xx - whole * x * x + _SLOPE_WEIGHT
        )
        return y + min(max(slope, 0.0), y / x) * (rows - x)

    def on_line(self, rows: float) -> float:
        """Of a pass over so many rows by the line through all sizes, or as it is believed before any is known."""
        if not self._line.count:
            return self._one + self._slope * (rows - 1)
        return self._line.at(rows, self._slope)


class PassCosts:
    """What passes of an engine cost, relative to one another."""

    def __init__(self) -> None:
        self._speed = Average(_SPEED_MEMORY)  # seconds that one unit takes now
        self._levels = {level: _LevelCosts(*prior) for level, prior in _PRIORS.items()}

    def observe(self, level: Level, rows: int, seconds: float, *, of_prompts: bool = False) -> None:
        """Take the time of one pass; ``of_prompts`` is of another kind, and only brings the weights into memory."""
        costs, seconds = self._levels[level], max(seconds, 1e-9)
        was_cold, costs.is_cold = costs.is_cold, False
        if was_cold or of_prompts:
            return
        size = costs.sizes.get(rows)
        # A size of which little is known tells nothing of the machine, unless nothing else is known.
        if not self._speed.count or (size and size.count >= _KNOWN):
            self._speed.add(seconds / (size.value if size else costs.of(rows)))
        costs.add(rows, seconds / self._speed.value)

    def doubt(self, level: Level) -> None:
        """Believe the next passes of a level more than all before."""
        for size in self._levels[level].sizes.values():
            size.count = min(size.count, 1)

    def took(self, level: Level, rows: int, seconds: float) -> float:
        """What one pass has cost; a pass that was held up counts as one of twice its cost at most."""
        usual = self.of(level, rows)
        return min(self.of_seconds(seconds), 2 * usual) if self._speed.count else usual

    def of_seconds(self, seconds: float) -> float:
        """What so much time is worth, in plain passes of one row; 0 while no pass was timed."""
        return seconds / self._speed.value / self._plain if self._speed.count else 0.0

    @property
    def _plain(self) -> float:
        """What a pass of one row costs at the exact level."""
        return self._levels["exact"].of(1)

    def of(self, level: Level, rows: float) -> float:
        """What a pass over so many rows costs, in plain passes of one row."""
        return self._levels[level].of(rows) / self._plain

    def fixed_part(self, level: Level, rows: int) -> float:
        """What share of a pass over so many rows a pass over none would cost, 0 .. 1."""
        costs = self._levels[level]
        whole = costs.on_line(rows)
        return min(max(costs.on_line(0) / whole, 0.0), 1.0) if whole > 0 else 1.0
