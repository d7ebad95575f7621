"""`speq hw simulate`, `compare` and `sweep`: what accelerators would take for a generation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from speq.cli.terminal import ProgressBars

if TYPE_CHECKING:
    from rich.console import Console

    from speq.hardware.simulator.run import Workload


_json = click.option(
    "--json", "json_path", metavar="FILE", type=click.Path(path_type=Path), help="Write all numbers to FILE."
)
_changes = click.option(
    "--set", "settings", metavar="KEY=VALUE", multiple=True, help="Change a value, such as array.rows=16; repeatable."
)


@click.command()
@click.argument("accelerator")
@click.argument("model")
@click.option("--task", metavar="NAME", default="gsm8k", show_default=True, help="Lengths of prompt and text.")
@click.option("--prompt-tokens", metavar="N", type=click.IntRange(1, 65536), help="Instead of the task's.")
@click.option("--new-tokens", metavar="N", type=click.IntRange(1, 65536), help="Instead of the task's.")
@click.option(
    "--trace", metavar="FILE", type=click.Path(path_type=Path), help="Replay a trace of `speq generate --trace`."
)
@click.option("--acceptance", metavar="R", type=click.FloatRange(0, 1), default=0.976, show_default=True)
@click.option("--draft-length", metavar="L", type=click.IntRange(1, 64), default=7, show_default=True)
@click.option(
    "--early-stop",
    metavar="S",
    type=click.FloatRange(0, 1),
    default=0.0,
    help="Share of wrong tokens before which a draft ends.",
)
@_changes
@click.option("--layers", is_flag=True, help="Show one pass of each kind by layer.")
@click.option("--plots", metavar="DIR", type=click.Path(path_type=Path), help="Draw roofline and energy into DIR.")
@_json
def simulate(
    accelerator: str,
    model: str,
    trace: Path | None,
    settings: tuple[str, ...],
    layers: bool,
    plots: Path | None,
    json_path: Path | None,
    **workload: Any,
) -> None:
    """Simulate one generation of MODEL on ACCELERATOR: names of files that come with speq, or .toml files."""
    from speq.hardware.simulator.experiment import run_once
    from speq.hardware.simulator.report import show_layers, show_run
    from speq.hardware.simulator.simulation import describe, draw, typical_passes

    changes = {f"all.{key}": value for key, value in map(_parse_change, settings)}
    work = _workload(trace, **workload)
    simulator, run = run_once(accelerator, model, work, changes)
    console = _console()
    names = f"{simulator.shape.title} on {simulator.machine.accelerator.title}"
    show_run(console, run, names)
    if layers:
        for spec in typical_passes(run, work):
            heading = f"{spec.kind}: {spec.tokens} tokens after {spec.context}"
            show_layers(console, simulator.layers(spec), heading)
    if plots:
        for path in draw(simulator, run, plots):
            click.echo(path)
    _write(json_path, lambda: describe(simulator, run, work))


@click.command()
@click.argument("scenario", default="plain")
@click.option(
    "--traces",
    metavar="DIR",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Replay traces TASK-*.jsonl instead of the acceptance model.",
)
@click.option(
    "--sensitivity",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Also vary each assumption: plots in DIR, and what the published ratios would need.",
)
@_json
def compare(scenario: str, traces: Path | None, sensitivity: Path | None, json_path: Path | None) -> None:
    """Compare all accelerators of SCENARIO: plain, fitted-precision, fitted-utilisation, or a .toml file."""
    from speq.hardware.simulator import plots
    from speq.hardware.simulator import sensitivity as analysis
    from speq.hardware.simulator.compare import Comparison, find_traces, titles
    from speq.hardware.simulator.report import show_comparison, show_requirements
    from speq.hardware.simulator.scenario import load_scenario

    chosen = load_scenario(scenario)
    comparison = Comparison(chosen, find_traces(traces, chosen.tasks) if traces else None)
    console = _console()
    show_comparison(console, comparison)
    report = comparison.to_dict()
    if sensitivity:
        names = titles(chosen)
        made = plots.comparison(comparison.rows(), names, sensitivity, chosen.name)
        curves = list(analysis.curves(comparison))
        for curve in curves:
            made += plots.sensitivity(curve, comparison.ratios(), names, sensitivity)
        found = list(analysis.requirements(comparison))
        show_requirements(console, found, names)
        for path in made:
            click.echo(path)
        report |= analysis.describe(curves, found)
    _write(json_path, lambda: report)


@click.command()
@click.argument("sweep_name", metavar="SWEEP")
@click.option(
    "--out", metavar="DIR", type=click.Path(path_type=Path), help="Where results go.  [default: SWEEP's name]"
)
@click.option("--workers", metavar="N", type=click.IntRange(1), help="Processes; one per core by default.")
@click.option("--ray", "address", metavar="ADDRESS", help="Use the Ray cluster there; `local` starts one here.")
@_json
def sweep(sweep_name: str, out: Path | None, workers: int | None, address: str | None, json_path: Path | None) -> None:
    """Compute every point of SWEEP (small, design-space, or a .toml file); started again, it continues."""
    from speq.hardware.simulator import pool
    from speq.hardware.simulator.sweep import finish, load_sweep, parts_of, prepare

    chosen = load_sweep(sweep_name)
    directory = out or Path(chosen.name)
    missing = prepare(chosen, directory)
    parts = parts_of(chosen)
    with ProgressBars() as progress:

        def done(count: int) -> None:
            progress(f"{chosen.points:,} points", parts - len(missing) + count, parts)

        if address:
            pool.run_on_ray(chosen, missing, address, done)
        else:
            pool.run_here(chosen, missing, workers, done)
    report, made = finish(chosen, directory)
    for path in made:
        click.echo(path)
    _write(json_path, lambda: report)


def _workload(
    trace: Path | None,
    task: str,
    prompt_tokens: int | None,
    new_tokens: int | None,
    acceptance: float,
    draft_length: int,
    early_stop: float,
) -> Workload:
    from speq.hardware.simulator.acceptance import Acceptance
    from speq.hardware.simulator.experiment import workload_of
    from speq.hardware.simulator.load import load
    from speq.hardware.simulator.run import replay
    from speq.hardware.simulator.shapes import Task
    from speq.hardware.simulator.trace import read_trace

    if trace:
        if prompt_tokens or new_tokens:
            raise click.UsageError("--trace has its own lengths: leave out --prompt-tokens and --new-tokens")
        return replay(read_trace(trace))
    lengths = {"prompt_tokens": prompt_tokens, "new_tokens": new_tokens}
    changes = {f"workload.{name}": value for name, value in lengths.items() if value}
    return workload_of(load(Task, "tasks", task), Acceptance(acceptance, draft_length, early_stop), changes)


def _parse_change(text: str) -> tuple[str, float | str]:
    key, separator, value = text.partition("=")
    if not (key and separator and value):
        raise click.UsageError(f"--set takes KEY=VALUE, not {text!r}")
    try:
        return key, float(value)
    except ValueError:
        return key, value


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 180)


def _write(path: Path | None, report: Any) -> None:
    from speq.hardware.simulator.files import write_json

    if path:
        write_json(path, report())
