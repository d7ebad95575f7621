"""The KV cache: layout, and memory that is touched only where it is used."""

from __future__ import annotations

import resource
import sys

import pytest

from speq.errors import SpeqError
from speq.models.cache import KVCache


def test_layout():
    cache = KVCache(layers=2, kv_heads=3, capacity=5, head_dim=6)
    for array in (cache.keys, cache.values):
        assert array.shape == (2, 3, 5, 6)
        assert array.dtype == "float16"
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert array.ctypes.data % 64 == 0
        assert not array.any()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ru_maxrss is in KiB on Linux only")
def test_reserving_a_long_context_takes_no_memory():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cache = KVCache(layers=32, kv_heads=8, capacity=32768, head_dim=128)
    assert cache.keys.nbytes == 2 << 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


def test_an_impossible_context_is_one_clear_line():
    with pytest.raises(SpeqError, match="context of 1000000000000 tokens"):
        KVCache(layers=32, kv_heads=8, capacity=10**12, head_dim=128)
