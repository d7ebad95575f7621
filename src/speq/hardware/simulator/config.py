"""The tables of an accelerator file and of a memory file; docs/hardware-simulator.md explains each key."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator
from typing_extensions import Self

from speq.hardware.array_parameters import LANES
from speq.hardware.simulator.schema import (
    Bits,
    Efficiency,
    Loss,
    Name,
    Quantity,
    Share,
    Size,
    Source,
    Table,
    amount,
    positive,
)

Dataflow: TypeAlias = Literal["streamed", "broadcast", "output-stationary", "weight-stationary"]
Sizing: TypeAlias = Literal["fixed", "iso-area", "iso-throughput"]


class Memory(Table):
    """A DRAM: what it could transfer, and what it loses to rows, refresh and changes of direction."""

    name: Name
    title: str
    peak_bandwidth: Annotated[Quantity, positive("GB/s")]
    burst: Annotated[Quantity, positive("B", whole=True)]  # the least that is transferred
    row: Annotated[Quantity, positive("B", whole=True)]  # bytes of an open row over the whole bus
    banks: Annotated[Quantity, positive("1", whole=True)]  # rows that can be opened side by side
    row_cycle: Annotated[Quantity, positive("ns")]  # from opening a row of a bank to opening the next one
    latency: Annotated[Quantity, amount("ns")]  # of the first byte
    refresh_loss: Loss
    turnaround_loss: Loss
    read_energy: Annotated[Quantity, positive("pJ/bit")]
    write_energy: Annotated[Quantity, positive("pJ/bit")]
    background_power: Annotated[Quantity, amount("mW")]

    @model_validator(mode="after")
    def _rows_hold_bursts(self) -> Self:
        if self.row.value % self.burst.value:
            raise ValueError(
                f"has rows of {self.row.value:g} bytes, which are not whole bursts of {self.burst.value:g} bytes"
            )
        return self


class Array(Table):
    """The processing elements: rows take tokens, columns take output channels."""

    dataflow: Dataflow
    sizing: Sizing
    rows: Annotated[Quantity, positive("PE", most=1024, whole=True)]
    columns: Annotated[Quantity, positive("PE", most=65536, whole=True)] | None = None  # of sizing fixed
    area_budget: Annotated[Quantity, positive("mm2")] | None = None  # of sizing iso-area
    throughput: Annotated[Quantity, positive("MAC/cycle")] | None = None  # of sizing iso-throughput, in the widest mode
    pe_area: Annotated[Quantity, positive("um2")]
    layout_factor: Annotated[Quantity, positive("1")]  # place and route: multiplies area and energy of PEs
    idle_energy: Share  # of a PE's energy in an active cycle that it takes in an idle one
    gemv_utilisation: Efficiency  # further factor for products with fewer tokens than rows
    pe_latency: Annotated[Quantity, positive("cycle", most=64, whole=True)] | None = None  # of dataflow streamed

    @model_validator(mode="after")
    def _complete(self) -> Self:
        needs = {"fixed": "columns", "iso-area": "area_budget", "iso-throughput": "throughput"}
        if [key for key in needs.values() if getattr(self, key) is not None] != [needs[self.sizing]]:
            others = " nor ".join(key for key in needs.values() if key != needs[self.sizing])
            raise ValueError(f"has sizing {self.sizing!r}, which takes {needs[self.sizing]} and neither {others}")
        if (self.pe_latency is not None) != (self.dataflow == "streamed"):
            raise ValueError(
                f"has dataflow {self.dataflow!r}; pe_latency belongs to the dataflow 'streamed' and no other"
            )
        return self


class Mode(Table):
    """One kind of multiply-accumulate that the processing elements do."""

    source: Source
    weight_bits: Annotated[list[Bits], Field(min_length=1)]  # stored widths that this mode can take
    fused_rows: Size = 1  # PEs that one multiply-accumulate occupies, in both directions
    fused_columns: Size = 1
    lanes: Size = 1  # multiply-accumulates of a PE per step, along the inputs
    cycles_per_step: Size = 1
    pe_energy: Annotated[Quantity, positive("pJ")]  # of one PE in an active cycle


class Precision(Table):
    """How weights are stored and which mode computes with them."""

    mode: Name
    weight_bits: Bits
    scale_bits: Annotated[float, Field(ge=0, le=64)] = 0  # read with each group of weights
    group_size: Annotated[int, Field(ge=4, le=1 << 20)] = 128


class Pass(Table):
    """What one kind of pass reads and computes with."""

    source: Source
    format: Literal["e3m0", "nested"] | None = None  # of docs/formats.md; drafts recorded with others are pointed out
    linear: Precision  # all matrices of the decoder blocks
    head: Precision  # the output head
    wide: Precision | None = None  # replaces `linear` in a share of the blocks
    wide_share: Share | None = None
    activation_bits: Bits
    kv_bits: Bits
    attention_mode: Name  # scores and values

    @model_validator(mode="after")
    def _wide(self) -> Self:
        if (self.wide is None) != (self.wide_share is None):
            raise ValueError("must have both wide and wide_share or neither")
        return self


class Passes(Table):
    exact: Pass  # prefill, plain steps, verify passes
    draft: Pass | None = None


class Buffers(Table):
    """On-chip memory. Ports are as wide as the edges of the array, unless a port is given."""

    weights: Annotated[Quantity, positive("KiB")]
    activations: Annotated[Quantity, positive("KiB")]
    weight_port: Annotated[Quantity, positive("B/cycle")] | None = None
    activation_port: Annotated[Quantity, positive("B/cycle")] | None = None
    read_energy: Annotated[Quantity, positive("pJ/bit")]
    write_energy: Annotated[Quantity, positive("pJ/bit")]
    leakage: Annotated[Quantity, amount("mW/KiB")]
    area: Annotated[Quantity, positive("mm2/KiB")]
    spill: Literal["when-too-large", "always"]  # when inputs and outputs of a layer go through DRAM
    overlap: Literal["ideal", "double-buffered", "none"]  # of transfers and computation within a layer


class Vector(Table):
    """The unit for softmax, norms, activation functions and scales."""

    lanes: Annotated[Quantity, positive("op/cycle")]
    energy: Annotated[Quantity, amount("pJ/op")]


class Accelerator(Table):
    """One accelerator: array, modes, passes, buffers, vector unit and memory, which a file may name instead."""

    name: Name
    title: str
    lossless: bool  # whether its tokens are those of the 16-bit model
    frequency: Annotated[Quantity, positive("MHz")]
    memory: Memory
    array: Array
    modes: Annotated[dict[str, Mode], Field(min_length=1)]
    passes: Passes
    buffers: Buffers
    vector: Vector

    @model_validator(mode="after")
    def _computable(self) -> Self:
        done = "; ".join(f"{name}: {_list(mode.weight_bits)}" for name, mode in self.modes.items())
        for kind, one in (("exact", self.passes.exact), ("draft", self.passes.draft)):
            if one is None:
                continue
            for key, precision in (("linear", one.linear), ("head", one.head), ("wide", one.wide)):
                if precision is None:
                    continue
                mode = self.modes.get(precision.mode)
                if mode is None or precision.weight_bits not in mode.weight_bits:
                    raise ValueError(
                        f"cannot do passes.{kind}.{key}: mode {precision.mode!r} with weight_bits "
                        f"{precision.weight_bits:g}; its PEs do {done}"
                    )
            if one.attention_mode not in self.modes:
                raise ValueError(f"cannot do passes.{kind}.attention_mode {one.attention_mode!r}; its PEs do {done}")
        if self.array.dataflow == "streamed":
            self._check_streamed()
        return self

    def _check_streamed(self) -> None:
        """A streamed array multiplies by numbers of 16 bits, one a step, or by codes of at most 4, four a step."""
        for name, mode in self.modes.items():
            fits = all(bits == 16 if mode.lanes == 1 else bits <= 4 for bits in mode.weight_bits)
            fused = (mode.fused_rows, mode.fused_columns, mode.cycles_per_step) != (1, 1, 1)
            if fused or mode.lanes not in (1, LANES) or not fits:
                raise ValueError(
                    f"has modes.{name}, which a streamed array cannot do: 1 lane of 16 bits or {LANES} lanes of at "
                    "most 4 bits, nothing fused"
                )
        for kind, one in (("exact", self.passes.exact), ("draft", self.passes.draft)):
            if one is not None and self.modes[one.attention_mode].lanes != 1:
                raise ValueError(
                    f"cannot do passes.{kind}.attention_mode {one.attention_mode!r}: a streamed array multiplies keys "
                    "and values of 16 bits, in a mode of 1 lane"
                )


def _list(bits: list[float]) -> str:
    return ", ".join(f"{width:g}" for width in bits) + " bits"
