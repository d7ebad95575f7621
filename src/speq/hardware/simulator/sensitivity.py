"""Which assumption moves the comparison, and what it would have to be for the published ratios to come out.

Each knob is varied alone, everything else staying as the scenario has it. Where a knob says which accelerators it
moves, the value at which the published ratio results is searched for between its ends; often there is none, and that
is a result too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from speq.hardware.simulator.compare import Comparison
from speq.hardware.simulator.scenario import Knob

_TOLERANCE = 0.002  # of a ratio
_STEPS = 12


@dataclass(frozen=True)
class Curve:
    """Geometric-mean speed-ups of the subject over each accelerator with a published ratio, by value of a knob."""

    knob: Knob
    values: list[float]
    speedups: dict[str, list[float]]


@dataclass(frozen=True)
class Requirement:
    """The value of a knob at which the subject's speed-up over ``accelerator`` (or, if ``over_reference``, that
    accelerator's over the reference) is the published one; ``None`` if it is so at no value between the ends.
    """

    knob: Knob
    accelerator: str
    over_reference: bool
    target: float
    value: float | None
    reached: tuple[float, float]  # the ratio at both ends


def curves(comparison: Comparison) -> Iterator[Curve]:
    """One curve per knob of the scenario."""
    for knob in comparison.scenario.knobs:
        speedups: dict[str, list[float]] = {one.accelerator: [] for one in comparison.scenario.published}
        for value in knob.values:
            for name in speedups:
                speedups[name].append(comparison.speedup(name, _settings(knob, value)))
        yield Curve(knob, list(knob.values), speedups)


def requirements(comparison: Comparison) -> Iterator[Requirement]:
    """What each knob would have to be, for each accelerator it moves.

    A knob of the subject is solved for the subject's speed-up over the reference. One of another accelerator is solved
    for that accelerator's speed-up over the reference, which the published ratios imply: it does not depend on drafts.
    """
    scenario = comparison.scenario
    published = {one.accelerator: one.speedup.value for one in scenario.published}
    for knob in scenario.knobs:
        for name in knob.moves:
            if name == scenario.subject:
                target, ratio = published[scenario.reference], _over(comparison, knob, scenario.reference)
            else:
                target = published[scenario.reference] / published[name]
                ratio = _implied(comparison, knob, name)
            low, high = min(knob.values), max(knob.values)
            ends = (ratio(low), ratio(high))
            value = solve(ratio, target, low, high, logarithmic=knob.logarithmic, whole=knob.whole)
            yield Requirement(knob, name, name != scenario.subject, target, value, ends)


def solve(
    ratio: Callable[[float], float],
    target: float,
    low: float,
    high: float,
    *,
    logarithmic: bool = False,
    whole: bool = False,
) -> float | None:
    """The argument at which ``ratio`` is ``target``, by bisection; ``None`` if the ends do not enclose it.

    ``whole`` searches whole numbers and gives the one after which the target is passed.
    """
    into, out = (math.log, math.exp) if logarithmic else (float, float)
    rising = ratio(high) > ratio(low)
    if not min(ratio(low), ratio(high)) <= target <= max(ratio(low), ratio(high)):
        return None
    a, b = into(low), into(high)
    for _ in range(_STEPS):
        middle = out((a + b) / 2)
        if whole:
            middle = round(middle)
        reached = ratio(middle)
        if abs(reached / target - 1) < _TOLERANCE:
            return middle
        if (reached < target) == rising:
            a = into(middle)
        else:
            b = into(middle)
    return round(out(b)) if whole else out((a + b) / 2)


def _over(comparison: Comparison, knob: Knob, name: str) -> Callable[[float], float]:
    return lambda value: comparison.speedup(name, _settings(knob, value))


def _implied(comparison: Comparison, knob: Knob, name: str) -> Callable[[float], float]:
    return lambda value: comparison.over_reference(name, _settings(knob, value))


def _settings(knob: Knob, value: float) -> dict[str, Any]:
    return dict.fromkeys(knob.keys, value)


def describe(found: list[Curve], needed: list[Requirement]) -> dict[str, Any]:
    """Both analyses as plain data."""
    return {
        "sensitivity": [
            {"knob": one.knob.name, "keys": one.knob.keys, "values": one.values, "speedups": one.speedups}
            for one in found
        ],
        "requirements": [
            {
                "knob": one.knob.name,
                "accelerator": one.accelerator,
                "over_reference": one.over_reference,
                "target": one.target,
                "value": one.value,
                "ends": list(one.reached),
            }
            for one in needed
        ],
    }
