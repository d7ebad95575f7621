"""speq against other engines on the same weights, prompts and processor.

    python benchmarks/peers.py MODEL [--prompts 7] [--new-tokens 64] [--engine NAME ...] [--workdir DIR] [--csv FILE]
    speq bench plot FILE                          tokens per second by engine

FILE has one row for each engine; FILE with ``-runs`` before its suffix has one for each engine and prompt.
"""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from speq.bench.csv_report import write_csv
from speq.bench.peers import DEFAULT, ENGINES
from speq.bench.peers.suite import peers_report
from speq.bench.prompts import read_prompts
from speq.conversion.locate import converted_model

PROMPTS = Path(__file__).parent / "prompts"
FILES = ("mt_bench", "humaneval", "gsm8k_train_200")


@click.command()
@click.argument("model")
@click.option("--prompts", "count", default=4, help="From each of the three prompt files, of which one warms up.")
@click.option("--new-tokens", default=64)
@click.option("--engine", "engines", multiple=True, default=DEFAULT, type=click.Choice(list(ENGINES)))
@click.option("--threads", type=int)
@click.option("--workdir", type=click.Path(path_type=Path))
@click.option("--csv", "csv_path", type=click.Path(path_type=Path))
def main(
    model: str,
    count: int,
    new_tokens: int,
    engines: tuple[str, ...],
    threads: int | None,
    workdir: Path | None,
    csv_path: Path | None,
) -> None:
    prompts = [p for f in FILES for p in read_prompts(PROMPTS / f"{f}.jsonl", count)]
    report = peers_report(
        model,
        converted_model(model),
        prompts,
        engines=engines,
        threads=threads,
        new_tokens=new_tokens,
        workdir=workdir,
        say=click.echo,
    )
    report.show(Console(width=160))
    if csv_path:
        write_csv(report.to_dict(), "engines", csv_path)
        write_csv(report.to_dict(), "runs", csv_path.with_stem(f"{csv_path.stem}-runs"))


if __name__ == "__main__":
    main()
