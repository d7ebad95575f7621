"""The accelerator: a controller and the array that it drives, between streams with back-pressure."""

from __future__ import annotations

from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from speq.hardware.array_parameters import ArrayParameters
from speq.hardware.parameters import AccumulatorParameters
from speq.hardware.rtl.array import Array
from speq.hardware.rtl.controller import SHAPES, Controller
from speq.hardware.rtl.core import Core
from speq.hardware.rtl.job import JOB, request_layout, result_layout
from speq.hardware.rtl.output_edge import queue_depth
from speq.hardware.rtl.parts import Parts, inline


class Accelerator(wiring.Component):
    """Jobs in, results out; per operand a stream of requests out and one of beats in, in the order requested."""

    def __init__(
        self, array: ArrayParameters, accumulator: AccumulatorParameters, core: type[Core], parts: Parts = inline
    ) -> None:
        self._array, self._accumulator, self._core, self._parts = array, accumulator, core, parts
        operands = {}
        for operand, shape in SHAPES.items():
            operands[f"{operand.value}_requests"] = Out(stream.Signature(request_layout(array)))
            operands[operand.value] = In(stream.Signature(shape(array)))
        super().__init__(
            {"jobs": In(stream.Signature(JOB)), **operands, "results": Out(stream.Signature(result_layout(array)))}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.controller = controller = Controller(self._array, queue_depth(self._array))
        m.submodules.array = array = Array(self._array, self._accumulator, self._core, self._parts)
        m.d.comb += [array.step.eq(controller.step), controller.taken.eq(array.taken)]
        wiring.connect(m, wiring.flipped(self.jobs), controller.jobs)
        for operand in SHAPES:
            for name in (operand.value, f"{operand.value}_requests"):
                ours, theirs = wiring.flipped(getattr(self, name)), getattr(controller, name)
                wiring.connect(m, ours, theirs)
        wiring.connect(m, array.results, wiring.flipped(self.results))
        return m
