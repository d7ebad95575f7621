"""The KV cache: keys and values of every past position, as float16.

Addresses for the whole context are reserved at once; memory is taken page by page as positions are written, so a long
context costs nothing until it is used. Dropping positions needs no work: whoever holds the cache remembers how many are
valid.
"""

from __future__ import annotations

import contextlib
import mmap

import numpy as np
from numpy.typing import NDArray

from speq.errors import SpeqError


class KVCache:
    """Keys (after rotary embedding) and values of one sequence.

    Attributes:
        keys, values: float16 ``[layers, kv_heads, capacity, head_dim]``, C-contiguous, page-aligned, zero at first.
        capacity: positions there is room for.
    """

    def __init__(self, layers: int, kv_heads: int, capacity: int, head_dim: int) -> None:
        """Reserve the addresses.

        Raises:
            SpeqError: the system refuses to reserve that much.
        """
        self.capacity = capacity
        shape = (layers, kv_heads, capacity, head_dim)
        try:
            self.keys = _reserve(shape)
            self.values = _reserve(shape)
        except (OSError, OverflowError):
            size = 4 * layers * kv_heads * capacity * head_dim / 2**30
            raise SpeqError(
                f"no memory for a context of {capacity} tokens ({size:.1f} GiB); choose a shorter one"
            ) from None


def _reserve(shape: tuple[int, int, int, int]) -> NDArray[np.float16]:
    count = shape[0] * shape[1] * shape[2] * shape[3]
    if hasattr(mmap, "MAP_PRIVATE"):
        # Without "noreserve" Linux may count the whole reservation as used.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        block = mmap.mmap(-1, 2 * count, flags=flags)
    else:
        block = mmap.mmap(-1, 2 * count)
    # Each layer and head has a stretch of its own: a huge page for the first position of every one would take hundreds
    # of megabytes at once. Kernels without huge pages refuse the wish.
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with contextlib.suppress(OSError):
            block.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(block, dtype=np.float16).reshape(shape)
