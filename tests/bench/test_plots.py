"""Plots are made from kept figures alone, as PNG and SVG."""

from __future__ import annotations

import sys

import pytest

from speq.bench.plots import draw
from speq.bench.results import Origin, table_figures
from speq.errors import SpeqError

KERNEL = {"operator": "head", "tokens": 1, "bandwidth": 4e10, "peak": 2e11, "operations": 2e6, "bytes": 1e6}
ROWS = {
    "kernels": [{**KERNEL, "gflops": 50.0, "kind": kind} for kind in ("draft", "plain", "verify")],
    "passes": [
        {"kind": kind, "tokens": n, "plain_ratio": n / 2} for kind, n in (("draft", 1), ("plain", 1), ("verify", 4))
    ],
    "engines": [{"engine": name, "rate": 9.0, "low": 8.0, "high": 11.0} for name in ("speq", "other")],
    "heads": [{"prompts_file": "f", "prompts": 3}],
}


def kept(table, model="tiny"):
    return table_figures(Origin("2026-01-01", "abc1234", "P, 2 threads", model), table, ROWS[table])


@pytest.mark.parametrize(("table", "name"), [("kernels", "roofline"), ("passes", "cost"), ("engines", "engines")])
def test_every_table_has_its_plot(tmp_path, table, name):
    pytest.importorskip("matplotlib")
    png, svg = draw(kept(table), tmp_path / "plots", "run")
    assert (png.name, svg.name) == (f"run-{name}.png", f"run-{name}.svg")
    assert png.read_bytes().startswith(b"\x89PNG")
    assert "</svg>" in svg.read_text()


def test_what_cannot_be_drawn_is_said(tmp_path, monkeypatch):
    if "matplotlib" in sys.modules or pytest.importorskip("matplotlib"):
        with pytest.raises(SpeqError, match="nothing to plot"):
            draw(kept("heads"), tmp_path, "run")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SpeqError, match=r"pip install 'speq\[bench\]'"):
        draw(kept("passes"), tmp_path, "run")


def test_every_run_has_a_plot_of_its_own(tmp_path):
    pytest.importorskip("matplotlib")
    made = draw([*kept("passes"), *kept("engines"), *kept("passes", "other")], tmp_path, "runs")
    assert [path.name for path in made if path.suffix == ".svg"] == [
        "runs-cost.svg",
        "runs-cost-2.svg",
        "runs-engines.svg",
    ]


def test_rows_that_lack_a_figure_are_said(tmp_path):
    pytest.importorskip("matplotlib")
    found = [each for each in kept("engines") if each.what != "engines.low"]
    with pytest.raises(SpeqError, match="the plot engines needs low of every row"):
        draw(found, tmp_path, "run")
