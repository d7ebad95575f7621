"""Quantisation steps of GGUF types, and noise that spreads each weight uniformly within its step.

A dequantised model sits on small lattices that a native 16-bit checkpoint does not have, and a draft can profit from
that. Noise of one step's width gives every bit something to say again, so that figures taken on such a model carry
over. Block layouts are those of ggml (``ggml-common.h``).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speq.checkpoint.sources.gguf import GGUFSource
from speq.checkpoint.sources.opening import open_source
from speq.errors import SpeqError

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def _half(blocks: Bytes, offset: int) -> Floats:
    """The FP16 number at a byte offset of every block, as float32 ``[blocks, 1]``."""
    return np.ascontiguousarray(blocks[:, offset : offset + 2]).view("<f2").astype(np.float32)


def _leading_scale(blocks: Bytes) -> Floats:
    return _half(blocks, 0)


def _q2_k(blocks: Bytes) -> Floats:
    return _half(blocks, 80) * (blocks[:, :16] & 15)


def _q3_k(blocks: Bytes) -> Floats:
    # Sixteen 6-bit scales in 12 bytes: low nibbles in the first 8 bytes, the two high bits in the last 4.
    low, high = blocks[:, 96:104], blocks[:, 104:108]
    low = np.concatenate([low & 15, low >> 4], axis=1)
    high = np.concatenate([(high >> shift) & 3 for shift in (0, 2, 4, 6)], axis=1)
    return _half(blocks, 108) * ((low | high << 4).astype(np.float32) - 32)


def _q4_k(blocks: Bytes) -> Floats:
    # Eight 6-bit scales in 12 bytes: 0..3 in bytes 0..3; of 4..7 low nibbles in bytes 8..11, the two high bits atop
    # bytes 0..3.
    head, tail = blocks[:, 4:8], blocks[:, 12:16]
    scales: Bytes = np.concatenate([head & 63, (tail & 15) | (head >> 6 << 4)], axis=1)
    return _half(blocks, 0) * scales


def _q6_k(blocks: Bytes) -> Floats:
    scales: NDArray[np.int8] = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8)
    return _half(blocks, 208) * scales.astype(np.float32)


# Type: bytes of a block, weights that share a step, and the (signed) steps of a block's groups.
_STEPS: dict[str, tuple[int, int, Callable[[Bytes], Floats]]] = {
    "Q4_0": (18, 32, _leading_scale),
    "Q4_1": (20, 32, _leading_scale),
    "Q5_0": (22, 32, _leading_scale),
    "Q5_1": (24, 32, _leading_scale),
    "Q8_0": (34, 32, _leading_scale),
    "Q2_K": (84, 16, _q2_k),
    "Q3_K": (110, 16, _q3_k),
    "Q4_K": (144, 32, _q4_k),
    "Q5_K": (176, 32, _q4_k),
    "Q6_K": (210, 16, _q6_k),
}
DITHERABLE = tuple(_STEPS)


def step_sizes(kind: str, data: Bytes) -> Floats:
    """Quantisation step of every weight.

    Args:
        kind: one of :data:`DITHERABLE`.
        data: the stored bytes, ``uint8 [rows, bytes per row]``.

    Returns:
        float32 ``[rows, groups]``; consecutive groups of ``columns / groups`` weights share a step.
    """
    block_bytes, _, steps = _STEPS[kind]
    return np.abs(steps(data.reshape(-1, block_bytes))).reshape(len(data), -1)


def add_noise(values: Floats, steps: Floats, *, seed: int, name: str, first_row: int) -> None:
    """Add uniform noise in [-step/2, step/2) to ``values`` ``[rows, columns]``, in place.

    The noise of a weight depends on the seed, the tensor's name and the weight's place in it, not on how rows are
    grouped into reads.
    """
    rows, columns = values.shape
    generator = np.random.Philox(np.random.SeedSequence([seed, zlib.crc32(name.encode())]))
    # One Philox step yields four 64-bit numbers, so eight float32 ones; rows of quantised types are multiples of 32.
    generator.advance(first_row * columns // 8)
    noise = np.random.Generator(generator).random((rows, columns), dtype=np.float32)
    noise -= np.float32(0.5)
    grouped = noise.reshape(rows, steps.shape[1], -1)
    grouped *= steps[:, :, None]
    values += noise


class DitheredSource:
    """A quantised GGUF file whose weights are spread within their steps; see
    :class:`speq.checkpoint.sources.source.Source`.

    Args:
        path: the file.
        seed: of the noise added to each quantised weight, uniform within plus and minus half of its step.

    Raises:
        SpeqError: as for :func:`speq.checkpoint.sources.opening.open_source`; weights that are not quantised, or of a
            type whose steps are not known.
    """

    def __init__(self, path: Path, seed: int) -> None:
        source = open_source(path)
        if not isinstance(source, GGUFSource):
            raise SpeqError(f"--dither needs a quantised GGUF file; {path} is a directory of unquantised weights")
        self._source, self._seed = source, seed
        self._kinds = {info.name: info.dtype for info in source.tensors if info.quantised}
        if not self._kinds:
            raise SpeqError(f"--dither needs a quantised GGUF file; {path} holds unquantised weights")
        for name, kind in self._kinds.items():
            if kind not in DITHERABLE:
                raise SpeqError(
                    f"{path}: tensor {name} is {kind}, which --dither cannot spread; it can: " + ", ".join(DITHERABLE)
                )
        self.name, self.path, self.config = source.name, source.path, source.config
        self.config_is, self.all_tensors_count = source.config_is, source.all_tensors_count
        self.tensors, self.originals, self.files = source.tensors, source.originals, source.files
        self.weight_files, self.data, self.layout = source.weight_files, source.data, source.layout
        dequantised, *others = source.notes
        dithered = f"dithered with seed {seed}: each quantised weight moved by up to half of its step"
        self.notes = [dequantised, dithered, *others]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """See :meth:`speq.checkpoint.sources.source.Source.read`."""
        values = self._source.read(name, start, stop)
        if name in self._kinds and values.ndim > 1:
            steps = step_sizes(self._kinds[name], self._source.stored(name, start, stop))
            add_noise(values, steps, seed=self._seed, name=name, first_row=start)
        return values
