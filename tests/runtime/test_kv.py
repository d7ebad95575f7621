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
from speq.runtime.kv import KVPool

on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def anonymous_kib() -> int:
    """Memory of this process that is not backed by a file."""
    return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def test_layout():
    cache = KVPool(2, 3, 6, context=5)
    for array in (cache.keys, cache.values):
        assert array.shape == (3, 2, 3, 256, 6)
        assert array.dtype == "float16"
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert array.ctypes.data % 64 == 0
        assert not array.any()


@on_linux
def test_memory_grows_with_the_positions_that_are_written():
    layers, kv_heads, head_dim = 32, 8, 128
    before = anonymous_kib()
    cache = KVPool(layers, kv_heads, head_dim, context=131072)
    assert cache.keys.nbytes > 8 << 30
    assert anonymous_kib() - before < 1024
    for positions in (1, 100, 400):
        for array in (cache.keys, cache.values):
            for page in range(-(-positions // 256)):
                array[page, :, :, : positions - 256 * page] = np.float16(1)
        written = 2 * layers * kv_heads * positions * head_dim * 2 // 1024
        # Beyond what is written: a page of 4 KiB for every layer and head in each of two pages of the cache, and a
        # little for the test itself.
        assert anonymous_kib() - before < written + 2 * 2 * layers * kv_heads * 4 + 2048


def test_an_impossible_context_is_one_clear_line():
    with pytest.raises(SpeqError, match=r"contexts? of 1000000000000 tokens"):
        KVPool(32, 8, 128, context=10**12)


@on_linux
def test_a_refused_reservation_is_one_clear_line():
    """As where the system does not overcommit, or a limit on the address space is set."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))

    code = "from speq.runtime.kv import KVPool; KVPool(32, 8, 128, context=131072)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, preexec_fn=limit, check=False)
    assert "SpeqError: no memory for 1 contexts of 131072 tokens (16.1 GiB); choose a shorter one" in done.stderr
