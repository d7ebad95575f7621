"""Liberty files: the cells of a standard-cell library, as far as area, function, capacitance and energy go."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from speq.errors import SpeqError

_TOKEN = re.compile(r'"[^"]*"|[{}();:,]|[^\s{}();:,"]+')
_COMMENT = re.compile(r"/\*.*?\*/|//[^\n]*", re.DOTALL)


@dataclass
class Group:
    """One group of a Liberty file: ``kind (arguments) { attributes, groups }``."""

    kind: str
    arguments: list[str]
    attributes: dict[str, list[str]] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)

    def all(self, kind: str) -> list[Group]:
        """The groups of a kind directly inside this one."""
        return [group for group in self.groups if group.kind == kind]

    def number(self, name: str, default: float = 0.0) -> float:
        """A numeric attribute."""
        return float(self.attributes[name][0]) if name in self.attributes else default


@dataclass(frozen=True)
class Pin:
    """A pin of a cell.

    Attributes:
        capacitance: of an input, in the library's unit.
        function: of an output: an expression in Liberty's syntax over inputs, or the name of the flip-flop's state.
        energies: of an output, ``(load, energy)`` of one transition at the sharpest input edge, mean of rising and
            falling and of all inputs that cause it.
        own_energy: of one transition of an input that changes no output, as a clock's falling edge.
    """

    capacitance: float
    function: str | None
    energies: tuple[tuple[float, float], ...]
    own_energy: float


@dataclass(frozen=True)
class Cell:
    """A cell: its area in the library's unit, pins by name, and the next state if it is a flip-flop on a clock."""

    name: str
    area: float
    pins: dict[str, Pin]
    state: str | None
    next_state: str | None
    clock: str | None


@dataclass(frozen=True)
class Library:
    """A library of cells; ``path`` is its Liberty file, ``voltage`` the nominal supply in volts."""

    name: str
    path: Path
    voltage: float
    cells: dict[str, Cell]

    @cached_property
    def nand2_area(self) -> float:
        """The area of the smallest NAND of two inputs, the unit of gate equivalents."""
        pattern = re.compile(r"\(*!\(*[A-Z] ?[ *&] ?[A-Z]\)*")
        areas = [
            cell.area
            for cell in self.cells.values()
            if len(cell.pins) == 3 and any(pin.function and pattern.fullmatch(pin.function) for pin in cell.pins.values())
        ]
        if not areas:
            raise SpeqError(f"{self.path}: no NAND of two inputs, which areas are compared with")
        return min(areas)


def read_library(path: Path) -> Library:
    """Parse a Liberty file; raises SpeqError if it is not one."""
    text = _COMMENT.sub(" ", path.read_text(encoding="utf-8", errors="replace")).replace("\\\n", " ")
    top = Group("", [])
    try:
        _parse(_TOKEN.findall(text), 0, top)
        library = top.all("library")[0]
        cells = {group.arguments[0]: _cell(group) for group in library.all("cell")}
    except (IndexError, KeyError, ValueError) as error:
        raise SpeqError(f"{path}: not a Liberty file that speq can read ({error})") from error
    return Library(library.arguments[0], path, library.number("nom_voltage", 1.0), cells)


def _parse(tokens: list[str], at: int, group: Group) -> int:
    """Read statements into ``group`` from token ``at`` until its closing brace; the token after it."""
    while at < len(tokens) and tokens[at] != "}":
        name = tokens[at]
        if name == ";":
            at += 1
        elif tokens[at + 1] == ":":
            end = at + 2
            while tokens[end] != ";":
                end += 1
            group.attributes[name] = [token.strip('"') for token in tokens[at + 2 : end]]
            at = end + 1
        else:
            end = tokens.index(")", at)
            arguments = [token.strip('"') for token in tokens[at + 2 : end] if token != ","]
            if end + 1 < len(tokens) and tokens[end + 1] == "{":
                group.groups.append(Group(name, arguments))
                at = _parse(tokens, end + 2, group.groups[-1])
            else:
                group.attributes[name] = arguments
                at = end + 1
    return at + 1


def _cell(group: Group) -> Cell:
    flip_flops = group.all("ff")
    state = next_state = clock = None
    if flip_flops:
        state = flip_flops[0].arguments[0]
        next_state = flip_flops[0].attributes["next_state"][0]
        clock = flip_flops[0].attributes["clocked_on"][0]
    pins = {pin.arguments[0]: _pin(pin) for pin in group.all("pin")}
    return Cell(group.arguments[0], group.number("area"), pins, state, next_state, clock)


def _pin(group: Group) -> Pin:
    function = group.attributes.get("function")
    tables = [
        table
        for power in group.all("internal_power")
        for kind in ("rise_power", "fall_power", "power")
        for table in power.all(kind)
    ]
    curves: list[tuple[tuple[float, float], ...]] = []
    own = 0.0
    for table in tables:
        rows = [_numbers(row) for row in table.attributes["values"]]
        if function:
            curves.append(tuple(zip(_numbers(table.attributes["index_1"][0]), (row[0] for row in rows), strict=True)))
        else:
            own += rows[0][0] / len(tables)
    energies = tuple(
        (curves[0][i][0], float(np.mean([curve[i][1] for curve in curves]))) for i in range(len(curves[0]) if curves else 0)
    )
    return Pin(group.number("capacitance"), function[0] if function else None, energies, own)


def _numbers(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]
