"""What the commands print: tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from speq.hardware.simulator.acceptance import Acceptance
from speq.hardware.simulator.compare import Comparison, titles
from speq.hardware.simulator.cost import Cost, Layer
from speq.hardware.simulator.experiment import geometric_mean
from speq.hardware.simulator.load import load_accelerator
from speq.hardware.simulator.run import Run
from speq.hardware.simulator.sampling import Check
from speq.hardware.simulator.sensitivity import Requirement
from speq.hardware.simulator.trace import read_trace

if TYPE_CHECKING:
    from rich.console import Console


def show_run(console: Console, run: Run, heading: str) -> None:
    """A generation by kind of pass."""
    table = _table(heading, "pass", "count", "ms each", "bound", "busy", "stall", "MB read", "mJ each", "energy")
    for kind, cost in run.by_kind.items():
        count = run.passes[kind]
        table.add_row(
            kind,
            _count(count),
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
        counts = tuple(map(_count, (run.rounds, run.accepted, run.drafted)))
        line += "; {} rounds, {} of {} drafted tokens accepted".format(*counts)
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
    if not comparison.traces:
        rate = scenario.acceptance
        console.print(f"  Acceptance of a drafted token {rate.value:g}: {rate.source}", soft_wrap=True)
    for assumption in scenario.assumptions:
        console.print(f"  {assumption}", soft_wrap=True)
    if comparison.traces:
        count = sum(len(paths) for paths in comparison.traces.values())
        console.print(f"Drafts and lengths of {count} recorded generations replace acceptance, draft length and tasks.")
        paths = [path for paths in comparison.traces.values() for path in paths]
        if remark := of_other_codes(scenario.subject, paths):
            console.print(remark, soft_wrap=True)


def of_other_codes(accelerator: str, traces: Sequence[Path]) -> str | None:
    """A remark on traces that were recorded with drafts which ``accelerator`` cannot compute."""
    one = load_accelerator(accelerator)
    codes = one.passes.draft.format if one.passes.draft else None
    found = {read_trace(path).format for path in traces}
    others = sorted(name for name in found if name is not None and name != codes)
    if codes is None or not others:
        return None
    return (
        f"Recorded with drafts of {' and '.join(others)} codes, which {one.title} cannot compute: its array computes "
        f"{codes}. They show what drafts of a real generation look like, not what this accelerator would reach."
    )


def show_beside(console: Console, comparisons: Sequence[Comparison]) -> None:
    """The subject's speed-ups in several scenarios, and the published ones."""
    first = comparisons[0].scenario
    names = titles(first)
    over = [f"over {names.get(one.accelerator, one.accelerator)}" for one in first.published]
    table = _table("Scenarios: speed-up / gain in energy", "scenario", "acceptance", *over)
    for comparison in comparisons:
        scenario = comparison.scenario
        rate = "recorded" if comparison.traces else f"{comparison.drafts.rate:g}"
        cells = [f"{one.ours:.2f} ({one.deviation:+.1%}) / {one.energy:.2f}" for one in comparison.ratios()]
        table.add_row(scenario.name + (" (fitted)" if scenario.fitted else ""), rate, *cells)
    table.add_row("published", "", *(f"{one.speedup.value:.2f}" for one in first.published))
    console.print(table)


def show_checks(console: Console, found: Sequence[Check]) -> None:
    """By acceptance and draft length: the largest difference of a pair, in time or energy, from the sampled mean."""
    lengths = sorted({one.acceptance.draft_length for one in found})
    heading = "Expectation over sampled mean, less 1: the largest of all pairs, of time and energy, by draft length"
    table = _table(heading, "acceptance", "early stop", *map(str, lengths))
    for rate, stop in sorted({(one.acceptance.rate, one.acceptance.early_stop) for one in found}):
        cells = []
        for length in lengths:
            own = [one for one in found if one.acceptance == Acceptance(rate, length, stop)]
            differences = [difference for one in own for difference in one.differences]
            cells.append(f"{max(differences, key=abs):+.2%}" if own else "")
        table.add_row(f"{rate:g}", f"{stop:g}", *cells)
    console.print(table)
    largest = max(abs(difference) for one in found for difference in one.differences)
    error = max(error for one in found for error in one.errors)
    console.print(f"{len(found):,} expectations: largest difference {largest:.2%}, largest standard error {error:.2%}")


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


def _count(value: float) -> str:
    """A count, or an expected one with one decimal."""
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def _energy_split(cost: Cost) -> str:
    parts = {name: getattr(cost, f"{name}_energy") / cost.energy for name in ("dram", "sram", "pe", "vector", "static")}
    return ", ".join(f"{name} {share:.0%}" for name, share in parts.items() if share >= 0.005)


def _table(heading: str, *columns: str) -> Table:
    table = Table(title=heading, title_justify="left", header_style="bold")
    for at, column in enumerate(columns):
        table.add_column(column, justify="left" if at == 0 else "right", overflow="fold")
    return table
