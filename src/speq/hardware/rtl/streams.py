"""Streams with back-pressure: the queue that every stream of the array goes through, and test bench ends for them.

A stream is ``amaranth.lib.stream``: payload, valid, ready. A transfer happens in a cycle in which both are 1; once
valid, a payload stays as it is until it is taken.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

from amaranth.hdl import Module, ShapeLike, Value
from amaranth.lib import stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out
from amaranth.sim import SimulatorContext


class Queue(wiring.Component):
    """A first-in first-out buffer of ``depth`` payloads; what enters in a cycle can leave from the next one on.

    With a depth of two or more it passes one payload per cycle, and neither end sees the other's signals within a
    cycle, which is what keeps long chains of streams fast.
    """

    def __init__(self, shape: ShapeLike, depth: int) -> None:
        self._shape, self._depth = shape, depth
        super().__init__({"input": In(stream.Signature(shape)), "output": Out(stream.Signature(shape))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.fifo = fifo = SyncFIFO(width=Value.cast(self.input.payload).shape().width, depth=self._depth)
        m.d.comb += [
            fifo.w_data.eq(self.input.payload),
            fifo.w_en.eq(self.input.valid),
            self.input.ready.eq(fifo.w_rdy),
            Value.cast(self.output.payload).eq(fifo.r_data),
            self.output.valid.eq(fifo.r_rdy),
            fifo.r_en.eq(self.output.ready),
        ]
        return m


class Fork(wiring.Component):
    """One stream to ``outputs`` queues; a payload is taken when all of them have room, so none runs behind or ahead."""

    def __init__(self, shape: ShapeLike, outputs: int, depth: int = 2) -> None:
        self._shape, self._count, self._depth = shape, outputs, depth
        ports = {f"output_{index}": Out(stream.Signature(shape)) for index in range(outputs)}
        super().__init__({"input": In(stream.Signature(shape)), **ports})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        ready: Value = Value.cast(1)
        queues = [Queue(self._shape, self._depth) for _ in range(self._count)]
        for queue in queues:
            ready = ready & queue.input.ready
        m.d.comb += self.input.ready.eq(ready)
        for index, queue in enumerate(queues):
            m.submodules[f"queue_{index}"] = queue
            m.d.comb += [
                Value.cast(queue.input.payload).eq(Value.cast(self.input.payload)),
                queue.input.valid.eq(self.input.valid & ready),
            ]
            wiring.connect(m, queue.output, wiring.flipped(getattr(self, f"output_{index}")))
        return m


Stall = Callable[[], bool]
"""Whether a test bench holds a stream up in this cycle."""


def never() -> bool:
    """A stall that never happens."""
    return False


async def put(context: SimulatorContext, port: Any, payloads: Iterable[Any], stall: Stall = never) -> None:
    """Send payloads to an input stream in order."""
    for payload in payloads:
        while stall():
            await context.tick()
        context.set(port.payload, payload)
        context.set(port.valid, 1)
        await context.tick().until(port.ready)
        context.set(port.valid, 0)


async def get(context: SimulatorContext, port: Any, stall: Stall = never) -> AsyncIterator[Any]:
    """Payloads of an output stream, in order, for as long as the caller asks."""
    while True:
        while stall():
            await context.tick()
        context.set(port.ready, 1)
        (payload,) = await context.tick().sample(port.payload).until(port.valid)
        context.set(port.ready, 0)
        yield payload
