"""Rotary position embedding: the inverse frequencies of every scaling variant the supported families use.

A checkpoint names its variant in ``rope_scaling`` (older files) or in ``rope_parameters`` (newer ones), the base beside
it or inside. Whatever it is, it comes down to one inverse frequency per pair of dimensions and one factor on cosine
and sine, computed here once in double precision; the operators know nothing of variants. Which entry counts where two
disagree is as in transformers 5. Sources: RoFormer (arXiv 2104.09864), linear interpolation (arXiv 2306.15595), YaRN
(arXiv 2309.00071), LongRoPE (arXiv 2402.13753), and the Llama 3.1 model card for ``llama3``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speq.errors import SpeqError

SUPPORTED = ("default", "linear", "dynamic", "llama3", "yarn", "longrope", "proportional")
DEFAULT_THETA = 10000.0
LARGEST = 1e30
"""No parameter is meant to be as large as this, and products of a few smaller ones stay finite."""


@dataclass(frozen=True)
class RotaryFrequencies:
    """What remains of a RoPE variant.

    Attributes:
        inv_freq: angle per position of each of the ``head_dim / 2`` pairs, in radians, exactly representable in
            float32.
        scale: factor on cosine and sine (the attention factor of YaRN and LongRoPE), 1.0 otherwise.
        context_length: positions the frequencies are made for.
    """

    inv_freq: tuple[float, ...]
    scale: float
    context_length: int


@dataclass(frozen=True)
class RopeSettings:
    """The entries of a ``config.json`` that count: the variant's name, its base, and its parameters by their names."""

    kind: str
    theta: float
    entries: Mapping[str, Any]


def rope_settings(config: Mapping[str, Any]) -> RopeSettings:
    """The rope entries of a Hugging Face ``config.json``.

    ``rope_scaling`` counts before ``rope_parameters``, which is then not read at all; ``rope_type`` before ``type``; a
    ``rope_theta`` inside before one beside.

    Raises:
        SpeqError: entries that are no object or differ per layer type, an unknown variant, a partial rotary factor
            where the variant has none, or a senseless base.
    """
    name = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    entries = config.get(name) or {}
    if not isinstance(entries, Mapping):
        raise SpeqError(f"config.json: {name} is {entries!r}, must be an object")
    nested = next((key for key, value in entries.items() if isinstance(value, Mapping)), None)
    if nested is not None:
        raise SpeqError(f"config.json: {name} has settings of its own for {nested}, which is not supported")
    kind = entries.get("rope_type", entries.get("type", "default"))
    if kind not in SUPPORTED:
        raise SpeqError(f"config.json: rope type {kind!r} is not supported; supported are {', '.join(SUPPORTED)}")
    partial = entries.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if partial not in (None, 1) and kind != "proportional":
        raise SpeqError(f"config.json: partial_rotary_factor {partial!r} is not supported with rope type {kind!r}")
    theta = entries.get("rope_theta", config.get("rope_theta", DEFAULT_THETA))
    inherited = {} if partial is None else {"partial_rotary_factor": partial}
    return RopeSettings(kind, _number("rope_theta", theta, above=1.0), {**entries, **inherited})


def rotary_frequencies(config: Mapping[str, Any], head_dim: int, max_positions: int) -> RotaryFrequencies:
    """Frequencies for a Hugging Face ``config.json``.

    Args:
        config: the parsed file; only its rope entries are read.
        head_dim: width of a head; even.
        max_positions: the file's ``max_position_embeddings`` (or its family's default).

    Raises:
        SpeqError: what :func:`rope_settings` refuses, or a missing or senseless parameter.
    """
    settings = rope_settings(config)
    kind, theta, entries = settings.kind, settings.theta, settings.entries
    base = theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if kind == "linear":
        return _rotary(base / _needed(entries, kind, "factor"), max_positions)
    if kind == "proportional":
        return _rotary(_proportional(base, entries), max_positions)
    if kind == "llama3":
        return _rotary(_llama3(base, entries, _trained(config, entries, max_positions)), max_positions)
    if kind == "yarn":
        trained = _trained(config, entries, max_positions)
        inv_freq, scale, factor = _yarn(base, entries, theta, trained, max_positions)
        return _rotary(inv_freq, max(max_positions, int(trained * factor)), scale)
    if kind == "longrope":
        return _longrope(base, entries, _trained(config, entries, max_positions), max_positions)
    if kind == "dynamic":
        # Dynamic scaling changes nothing up to max_positions; beyond, the frequencies would follow the length of the
        # text, and a token's logits with them. The context therefore ends where the frequencies would begin to move.
        _needed(entries, kind, "factor")
    return _rotary(base, max_positions)


def _trained(config: Mapping[str, Any], entries: Mapping[str, Any], max_positions: int) -> float:
    """Positions the model was trained for before its context was extended."""
    key = "original_max_position_embeddings"
    place = config if key in config else entries
    return _number(key, place.get(key, max_positions))


def _proportional(base: NDArray[np.float64], entries: Mapping[str, Any]) -> NDArray[np.float64]:
    """The first pairs turn as in the whole head, the others stand still."""
    share = _number("partial_rotary_factor", entries.get("partial_rotary_factor", 1.0))
    if share > 1:
        raise SpeqError(f"config.json: rope parameter 'partial_rotary_factor' is {share}, must be at most 1")
    turning = int(share * 2 * len(base) // 2)
    factor = _number("factor", entries.get("factor", 1.0))
    return np.asarray(np.where(np.arange(len(base)) < turning, base, 0.0) / factor)


def _llama3(base: NDArray[np.float64], entries: Mapping[str, Any], trained: float) -> NDArray[np.float64]:
    """Long wavelengths are interpolated, short ones kept, those between are blended."""
    factor = _needed(entries, "llama3", "factor")
    low = _needed(entries, "llama3", "low_freq_factor")
    high = _needed(entries, "llama3", "high_freq_factor")
    if high <= low:
        raise SpeqError("config.json: rope type 'llama3' needs high_freq_factor greater than low_freq_factor")
    turns = trained * base / (2 * math.pi)
    keep = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return np.asarray(base * (keep + (1 - keep) / factor))


def _yarn(
    base: NDArray[np.float64], entries: Mapping[str, Any], theta: float, trained: float, max_positions: int
) -> tuple[NDArray[np.float64], float, float]:
    """A linear ramp over the dimensions between kept and interpolated frequencies, and an attention factor."""
    factor = _needed(entries, "yarn", "factor", max_positions / trained)
    dim = 2 * len(base)

    def dimension_of(turns: float) -> float:
        return dim * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first = dimension_of(_number("beta_fast", entries.get("beta_fast") or 32))
    last = dimension_of(_number("beta_slow", entries.get("beta_slow") or 1))
    truncate = entries.get("truncate", True)
    if not isinstance(truncate, (bool, type(None))):
        raise SpeqError(f"config.json: rope parameter 'truncate' is {truncate!r}, must be true or false")
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    ramp = np.clip((np.arange(len(base)) - first) / ((last - first) or 0.001), 0.0, 1.0)

    def attention_scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    scale = entries.get("attention_factor")
    if scale is None:
        weights = [_number(key, entries[key]) for key in ("mscale", "mscale_all_dim") if entries.get(key)]
        scale = attention_scale(weights[0]) / attention_scale(weights[1]) if len(weights) == 2 else attention_scale(1.0)
    return np.asarray(base * (1 - ramp) + base / factor * ramp), _number("attention_factor", scale), factor


def _longrope(
    base: NDArray[np.float64], entries: Mapping[str, Any], trained: float, max_positions: int
) -> RotaryFrequencies:
    """One divisor per frequency: of two lists the short one, and the context ends where the long one would begin."""
    short, long = (_divisors(entries, key, len(base)) for key in ("short_factor", "long_factor"))
    factor = _number("factor", max_positions / trained if entries.get("factor") is None else entries["factor"])
    scale = entries.get("attention_factor")
    if scale is None:
        _number("original_max_position_embeddings", trained, above=1.0)
        scale = math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0
    end = max_positions if short == long else min(max_positions, int(trained))
    return _rotary(base / np.array(short), end, _number("attention_factor", scale))


def _divisors(entries: Mapping[str, Any], key: str, count: int) -> list[float]:
    values = entries.get(key)
    if not isinstance(values, list) or len(values) != count:
        raise SpeqError(f"config.json: rope type 'longrope' needs {count} numbers in {key!r}")
    return [_number(key, value) for value in values]


def _rotary(inv_freq: NDArray[np.float64], context_length: int, scale: float = 1.0) -> RotaryFrequencies:
    return RotaryFrequencies(tuple(float(value) for value in inv_freq.astype(np.float32)), scale, context_length)


def _needed(entries: Mapping[str, Any], kind: str, key: str, null: float | None = None) -> float:
    """A parameter without which there is no such variant; ``null`` is what an explicit null stands for."""
    if key not in entries:
        raise SpeqError(f"config.json: rope type {kind!r} needs {key!r} in rope_parameters (or rope_scaling)")
    value = entries[key]
    return _number(key, null if value is None else value)


def _number(key: str, value: object, above: float = 0.0) -> float:
    number = math.nan if isinstance(value, bool) or not isinstance(value, (int, float)) else min(value, math.inf)
    if not above < number < LARGEST:
        raise SpeqError(f"config.json: rope parameter {key!r} is {value!r}, must be a number greater than {above:g}")
    return float(number)
