"""The operators in plain NumPy, each a function of arrays: the definition of what every other backend computes.

All arithmetic is float32. A result never depends on how many tokens are in the call, not even in its last bit: whatever
NumPy would block differently for one row than for many (matrix products) is done token by token.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from speq.formats import from_float32, to_float32

Floats = NDArray[np.float32]


def rms_norm(x: Floats, weight: Floats, eps: float) -> Floats:
    """``x / sqrt(mean(x * x) + eps) * weight`` over the last axis."""
    mean_square = np.mean(x * x, axis=-1, keepdims=True, dtype=np.float32)
    return np.asarray(x / np.sqrt(mean_square + np.float32(eps)) * weight)


def linear(x: Floats, weight: Floats) -> Floats:
    """``x @ weight.T`` for ``x`` of shape ``[tokens, columns]`` and ``weight`` of shape ``[rows, columns]``."""
    out = np.empty((len(x), len(weight)), dtype=np.float32)
    for token, row in enumerate(x):
        np.dot(weight, np.ascontiguousarray(row), out=out[token])
    return out


def round_to_bf16(x: Floats) -> Floats:
    """The nearest BF16 values, ties to even."""
    return to_float32(from_float32(x, "bf16"), "bf16")


def silu(x: Floats) -> Floats:
    """``x * sigmoid(x)``."""
    with np.errstate(over="ignore"):  # exp(-x) = inf gives the right 0
        return np.asarray(x / (np.float32(1) + np.exp(-x)))


def rotate(x: Floats, positions: NDArray[np.int32], inv_freq: Floats, scale: float = 1.0) -> Floats:
    """Rotary embedding of ``x``, ``[rows, heads, head_dim]``, whose rows stand at ``positions``.

    Dimension i is paired with ``i + head_dim / 2`` and turned by ``position * inv_freq[i]`` radians (in float32);
    cosine and sine are the float32 nearest to their true values, times ``scale``.
    """
    angles = (positions.astype(np.float32)[:, None] * inv_freq).astype(np.float64)
    cos = (np.cos(angles).astype(np.float32) * np.float32(scale))[:, None, :]
    sin = (np.sin(angles).astype(np.float32) * np.float32(scale))[:, None, :]
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attention(q: Floats, keys: NDArray[np.float16], values: NDArray[np.float16], scale: float) -> Floats:
    """Grouped-query attention of one row.

    Args:
        q: queries ``[heads, head_dim]``.
        keys, values: what the row sees, its own included, in order of position: ``[kv_heads, seen, head_dim]``. Head h
            reads key-value head ``h // (heads / kv_heads)``.
        scale: factor on the scores.

    Returns:
        ``[heads, head_dim]``.
    """
    kv_heads, _, head_dim = keys.shape
    grouped = q.reshape(kv_heads, -1, head_dim)
    scores = np.matmul(grouped, keys.astype(np.float32).transpose(0, 2, 1)) * np.float32(scale)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True, dtype=np.float32)
    return np.asarray(np.matmul(weights, values.astype(np.float32)).reshape(q.shape))
