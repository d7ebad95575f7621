"""How a design gets its repeated parts: one component each time, or one Verilog module with many instances."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from amaranth.hdl import ClockSignal, Instance, ResetSignal, Value
from amaranth.lib import wiring


class Parts(Protocol):
    """Called with a module name and how to make it for every place where it is needed; returns what to put there.

    ``clocked`` says whether it has a clock, which a combinational module has not.
    """

    def __call__(self, name: str, make: Callable[[], wiring.Component], /, *, clocked: bool = True) -> Any: ...


def inline(name: str, make: Callable[[], wiring.Component], /, *, clocked: bool = True) -> wiring.Component:
    """Every place has its own component: for simulation and proofs."""
    return make()


class Extern(wiring.Component):
    """An instance of a Verilog module that is written elsewhere, with the ports of ``part``."""

    def __init__(self, name: str, part: wiring.Component, clocked: bool) -> None:
        self._name, self._clocked = name, clocked
        super().__init__(part.signature)

    def elaborate(self, platform: object) -> Instance:
        ports: dict[str, Any] = {"i_clk": ClockSignal(), "i_rst": ResetSignal()} if self._clocked else {}
        for path, member, value in self.signature.flatten(self):
            ports[f"{'i' if member.flow is wiring.In else 'o'}_{'__'.join(map(str, path))}"] = Value.cast(value)
        return Instance(self._name, **ports)


class Collector:
    """Puts an :class:`Extern` in every place and keeps one component of each name, to be written once."""

    def __init__(self) -> None:
        self.modules: dict[str, wiring.Component] = {}

    def __call__(self, name: str, make: Callable[[], wiring.Component], /, *, clocked: bool = True) -> Extern:
        if name not in self.modules:
            self.modules[name] = make()
        return Extern(name, self.modules[name], clocked)
