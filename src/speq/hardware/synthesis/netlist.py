"""A mapped netlist: cells of a library and the nets between them, and what can be said without simulating it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from speq.errors import SpeqError
from speq.hardware.synthesis.liberty import Library, Pin, value_at

ZERO, ONE = 0, 1
"""The nets of the constants."""


@dataclass(frozen=True)
class Instance:
    """A cell and the net on each of its pins."""

    cell: str
    nets: dict[str, int]


@dataclass(frozen=True)
class Netlist:
    """A flat circuit on one clock.

    Attributes:
        library: where its cells are from.
        gates: combinational cells, each after the cells that drive it.
        flip_flops: cells with a state.
        inputs, outputs: the nets of each port, least significant bit first; clock and reset are not among them.
        nets: how many there are; 0 and 1 are the constants.
    """

    library: Library
    gates: list[Instance]
    flip_flops: list[Instance]
    inputs: dict[str, list[int]]
    outputs: dict[str, list[int]]
    nets: int

    @property
    def area(self) -> float:
        """The sum of the cells' areas, in the library's unit; wires have none."""
        return sum(self.library.cells[each.cell].area for each in self.gates + self.flip_flops)

    @cached_property
    def depth(self) -> int:
        """The most gates between two registers or ports."""
        levels = [0] * self.nets
        for gate in self.gates:
            before = max(levels[net] for net in self.input_nets(gate))
            levels[self.output_net(gate)] = before + 1
        return max(levels)

    @cached_property
    def delay(self) -> float:
        """The longest path in the library's unit of time, from its delays at the gates' loads and sharp input edges: no
        wires, no slow edges, no set-up times. Good for ratios between designs of the same flow."""
        arrival = [0.0] * self.nets
        for each in self.flip_flops + self.gates:
            state = self.library.cells[each.cell].state
            output = self.output_net(each)
            start = 0.0 if state else max(arrival[net] for net in self.input_nets(each))
            arrival[output] = start + value_at(self.output_pin(each).delays, self.loads[output])
        return max(arrival)

    @cached_property
    def loads(self) -> list[float]:
        """The capacitance of the inputs on each net."""
        loads = [0.0] * self.nets
        for each in self.gates + self.flip_flops:
            for pin, net in each.nets.items():
                loads[net] += self.library.cells[each.cell].pins[pin].capacitance
        return loads

    def input_nets(self, instance: Instance) -> list[int]:
        """The nets that a cell reads."""
        pins = self.library.cells[instance.cell].pins
        return [net for pin, net in instance.nets.items() if pins[pin].function is None]

    def output_pin(self, instance: Instance) -> Pin:
        """The pin with which a cell drives."""
        return next(pin for pin in self.library.cells[instance.cell].pins.values() if pin.function is not None)

    def output_net(self, instance: Instance) -> int:
        """The net that a cell drives."""
        pins = self.library.cells[instance.cell].pins
        return next(net for pin, net in instance.nets.items() if pins[pin].function is not None)


def read_netlist(path: Path, library: Library) -> Netlist:
    """Read what yosys wrote with ``write_json``; the only module must be mapped to cells of the library."""
    (module,) = json.loads(path.read_text(encoding="utf-8"))["modules"].values()
    numbers: dict[str | int, int] = {"0": ZERO, "1": ONE, "x": ZERO}

    def net(bit: str | int) -> int:
        return numbers.setdefault(bit, len(numbers) - 1)  # "x" shares the number of "0"

    instances = []
    for cell in module["cells"].values():
        if cell["type"] == "$scopeinfo":
            continue
        if cell["type"] not in library.cells:
            raise SpeqError(f"{library.path}: synthesis needs a cell that the library lacks ({cell['type']})")
        instances.append(Instance(cell["type"], {pin: net(bits[0]) for pin, bits in cell["connections"].items()}))
    ports: dict[str, dict[str, list[int]]] = {"input": {}, "output": {}}
    for name, port in module["ports"].items():
        if name not in ("clk", "rst"):
            ports[port["direction"]][name] = [net(bit) for bit in port["bits"]]
    flip_flops = [each for each in instances if library.cells[each.cell].state]
    gates = [each for each in instances if not library.cells[each.cell].state]
    netlist = Netlist(library, gates, flip_flops, ports["input"], ports["output"], len(numbers) - 1)
    return Netlist(library, _in_order(netlist), flip_flops, ports["input"], ports["output"], len(numbers) - 1)


def _in_order(netlist: Netlist) -> list[Instance]:
    """The gates sorted so that each comes after what drives it; a loop of gates is an error."""
    readers: dict[int, list[int]] = {}
    driven = {netlist.output_net(gate) for gate in netlist.gates}
    waiting = []
    for i, gate in enumerate(netlist.gates):
        needed = {net for net in netlist.input_nets(gate) if net in driven}
        waiting.append(len(needed))
        for net in needed:
            readers.setdefault(net, []).append(i)
    ready = [i for i, count in enumerate(waiting) if count == 0]
    for i in ready:
        for reader in readers.get(netlist.output_net(netlist.gates[i]), []):
            waiting[reader] -= 1
            if waiting[reader] == 0:
                ready.append(reader)
    if len(ready) < len(netlist.gates):
        raise SpeqError("the netlist has a combinational loop")
    return [netlist.gates[i] for i in ready]
