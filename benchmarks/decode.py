"""Tokens per second: plain decoding against the bandwidth limit, and speculative decoding against plain decoding.

For each prompt plain and speculative decoding alternate; medians and the geometric mean of the ratios are reported. The
bandwidth limit is the measured read bandwidth divided by the bytes of weights that one plain token reads.

    python benchmarks/decode.py MODEL [--prompts 10] [--new-tokens 128] [--draft auto] [--csv FILE]
"""

from __future__ import annotations

import csv
import statistics
from pathlib import Path

import click

import speq
from speq.bench.machine import read_bandwidth, this_machine
from speq.bench.prompts import read_prompts
from speq.checkpoint.converted import load_converted
from speq.checkpoint.resolve import resolve
from speq.models.config import model_config

PROMPTS = Path(__file__).parent / "prompts"
FILES = ("mt_bench", "humaneval", "gsm8k_train_200")


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
    path = resolve(model)
    loaded = speq.load(str(path), threads=threads)
    prompts = [p for f in FILES for p in read_prompts(PROMPTS / f"{f}.jsonl", count + 1)]
    loaded.generate(prompts.pop(0).text, max_new_tokens=32)  # warm-up
    bandwidths, rows, differing = [read_bandwidth(threads)], [], 0
    for prompt in prompts:
        plain = loaded.generate(prompt.text, max_new_tokens=new_tokens, draft="none")
        fast = loaded.generate(prompt.text, max_new_tokens=new_tokens, draft=draft, draft_length=draft_length)  # type: ignore[arg-type]
        bandwidths.append(read_bandwidth(threads, repeats=2))
        differing += plain.token_ids != fast.token_ids
        a, b = plain.stats, fast.stats
        rows.append(
            [prompt.id, b.new_tokens, a.tokens_per_second, b.tokens_per_second, b.acceptance_rate, b.tokens_per_round]
        )
        click.echo(
            f"{prompt.id:20s} {a.tokens_per_second:7.2f} -> {b.tokens_per_second:7.2f} tokens/s "
            f"({b.tokens_per_second / a.tokens_per_second:.2f}x), acceptance {b.acceptance_rate:.3f}, "
            f"{b.tokens_per_round:.2f} a round"
        )
    plain_rate = statistics.median(row[2] for row in rows)
    limit = statistics.median(bandwidths) / bytes_per_token(path)
    click.echo(f"{this_machine()}; {len(rows)} prompts, {new_tokens} new tokens")
    click.echo(f"read bandwidth  {statistics.median(bandwidths) / 1e9:.1f} GB/s (best {max(bandwidths) / 1e9:.1f})")
    click.echo(
        f"plain           {plain_rate:.2f} tokens/s, {plain_rate / limit:.2f} of the bandwidth limit {limit:.2f}"
    )
    click.echo(f"speculative     {statistics.median(row[3] for row in rows):.2f} tokens/s")
    click.echo(f"speed-up        {statistics.geometric_mean(row[3] / row[2] for row in rows):.2f}x (geometric mean)")
    click.echo(f"prompts whose ids differ: {differing}")
    if csv_path:
        with csv_path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(
                ["prompt", "new_tokens", "plain_rate", "speculative_rate", "acceptance_rate", "tokens_per_round"]
            )
            writer.writerows(rows)


if __name__ == "__main__":
    main()
