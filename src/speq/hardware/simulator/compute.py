"""Cycles that an array takes for a product ``[tokens, inputs] @ [inputs, outputs]``, by dataflow.

Rows of the array take tokens and columns take outputs, except in ``weight-stationary``, where rows take inputs. All
counts assume that operands are there in time; transfers are counted elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from speq.errors import SpeqError
from speq.hardware.array_parameters import ArrayParameters
from speq.hardware.cycles import array_cycles
from speq.hardware.simulator.config import Accelerator, Array, Mode

_LONGEST = (1 << 17) - 1  # inputs that the controller of a streamed array counts to in one job


@dataclass(frozen=True)
class Grid:
    """The array in units of one mode's multiply-accumulate.

    Attributes:
        rows, columns: multiply-accumulate units after fusing.
        lanes: products of a unit per step. cycles_per_step: of a step, more than 1 if bits go in serially.
    """

    rows: int
    columns: int
    lanes: int = 1
    cycles_per_step: int = 1


def grid_of(array: Array, mode: Mode, columns: int) -> Grid:
    """The units of a mode on ``columns`` columns of processing elements."""
    rows = int(array.rows.value) // mode.fused_rows
    columns //= mode.fused_columns
    if rows < 1 or columns < 1:
        raise SpeqError(
            f"array: {array.rows.value:g} rows and {columns} columns cannot hold one unit of "
            f"{mode.fused_rows} x {mode.fused_columns} PEs: use a larger array"
        )
    return Grid(rows, columns, mode.lanes, mode.cycles_per_step)


def columns_of(accelerator: Accelerator) -> int:
    """Columns of processing elements: as stated, or as many as an area or a throughput affords.

    For iso-area the budget is divided by rows and by the area of a PE after layout; for iso-throughput the throughput
    is that of the mode with the fewest products per cycle. Columns are whole units of that mode.

    Raises:
        SpeqError: not one unit fits.
    """
    array = accelerator.array
    widest = min(accelerator.modes.values(), key=_products)
    if array.columns:
        return int(array.columns.value)
    if array.area_budget:
        area = array.pe_area.value * array.layout_factor.value * 1e-6  # mm2
        columns = array.area_budget.value / (array.rows.value * area)
    else:
        assert array.throughput
        columns = array.throughput.value / (array.rows.value * _products(widest))
    fused = max(mode.fused_columns for mode in accelerator.modes.values())
    whole = int(columns + 1e-9) // fused * fused
    if not whole:
        raise SpeqError(
            f"{accelerator.name}: array: {array.sizing} leaves no column: raise the budget or lower the rows"
        )
    return whole


def _products(mode: Mode) -> float:
    """Multiply-accumulates per PE and cycle."""
    return mode.lanes / (mode.fused_rows * mode.fused_columns * mode.cycles_per_step)


def streamed(tokens: int, inputs: int, outputs: int, grid: Grid, *, group_size: int, pe_latency: int) -> int:
    """The array of this project, whose formula equals its RTL cycle by cycle (``speq.hardware.cycles``)."""
    array = ArrayParameters(grid.rows, grid.columns, pe_latency)
    draft = grid.lanes > 1
    whole, rest = divmod(inputs, _LONGEST)
    cycles = whole * array_cycles(tokens, _LONGEST, outputs, draft, array, group_size) if whole else 0
    return cycles + (array_cycles(tokens, rest, outputs, draft, array, group_size) if rest else 0)


def broadcast(tokens: int, inputs: int, outputs: int, grid: Grid) -> int:
    """Operands reach all units at once: no filling and draining.

    Source: the formula of BitMoD's simulator (HPCA 2025), ceil(inputs / lanes) ceil(outputs / columns)
    ceil(tokens / rows) times the cycles of a step.
    """
    steps = _ceil(inputs, grid.lanes) * grid.cycles_per_step
    return steps * _ceil(outputs, grid.columns) * _ceil(tokens, grid.rows)


def output_stationary(tokens: int, inputs: int, outputs: int, grid: Grid) -> int:
    """A systolic array that keeps sums in place: (T + R + C - 2) cycles per fold.

    Source: SCALE-Sim (ISPASS 2020), output stationary; equal to scalesim 3.0.0 on the products in the tests.
    """
    steps = _ceil(inputs, grid.lanes) * grid.cycles_per_step
    return (steps + grid.rows + grid.columns - 2) * _ceil(tokens, grid.rows) * _ceil(outputs, grid.columns)


def weight_stationary(tokens: int, inputs: int, outputs: int, grid: Grid) -> int:
    """A systolic array that keeps weights in place: (T + 2 R + C - 2) cycles per fold, T the tokens.

    Source: SCALE-Sim (ISPASS 2020), weight stationary; equal to scalesim 3.0.0 on the products in the tests.
    """
    steps = tokens * grid.cycles_per_step
    folds = _ceil(_ceil(inputs, grid.lanes), grid.rows) * _ceil(outputs, grid.columns)
    return (steps + 2 * grid.rows + grid.columns - 2) * folds


_SYSTOLIC: dict[str, Callable[[int, int, int, Grid], int]] = {
    "broadcast": broadcast,
    "output-stationary": output_stationary,
    "weight-stationary": weight_stationary,
}


def product_cycles(array: Array, grid: Grid, tokens: int, inputs: int, outputs: int, group_size: int) -> int:
    """Cycles of one product in the array's dataflow, with the factor for products that leave rows empty."""
    if array.dataflow == "streamed":
        assert array.pe_latency
        latency = int(array.pe_latency.value)
        cycles = streamed(tokens, inputs, outputs, grid, group_size=group_size, pe_latency=latency)
    else:
        cycles = _SYSTOLIC[array.dataflow](tokens, inputs, outputs, grid)
    if tokens < grid.rows and array.gemv_utilisation.value < 1:
        return math.ceil(cycles / array.gemv_utilisation.value)
    return cycles


def _ceil(amount: int, unit: int) -> int:
    return -(-amount // unit)
