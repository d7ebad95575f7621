"""An accelerator ready to compute: products, attention and vector operations as costs."""

from __future__ import annotations

from speq.hardware.simulator.compute import Grid, columns_of, grid_of, product_cycles
from speq.hardware.simulator.config import Accelerator, Mode, Pass, Precision
from speq.hardware.simulator.cost import Cost
from speq.hardware.simulator.memory import Dram, Traffic, fetches

SOFTMAX_OPERATIONS = 5  # per score: scale, maximum, exponential, sum, division
NORM_OPERATIONS = 4  # per value: square, sum, scale, weight
GATE_OPERATIONS = 4  # per value: exponential, addition, division, product


class Machine:
    """Turns products into costs.

    Half of the weight buffer is filled while the other half is used, if transfers overlap with computation. Activations
    come from the layer before and stay, so their buffer is used whole.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        array, buffers = accelerator.array, accelerator.buffers
        self.columns = columns_of(accelerator)
        self.pes = int(array.rows.value) * self.columns
        self.frequency = accelerator.frequency.value * 1e6  # Hz
        self.dram = Dram(accelerator.memory, accelerator.frequency.value)
        self._grids = {name: grid_of(array, mode, self.columns) for name, mode in accelerator.modes.items()}
        half = 2 if buffers.overlap == "double-buffered" else 1
        self._weight_buffer = buffers.weights.value * 1024 / half
        self._input_buffer = buffers.activations.value * 1024
        self._sram_read, self._sram_write = buffers.read_energy.value * 8, buffers.write_energy.value * 8
        kib = buffers.weights.value + buffers.activations.value
        self.area = self.pes * array.pe_area.value * array.layout_factor.value * 1e-6 + kib * buffers.area.value  # mm2
        leakage = kib * buffers.leakage.value / accelerator.frequency.value * 1e3  # pJ per cycle
        self._static = leakage + self.dram.background

    def linear(self, tokens: int, inputs: int, outputs: int, precision: Precision, one: Pass) -> Cost:
        """The product with a matrix of stored weights, all of which are read for every pass."""
        weights = inputs * outputs * precision.weight_bits / 8
        groups = -(-inputs // precision.group_size) * outputs
        scales = groups * precision.scale_bits / 8
        cost = self._product(
            tokens,
            inputs,
            outputs,
            precision.mode,
            group_size=precision.group_size,
            input_bits=one.activation_bits,
            weights=(Traffic(weights, weights), Traffic(scales, scales)) if scales else (Traffic(weights, weights),),
        )
        cost.scale_bytes = cost.weight_bytes * scales / (weights + scales)
        cost.weight_bytes -= cost.scale_bytes
        if scales:  # a product and a sum for every group of every output
            cost.vector_energy += 2 * tokens * groups * self.accelerator.vector.energy.value
        return cost

    def attention(self, tokens: int, context: int, kv_heads: int, sharing: int, size: int, one: Pass) -> Cost:
        """Scores and values of one block: ``tokens`` new ones on ``context`` cached, ``sharing`` queries per KV head.

        Keys and values of each head are read as one run, and written token by token.
        """
        total, rows = Cost(), tokens * sharing
        length = context + tokens
        run = length * size * one.kv_bits / 8
        for inputs, outputs in ((size, length), (length, size)):
            stored = Traffic(run * kv_heads, run)
            total.add(
                self._product(
                    rows,
                    inputs,
                    outputs,
                    one.attention_mode,
                    group_size=128,
                    input_bits=one.activation_bits,
                    weights=(stored,),
                    copies=kv_heads,
                )
            )
        new = size * one.kv_bits / 8
        written = Traffic(2 * tokens * kv_heads * new, new)
        total.kv_bytes, total.weight_bytes = total.weight_bytes + written.bytes, 0.0
        total.dram_energy += self.dram.energy((), (written,))
        self._append_transfer(total, self.dram.cycles(written))
        return total

    def vector(self, operations: float) -> Cost:
        """Work of the vector unit, which the layers around it wait for."""
        unit = self.accelerator.vector
        cycles = operations / unit.lanes.value
        return Cost(
            cycles=cycles,
            vector=cycles,
            vector_bound=cycles,
            vector_energy=operations * unit.energy.value,
            static_energy=cycles * self._static,
        )

    def start(self) -> Cost:
        """What a pass waits for its first byte."""
        wait = self.dram.latency
        return Cost(cycles=wait, dram=wait, dram_bound=wait, static_energy=wait * self._static)

    def _product(
        self,
        tokens: int,
        inputs: int,
        outputs: int,
        mode_name: str,
        *,
        group_size: int,
        input_bits: float,
        weights: tuple[Traffic, ...],
        copies: int = 1,
    ) -> Cost:
        """``copies`` products, one after the other, whose right-hand sides together are the traffic ``weights``."""
        accelerator, buffers = self.accelerator, self.accelerator.buffers
        mode, grid = accelerator.modes[mode_name], self._grids[mode_name]
        compute = copies * product_cycles(accelerator.array, grid, tokens, inputs, outputs, group_size)
        in_bytes, out_bytes = tokens * inputs * input_bits / 8, tokens * outputs * input_bits / 8
        weight_bytes = sum(one.bytes for one in weights)
        again_weights, again_inputs = fetches(weight_bytes / copies, in_bytes, self._weight_buffer, self._input_buffer)
        spilled = buffers.spill == "always" or max(in_bytes, out_bytes) > self._input_buffer
        reads = [Traffic(one.bytes * again_weights, one.run) for one in weights]
        writes = []
        if spilled:
            reads.append(Traffic(in_bytes * copies * again_inputs, in_bytes))
            writes.append(Traffic(out_bytes * copies, out_bytes))
        dram = self.dram.cycles(*reads, *writes)
        # The array reads weights again for each block of tokens, inputs again for each block of outputs.
        weight_reads = weight_bytes * -(-tokens // grid.rows)
        input_reads = in_bytes * copies * -(-outputs // grid.columns)
        sram = self._port_cycles(weight_reads, input_reads)
        cost = Cost(compute=compute, dram=dram, sram=sram)
        cost.weight_bytes = weight_bytes * again_weights
        cost.activation_bytes = sum(one.bytes for one in reads[len(weights) :]) + sum(one.bytes for one in writes)
        cost.macs = copies * float(tokens) * inputs * outputs
        cost.capacity = compute * grid.rows * grid.columns * grid.lanes / grid.cycles_per_step
        cost.pe_energy = self._pe_energy(cost, mode, grid)
        fetched = cost.weight_bytes + in_bytes * copies * (again_inputs if spilled else 1)
        cost.sram_energy = (weight_reads + input_reads) * self._sram_read
        cost.sram_energy += (fetched + out_bytes * copies) * self._sram_write
        cost.dram_energy = self.dram.energy(tuple(reads), tuple(writes))
        self._take_time(cost)
        return cost

    def _port_cycles(self, weight_reads: float, input_reads: float) -> float:
        """Cycles of the busier SRAM port, in bytes; a port as wide as the array's edge never holds it up."""
        buffers = self.accelerator.buffers
        weight = weight_reads / buffers.weight_port.value if buffers.weight_port else 0.0
        activation = input_reads / buffers.activation_port.value if buffers.activation_port else 0.0
        return max(weight, activation)

    def _pe_energy(self, cost: Cost, mode: Mode, grid: Grid) -> float:
        """Picojoules of the processing elements that multiply, and of those that idle meanwhile."""
        array = self.accelerator.array
        per_cycle = mode.pe_energy.value * array.layout_factor.value
        active = cost.macs / grid.lanes * grid.cycles_per_step * mode.fused_rows * mode.fused_columns
        idle = max(0.0, cost.compute * self.pes - active)
        return (active + idle * array.idle_energy.value) * per_cycle

    def _take_time(self, cost: Cost) -> None:
        """Set the time of a layer from its parts, who decided it, and the static energy."""
        if self.accelerator.buffers.overlap == "none":
            cost.cycles = cost.compute + cost.dram + cost.sram
        else:
            cost.cycles = max(cost.compute, cost.dram, cost.sram)
        if cost.dram >= max(cost.compute, cost.sram):
            cost.dram_bound = cost.cycles
        elif cost.compute >= cost.sram:
            cost.compute_bound = cost.cycles
        else:
            cost.sram_bound = cost.cycles
        cost.static_energy = cost.cycles * self._static

    def _append_transfer(self, cost: Cost, cycles: float) -> None:
        """A transfer that begins when the rest is done."""
        cost.cycles += cycles
        cost.dram += cycles
        cost.dram_bound += cycles
        cost.static_energy += cycles * self._static
