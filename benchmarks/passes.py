"""Verifying several tokens costs little more than one, and a draft pass a fraction: whole passes by their tokens.

python benchmarks/passes.py MODEL [--rounds 25] [--threads N] [--csv FILE]
speq bench plot FILE                          cost against the number of tokens
"""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from speq.bench.csv_report import write_csv
from speq.bench.machine import describe_machine
from speq.bench.passes import measure_passes
from speq.bench.report import Report, describe_model
from speq.bench.suites import pass_table
from speq.checkpoint.store import load_converted
from speq.conversion.locate import converted_model
from speq.serving.api import load


@click.command()
@click.argument("model")
@click.option("--rounds", default=25)
@click.option("--threads", type=int)
@click.option("--csv", "csv_path", type=click.Path(path_type=Path))
def main(model: str, rounds: int, threads: int | None, csv_path: Path | None) -> None:
    path = converted_model(model)
    about = describe_model(model, load_converted(path, verify=False))
    report = Report("decode", about, describe_machine(threads), {"rounds": rounds})
    report.tables.append(pass_table(measure_passes(load(path, threads=threads).engine.engine, rounds=rounds)))
    report.show(Console(width=160))
    if csv_path:
        write_csv(report.to_dict(), "passes", csv_path)


if __name__ == "__main__":
    main()
