"""Liberty files: the cells of a standard-cell library, as far as area, function, capacitance and energy go."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from speq.errors import SpeqError

Curve: TypeAlias = tuple[tuple[float, float], ...]
"""A piecewise linear function of the load."""

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
            falling and of all inputs that cause it; empty if the library has none.
        delays: of an output, ``(load, delay)`` after the sharpest input edge, the slowest of all cases.
        own_energy: of one transition of an input that changes no output, as a clock's falling edge.
    """

    capacitance: float
    function: str | None
    energies: Curve
    delays: Curve
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
            if len(cell.pins) == 3
            and any(pin.function and pattern.fullmatch(pin.function) for pin in cell.pins.values())
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
    if at >= len(tokens) and group.kind:
        raise ValueError(f"a {group.kind} has no end")
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
    power = _tables(group.all("internal_power"), ("rise_power", "fall_power", "power"))
    delays = _tables(group.all("timing"), ("cell_rise", "cell_fall"))
    if function is None:
        own = float(np.mean([_numbers(table.attributes["values"][0])[0] for table in power])) if power else 0.0
        return Pin(group.number("capacitance"), None, (), (), own)
    return Pin(0.0, function[0], _merge(power, np.mean), _merge(delays, np.max), 0.0)


def _tables(groups: list[Group], kinds: tuple[str, ...]) -> list[Group]:
    return [table for group in groups for kind in kinds for table in group.all(kind)]


def _merge(tables: list[Group], merge: Callable[[list[float]], Any]) -> Curve:
    """One curve over the load from the first column, the sharpest input edge, of tables over the same loads.

    Shorter tables, as of outputs that are switched off, are not about loads and are left out.
    """
    columns = {id(table): [_numbers(row)[0] for row in table.attributes["values"]] for table in tables}
    points = max(map(len, columns.values()), default=0)
    tables = [table for table in tables if len(columns[id(table)]) == points]
    if points == 0:
        return ()
    loads = _numbers(tables[0].attributes["index_1"][0]) if points > 1 else [0.0]
    values = [merge([columns[id(table)][i] for table in tables]) for i in range(points)]
    return tuple(zip(loads, map(float, values), strict=True))


def _numbers(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


def value_at(curve: Curve, load: float) -> float:
    """The curve at a load, its last segment extended beyond the largest; 0 without points."""
    if len(curve) < 2:
        return curve[0][1] if curve else 0.0
    (x0, y0), (x1, y1) = next((pair for pair in pairwise(curve) if load <= pair[1][0]), (curve[-2], curve[-1]))
    return y0 + (y1 - y0) * (load - x0) / (x1 - x0)
