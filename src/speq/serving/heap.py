"""Memory that was freed but that the C library keeps for later."""

from __future__ import annotations

import ctypes
import sys


def return_freed_memory() -> None:
    """Hand freed memory back to the system, where the C library can (glibc).

    Reading a tokenizer leaves tens of megabytes behind, which would stay resident beside the weights.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)
