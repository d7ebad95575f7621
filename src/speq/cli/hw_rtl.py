"""`speq hw synth` and `emit`: what the processing elements cost, and the Verilog of them and of their array."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from speq.errors import SpeqError
from speq.terminal.output import ProgressBars, note

if TYPE_CHECKING:
    from speq.hardware.synthesis.table import LibraryTable


@click.command()
@click.option(
    "--library",
    "libraries",
    multiple=True,
    metavar="NAME",
    help="osu018, osu035 or neutral; may be repeated.  [default: all that are installed]",
)
@click.option("--columns", type=int, default=16, show_default=True, help="Elements that share the edge of a row.")
@click.option("--fraction-bits", type=int, default=3, show_default=True, help="Accumulator bits below a product's.")
@click.option("--integer-bits", type=int, default=1, show_default=True, help="Accumulator bits above a product's.")
@click.option("--rounding", type=click.Choice(["truncate", "nearest_even"]), default="nearest_even", show_default=True)
@click.option("--normalise", is_flag=True, help="Normalise the accumulator after every addition.")
@click.option("--json", "json_path", metavar="FILE", type=click.Path(path_type=Path), help="Write all figures to FILE.")
def synth(libraries: tuple[str, ...], columns: int, json_path: Path | None, **accumulator: Any) -> None:
    """Synthesise the processing elements and compare their area, depth and switching energy with the FP16 baseline's.

    osu018 and osu035 are the 0.18 and 0.35 um libraries of Debian's packages qflow-tech-osu018 and -osu035; neutral
    counts transistors. The figures are for ratios: none of them is a figure of a modern technology.
    """
    try:
        from speq.hardware.parameters import AccumulatorParameters
        from speq.hardware.simulator.files import check_writable, write_json
        from speq.hardware.synthesis.flow import LIBRARIES, installed_libraries
        from speq.hardware.synthesis.table import compare, orders_agree
    except ModuleNotFoundError as error:
        raise SpeqError("speq hw needs the hardware extra: pip install 'speq[hardware]'") from error

    if json_path is not None:
        check_writable(json_path)
    parameters = AccumulatorParameters(**accumulator)
    names = libraries or tuple(installed_libraries())
    for missing in sorted(set(LIBRARIES) - set(installed_libraries()) - set(libraries)):
        note(f"{missing} is left out: its file is not installed (Debian's package qflow-tech-{missing})")
    with ProgressBars() as progress:
        tables = [compare(name, parameters, columns, progress) for name in dict.fromkeys(names)]
    for table in tables:
        _print(table)
    same = orders_agree(tables)
    click.echo(f"order of areas, smallest first: {'; '.join(dict.fromkeys(' '.join(t.order) for t in tables))}")
    if len(tables) > 1:
        click.echo("all libraries agree on it" if same else "the libraries disagree: draw no conclusion from it")
    if json_path is not None:
        figures = {"accumulator": accumulator, "orders_agree": same, "tables": [table.to_dict() for table in tables]}
        write_json(json_path, figures)


def _print(table: LibraryTable) -> None:
    plain, drafting = table.edge_areas
    click.echo(
        f"{table.library}: ratios to {table.elements[0].element}; a row's edge, area {plain:,.0f} without and "
        f"{drafting:,.0f} with draft mode, is shared by {table.columns} columns"
    )
    click.echo(
        f"  {'':4} {'area':>9} {'gates':>7} {'cells':>6} {'depth':>6} {'delay':>7} | {'area':>6} {'+edge':>6} "
        f"{'+regs':>6} {'delay':>6} | energy per {'exact':>6} {'draft':>6} product"
    )
    for each in table.elements:
        ratios = each.ratios(table.elements[0])
        draft = "" if ratios["draft_energy"] is None else f"{ratios['draft_energy']:.3f}"
        click.echo(
            f"  {each.element:4} {each.area:9,.0f} {each.gate_equivalents:7,.0f} {each.cells:6,} {each.depth:6} "
            f"{each.delay:7.2f} | {ratios['area']:6.3f} {ratios['shared_area']:6.3f} {ratios['systolic_area']:6.3f} "
            f"{ratios['delay']:6.3f} |            {ratios['exact_energy']:6.3f} {draft:>6}"
        )
    click.echo()


@click.command()
@click.argument("level", type=click.Choice(["pe", "tile", "array"]))
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--pe",
    "variant",
    type=click.Choice(["P0", "P1", "P2", "P3"], case_sensitive=False),
    default="P3",
    show_default=True,
)
@click.option("--rows", type=int, default=8, show_default=True, help="Tokens computed at once.")
@click.option("--columns", type=int, default=16, show_default=True, help="Output channels computed at once.")
@click.option("--burst", type=int, default=16, show_default=True, help="Beats per request for an operand.")
@click.option("--fraction-bits", type=int, default=3, show_default=True, help="Accumulator bits below a product's.")
@click.option("--integer-bits", type=int, default=1, show_default=True, help="Accumulator bits above a product's.")
@click.option("--rounding", type=click.Choice(["truncate", "nearest_even"]), default="nearest_even", show_default=True)
@click.option("--normalise", is_flag=True, help="Normalise the accumulator after every addition.")
def emit(
    level: Literal["pe", "tile", "array"],
    directory: Path,
    variant: str,
    rows: int,
    columns: int,
    burst: int,
    **accumulator: Any,
) -> None:
    """Write the Verilog of one processing element, a tile of them, or the whole array with its controller.

    DIRECTORY gets one file per module and is made if need be; the names of the files are printed, the top module's
    first. P0 has no draft mode: an array of it must not be given drafts.
    """
    try:
        from speq.hardware.array_parameters import ArrayParameters
        from speq.hardware.parameters import AccumulatorParameters
        from speq.hardware.rtl.element import ProcessingElement
        from speq.hardware.rtl.emit import emit as emit_verilog
        from speq.hardware.synthesis.table import VARIANTS
    except ModuleNotFoundError as error:
        raise SpeqError("speq hw needs the hardware extra: pip install 'speq[hardware]'") from error

    array = ArrayParameters(rows, columns, ProcessingElement.LATENCY, burst)
    for path in emit_verilog(level, directory, array, AccumulatorParameters(**accumulator), VARIANTS[variant]):
        click.echo(path)
