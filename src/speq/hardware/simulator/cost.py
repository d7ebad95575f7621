"""What one product, a pass or a whole generation costs, as numbers that add up."""

from __future__ import annotations

from dataclasses import dataclass, field, fields


@dataclass
class Cost:
    """Cycles of the accelerator's clock, bytes and picojoules.

    ``cycles`` is the time; ``compute``, ``dram``, ``sram`` and ``vector`` are how long each part was busy in it.
    ``stall`` counts cycles in which the array (or the vector unit) waited: ``cycles`` less its own. ``overlap`` counts
    the cycles saved by doing things at once: the sum of the parts less ``cycles``. ``bound`` splits ``cycles`` by the
    part that decided the time of each layer.
    """

    cycles: float = 0.0
    compute: float = 0.0
    dram: float = 0.0
    sram: float = 0.0
    vector: float = 0.0
    macs: float = 0.0
    capacity: float = 0.0  # multiply-accumulates that the array could have done in its own cycles
    weight_bytes: float = 0.0
    scale_bytes: float = 0.0
    kv_bytes: float = 0.0
    activation_bytes: float = 0.0
    pe_energy: float = 0.0
    sram_energy: float = 0.0
    dram_energy: float = 0.0
    vector_energy: float = 0.0
    static_energy: float = 0.0
    compute_bound: float = 0.0
    dram_bound: float = 0.0
    sram_bound: float = 0.0
    vector_bound: float = 0.0

    def add(self, other: Cost, times: float = 1.0) -> None:
        """Add ``other``, ``times`` over."""
        mine = self.__dict__
        for name, value in other.__dict__.items():
            if value:
                mine[name] += value * times

    @property
    def stall(self) -> float:
        return self.cycles - self.compute - self.vector

    @property
    def overlap(self) -> float:
        return self.compute + self.dram + self.sram + self.vector - self.cycles

    @property
    def utilisation(self) -> float:
        """Multiply-accumulates done over those that the array could do in ``cycles``; 0 without an array's work."""
        if not self.compute:
            return 0.0
        return self.macs / (self.capacity * self.cycles / self.compute)

    @property
    def dram_bytes(self) -> float:
        return self.weight_bytes + self.scale_bytes + self.kv_bytes + self.activation_bytes

    @property
    def energy(self) -> float:
        """All of it, in picojoules."""
        return self.pe_energy + self.sram_energy + self.dram_energy + self.vector_energy + self.static_energy

    @property
    def bound(self) -> str:
        """The part that decided most of the time: compute, dram, sram or vector."""
        parts = {name: getattr(self, f"{name}_bound") for name in ("dram", "compute", "sram", "vector")}
        return max(parts, key=lambda name: parts[name])

    def to_dict(self) -> dict[str, float | str]:
        """All fields and derived values, for reports."""
        plain: dict[str, float | str] = {one.name: getattr(self, one.name) for one in fields(self)}
        derived = ("stall", "overlap", "utilisation", "dram_bytes", "energy", "bound")
        return plain | {name: getattr(self, name) for name in derived}


@dataclass
class Layer:
    """A cost with the name of what it is the cost of, and how often it occurs in a pass."""

    name: str
    times: float
    cost: Cost = field(default_factory=Cost)
