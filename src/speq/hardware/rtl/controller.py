"""Walks matrix products tile by tile: asks for the operands and issues the steps of the array."""

from __future__ import annotations

from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from speq.hardware.array_parameters import ArrayParameters
from speq.hardware.rtl.fetcher import Fetcher, Operand
from speq.hardware.rtl.job import (
    JOB,
    activation_layout,
    code_layout,
    request_layout,
    residual_layout,
    scale_layout,
    step_layout,
)
from speq.hardware.rtl.sequencer import Sequencer
from speq.hardware.rtl.streams import Fork

SHAPES = {
    Operand.CODES: code_layout,
    Operand.RESIDUALS: residual_layout,
    Operand.SCALES: scale_layout,
    Operand.ACTIVATIONS: activation_layout,
}


class Controller(wiring.Component):
    """Jobs in; per operand a stream of requests out and one of beats in; steps out.

    The fetchers run ahead of the steps, into the next job as well. A job with a size of zero is dropped.
    """

    def __init__(self, array: ArrayParameters, results: int) -> None:
        self._array, self._results = array, results
        operands = {}
        for operand, shape in SHAPES.items():
            operands[f"{operand.value}_requests"] = Out(stream.Signature(request_layout(array)))
            operands[operand.value] = In(stream.Signature(shape(array)))
        super().__init__(
            {"jobs": In(stream.Signature(JOB)), **operands, "step": Out(step_layout(array)), "taken": In(1)}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        array, job = self._array, self.jobs.payload
        m.submodules.fork = fork = Fork(JOB, 1 + len(SHAPES))
        m.submodules.sequencer = sequencer = Sequencer(array, self._results)
        empty = (job.tokens == 0) | (job.inputs == 0) | (job.outputs == 0)
        m.d.comb += [
            fork.input.payload.eq(job),
            fork.input.valid.eq(self.jobs.valid & ~empty),
            self.jobs.ready.eq(fork.input.ready | empty),
            self.step.eq(sequencer.step),
            sequencer.taken.eq(self.taken),
        ]
        wiring.connect(m, fork.output_0, sequencer.jobs)
        for index, (operand, shape) in enumerate(SHAPES.items(), start=1):
            m.submodules[f"fetch_{operand.value}"] = fetcher = Fetcher(operand, shape(array), array)
            wiring.connect(m, getattr(fork, f"output_{index}"), fetcher.jobs)
            wiring.connect(m, fetcher.requests, wiring.flipped(getattr(self, f"{operand.value}_requests")))
            wiring.connect(m, wiring.flipped(getattr(self, operand.value)), fetcher.data)
            wiring.connect(m, fetcher.beats, getattr(sequencer, operand.value))
        return m
