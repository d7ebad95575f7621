"""Plots are made from the JSON alone, as PNG and SVG."""

from __future__ import annotations

import sys

import pytest

from speq.bench.plots import draw
from speq.errors import SpeqError

KERNEL = {"bandwidth": 4e10, "peak": 2e11, "operations": 2e6, "bytes": 1e6, "gflops": 50.0}
RESULTS = {
    "kernels": [{**KERNEL, "kind": kind} for kind in ("draft", "plain", "verify")],
    "passes": [
        {"kind": kind, "tokens": n, "plain_ratio": n / 2} for kind, n in (("draft", 1), ("plain", 1), ("verify", 4))
    ],
    "engines": [{"engine": name, "rate": 9.0, "low": 8.0, "high": 11.0} for name in ("speq", "other")],
}


def report(*tables):
    return {
        "kind": "decode",
        "date": "2025-01-01",
        "model": {"name": "tiny"},
        "machine": {"processor": "P", "threads": 2},
        "results": {table: RESULTS.get(table, []) for table in tables},
    }


@pytest.mark.parametrize(("table", "name"), [("kernels", "roofline"), ("passes", "cost"), ("engines", "engines")])
def test_every_report_has_its_plot(tmp_path, table, name):
    pytest.importorskip("matplotlib")
    png, svg = draw(report(table), tmp_path / "plots", "run")
    assert (png.name, svg.name) == (f"run-{name}.png", f"run-{name}.svg")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in svg.read_text()


def test_what_cannot_be_drawn_is_said(tmp_path, monkeypatch):
    if "matplotlib" in sys.modules or pytest.importorskip("matplotlib"):
        with pytest.raises(SpeqError, match="nothing to plot"):
            draw(report("other"), tmp_path, "run")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SpeqError, match=r"pip install 'speq\[bench\]'"):
        draw(report("passes"), tmp_path, "run")
