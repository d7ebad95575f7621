"""`speq hw simulate`, `compare` and `sweep`: what accelerators would take for a generation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from speq.terminal.output import ProgressBars, note

if TYPE_CHECKING:
    from rich.console import Console

    from speq.hardware.simulator.run import Workload


def _writable(context: click.Context, option: click.Parameter, value: Path | None) -> Path | None:
    """Find out before anything is computed whether FILE can be written."""
    if value and not context.resilient_parsing:
        from speq.hardware.simulator.files import check_writable

        check_writable(value)
    return value


def _made(context: click.Context, option: click.Parameter, value: Path | None) -> Path | None:
    """Make DIR before anything is computed."""
    if value and not context.resilient_parsing:
        from speq.hardware.simulator.files import make_directory

        make_directory(value)
    return value


_json = click.option(
    "--json",
    "json_path",
    metavar="FILE",
    type=click.Path(path_type=Path),
    callback=_writable,
    help="Write all numbers to FILE.",
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
@click.option(
    "--acceptance",
    metavar="R",
    type=click.FloatRange(0, 1),
    help="Probability of a drafted token to be right.  [default: as in the scenario plain, as the next two are]",
)
@click.option("--draft-length", metavar="L", type=click.IntRange(1, 64), help="Tokens of a draft.")
@click.option(
    "--early-stop",
    metavar="S",
    type=click.FloatRange(0, 1),
    help="Share of wrong tokens before which a draft ends.",
)
@_changes
@click.option("--layers", is_flag=True, help="Show one pass of each kind by layer.")
@click.option(
    "--plots", metavar="DIR", type=click.Path(path_type=Path), callback=_made, help="Draw roofline and energy into DIR."
)
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
    from speq.hardware.simulator.report import of_other_codes, show_layers, show_run
    from speq.hardware.simulator.simulation import describe, draw, typical_passes

    changes = {f"all.{key}": value for key, value in map(_parse_change, settings)}
    work = _workload(trace, **workload)
    if trace and (remark := of_other_codes(accelerator, [trace])):
        note(remark)
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
@click.argument("scenarios", metavar="[SCENARIO]...", nargs=-1)
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
    callback=_made,
    help="Also vary each assumption of the first SCENARIO: plots in DIR, and what the published ratios would need.",
)
@click.option(
    "--check",
    is_flag=True,
    help="Also hold the first SCENARIO's expectations against sampled generations, for every acceptance and length.",
)
@_json
def compare(
    scenarios: tuple[str, ...], traces: Path | None, sensitivity: Path | None, check: bool, json_path: Path | None
) -> None:
    """Compare all accelerators of each SCENARIO, and the scenarios with each other.

    A SCENARIO is plain, published-acceptance, fitted-precision, fitted-utilisation, or a .toml file; without any it is
    the first two, or with --traces the first.
    """
    from speq.hardware.simulator import plots
    from speq.hardware.simulator import sensitivity as analysis
    from speq.hardware.simulator.compare import Comparison, find_traces, titles
    from speq.hardware.simulator.report import show_beside, show_checks, show_comparison, show_requirements
    from speq.hardware.simulator.scenario import load_scenario

    if check and traces:
        raise click.UsageError("--check is for the acceptance model, which --traces replaces: leave out one of them")
    names_of = scenarios or (("plain",) if traces else ("plain", "published-acceptance"))
    comparisons = [
        Comparison(chosen, find_traces(traces, chosen.tasks) if traces else None)
        for chosen in map(load_scenario, dict.fromkeys(names_of))
    ]
    comparison, chosen = comparisons[0], comparisons[0].scenario
    console = _console()
    for one in comparisons:
        show_comparison(console, one)
    if len(comparisons) > 1:
        show_beside(console, comparisons)
    report = comparison.to_dict()
    if len(comparisons) > 1:
        report["beside"] = [one.to_dict() for one in comparisons[1:]]
    if check:
        from speq.hardware.simulator import sampling

        held = list(sampling.checks(comparison))
        show_checks(console, held)
        report["checks"] = sampling.describe(held)
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
    acceptance: float | None,
    draft_length: int | None,
    early_stop: float | None,
) -> Workload:
    from speq.hardware.simulator.experiment import workload_of
    from speq.hardware.simulator.load import load
    from speq.hardware.simulator.run import replay
    from speq.hardware.simulator.scenario import load_scenario
    from speq.hardware.simulator.shapes import Task
    from speq.hardware.simulator.trace import read_trace

    if trace:
        if prompt_tokens or new_tokens:
            raise click.UsageError("--trace has its own lengths: leave out --prompt-tokens and --new-tokens")
        return replay(read_trace(trace))
    given = {
        "prompt_tokens": prompt_tokens,
        "new_tokens": new_tokens,
        "acceptance": acceptance,
        "draft_length": draft_length,
        "early_stop": early_stop,
    }
    changes = {f"workload.{name}": value for name, value in given.items() if value is not None}
    return workload_of(load(Task, "tasks", task), load_scenario("plain").drafts, changes)


def _parse_change(text: str) -> tuple[str, bool | float | str]:
    key, separator, value = text.partition("=")
    if not (key and separator and value):
        raise click.UsageError(f"--set takes KEY=VALUE, not {text!r}")
    if value in ("true", "false"):
        return key, value == "true"
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
