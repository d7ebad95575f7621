"""Tokens per second: plain decoding against the bandwidth limit, and speculative decoding against plain decoding.

For each prompt plain and speculative decoding alternate; medians and the geometric mean of the ratios are reported. The
bandwidth limit is the measured read bandwidth divided by the bytes of weights that one plain token reads.

    python benchmarks/decode.py MODEL [--prompts 10] [--new-tokens 128] [--draft auto] [--csv FILE]
"""

from __future__ import annotations

import csv
import statistics
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import click

import speq
from speq.bench.machine import read_bandwidth, this_machine
from speq.bench.prompts import read_prompts
from speq.checkpoint.converted import load_converted
from speq.locate import converted_model
from speq.models.config import model_config

PROMPTS = Path(__file__).parent / "prompts"
FILES = ("mt_bench", "humaneval", "gsm8k_train_200")


@dataclass
class Row:
    """One prompt: tokens per second of both, and how well the draft did."""

    prompt: str
    new_tokens: int
    plain_rate: float
    speculative_rate: float
    acceptance_rate: float
    tokens_per_round: float

    @property
    def speed_up(self) -> float:
        return self.speculative_rate / self.plain_rate


def bytes_per_token(path: Path) -> int:
    """Bytes of the planes that one plain pass reads: all matrices, but the embedding only where it is the head too."""
    model = load_converted(path, verify=False)
    tied = model_config(model.config).tied_head
    matrices = {n: t for n, t in model.split.items() if tied or n != "model.embed_tokens.weight"}
    return sum(plane.nbytes for tensor in matrices.values() for plane in tensor.planes().values())


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
    draft: str,
    draft_length: int | None,
    threads: int | None,
    csv_path: Path | None,
) -> None:
    path = converted_model(model)
    loaded = speq.load(str(path), threads=threads)
    prompts = [p for f in FILES for p in read_prompts(PROMPTS / f"{f}.jsonl", count + 1)]
    loaded.generate(prompts.pop(0).text, max_new_tokens=32)  # warm-up
    bandwidths, rows, differing = [read_bandwidth(threads)], list[Row](), 0
    for prompt in prompts:
        plain = loaded.generate(prompt.text, max_new_tokens=new_tokens, draft="none")
        fast = loaded.generate(prompt.text, max_new_tokens=new_tokens, draft=draft, draft_length=draft_length)
        bandwidths.append(read_bandwidth(threads, repeats=2))
        differing += plain.token_ids != fast.token_ids
        a, b = plain.stats, fast.stats
        rates = a.tokens_per_second, b.tokens_per_second
        row = Row(prompt.id, b.new_tokens, *rates, b.acceptance_rate, b.tokens_per_round)
        rows.append(row)
        click.echo(
            f"{row.prompt:20s} {row.plain_rate:7.2f} -> {row.speculative_rate:7.2f} tokens/s ({row.speed_up:.2f}x), "
            f"acceptance {row.acceptance_rate:.3f}, {row.tokens_per_round:.2f} a round"
        )
    plain_rate = statistics.median(row.plain_rate for row in rows)
    speculative_rate = statistics.median(row.speculative_rate for row in rows)
    bandwidth = statistics.median(bandwidths)
    limit = bandwidth / bytes_per_token(path)
    speed_ups = [row.speed_up for row in rows]
    mean = statistics.geometric_mean(speed_ups)
    click.echo(f"{this_machine()}; {len(rows)} prompts, {new_tokens} new tokens")
    click.echo(
        f"read bandwidth  {bandwidth / 1e9:.1f} GB/s ({min(bandwidths) / 1e9:.1f} to {max(bandwidths) / 1e9:.1f})"
    )
    click.echo(f"plain           {plain_rate:.2f} tokens/s, {plain_rate / limit:.2f} of the bandwidth limit")
    click.echo(f"speculative     {speculative_rate:.2f} tokens/s")
    click.echo(f"speed-up        {mean:.2f}x geometric mean ({min(speed_ups):.2f} to {max(speed_ups):.2f})")
    click.echo(f"prompts whose ids differ: {differing}")
    if csv_path:
        with csv_path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([field.name for field in fields(Row)])
            writer.writerows(astuple(row) for row in rows)


if __name__ == "__main__":
    main()
