"""The comparison of the processing elements: everything of one flow and one library, as ratios to the baseline.

Areas of a library are of its own technology, decades old, and are never a claim about a modern one; ratios carry over
as far as the ratios between cells do. What depends on activations alone is at the edge of a row and counted by the
share that one of ``columns`` elements has in it. Elements have no registers for their operands (see
:mod:`speq.hardware.rtl.core`); the systolic area is what they had with them, in an array that passes operands from
neighbour to neighbour.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

from speq.errors import SpeqError
from speq.hardware.parameters import AccumulatorParameters
from speq.hardware.rtl.core import Core
from speq.hardware.rtl.operands import LANES
from speq.hardware.rtl.p0 import P0
from speq.hardware.rtl.p1 import P1
from speq.hardware.rtl.p2 import P2
from speq.hardware.rtl.p3 import P3
from speq.hardware.rtl.row_edge import RowEdge
from speq.hardware.synthesis.energy import energy_per_operation
from speq.hardware.synthesis.flow import synthesise
from speq.hardware.synthesis.netlist import Netlist
from speq.hardware.testbench.operations import dot_products

VARIANTS: dict[str, type[Core]] = {"P0": P0, "P1": P1, "P2": P2, "P3": P3}

WEIGHT_BITS = 16

CYCLES, ELEMENTS = 128, 64
"""The operations that energies are means of: 64 dot products of 128 steps."""

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with a label, what is done and the total."""


def _silent(label: str, done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class Figures:
    """One element in one library.

    Attributes:
        area: of the element, in the library's unit.
        gate_equivalents: the same in NAND gates of two inputs.
        cells, flip_flops: how many.
        depth: gates on the longest path.
        delay: the longest path in the library's unit of time, without wires.
        shared_area: ``area`` and the element's share of the edge of its row.
        systolic_area: ``shared_area`` and registers for all operands.
        exact_energy: of one FP16 product, added; in pJ if the library's units are pF and V.
        draft_energy: of four draft products, added; None without a draft mode.
    """

    element: str
    area: float
    gate_equivalents: float
    cells: int
    flip_flops: int
    depth: int
    delay: float
    shared_area: float
    systolic_area: float
    exact_energy: float
    draft_energy: float | None

    def ratios(self, baseline: Figures) -> dict[str, float | None]:
        """Areas, delay and the energy of one product, of either kind, relative to the baseline's."""
        return {
            "area": self.area / baseline.area,
            "shared_area": self.shared_area / baseline.shared_area,
            "systolic_area": self.systolic_area / baseline.systolic_area,
            "delay": self.delay / baseline.delay,
            "exact_energy": self.exact_energy / baseline.exact_energy,
            "draft_energy": None if self.draft_energy is None else self.draft_energy / 4 / baseline.exact_energy,
        }


@dataclass(frozen=True)
class LibraryTable:
    """All elements in one library, the baseline first; the edge's area without and with a draft mode."""

    library: str
    columns: int
    edge_areas: tuple[float, float]
    elements: list[Figures]

    @property
    def order(self) -> list[str]:
        """The elements from the smallest to the largest."""
        return [each.element for each in sorted(self.elements, key=lambda each: each.area)]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        elements = [asdict(each) | {"ratios": each.ratios(self.elements[0])} for each in self.elements]
        return asdict(self) | {"elements": elements, "order": self.order}


def compare(
    library: str, parameters: AccumulatorParameters, columns: int, progress: Progress = _silent
) -> LibraryTable:
    """Synthesise and measure all variants in a library.

    Raises SpeqError as :func:`speq.hardware.synthesis.flow.synthesise` does, and for an impossible number of columns.
    """
    if columns < 1:
        raise SpeqError(f"an array of {columns} columns is not possible; use 1 or more")
    label, steps = f"synthesis, {library}", len(VARIANTS) + 2
    edges: dict[int, Netlist] = {}
    for lanes in (1, LANES):
        progress(label, len(edges), steps)
        edges[lanes] = synthesise(RowEdge(lanes), library)
    figures: list[Figures] = []
    for name, variant in VARIANTS.items():
        progress(label, len(edges) + len(figures), steps)
        edge = edges[LANES if variant.DRAFTS else 1]
        figures.append(_measure(name, synthesise(variant(parameters), library), edge, columns, variant.DRAFTS))
    progress(label, steps, steps)
    return LibraryTable(library, columns, (edges[1].area, edges[LANES].area), figures)


def _measure(name: str, netlist: Netlist, edge: Netlist, columns: int, drafts: bool) -> Figures:
    cells = netlist.library.cells
    flip_flop = cells[netlist.flip_flops[0].cell].area
    shared = netlist.area + edge.area / columns
    return Figures(
        element=name,
        area=netlist.area,
        gate_equivalents=netlist.area / netlist.library.nand2_area,
        cells=len(netlist.gates) + len(netlist.flip_flops),
        flip_flops=len(netlist.flip_flops),
        depth=netlist.depth,
        delay=netlist.delay,
        shared_area=shared,
        systolic_area=shared + flip_flop * (len(edge.flip_flops) + WEIGHT_BITS),
        exact_energy=energy_per_operation(netlist, dot_products(False, CYCLES, ELEMENTS)),
        draft_energy=energy_per_operation(netlist, dot_products(True, CYCLES, ELEMENTS)) if drafts else None,
    )


def orders_agree(tables: Sequence[LibraryTable]) -> bool:
    """Whether every library puts the elements in the same order of area."""
    return all(table.order == tables[0].order for table in tables)
