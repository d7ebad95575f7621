"""Tokens per second: plain decoding against the bandwidth limit, and speculative decoding against plain decoding.

For each prompt plain and speculative decoding alternate; medians and the geometric mean of the ratios are reported. The
bandwidth limit is the measured read bandwidth divided by the bytes of weights that one plain token reads.

    python benchmarks/decode.py MODEL [--prompts 10] [--new-tokens 128] [--draft auto] [--csv FILE]
"""

from __future__ import annotations

import csv
from dataclasses import astuple, fields
from pathlib import Path
from typing import Literal

import click

import speq
from speq.bench.endtoend import PromptRow, bytes_per_token, measure_end_to_end
from speq.bench.machine import this_machine
from speq.bench.prompts import read_prompts
from speq.checkpoint.store import load_converted
from speq.conversion.locate import converted_model
from speq.models.tensors import fit

PROMPTS = Path(__file__).parent / "prompts"
FILES = ("mt_bench", "humaneval", "gsm8k_train_200")


def show(row: PromptRow) -> None:
    click.echo(
        f"{row.prompt:20s} {row.plain_rate:7.2f} -> {row.speculative_rate:7.2f} tokens/s ({row.speed_up:.2f}x), "
        f"acceptance {row.acceptance_rate:.3f}, {row.tokens_per_round:.2f} a round"
    )


@click.command()
@click.argument("model")
@click.option("--prompts", "count", default=7, help="From each of the three prompt files.")
@click.option("--new-tokens", default=128)
@click.option("--draft", type=click.Choice(["auto", "self"]), default="auto")
@click.option("--draft-length", type=int)
@click.option("--threads", type=int)
@click.option("--csv", "csv_path", type=click.Path(path_type=Path))
def main(
    model: str,
    count: int,
    new_tokens: int,
    draft: Literal["auto", "self"],
    draft_length: int | None,
    threads: int | None,
    csv_path: Path | None,
) -> None:
    path = converted_model(model)
    converted = load_converted(path, verify=False)
    weights = {**converted.raw, **converted.split}
    config = fit(converted.config, {name: weight.shape for name, weight in weights.items()})
    per_token = bytes_per_token(config, weights)
    prompts = [p for f in FILES for p in read_prompts(PROMPTS / f"{f}.jsonl", count + 1)]
    options = {"new_tokens": new_tokens, "draft": draft, "draft_length": draft_length}
    result = measure_end_to_end(speq.load(path, threads=threads), prompts, per_token, report=show, **options)
    bandwidths, speed_ups = result.bandwidths, [row.speed_up for row in result.rows]
    click.echo(f"{this_machine(threads)}; {len(result.rows)} prompts, {new_tokens} new tokens")
    click.echo(
        f"read bandwidth  {result.bandwidth / 1e9:.1f} GB/s "
        f"({min(bandwidths) / 1e9:.1f} to {max(bandwidths) / 1e9:.1f})"
    )
    click.echo(f"plain           {result.plain_rate:.2f} tokens/s, {result.bandwidth_share:.2f} of the bandwidth limit")
    click.echo(f"speculative     {result.speculative_rate:.2f} tokens/s")
    click.echo(f"speed-up        {result.speed_up:.2f}x geometric mean ({min(speed_ups):.2f} to {max(speed_ups):.2f})")
    click.echo(f"prompts whose ids differ: {result.differing}")
    if csv_path:
        with csv_path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([field.name for field in fields(PromptRow)])
            writer.writerows(astuple(row) for row in result.rows)


if __name__ == "__main__":
    main()
