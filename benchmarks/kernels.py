"""A draft product costs about a quarter of a plain FP16 one: every matrix product of a model against memory and FP16.

python benchmarks/kernels.py MODEL [--rounds 15] [--threads N] [--csv FILE]
speq bench plot FILE                          the roofline
"""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from speq.bench.csv_report import write_csv
from speq.bench.suites import kernels_report
from speq.conversion.locate import converted_model


@click.command()
@click.argument("model")
@click.option("--rounds", default=15)
@click.option("--threads", type=int)
@click.option("--csv", "csv_path", type=click.Path(path_type=Path))
def main(model: str, rounds: int, threads: int | None, csv_path: Path | None) -> None:
    report = kernels_report(model, converted_model(model), threads=threads, rounds=rounds, say=click.echo)
    report.show(Console(width=160))
    if csv_path:
        write_csv(report.to_dict(), "kernels", csv_path)


if __name__ == "__main__":
    main()
