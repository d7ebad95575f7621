"""A tiny converted model, and a machine whose memory reads one gigabyte per second."""

from __future__ import annotations

import pytest

from speq.conversion.convert import convert


@pytest.fixture(scope="session")
def tiny_converted(tiny_checkpoint, tmp_path_factory):
    """The tiny checkpoint, converted."""
    return convert(tiny_checkpoint, tmp_path_factory.mktemp("converted") / "tiny").path


@pytest.fixture
def slow_memory(monkeypatch):
    """Measuring the bandwidth takes no time and gives 1 GB/s."""
    for module in ("attention", "endtoend", "kernels", "machine"):
        monkeypatch.setattr(f"speq.bench.{module}.read_bandwidth", lambda *_, **__: 1e9)
