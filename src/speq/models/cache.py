"""The KV cache: keys and values of every past position, as float16.

Memory for the whole context is reserved at once and touched only as positions are written, so a long context costs
nothing until it is used. Dropping positions needs no work: whoever holds the cache remembers how many are valid.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from speq.errors import SpeqError

_ALIGNMENT = 64


class KVCache:
    """Keys (after rotary embedding) and values of one sequence.

    Attributes:
        keys, values: float16 ``[layers, kv_heads, capacity, head_dim]``, C-contiguous, 64-byte aligned, zero at first.
        capacity: positions there is room for.
    """

    def __init__(self, layers: int, kv_heads: int, capacity: int, head_dim: int) -> None:
        """Reserve the memory.

        Raises:
            SpeqError: the system refuses to reserve that much.
        """
        self.capacity = capacity
        shape = (layers, kv_heads, capacity, head_dim)
        try:
            self.keys = _lazy_zeros(shape)
            self.values = _lazy_zeros(shape)
        except MemoryError:
            size = 4 * layers * kv_heads * capacity * head_dim / 2**30
            raise SpeqError(
                f"no memory for a context of {capacity} tokens ({size:.1f} GiB); choose a shorter one"
            ) from None


def _lazy_zeros(shape: tuple[int, int, int, int]) -> NDArray[np.float16]:
    count = shape[0] * shape[1] * shape[2] * shape[3]
    # np.zeros takes untouched pages from the system; the slice moves its start to the alignment.
    block = np.zeros(2 * count + _ALIGNMENT, dtype=np.uint8)
    start = -block.ctypes.data % _ALIGNMENT
    return block[start : start + 2 * count].view(np.float16).reshape(shape)
