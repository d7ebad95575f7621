"""The KV cache: layout, and memory that is taken only where it is used."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from speq.errors import SpeqError
from speq.models.cache import KVCache

on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def anonymous_kib() -> int:
    """Memory of this process that is not backed by a file."""
    return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def test_layout():
    cache = KVCache(layers=2, kv_heads=3, capacity=5, head_dim=6)
    for array in (cache.keys, cache.values):
        assert array.shape == (2, 3, 5, 6)
        assert array.dtype == "float16"
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert array.ctypes.data % 64 == 0
        assert not array.any()


@on_linux
def test_memory_grows_with_the_positions_that_are_written():
    layers, kv_heads, head_dim = 32, 8, 128
    before = anonymous_kib()
    cache = KVCache(layers, kv_heads, 131072, head_dim)
    assert cache.keys.nbytes == 8 << 30
    assert anonymous_kib() - before < 1024
    for positions in (1, 100, 400):
        for array in (cache.keys, cache.values):
            array[:, :, :positions] = np.float16(1)
        written = 2 * layers * kv_heads * positions * head_dim * 2 // 1024
        # beyond what is written, at most one page of 4 KiB for every layer and head, and a little for the test itself
        assert anonymous_kib() - before < written + 2 * layers * kv_heads * 4 + 2048


def test_an_impossible_context_is_one_clear_line():
    with pytest.raises(SpeqError, match="context of 1000000000000 tokens"):
        KVCache(layers=32, kv_heads=8, capacity=10**12, head_dim=128)


@on_linux
def test_a_refused_reservation_is_one_clear_line():
    """As where the system does not overcommit, or a limit on the address space is set."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))

    code = "from speq.models.cache import KVCache; KVCache(32, 8, 131072, 128)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, preexec_fn=limit, check=False)
    assert "SpeqError: no memory for a context of 131072 tokens (16.0 GiB); choose a shorter one" in done.stderr
