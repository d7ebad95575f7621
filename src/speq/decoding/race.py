"""Sampled draws guessed ahead: a draw is a race that noise decides, and the noise is known before the probabilities."""

from __future__ import annotations

from collections.abc import Sequence

from speq.runtime.sampling import Sampling


def after_noise(weights: dict[int, float], noise: Sequence[float]) -> dict[int, float]:
    """How probably each token wins the race, given guessed probabilities and its noise."""
    runs = [weight / each for weight, each in zip(weights.values(), noise, strict=True)]
    whole, known = sum(runs), sum(weights.values())
    return {token: known * run / whole for token, run in zip(weights, runs, strict=True)} if whole > 0 else weights


def by_chance(weights: dict[int, float], sampling: Sampling, position: int) -> list[tuple[int, float]]:
    """Guessed probabilities of the token at ``position``, after its noise, the likeliest to be drawn first.

    Guesses may add up to a little more than 1, and noise can give nearly all of that to one token: 1 is the most.
    """
    if not sampling.greedy:
        weights = after_noise(weights, sampling.noise(list(weights), position))
    capped = [(token, min(weight, 1.0)) for token, weight in weights.items()]
    return sorted(capped, key=lambda item: (-item[1], item[0]))
