"""Plots, each as PNG and SVG: comparison, sensitivity, roofline of passes, Pareto fronts of a sweep."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from speq.hardware.simulator.compare import Ratio, Row
from speq.hardware.simulator.cost import Cost
from speq.hardware.simulator.files import make_directory, replacing
from speq.hardware.simulator.sensitivity import Curve

_SIZE = (7.0, 4.2)  # inches
_ENERGY = ("dram", "sram", "pe", "vector", "static")


def comparison(rows: Sequence[Row], names: Mapping[str, str], directory: Path, stem: str) -> list[Path]:
    """Bars of speed-up over the reference by pair, one colour per accelerator."""
    figure, axes = _figure(width=11.0)
    accelerators = list(rows[0].speedup)
    width = 0.8 / len(accelerators)
    for at, name in enumerate(accelerators):
        places = [i + (at - len(accelerators) / 2 + 0.5) * width for i in range(len(rows))]
        axes.bar(places, [row.speedup[name] for row in rows], width, label=names[name])
    labels = [f"{names[row.pair.model]}\n{names[row.pair.task]}" for row in rows]
    axes.set_xticks(range(len(rows)), labels, rotation=60, ha="right", fontsize=7)
    axes.set_ylabel("speed-up over FP16")
    figure.legend(fontsize=7, ncols=len(accelerators), loc="outside upper left")
    return _save(figure, directory, f"{stem}-speedup")


def sensitivity(curve: Curve, ratios: Sequence[Ratio], names: Mapping[str, str], directory: Path) -> list[Path]:
    """Speed-ups of the subject over each baseline by the value of one knob; thin lines are the published ratios."""
    figure, axes = _figure()
    for ratio, style in zip(ratios, itertools.cycle(("o-", "s--", "^:"))):
        values = curve.speedups[ratio.accelerator]
        (line,) = axes.plot(curve.values, values, style, fillstyle="none", label=names[ratio.accelerator])
        axes.axhline(ratio.published, color=line.get_color(), linewidth=0.8, alpha=0.6)
    if curve.knob.logarithmic:
        axes.set_xscale("log", base=2)
    axes.set_xlabel(f"{curve.knob.title} ({curve.knob.unit})")
    axes.set_ylabel("geometric-mean speed-up of SPEQ")
    axes.legend(title="over", fontsize=8)
    return _save(figure, directory, f"sensitivity-{curve.knob.name}")


def energy(costs: Mapping[str, Cost], directory: Path, stem: str) -> list[Path]:
    """Stacked bars of joules by part, one bar per accelerator."""
    figure, axes = _figure()
    bottom = [0.0] * len(costs)
    for part in _ENERGY:
        joules = [getattr(cost, f"{part}_energy") * 1e-12 for cost in costs.values()]
        axes.bar(list(costs), joules, bottom=bottom, label=part)
        bottom = [low + more for low, more in zip(bottom, joules, strict=True)]
    axes.set_ylabel("energy of the generation, J")
    axes.tick_params(axis="x", labelrotation=20)
    axes.legend(fontsize=8)
    return _save(figure, directory, f"{stem}-energy")


def roofline(
    passes: Mapping[str, Cost], *, frequency: float, peak_macs: float, bandwidth: float, directory: Path, stem: str
) -> list[Path]:
    """Kinds of passes under the roof of the array (``peak_macs`` a cycle) and of the DRAM (``bandwidth``, B/s)."""
    figure, axes = _figure()
    points = {name: (cost.macs / cost.dram_bytes, cost.macs / cost.cycles * frequency) for name, cost in passes.items()}
    intensities = [x for x, _ in points.values()]
    low, high = min(intensities) / 2, max(*intensities, peak_macs * frequency / bandwidth) * 2
    edge = peak_macs * frequency / bandwidth
    roof = [(x, min(x * bandwidth, peak_macs * frequency)) for x in (low, edge, high)]
    axes.plot([x for x, _ in roof], [y for _, y in roof], color="grey")
    for name, (x, y) in points.items():
        axes.plot(x, y, "o", label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("multiply-accumulates per byte of DRAM")
    axes.set_ylabel("multiply-accumulates per second")
    axes.legend(fontsize=8)
    return _save(figure, directory, f"{stem}-roofline")


def pareto(columns: Mapping[str, Sequence[float]], directory: Path) -> list[Path]:
    """Speed against energy and against area, with the points that nothing beats in both."""
    made = []
    for name, label, larger in (("energy_ratio", "energy gain over the reference", True), ("area_mm2", "mm2", False)):
        figure, axes = _figure()
        x, y = columns[name], columns["speedup"]
        axes.plot(x, y, ".", markersize=2, alpha=0.4, rasterized=True)
        front = pareto_front(x, y, larger=larger)
        axes.plot([x[i] for i in front], [y[i] for i in front], "o-", color="black", markersize=4, label="Pareto front")
        axes.set_xlabel(label)
        axes.set_ylabel("speed-up over the reference")
        axes.legend(fontsize=8)
        made += _save(figure, directory, f"pareto-{name.split('_')[0]}")
    return made


def pareto_front(x: Sequence[float], y: Sequence[float], *, larger: bool) -> list[int]:
    """Indices of the points that no other equals or beats in both, by falling ``y``; ``larger``: large x is good."""
    sign = -1.0 if larger else 1.0
    front: list[int] = []
    best = float("inf")
    for i in sorted(range(len(x)), key=lambda i: (-y[i], sign * x[i])):
        if sign * x[i] < best:
            best = sign * x[i]
            front.append(i)
    return front


def _figure(width: float = _SIZE[0]) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, _SIZE[1]), layout="constrained")
    return figure, figure.add_subplot()


def _save(figure: Any, directory: Path, stem: str) -> list[Path]:
    import matplotlib

    make_directory(directory)
    made = []
    with matplotlib.rc_context({"svg.hashsalt": "speq"}):  # the same bytes at every run
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            path = directory / f"{stem}.{kind}"
            with replacing(path) as partial:
                figure.savefig(partial, format=kind, dpi=130, metadata=metadata)
            made.append(path)
    return made
