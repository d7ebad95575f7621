"""How a GGUF file scales rotary positions, in Hugging Face's words.

llama.cpp knows a divisor for all frequencies (linear, the type of files that name none), YaRN, a divisor for each
frequency (a tensor), and a factor on cosine and sine that goes with any of them. Hugging Face has a name for the usual
ones; LongRoPE's two lists, made equal, say every other combination.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speq.checkpoint.gguf.file import GGUFFile, GGUFKeys, shortest
from speq.errors import SpeqError

DIVISORS = "rope_freqs.weight"
SHORT_DIVISORS, LONG_DIVISORS = "rope_factors_short.weight", "rope_factors_long.weight"
ROPE_TENSORS = (DIVISORS, SHORT_DIVISORS, LONG_DIVISORS)
_TYPES = ("none", "linear", "yarn", "longrope")


def rope_scaling(file: GGUFFile, keys: GGUFKeys, head_dim: int) -> dict[str, Any] | None:
    """The ``rope_scaling`` entry of ``config.json``; None where nothing is scaled.

    Raises:
        SpeqError: an unknown type, a combination that has no name, tensors that do not fit the type, senseless values.
    """
    kind = keys.text("rope.scaling.type", "linear")
    if kind not in _TYPES:
        raise SpeqError(f"{file.path} scales RoPE by {kind}, which is not supported; supported are {', '.join(_TYPES)}")
    read = (SHORT_DIVISORS, LONG_DIVISORS) if kind == "longrope" else (DIVISORS,)
    for name in ROPE_TENSORS:
        if name in file.tensors and (name not in read or keys.architecture != "llama"):
            raise SpeqError(
                f"{file.path}: tensor {name} belongs to no {keys.architecture} model that scales RoPE by {kind}"
            )
    factor = 1.0 if kind == "none" else _factor(keys)
    attention = keys.number("rope.scaling.attn_factor", 1.0)
    trained = keys.whole("rope.scaling.original_context_length", 0, least=0) or keys.whole("context_length")
    if not attention:
        raise SpeqError(f"{file.path}: {keys.architecture}.rope.scaling.attn_factor is 0, which leaves no positions")

    if kind == "longrope":
        short, long = (factor * _divisors(file, name, head_dim) for name in (SHORT_DIVISORS, LONG_DIVISORS))
        return _by_divisors(short, long, attention, trained)
    if kind == "yarn":
        return _yarn(file, keys, head_dim, factor, attention, trained)
    if DIVISORS in file.tensors:
        divisors = _divisors(file, DIVISORS, head_dim)
        llama3 = _llama3(divisors, keys.number("rope.freq_base", 10000.0), head_dim)
        if llama3 is not None and factor == 1 and attention == 1:
            return llama3
        return _by_divisors(factor * divisors, factor * divisors, attention, trained)
    if attention != 1:
        every = np.full(head_dim // 2, factor)
        return _by_divisors(every, every, attention, trained)
    if factor != 1 or ("rope.scaling.factor" in keys and "rope.scaling.type" in keys and kind == "linear"):
        return {"rope_type": "linear", "factor": factor}
    return None


def _factor(keys: GGUFKeys) -> float:
    """What positions are divided by; the old key counts where the new one is missing, and 0 says 1."""
    key = "rope.scaling.factor" if "rope.scaling.factor" in keys else "rope.scale_linear"
    return keys.number(key, 1.0) or 1.0


def _yarn(
    file: GGUFFile, keys: GGUFKeys, head_dim: int, factor: float, attention: float, trained: int
) -> dict[str, Any]:
    theta = keys.number("rope.freq_base", 10000.0)
    if DIVISORS in file.tensors:
        raise SpeqError(f"{file.path} scales RoPE by yarn and by the tensor {DIVISORS} at once, which is not supported")
    if theta <= 1:
        raise SpeqError(f"{file.path}: {keys.architecture}.rope.freq_base is {theta}, must be greater than 1")
    first, last = (head_dim * math.log(trained / (turns * 2 * math.pi)) / (2 * math.log(theta)) for turns in (32, 1))
    if min(head_dim - 1, math.ceil(last)) < max(0, math.floor(first)):
        raise SpeqError(f"{file.path}: yarn from {trained} positions on leaves no frequency between kept and scaled")
    scaling = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": trained}
    if attention != 1:
        scaling["attention_factor"] = attention * (0.1 * math.log(factor) + 1 if factor > 1 else 1.0)
    return scaling


def _divisors(file: GGUFFile, name: str, head_dim: int) -> NDArray[np.float64]:
    if name not in file.tensors:
        raise SpeqError(f"{file.path} lacks the tensor {name}, which its RoPE scaling needs")
    tensor = file.tensors[name]
    if tensor.type != "F32" or tensor.shape != (head_dim // 2,):
        raise SpeqError(
            f"{file.path}: tensor {name} is {tensor.type} {list(tensor.shape)}, must be F32 [{head_dim // 2}]"
        )
    values = tensor.data.reshape(-1).view("<f4").astype(np.float64)
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise SpeqError(f"{file.path}: tensor {name} holds values that no frequency can be divided by")
    return values


def _by_divisors(
    short: NDArray[np.float64], long: NDArray[np.float64], attention: float, trained: int
) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "short_factor": [shortest(value) for value in short],
        "long_factor": [shortest(value) for value in long],
        "attention_factor": attention,
        "original_max_position_embeddings": trained,
    }


def _llama3(divisors: NDArray[np.float64], base: float, head_dim: int) -> dict[str, Any] | None:
    """Llama 3's scaling from its divisors, the only trace that GGUF keeps of it; None if they are others.

    Every published model has the same three other parameters, so only the factor is open; the divisors must then agree.
    """
    factor, low, high, original = float(np.round(divisors.max(), 4)), 1.0, 4.0, 8192
    wavelength = 2 * np.pi * base ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((original / wavelength - low) / (high - low), 0, 1)
    if not factor or not np.allclose(divisors, 1 / ((1 - smooth) / factor + smooth), rtol=1e-4):
        return None
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
