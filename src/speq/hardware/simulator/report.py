"""What the commands print: tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from speq.hardware.simulator.compare import Comparison, titles
from speq.hardware.simulator.cost import Cost, Layer
from speq.hardware.simulator.experiment import geometric_mean
from speq.hardware.simulator.load import load_accelerator
from speq.hardware.simulator.run import Run
from speq.hardware.simulator.sensitivity import Requirement

if TYPE_CHECKING:
    from rich.console import Console


def show_run(console: Console, run: Run, heading: str) -> None:
    """A generation by kind of pass."""
    table = _table(heading, "pass", "count", "ms each", "bound", "busy", "stall", "MB read", "mJ each", "energy")
    for kind, cost in run.by_kind.items():
        count = run.passes[kind]
        table.add_row(
            kind,
            f"{count}",
            f"{cost.cycles / count / run.frequency * 1e3:.3f}",
            cost.bound,
            f"{cost.utilisation:.1%}",
            f"{cost.stall / cost.cycles:.1%}",
            f"{cost.dram_bytes / count / 1e6:,.1f}",
            f"{cost.energy / count * 1e-9:,.2f}",
            _energy_split(cost),
        )
    console.print(table)
    line = f"{run.new_tokens} tokens in {run.seconds:.3f} s, {run.tokens_per_second:.2f} tokens/s, {run.joules:.2f} J"
    if run.rounds:
        line += f"; {run.rounds} rounds, {run.accepted} of {run.drafted} drafted tokens accepted"
    console.print(line)


def show_layers(console: Console, layers: Sequence[Layer], heading: str) -> None:
    """One pass by layer; cycles and bytes of one occurrence."""
    names = ("layer", "times", "cycles", "compute", "DRAM", "SRAM", "stall", "overlap", "bound", "busy", "MB", "uJ")
    table = _table(heading, *names)
    for layer in layers:
        cost = layer.cost
        table.add_row(
            layer.name,
            f"{layer.times:g}",
            *(f"{value:,.0f}" for value in (cost.cycles, cost.compute, cost.dram, cost.sram, cost.stall, cost.overlap)),
            cost.bound,
            f"{cost.utilisation:.1%}",
            f"{cost.dram_bytes / 1e6:.3f}",
            f"{cost.energy * 1e-6:,.1f}",
        )
    console.print(table)


def show_comparison(console: Console, comparison: Comparison) -> None:
    """Pairs, means, the published ratios and the assumptions."""
    scenario, names = comparison.scenario, titles(comparison.scenario)
    others = [name for name in scenario.accelerators if name != scenario.reference]
    heading = f"{scenario.title}: speed-up over {names[scenario.reference]} / gain in energy"
    table = _table(heading, "model", "task", *(names[name] for name in others))
    rows = comparison.rows()
    for row in rows:
        cells = (f"{row.speedup[name]:.2f} / {row.energy[name]:.2f}" for name in others)
        table.add_row(names[row.pair.model], names[row.pair.task], *cells)
    means = [
        f"{geometric_mean(row.speedup[name] for row in rows):.2f} / "
        f"{geometric_mean(row.energy[name] for row in rows):.2f}"
        for name in others
    ]
    table.add_section()
    table.add_row("geometric mean", "", *means, style="bold")
    lossless = ["lossless" if load_accelerator(name).lossless else "lossy" for name in others]
    table.add_row("tokens of the 16-bit model", "", *lossless)
    console.print(table)

    subject = names[scenario.subject]
    table = _table(f"{subject} over", "accelerator", "ours", "published", "deviation", "gain in energy")
    for ratio in comparison.ratios():
        table.add_row(
            names[ratio.accelerator],
            f"{ratio.ours:.2f}",
            f"{ratio.published:.2f}",
            f"{ratio.deviation:+.1%}",
            f"{ratio.energy:.2f}",
        )
    console.print(table)
    if scenario.fitted:
        console.print("Fitted: these values were chosen so that the published ratios come out:")
    for change in scenario.changes:
        console.print(f"  {change.key} = {change.value:g}: {change.source}", soft_wrap=True)
    console.print("Assumptions, where not changed above:" if scenario.changes else "Assumptions:")
    for assumption in scenario.assumptions:
        console.print(f"  {assumption}", soft_wrap=True)
    if comparison.traces:
        count = sum(len(paths) for paths in comparison.traces.values())
        console.print(f"Drafts and lengths of {count} recorded generations replace acceptance, draft length and tasks.")


def show_requirements(console: Console, found: Sequence[Requirement], names: Mapping[str, str]) -> None:
    """What each knob alone would have to be for a published ratio."""
    columns = ("knob alone", "brings", "to", "needs", "reached between its ends")
    table = _table("What would have to hold for the published ratios", *columns)
    for one in found:
        needs = "no value" if one.value is None else f"{one.value:.4g} {one.knob.unit}"
        table.add_row(
            one.knob.title,
            names[one.accelerator],
            f"{one.target:.3f} x FP16",
            needs,
            f"{one.reached[0]:.2f} .. {one.reached[1]:.2f}",
        )
    console.print(table)


def _energy_split(cost: Cost) -> str:
    parts = {name: getattr(cost, f"{name}_energy") / cost.energy for name in ("dram", "sram", "pe", "vector", "static")}
    return ", ".join(f"{name} {share:.0%}" for name, share in parts.items() if share >= 0.005)


def _table(heading: str, *columns: str) -> Table:
    table = Table(title=heading, title_justify="left", header_style="bold")
    for at, column in enumerate(columns):
        table.add_column(column, justify="left" if at == 0 else "right", overflow="fold")
    return table
