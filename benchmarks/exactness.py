"""Token ids with speculation on against off, over thousands of tokens: the promise of exact text, counted.

Every prompt is continued twice, plainly and with the self-draft, at every draft length in turn (1..16 and automatic),
every other prompt sampled with a seed. One differing token id fails the run.

    python benchmarks/exactness.py MODEL [MODEL ...] [--tokens 10000] [--new-tokens 128] [--csv FILE]
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import click

import speq
from speq.bench.machine import this_machine
from speq.bench.prompts import Prompt, read_prompts

PROMPTS = Path(__file__).parent / "prompts"
FILES = ("mt_bench", "humaneval", "gsm8k_train_200")
LENGTHS: tuple[int | None, ...] = (None, *range(1, 17))


@dataclass
class Tally:
    """Counts over one model."""

    prompts: int = 0
    tokens: int = 0
    differing: int = 0
    drafted: int = 0
    accepted: int = 0


def endless_prompts() -> Iterator[Prompt]:
    """The prompts of all files in turn, over and over."""
    files = [read_prompts(PROMPTS / f"{name}.jsonl") for name in FILES]
    for i in count():
        prompts = files[i % len(files)]
        yield prompts[i // len(files) % len(prompts)]


def compare(model: speq.Model, tokens: int, new_tokens: int) -> Tally:
    """Continue prompts until ``tokens`` were compared."""
    tally = Tally()
    for i, prompt in enumerate(endless_prompts()):
        sampling = speq.Sampling(temperature=0.8, top_p=0.95, seed=i) if i % 2 else speq.Sampling()
        plain = model.generate(prompt.text, max_new_tokens=new_tokens, sampling=sampling, draft="none")
        drafted = model.generate(
            prompt.text,
            max_new_tokens=new_tokens,
            sampling=sampling,
            draft="self",
            draft_length=LENGTHS[i % len(LENGTHS)],
        )
        tally.prompts += 1
        tally.tokens += len(plain.token_ids)
        tally.differing += sum(a != b for a, b in zip(plain.token_ids, drafted.token_ids, strict=False))
        tally.differing += abs(len(plain.token_ids) - len(drafted.token_ids))
        tally.drafted += drafted.stats.drafted
        tally.accepted += drafted.stats.accepted
        if tally.tokens >= tokens:
            return tally
    raise AssertionError("the prompts never end")


@click.command()
@click.argument("models", nargs=-1, required=True)
@click.option("--tokens", default=10000, help="Tokens to compare for each model.")
@click.option("--new-tokens", default=128, help="Of each answer.")
@click.option("--threads", type=int)
@click.option("--csv", "csv_path", type=click.Path(path_type=Path))
def main(models: tuple[str, ...], tokens: int, new_tokens: int, threads: int | None, csv_path: Path | None) -> None:
    rows = []
    for name in models:
        tally = compare(speq.load(name, threads=threads), tokens, new_tokens)
        rate = tally.accepted / max(tally.drafted, 1)
        click.echo(
            f"{name}: {tally.differing} differing of {tally.tokens} token ids, {tally.prompts} prompts, "
            f"{tally.drafted} drafted, {rate:.3f} accepted"
        )
        rows.append(
            [name, tally.prompts, tally.tokens, tally.differing, tally.drafted, tally.accepted, str(this_machine())]
        )
    if csv_path:
        with csv_path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["model", "prompts", "tokens", "differing", "drafted", "accepted", "machine"])
            writer.writerows(rows)
    if any(row[3] for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
