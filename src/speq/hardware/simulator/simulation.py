"""What `speq hw simulate` shows beyond the totals: typical passes by layer, plots, and everything as plain data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from speq.hardware.simulator import plots
from speq.hardware.simulator.passes import PassSpec, Simulator
from speq.hardware.simulator.run import Run, Workload


def typical_passes(run: Run, workload: Workload) -> list[PassSpec]:
    """One pass of each kind that the run has; those of decoding in the middle of the text."""
    new = workload.prompt_tokens - workload.cached
    middle = workload.prompt_tokens + workload.new_tokens // 2
    length = round(run.drafted / run.rounds) if run.rounds else 0
    specs = {
        "prefill": PassSpec("prefill", new, workload.cached, 1),
        "step": PassSpec("step", 1, middle, 1),
        "draft": PassSpec("draft", 1, middle, 1),
        "verify": PassSpec("verify", length + 1, middle, length + 1),
    }
    return [spec for kind, spec in specs.items() if kind in run.passes]


def describe(simulator: Simulator, run: Run, workload: Workload) -> dict[str, Any]:
    """The run as plain data: totals, kinds of passes, and the layers of a typical pass of each kind.

    Cycles are of the accelerator's clock, energies are picojoules.
    """
    machine = simulator.machine
    return {
        "accelerator": machine.accelerator.model_dump(mode="json"),
        "model": simulator.shape.model_dump(mode="json"),
        "columns": machine.columns,
        "pes": machine.pes,
        "area_mm2": machine.area,
        "prompt_tokens": workload.prompt_tokens,
        "new_tokens": run.new_tokens,
        "seconds": run.seconds,
        "prefill_seconds": run.prefill_seconds,
        "joules": run.joules,
        "tokens_per_second": run.tokens_per_second,
        "rounds": run.rounds,
        "drafted": run.drafted,
        "accepted": run.accepted,
        "total": run.total.to_dict(),
        "passes": {kind: {"count": run.passes[kind], **cost.to_dict()} for kind, cost in run.by_kind.items()},
        "layers": [
            {
                "kind": spec.kind,
                "tokens": spec.tokens,
                "context": spec.context,
                "layers": [
                    {"name": one.name, "times": one.times, **one.cost.to_dict()} for one in simulator.layers(spec)
                ],
            }
            for spec in typical_passes(run, workload)
        ],
    }


def draw(simulator: Simulator, run: Run, directory: Path) -> list[Path]:
    """The roofline of all kinds of passes, and where the energy goes."""
    machine, stem = simulator.machine, f"{simulator.shape.name}-{simulator.machine.accelerator.name}"
    peak = max(cost.capacity / cost.compute for cost in run.by_kind.values() if cost.compute)
    made = plots.roofline(
        {str(kind): cost for kind, cost in run.by_kind.items()},
        frequency=machine.frequency,
        peak_macs=peak,
        bandwidth=machine.accelerator.memory.peak_bandwidth.value * 1e9,
        directory=directory,
        stem=stem,
    )
    return made + plots.energy({str(kind): cost for kind, cost in run.by_kind.items()}, directory, stem)
