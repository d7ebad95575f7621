"""`speq bench`: the measurements behind every figure, as tables, JSON and plots."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from speq.bench.peers import DEFAULT, ENGINES
from speq.cli.options import threads_option
from speq.terminal.output import ProgressBars, note

if TYPE_CHECKING:
    from speq.bench.prompts import Prompt
    from speq.bench.report import Report


@click.group()
def bench() -> None:
    """Measure kernels, decoding and other engines on this machine."""


_model = click.argument("model")
_json = click.option(
    "--json", "json_path", metavar="FILE", type=click.Path(path_type=Path), help="Write all numbers to FILE."
)
_prompts = click.option(
    "--prompts",
    "prompt_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="JSON lines with id, category and turns.  [default: a few that come with speq]",
)
_count = click.option("--count", metavar="N", type=click.IntRange(1), help="Prompts, spread evenly over the file.")
_rounds = click.option(
    "--rounds",
    metavar="N",
    type=click.IntRange(1),
    default=15,
    show_default=True,
    help="Repetitions, of which medians.",
)


@bench.command(short_help="Time every operator.")
@_model
@_rounds
@threads_option
@_json
def kernels(model: str, rounds: int, threads: int | None, json_path: Path | None) -> None:
    """Every operator: time, GB/s against the bandwidth of this machine, and the ratio to plain FP16."""
    from speq.bench.report import check_writable
    from speq.bench.suites import kernels_report

    check_writable(json_path)
    _finish(kernels_report(model, _resolve(model), threads=threads, rounds=rounds, say=_say), json_path)


@bench.command(short_help="Time passes, prompts, prefill and memory.")
@_model
@_prompts
@_count
@click.option("--new-tokens", metavar="N", type=click.IntRange(2), default=128, show_default=True, help="Per answer.")
@click.option("--draft", type=click.Choice(["auto", "self"]), default="auto", show_default=True)
@_rounds
@threads_option
@_json
def decode(
    model: str,
    prompt_file: Path | None,
    count: int | None,
    json_path: Path | None,
    **options: Any,
) -> None:
    """Plain, draft and verify passes, prompts end to end, prefill, overhead, long contexts, memory."""
    from speq.bench.report import check_writable
    from speq.bench.suites import decode_report

    check_writable(json_path)
    prompts = _read(prompt_file, count)
    _finish(decode_report(model, _resolve(model), prompts, say=_say, **options), json_path)


@bench.command(short_help="Compare with other engines.")
@_model
@click.option(
    "--engine",
    "engines",
    multiple=True,
    type=click.Choice(list(ENGINES)),
    default=DEFAULT,
    help="An engine to compare; may be given several times.  [default: all but llama.cpp-bf16]",
)
@_prompts
@_count
@click.option("--new-tokens", metavar="N", type=click.IntRange(2), default=64, show_default=True, help="Per answer.")
@click.option(
    "--workdir",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Keep the files for other engines here.  [default: a temporary directory]",
)
@threads_option
@_json
def peers(model: str, prompt_file: Path | None, count: int | None, json_path: Path | None, **options: Any) -> None:
    """The same model and prompts in other engines, as far as they are installed."""
    from speq.bench.peers.suite import peers_report
    from speq.bench.report import check_writable

    check_writable(json_path)
    prompts = _read(prompt_file, count)
    path = _resolve(model)
    with ProgressBars() as progress:
        report = peers_report(model, path, prompts, progress=progress, say=_say, **options)
    _finish(report, json_path)


@bench.command(short_help="Draw what was measured.")
@click.argument("reports", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", metavar="DIR", type=click.Path(path_type=Path), default=Path(), help="Where the plots go.")
def plot(reports: tuple[Path, ...], out: Path) -> None:
    """Draw plots (PNG and SVG) of REPORTS: JSON of speq bench, CSV of benchmarks/kernels.py, passes.py or peers.py."""
    from speq.bench.csv_report import read_csv
    from speq.bench.plots import draw
    from speq.bench.report import read_json

    for path in reports:
        report = read_csv(path) if path.suffix == ".csv" else read_json(path)
        for made in draw(report, out, path.stem):
            click.echo(made)


def _read(path: Path | None, count: int | None) -> list[Prompt]:
    """The prompts to measure, and before them one that only warms up."""
    from speq.bench.prompts import builtin_prompts, read_prompts

    return read_prompts(path, count and count + 1) if path else builtin_prompts(count and count + 1)


def _resolve(model: str) -> Path:
    from speq.conversion.locate import converted_model

    with ProgressBars() as progress:
        return converted_model(model, progress=progress)


def _say(text: str) -> None:
    note(text)


def _finish(report: Report, json_path: Path | None) -> None:
    """Show a report, and write it where asked."""
    from rich.console import Console

    from speq.bench.report import write_json

    width = None if sys.stdout.isatty() else 160
    report.show(Console(highlight=False, width=width))
    if json_path:
        write_json(report, json_path)
