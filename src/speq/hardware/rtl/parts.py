"""How a design gets its repeated parts: one component each time, or one Verilog module with many instances."""

from __future__ import annotations

from typing import Protocol, TypeVar

from amaranth.hdl import ClockSignal, Instance, Module, ResetSignal, Value
from amaranth.lib import wiring

Part = TypeVar("Part", bound=wiring.Component)


class Parts(Protocol):
    """Called with a module name and a component for every place where one is needed; returns what to put there."""

    def __call__(self, name: str, part: Part, /) -> Part | Extern: ...


def inline(name: str, part: Part) -> Part:
    """Every place has its own component: for simulation and proofs."""
    return part


class Extern(wiring.Component):
    """An instance of a Verilog module that is written elsewhere, with the ports of ``part``."""

    def __init__(self, name: str, part: wiring.Component) -> None:
        self._name = name
        super().__init__(part.signature)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        ports: dict[str, Value] = {"i_clk": ClockSignal(), "i_rst": ResetSignal()}
        for path, member, value in self.signature.flatten(self):
            ports[f"{'i' if member.flow is wiring.In else 'o'}_{'__'.join(map(str, path))}"] = Value.cast(value)
        m.submodules.instance = Instance(self._name, **ports)
        return m


class Collector:
    """Puts an :class:`Extern` in every place and keeps one component of each name, to be written once."""

    def __init__(self) -> None:
        self.modules: dict[str, wiring.Component] = {}

    def __call__(self, name: str, part: Part) -> Extern:
        self.modules.setdefault(name, part)
        return Extern(name, part)
