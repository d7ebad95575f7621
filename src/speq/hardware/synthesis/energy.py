"""Switching energy of a mapped element, from the toggles of its nets on random dot products in both modes.

A toggle of a net costs what the library says its driver dissipates inside, at this load, and half of C V**2 for the
inputs that the net charges. A flip-flop's clock pin toggles twice per cycle. Gates settle without delay, so there are
no glitches, and wires have no capacitance: the energies are for ratios between designs, not for watts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speq.hardware.e3m0 import bin_exponents, pack_draft, split
from speq.hardware.golden.row_edge import row_operands, row_words
from speq.hardware.synthesis.liberty import value_at
from speq.hardware.synthesis.netlist import Netlist
from speq.hardware.verification.gate_level import GateSimulator

RUNS = 64
CYCLES = 128


@dataclass(frozen=True)
class Operations:
    """The operations of some runs, cycle by cycle: FP16 activations [cycles, runs, 4], words of weights [cycles, runs],
    draft mode or not."""

    activations: NDArray[np.uint16]
    weights: NDArray[np.uint16]
    draft: bool


def dot_products(draft: bool, seed: int = 0, runs: int = RUNS, cycles: int = CYCLES) -> Operations:
    """Dot products of normal activations with normal weights of deviation 1/50, in one mode.

    The codes of a draft are those of the weights in e3m0 with 2**-4 as the finest exponent.
    """
    rng = np.random.default_rng(seed)
    activations = rng.normal(0, 1, (cycles, runs, 4)).astype(np.float16).view(np.uint16)
    weights = rng.normal(0, 0.02, (cycles, runs, 4)).astype(np.float16).view(np.uint16)
    words = pack_draft(split(weights, bin_exponents(11))[0]) if draft else weights[..., 0]
    return Operations(activations, words, draft)


def energy_per_operation(netlist: Netlist, operations: Operations) -> float:
    """Mean energy of one operation of an element's core; with 1 pF and 1 V as the library's units, in picojoules."""
    cycles, runs = operations.weights.shape
    simulator = GateSimulator(netlist, runs)
    first = np.zeros((cycles, runs), np.bool_)
    first[0] = True
    rows = row_words(row_operands(operations.activations, True, operations.draft, first))
    for cycle in range(cycles):
        simulator.step({"row": rows[cycle], "weights": operations.weights[cycle].astype(np.int64)})
    toggles = simulator.toggles / (runs * (cycles - 1))
    return float(toggles @ _energies(netlist)) + _clock_energy(netlist)


def _energies(netlist: Netlist) -> NDArray[np.float64]:
    """Energy of one toggle of each net."""
    volts = netlist.library.voltage
    energies = np.array([load * volts * volts / 2 for load in netlist.loads])
    for each in netlist.gates + netlist.flip_flops:
        net = netlist.output_net(each)
        energies[net] += value_at(netlist.output_pin(each).energies, netlist.loads[net])
    return energies


def _clock_energy(netlist: Netlist) -> float:
    """Energy of both clock edges of one cycle."""
    volts = netlist.library.voltage
    energy = 0.0
    for each in netlist.flip_flops:
        cell = netlist.library.cells[each.cell]
        pin = cell.pins[str(cell.clock)]
        energy += pin.capacitance * volts * volts + 2 * pin.own_energy
    return energy
