"""Cycles of the array: against tiles counted one by one and the RTL's formula; sizes from area or throughput."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speq.errors import SpeqError
from speq.hardware.cycles import ArrayParameters, array_cycles
from speq.hardware.simulator.compute import Grid, broadcast, columns_of, grid_of, output_stationary, product_cycles
from speq.hardware.simulator.config import Accelerator
from speq.hardware.simulator.load import check, tables

small = st.integers(1, 12)
MADE_UP = "made up for a test"


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), small, small, st.integers(1, 4), st.integers(1, 3))
def test_broadcast_visits_every_tile_once(tokens, inputs, outputs, rows, columns, lanes, serial):
    steps = [
        (t, n, k) for t in range(0, tokens, rows) for n in range(0, outputs, columns) for k in range(0, inputs, lanes)
    ]
    assert broadcast(tokens, inputs, outputs, Grid(rows, columns, lanes, serial)) == len(steps) * serial


def systolic_last_cycle(steps, rows, columns):
    """A fold by hand: operand k enters row i and column j at cycle k + i + j; when is the last one done?"""
    return max(k + i + j for k in (0, steps - 1) for i in range(rows) for j in range(columns)) + 1


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 50), small, small)
def test_an_output_stationary_fold_ends_with_its_last_corner(inputs, rows, columns):
    # One more row of cycles than the last product: sums leave while the next fold's first operands come in.
    fold = output_stationary(rows, inputs, columns, Grid(rows, columns))
    assert fold == systolic_last_cycle(inputs, rows, columns)
    assert output_stationary(3 * rows, inputs, 2 * columns, Grid(rows, columns)) == 6 * fold


@pytest.mark.parametrize(("mode", "draft"), [("fp16", False), ("draft", True)])
def test_a_streamed_array_takes_the_cycles_of_the_rtl(accelerator, mode, draft):
    speq = accelerator("speq")
    columns = columns_of(speq)
    grid = grid_of(speq.array, speq.modes[mode], columns)
    for tokens, inputs, outputs in ((1, 4096, 4096), (8, 576, 1536), (9, 100, 71)):
        expected = array_cycles(tokens, inputs, outputs, draft, ArrayParameters(8, columns, 3), 128)
        assert product_cycles(speq.array, grid, tokens, inputs, outputs, 128) == expected


def test_poor_use_slows_only_products_that_leave_rows_empty(accelerator):
    full, poor = accelerator("olive"), accelerator("olive", array__gemv_utilisation=0.25)
    grid = grid_of(full.array, full.modes["int8"], columns_of(full))
    assert grid.rows == 32
    for tokens, factor in ((1, 4), (31, 4), (32, 1), (64, 1)):
        fast, slow = (product_cycles(one.array, grid, tokens, 512, 512, 128) for one in (full, poor))
        assert slow == factor * fast


@pytest.mark.parametrize("name", ["fp16", "olive", "tender", "speq"])
def test_iso_area_fills_the_budget(accelerator, name):
    one = accelerator(name)
    array, columns = one.array, columns_of(one)
    fused = max(mode.fused_columns for mode in one.modes.values())
    assert columns % fused == 0

    def area_of(width):
        return array.rows.value * width * array.pe_area.value * array.layout_factor.value

    assert area_of(columns) <= array.area_budget.value * 1e6 < area_of(columns + fused)


def test_iso_throughput_gives_the_products_asked_for(accelerator):
    data = tables("accelerators", "tender")[1]
    array = {key: value for key, value in data["array"].items() if key != "area_budget"}
    array |= {
        "sizing": "iso-throughput",
        "throughput": {"value": 512, "unit": "MAC/cycle", "source": "made up for a test"},
    }
    memory = tables("memories", "ddr4-3200")[1]
    tender = check(Accelerator, data | {"array": array, "memory": memory}, "test")
    # 512 products per cycle in the widest mode, which takes 4 x 4 PEs for each, on 64 rows: 128 columns.
    assert columns_of(tender) == 512 * 16 // 64


def test_an_array_without_a_column_is_refused(accelerator):
    with pytest.raises(SpeqError, match="leaves no column"):
        columns_of(accelerator("fp16", array__area_budget=0.001))
    tiny = accelerator("olive", array__rows=2)
    with pytest.raises(SpeqError, match="cannot hold one unit of 4 x 4 PEs"):
        grid_of(tiny.array, tiny.modes["int16"], 8)
