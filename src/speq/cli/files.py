"""`speq pull`, `convert` and `restore`: from a name or a checkpoint to a converted one, and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from speq.cli.options import threads_option
from speq.terminal.output import ProgressBars, note


@click.command()
@click.argument("name")
def pull(name: str) -> None:
    """Fetch a catalogue model or hub id into the cache, verified; prints where it lies."""
    from speq.checkpoint.fetching.pull import pull as fetch

    with ProgressBars() as progress:
        path = fetch(name, progress)
    click.echo(path)


@click.command()
@click.argument("src")
@click.argument("dst", type=click.Path(path_type=Path))
@click.option(
    "--format",
    type=click.Choice(["nested", "e3m0"]),
    default="nested",
    show_default=True,
    help="nested drafts better; e3m0 is the paper's, with power-of-two draft values.",
)
@click.option(
    "--group-size",
    type=click.Choice(["32", "64", "128"]),
    default="64",
    show_default=True,
    help="Weights that share a scale.",
)
@click.option(
    "--dtype", type=click.Choice(["fp16", "bf16"]), help="16-bit type for sources that are not 16-bit.  [default: bf16]"
)
@click.option(
    "--dither",
    type=click.IntRange(0),
    metavar="SEED",
    help="Spread the weights of a quantised source within their quantisation steps.",
)
@click.option(
    "--calibrate/--no-calibrate",
    default=True,
    show_default=True,
    help="Choose draft codes for the activations on a little text, for nested.",
)
@threads_option
@click.option("--force", is_flag=True, help="Also replace a conversion of another model.")
def convert(src: str, dst: Path, group_size: str, calibrate: bool, force: bool, **options: Any) -> None:
    """Convert SRC (a directory, .gguf file, catalogue name or hub id) to the directory DST.

    An interrupted conversion continues when it is started again. An earlier conversion of SRC at DST is brought up to
    date: what has changed is done, the rest stays.
    """
    from speq.conversion.calibrate import Calibration
    from speq.conversion.convert import convert as convert_files
    from speq.conversion.locate import locate
    from speq.conversion.workplace import destination

    destination(dst)
    with ProgressBars() as progress:
        source = locate(src, progress)
        report = convert_files(
            source,
            dst,
            group_size=int(group_size),
            calibration=Calibration() if calibrate else None,
            progress=progress,
            replace_other=force,
            **options,
        )
    for line in report.notes:
        note(line)
    click.echo(
        f"{report.path}: {report.weights:,} weights, {report.bits_per_weight:.2f} bits each, "
        f"{report.escapes / max(report.weights, 1):.2%} escapes, "
        f"{report.source_bytes / 1e6:,.1f} MB before, {report.bytes / 1e6:,.1f} MB after, {report.seconds:.1f} s"
    )


@click.command()
@click.argument("model")
@click.argument("dst", type=click.Path(path_type=Path))
def restore(model: str, dst: Path) -> None:
    """Write the 16-bit safetensors that MODEL was converted from to the directory DST, bit for bit."""
    from speq.conversion.locate import converted_model
    from speq.conversion.restore import restore as restore_files

    with ProgressBars() as progress:
        path = restore_files(converted_model(model, progress=progress), dst, progress)
    click.echo(path)
