"""Repeated timings: variants take turns, so that a machine that changes its speed changes it for all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Timing:
    """Seconds of one variant over some rounds."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, seconds: list[float]) -> Timing:
        """The median and the quartiles of ``seconds``, at least one."""
        low, median, high = (float(value) for value in np.percentile(seconds, (25, 50, 75)))
        return cls(median, low, high, len(seconds))


def seconds_of(call: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def take_turns(
    variants: Mapping[str, Callable[[], float]], rounds: int, limit: float = float("inf")
) -> dict[str, list[float]]:
    """Run every variant once per round and collect what it returns, seconds of its own measuring.

    Who begins moves on from round to round, so that nobody always finds the caches as the same other one left them.

    Args:
        variants: by name; each is called once before the rounds, which is not counted.
        rounds: how many, at least one.
        limit: seconds after which no new round begins.

    Returns:
        For each variant one figure per round.
    """
    for variant in variants.values():
        variant()
    taken: dict[str, list[float]] = {name: [] for name in variants}
    started = time.perf_counter()
    names = list(variants)
    for number in range(max(rounds, 1)):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            taken[name].append(variants[name]())
        if time.perf_counter() - started > limit:
            break
    return taken
