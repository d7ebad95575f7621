"""Rotary position embedding: the inverse frequencies of every scaling variant the supported families use.

A checkpoint names its variant in ``rope_parameters`` (newer files) or in ``rope_scaling`` beside ``rope_theta``
(older ones). Whatever it is, it comes down to one inverse frequency per pair of dimensions and one factor on cosine
and sine, computed here once in double precision; the operators know nothing of variants. Sources: RoFormer (arXiv
2104.09864), linear interpolation (arXiv 2306.15595), YaRN (arXiv 2309.00071), and the Llama 3.1 model card for
``llama3``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speq.errors import SpeqError

SUPPORTED = ("default", "linear", "dynamic", "llama3", "yarn")
DEFAULT_THETA = 10000.0


@dataclass(frozen=True)
class RotaryFrequencies:
    """What remains of a RoPE variant.

    Attributes:
        inv_freq: angle per position of each of the ``head_dim / 2`` pairs, in radians, exactly representable in
            float32.
        scale: factor on cosine and sine (YaRN's attention factor), 1.0 otherwise.
        context_length: positions the frequencies are made for.
    """

    inv_freq: tuple[float, ...]
    scale: float
    context_length: int


def rotary_frequencies(config: Mapping[str, Any], head_dim: int, max_positions: int) -> RotaryFrequencies:
    """Frequencies for a Hugging Face ``config.json``.

    Args:
        config: the parsed file; only its rope entries are read.
        head_dim: width of a head; even.
        max_positions: the file's ``max_position_embeddings`` (or its family's default).

    Raises:
        SpeqError: an unknown variant, a partial rotary factor, or a missing or senseless parameter.
    """
    entries = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(entries, Mapping):
        raise SpeqError(f"config.json: rope_scaling is {entries!r}, must be an object")
    kind = entries.get("rope_type", entries.get("type", "default"))
    if kind not in SUPPORTED:
        raise SpeqError(f"config.json: rope type {kind!r} is not supported; supported are {', '.join(SUPPORTED)}")
    for place in (config, entries):
        if place.get("partial_rotary_factor", 1.0) not in (None, 1, 1.0):
            raise SpeqError("config.json: partial_rotary_factor other than 1 is not supported")
    theta = entries.get("rope_theta", config.get("rope_theta"))
    theta = DEFAULT_THETA if theta is None else _number("rope_theta", theta, above=1.0)
    base = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)

    if kind == "linear":
        return _rotary(base / _scaling(entries, kind, "factor", 1.0), max_positions)
    original = config.get("original_max_position_embeddings") or entries.get("original_max_position_embeddings")
    trained = max_positions if original is None else int(_number("original_max_position_embeddings", original))
    if kind == "llama3":
        return _rotary(_llama3(base, entries, trained), max_positions)
    if kind == "yarn":
        inv_freq, scale, factor = _yarn(base, entries, theta, trained, max_positions)
        return _rotary(inv_freq, max(max_positions, int(trained * factor)), scale)
    # Dynamic scaling changes nothing up to max_positions; beyond, the frequencies would follow the length of the
    # text, and a token's logits with them. The context therefore ends where the frequencies would begin to move.
    return _rotary(base, max_positions)


def _llama3(base: NDArray[np.float64], entries: Mapping[str, Any], trained: int) -> NDArray[np.float64]:
    """Long wavelengths are interpolated, short ones kept, those between are blended."""
    factor = _scaling(entries, "llama3", "factor", 1.0)
    low = _scaling(entries, "llama3", "low_freq_factor")
    high = _scaling(entries, "llama3", "high_freq_factor")
    if high <= low:
        raise SpeqError("config.json: rope type 'llama3' needs high_freq_factor greater than low_freq_factor")
    turns = trained * base / (2 * math.pi)
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return np.asarray(base * (keep + (1 - keep) / factor))


def _yarn(
    base: NDArray[np.float64], entries: Mapping[str, Any], theta: float, trained: int, max_positions: int
) -> tuple[NDArray[np.float64], float, float]:
    """A linear ramp over the dimensions between kept and interpolated frequencies, and an attention factor."""
    factor = max_positions / trained if entries.get("factor") is None else _scaling(entries, "yarn", "factor", 1.0)
    dim = 2 * len(base)

    def dimension_of(turns: float) -> float:
        return dim * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first = dimension_of(_number("beta_fast", entries.get("beta_fast") or 32))
    last = dimension_of(_number("beta_slow", entries.get("beta_slow") or 1))
    if entries.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    ramp = np.clip((np.arange(len(base)) - first) / (max(last - first, 0) or 0.001), 0.0, 1.0)

    def attention_scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    scale = entries.get("attention_factor")
    if scale is None:
        over, under = entries.get("mscale"), entries.get("mscale_all_dim")
        scale = attention_scale(over) / attention_scale(under) if over and under else attention_scale(1.0)
    return np.asarray(base * (1 - ramp) + base / factor * ramp), float(scale), factor


def _rotary(inv_freq: NDArray[np.float64], context_length: int, scale: float = 1.0) -> RotaryFrequencies:
    return RotaryFrequencies(tuple(float(value) for value in inv_freq.astype(np.float32)), scale, context_length)


def _scaling(entries: Mapping[str, Any], kind: str, key: str, least: float = 0.0) -> float:
    if key not in entries:
        raise SpeqError(f"config.json: rope type {kind!r} needs {key!r} in rope_parameters (or rope_scaling)")
    value = _number(key, entries[key])
    if value < least:
        raise SpeqError(f"config.json: rope parameter {key!r} is {value}, must be at least {least}")
    return value


def _number(key: str, value: object, above: float = 0.0) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= above:
        raise SpeqError(f"config.json: rope parameter {key!r} is {value!r}, must be a number greater than {above:g}")
    return float(value)
