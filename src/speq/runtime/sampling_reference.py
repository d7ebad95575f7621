"""The definition of a seed-exact draw, in plain NumPy.

Sampling is an exponential race. Token i has the weight ``p_i = exp((logit_i - max) / temperature)``, zero if a filter
drops it, and the noise ``E_i = -log(1 - v_i)`` with ``v_i`` uniform from Philox4x32-10; the token with the smallest
``E_i / p_i`` wins, which happens with probability ``p_i / sum(p)``. In logarithms this is the Gumbel-max trick. All
steps are single IEEE operations in a written order (no library ``exp`` or ``log``, sums only of integers), so that
the native version gives the same token on any machine. Uniforms have 32 bits: a token less likely than about 2**-33
of the best one is never drawn.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from speq.runtime.sampling import Choice, Sampling

_MASK = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
# exp: Taylor coefficients 1/7! .. 1/0!, and log(2) split in two so that n * high is exact.
_EXP_SERIES = (1.98412698e-4, 1.38888889e-3, 8.33333333e-3, 4.16666667e-2, 1.66666667e-1, 0.5, 1.0, 1.0)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_ROUND = np.float32(12582912.0)
_LEAST_EXPONENT = np.float32(-60.0)


def exp_nonpositive(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """``exp(x)`` for float32 ``x <= 0``, within 3e-7 relative; 0 below -60."""
    clamped = np.maximum(x, _LEAST_EXPONENT)
    shifted = clamped * np.float32(1.44269504) + _ROUND
    n = shifted - _ROUND
    r = (clamped - n * _LN2_HIGH) - n * _LN2_LOW
    y = np.full_like(r, np.float32(_EXP_SERIES[0]))
    for coefficient in _EXP_SERIES[1:]:
        y = y * r + np.float32(coefficient)
    power = n.astype(np.int32)
    scaled = (y.view(np.int32) + (power << 23)).view(np.float32)
    return np.where(x < _LEAST_EXPONENT, np.float32(0), scaled)


def philox(seed: int, position: int, blocks: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """Philox4x32-10 (Salmon et al., SC 2011): four words per block, ``[len(blocks), 4]``."""
    key = [np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32)]
    c0 = blocks.astype(np.uint64) & _MASK
    c1 = np.full_like(c0, position & 0xFFFFFFFF)
    c2 = np.full_like(c0, position >> 32)
    c3 = np.zeros_like(c0)
    for _ in range(10):
        a, b = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (b >> _SHIFT) ^ c1 ^ key[0], b & _MASK, (a >> _SHIFT) ^ c3 ^ key[1], a & _MASK
        key = [(key[0] + np.uint64(0x9E3779B9)) & _MASK, (key[1] + np.uint64(0xBB67AE85)) & _MASK]
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def exponential(words: NDArray[np.uint32]) -> NDArray[np.float64]:
    """``-log(1 - v)`` of the uniforms ``v = (word + 1/2) / 2**32``: exponential variates, within 1e-15 relative."""
    mantissa, exponent = np.frexp(1.0 - (words + 0.5) * 2.0**-32)
    small = mantissa < 0.70710678118654752
    mantissa = np.where(small, mantissa * 2.0, mantissa)
    exponent = np.where(small, exponent - 1, exponent)
    s = (mantissa - 1.0) / (mantissa + 1.0)
    square = s * s
    series = np.full_like(s, 1.0 / 21.0)
    for k in range(19, 0, -2):
        series = series * square + 1.0 / k
    noise: NDArray[np.float64] = -(exponent * 0.69314718055994531 + 2.0 * s * series)
    return noise


def filtered_weights(logits: NDArray[np.float32], sampling: Sampling) -> NDArray[np.float32]:
    """Unnormalised probabilities ``[vocab]`` after temperature and filters; the largest is 1, dropped tokens are 0."""
    inverse_temperature = np.float32(1.0 / sampling.temperature)
    weights = exp_nonpositive((logits - logits.max()) * inverse_temperature)
    if 0 < sampling.top_k < len(logits):
        weights[logits < np.sort(logits)[-sampling.top_k]] = 0
    least = np.float32(sampling.min_p)
    if sampling.top_p < 1:
        descending = np.sort(weights)[::-1]
        held = np.cumsum((descending * np.float32(2**32)).astype(np.int64))
        least = max(least, descending[np.argmax(held >= sampling.top_p * float(held[-1]))])
    weights[weights < least] = 0
    return weights


def likely_reference(logits: NDArray[np.float32], sampling: Sampling, count: int) -> list[tuple[int, float]]:
    """The most probable tokens with their probabilities, the most probable first, of equal ones the lower id."""
    if sampling.greedy:
        order = np.argsort(-logits, kind="stable")[:count]
        weights = np.exp(logits.astype(np.float64) - logits.max())
    else:
        weights = filtered_weights(logits, sampling).astype(np.float64)
        order = np.argsort(-weights, kind="stable")[:count]
        order = order[weights[order] > 0]
    return [(int(token), float(weights[token] / weights.sum())) for token in order]


def choose_reference(logits: NDArray[np.float32], sampling: Sampling, position: int) -> Choice:
    """What :func:`speq.runtime.sampling.choose` must return, for finite float32 logits ``[vocab]``."""
    if sampling.greedy:
        token = int(logits.argmax())
        return Choice(token, float(1.0 / np.exp(logits.astype(np.float64) - logits[token]).sum()))
    assert sampling.seed is not None
    weights = filtered_weights(logits, sampling)
    words = philox(sampling.seed, position, np.arange((len(logits) + 3) // 4, dtype=np.uint64))
    noise = exponential(words.reshape(-1)[: len(logits)])
    alive = np.flatnonzero(weights)
    ratios = noise[alive] / weights[alive].astype(np.float64)
    winner = int(ratios.argmin())
    best, second = np.partition(ratios, 1)[:2] if len(ratios) > 1 else (ratios[0], np.inf)
    return Choice(int(alive[winner]), float(1.0 / (1.0 + best / second)))
