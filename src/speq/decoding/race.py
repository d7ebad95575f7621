"""Sampled draws guessed ahead: a draw is a race that noise decides, and the noise is known before the probabilities."""

from __future__ import annotations

from collections.abc import Sequence


def after_noise(weights: dict[int, float], noise: Sequence[float]) -> dict[int, float]:
    """How probably each token wins the race, given guessed probabilities and its noise."""
    runs = [weight / each for weight, each in zip(weights.values(), noise, strict=True)]
    whole, known = sum(runs), sum(weights.values())
    return {token: known * run / whole for token, run in zip(weights, runs, strict=True)} if whole > 0 else weights
