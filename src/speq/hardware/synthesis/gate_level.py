"""Simulates a mapped netlist from the functions that its Liberty file gives the cells, many runs at once.

Each net is an array of 64-bit words, one bit per run. Gates have no delay, so toggles are those of settled values:
glitches, which cost energy in a real circuit, are not seen.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from speq.errors import SpeqError
from speq.hardware.synthesis.netlist import ONE, Netlist

Words: TypeAlias = NDArray[np.uint64]
Function: TypeAlias = Callable[[Mapping[str, Words]], Words]

_BITS = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)


def compile_function(text: str) -> Function:
    """A Liberty expression as a function of words by pin: ``!`` and ``'`` invert, ``^``, ``&``, ``*`` or a space, ``+``
    or ``|``."""
    tokens: list[str] = re.findall(r"[A-Za-z_]\w*|[!'^&*+|()]", text)
    position = 0

    def peek() -> str:
        return tokens[position] if position < len(tokens) else ""

    def take() -> str:
        nonlocal position
        position += 1
        return tokens[position - 1]

    def either() -> str:
        terms = [both()]
        while peek() in ("+", "|"):
            take()
            terms.append(both())
        return f"({'|'.join(terms)})"

    def both() -> str:
        factors = [exclusive()]
        while peek() and peek() not in ("+", "|", ")"):
            if peek() in ("&", "*"):
                take()
            factors.append(exclusive())
        return f"({'&'.join(factors)})"

    def exclusive() -> str:
        factors = [inverted()]
        while peek() == "^":
            take()
            factors.append(inverted())
        return f"({'^'.join(factors)})"

    def inverted() -> str:
        if peek() == "!":
            take()
            return f"(~{inverted()})"
        if peek() == "(":
            take()
            inner = either()
            take()
        else:
            inner = f"pins[{take()!r}]"
        while peek() == "'":
            take()
            inner = f"(~{inner})"
        return inner

    source = either()
    if position != len(tokens):
        raise SpeqError(f"cannot read the Liberty function '{text}'")
    function: Function = eval(f"lambda pins: {source}")
    return function


class GateSimulator:
    """A netlist that is stepped through clock cycles.

    Attributes:
        toggles: transitions of each net, int64 [nets], summed over runs and cycles since they were last set to 0.
    """

    def __init__(self, netlist: Netlist, runs: int) -> None:
        self.netlist, self.runs = netlist, runs
        self._values = np.zeros((netlist.nets, -(-runs // 64)), np.uint64)
        self._values[ONE] = ~np.uint64(0)
        self._before: Words | None = None
        self.toggles = np.zeros(netlist.nets, np.int64)
        self._gates = _batches(netlist)
        cells = netlist.library.cells
        data_pins = [str(cells[each.cell].next_state) for each in netlist.flip_flops]
        if any(not re.fullmatch(r"\w+", pin) for pin in data_pins):
            raise SpeqError(f"{netlist.library.path}: only flip-flops without enable and reset can be simulated")
        self._data = [each.nets[pin] for each, pin in zip(netlist.flip_flops, data_pins, strict=True)]
        self._states = [netlist.output_net(each) for each in netlist.flip_flops]

    def step(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.int64]]:
        """One clock cycle: settle with these inputs (integers [runs] per port), return the outputs, clock."""
        for name, numbers in inputs.items():
            for i, net in enumerate(self.netlist.inputs[name]):
                self._values[net] = _pack(np.asarray(numbers) >> i & 1, self._values.shape[1])
        for function, pins, outputs in self._gates:
            self._values[outputs] = function({pin: self._values[nets] for pin, nets in pins.items()})
        outputs_now = {name: self._read(nets) for name, nets in self.netlist.outputs.items()}
        if self._before is not None:
            changed = (self._values ^ self._before).view(np.uint8)
            self.toggles += _BITS[changed].sum(axis=1, dtype=np.int64)
        self._before = self._values.copy()
        self._values[self._states] = self._values[self._data]
        return outputs_now

    def _read(self, nets: list[int]) -> NDArray[np.int64]:
        numbers = np.zeros(self.runs, np.int64)
        for i, net in enumerate(nets):
            bits = np.unpackbits(self._values[net].view(np.uint8), bitorder="little")[: self.runs]
            numbers |= bits.astype(np.int64) << i
        return numbers


def _pack(bits: NDArray[Any], words: int) -> Words:
    padded = np.zeros(64 * words, np.uint8)
    padded[: len(bits)] = bits
    return np.packbits(padded, bitorder="little").view(np.uint64)


def _batches(netlist: Netlist) -> list[tuple[Function, dict[str, list[int]], list[int]]]:
    """Gates that can be evaluated together: one kind of cell, one level, one output."""
    levels = np.zeros(netlist.nets, np.int64)
    found: dict[tuple[int, str], tuple[dict[str, list[int]], list[int]]] = {}
    for gate in netlist.gates:
        output = netlist.output_net(gate)
        levels[output] = 1 + max(levels[net] for net in netlist.input_nets(gate))
        pins, outputs = found.setdefault((int(levels[output]), gate.cell), ({}, []))
        outputs.append(output)
        for pin, net in gate.nets.items():
            if net != output:
                pins.setdefault(pin, []).append(net)
    batches = []
    for (_, cell), (pins, outputs) in sorted(found.items(), key=lambda item: item[0]):
        functions = [pin.function for pin in netlist.library.cells[cell].pins.values() if pin.function]
        batches.append((compile_function(functions[0]), pins, outputs))
    return batches
