"""Other simulators: SCALE-Sim's cycles exactly, ZigZag's latency and energy, BitMoD's published cycles.

SCALE-Sim and ZigZag are compared through stored answers (tests/hardware/reference_tools.py wrote them) and, where the
packages are installed, through fresh ones.
"""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path

import pytest

from speq.hardware.simulator.compute import Grid, output_stationary, weight_stationary
from speq.hardware.simulator.load import load_accelerator
from speq.hardware.simulator.machine import Machine
from speq.hardware.simulator.passes import PassSpec, Simulator

DATA = Path(__file__).parents[1] / "data"
FORMULAS = {"os": output_stationary, "ws": weight_stationary}


def stored(name):
    with (DATA / name).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def tools():
    specification = importlib.util.spec_from_file_location("reference_tools", DATA.parent / "reference_tools.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules["reference_tools"] = module
    specification.loader.exec_module(module)
    return module


def test_scalesim_counts_the_same_cycles():
    rows = stored("scalesim-3.0.0.csv")
    assert len(rows) == 40
    for row in rows:
        dataflow = row.pop("dataflow")
        numbers = {name: int(value) for name, value in row.items()}
        grid = Grid(numbers.pop("rows"), numbers.pop("columns"))
        last = numbers.pop("last_cycle")
        assert FORMULAS[dataflow](**numbers, grid=grid) == last + 1  # it numbers cycles from 0


def test_scalesim_still_says_so(tools):
    pytest.importorskip("scalesim")
    for dataflow, formula in FORMULAS.items():
        last = tools.scalesim(dataflow, 8, 4, 21, 13, 34)
        assert formula(21, 34, 13, Grid(8, 4)) == last + 1


def zigzag_machine(rows, columns):
    """The machine that reference_tools describes to ZigZag."""
    changes = {
        "array.rows": rows,
        "array.columns": columns,
        "array.idle_energy": 0.0,
        "buffers.weights": 512,
        "buffers.activations": 512,
        "memory.peak_bandwidth": 25.0,
    }
    return Machine(load_accelerator("bitmod-fp16", changes))


def check_zigzag(row):
    machine = zigzag_machine(int(row["rows"]), int(row["columns"]))
    exact = machine.accelerator.passes.exact
    sizes = (int(row[name]) for name in ("tokens", "inputs", "outputs"))
    cost = machine.linear(*sizes, exact.linear, exact)
    # ZigZag adds the first load and the last store, which here overlap with the layers around: nothing in a layer bound
    # by DRAM, up to a fifth in one bound by computation.
    bound = row["latency"] if cost.bound == "dram" else row["computing"]
    assert cost.cycles == pytest.approx(float(bound), rel=0.03)
    assert 0.8 * float(row["latency"]) < cost.cycles < 1.01 * float(row["latency"])
    assert cost.pe_energy == pytest.approx(float(row["mac"]), rel=1e-6)
    assert cost.dram_energy == pytest.approx(float(row["dram"]), rel=0.03)
    # Partial sums stay in the array here; ZigZag moves some of them through SRAM.
    assert cost.sram_energy == pytest.approx(float(row["sram"]), rel=0.1)
    total = cost.pe_energy + cost.sram_energy + cost.dram_energy
    assert total == pytest.approx(float(row["energy"]), rel=0.03)


def test_zigzag_agrees_on_latency_and_energy():
    rows = stored("zigzag-3.9.1.csv")
    assert len(rows) == 6
    for row in rows:
        check_zigzag(row)


def test_zigzag_still_says_so(tools):
    pytest.importorskip("zigzag")
    names = ("tokens", "inputs", "outputs", "rows", "columns")
    product = (4, 768, 640, 4, 32)
    check_zigzag(dict(zip(names, product, strict=True)) | tools.zigzag(*product))


# Cycles per generated token, 64 x 12 FP16 PEs, 256 tokens of context: sim/plot/speedup_plot.ipynb of
# abdelfattah-lab/BitMoD-HPCA-25 at 48975fc.
BITMOD = {"llama-2-7b": 413_518_608, "llama-2-13b": 804_330_080, "llama-3.1-8b": 469_624_976}


@pytest.mark.parametrize("model", BITMOD)
def test_bitmod_publishes_nearly_the_same_cycles(shape, model):
    """Within 1.5 %: what is left is attention, whose cache the simulator behind these numbers hardly reads."""
    cost = Simulator(load_accelerator("bitmod-fp16"), shape(model)).cost(PassSpec("step", 1, 255, 1))
    assert cost.cycles == pytest.approx(BITMOD[model], rel=0.015)
    assert cost.cycles > BITMOD[model]


@pytest.mark.parametrize("model", ["llama-2-7b", "llama-2-13b"])
def test_bitmod_publishes_the_same_cycles_but_for_attention(shape, model):
    """Its attention by hand: queries against keys take the array's cycles, hidden x ceil(heads / 12); values against
    scores take the transfer of heads x 256 scores, one row of values and the output. It rounds layers down."""
    one = shape(model)
    layers = Simulator(load_accelerator("bitmod-fp16"), one).layers(PassSpec("step", 1, 255, 1))
    linear = sum(layer.times * int(layer.cost.cycles) for layer in layers if layer.name not in ("attention", "start"))
    scores = one.hidden * -(-one.heads // 12)
    values = (one.heads * 256 * 2 + one.hidden * 2 + one.heads * 2) // 32
    assert linear + one.layers * (scores + values) == BITMOD[model]
