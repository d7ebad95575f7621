"""Switching energy of a mapped element, from the toggles of its nets on random dot products in both modes.

A toggle of a net costs what the library says its driver dissipates inside, at this load, and half of C V**2 for the
inputs that the net charges. A flip-flop's clock pin toggles twice per cycle. Gates settle without delay, so there are
no glitches, and wires have no capacitance: the energies are for ratios between designs, not for watts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from speq.hardware.golden.row_edge import row_operands, row_words
from speq.hardware.synthesis.gate_level import GateSimulator
from speq.hardware.synthesis.liberty import value_at
from speq.hardware.synthesis.netlist import Netlist
from speq.hardware.testbench.operations import Operations


def energy_per_operation(netlist: Netlist, operations: Operations) -> float:
    """Mean energy of one operation of an element's core; with 1 pF and 1 V as the library's units, in picojoules."""
    cycles, elements = operations.weights.shape
    simulator = GateSimulator(netlist, elements)
    rows = row_words(row_operands(operations.activations, operations.enable, operations.draft, operations.first))
    for cycle in range(cycles):
        simulator.step({"row": rows[cycle], "weights": operations.weights[cycle].astype(np.int64)})
    toggles = simulator.toggles / (elements * (cycles - 1))
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
