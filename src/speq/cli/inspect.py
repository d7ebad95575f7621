"""`speq inspect`: what a converted model consists of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from speq.terminal.output import ProgressBars, json_line, note, printable

if TYPE_CHECKING:
    from speq.conversion.inspection import Figures

_BAR = 50  # columns of the longest bar


@click.command()
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect(model: str, as_json: bool) -> None:
    """Show bits per weight, the exponent histogram, escapes and the draft's error, in all and per layer."""
    from speq.conversion.inspection import inspect_model
    from speq.conversion.locate import converted_model
    from speq.models.tensors import load_fitting

    with ProgressBars() as progress:
        converted = load_fitting(converted_model(model, progress=progress))
        total, layers = inspect_model(converted, progress)
    about = {
        "model": model,
        "path": str(converted.path),
        "format": converted.spec.format,
        "dtype": converted.spec.dtype,
        "group_size": converted.spec.group_size,
        "calibrated": converted.source.get("calibration") is not None,
        "bytes": converted.bytes,
    }
    if as_json:
        by_layer = [{"layer": name, **figures.to_dict()} for name, figures in layers.items()]
        exponents = [{"exponent": exponent, "count": count} for exponent, count in _ordered(total)]
        everything = {**about, **total.to_dict(), "exponents": exponents, "layers": by_layer, "notes": converted.notes}
        click.echo(json_line(everything))
        return
    for name, value in about.items():
        click.echo(
            f"{name.replace('_', ' '):11} {value:,}" if name == "bytes" else f"{name.replace('_', ' '):11} {value}"
        )
    _print_layers(total, layers)
    _print_exponents(total)
    for line in converted.notes:
        note(line)


def _print_layers(total: Figures, layers: dict[str, Figures]) -> None:
    width = max(map(len, layers), default=5)
    click.echo(
        f"\n{'':{width}} {'weights':>15} {'bits each':>10} {'draft bits':>11} {'escapes':>9} {'draft error':>12}"
    )
    for name, figures in [*layers.items(), ("all", total)]:
        row = figures.to_dict()
        click.echo(
            f"{printable(name):{width}} "
            f"{row['weights']:15,} {row['bits_per_weight']:10.3f} {row['draft_bits_per_weight']:11.3f} "
            f"{row['escape_rate']:9.3%} {row['draft_error']:12.4f}"
        )
    if total.not_finite:
        click.echo(f"{total.not_finite:,} weights are infinite or NaN; they are kept exactly")


def _print_exponents(total: Figures) -> None:
    click.echo("\nexponents of two")
    longest = max(total.exponents.values(), default=1)
    for exponent, count in _ordered(total):
        bar = "#" * round(_BAR * count / longest)
        click.echo(f"{exponent!s:>17} {count / total.weights:9.4%} {bar}".rstrip())


def _ordered(total: Figures) -> list[tuple[int | str, int]]:
    """Exponents in rising order: zero and subnormal first, what is not finite last."""

    def key(item: tuple[int | str, int]) -> Any:
        exponent = item[0]
        return exponent if isinstance(exponent, int) else (-1000 if exponent.startswith("zero") else 1000)

    return sorted(total.exponents.items(), key=key)
