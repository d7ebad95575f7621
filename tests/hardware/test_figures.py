"""Figures show what the design is and what its signals did."""

from __future__ import annotations

from xml.etree import ElementTree

from amaranth.hdl import Module, Signal
from amaranth.sim import Simulator

from speq.hardware.figures import draw_blocks, draw_waves, hierarchy, read_vcd


def texts(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def counter():
    """A design with two counters inside a third module; and the count."""
    inner = []
    outside = Module()
    for index in range(2):
        m = Module()
        count = Signal(4, name="count", init=5 * index)
        m.d.sync += count.eq(count + 1)
        outside.submodules[f"counter_{index}"] = m
        inner.append(count)
    top = Module()
    top.submodules.both = outside
    total = Signal(5)
    top.d.comb += total.eq(inner[0] + inner[1])
    return top


def test_blocks_are_those_of_the_design():
    block = hierarchy(counter(), "design")
    assert [inner.name for inner in block.inside] == ["both"]
    assert [inner.name for inner in block.inside[0].inside] == ["counter x 2"]
    assert texts(draw_blocks(block)) == ["design", "both", "counter x 2"]
    assert hierarchy(counter(), "design", leaves=("both",)).inside[0].inside == []


def test_waves_are_those_of_the_simulation(tmp_path):
    simulator = Simulator(counter())
    simulator.add_clock(1e-6)
    with simulator.write_vcd(str(tmp_path / "waves.vcd")):
        simulator.run_until(10e-6)
    traces = read_vcd(tmp_path / "waves.vcd")
    first, second, total = ("bench.top.both.counter_0.count", "bench.top.both.counter_1.count", "bench.top.total")
    rows = {"first": first, "second": second, "total": total}
    svg = draw_waves(traces, rows, "bench.top.both.counter_0.clk", range(2, 5))
    assert texts(svg) == ["2", "3", "4", "first", "2", "3", "4", "second", "7", "8", "9", "total", "9", "b", "d"]
