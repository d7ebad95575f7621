"""Token ids with speculation on against off, over thousands of tokens: the promise of exact text, counted.

Every prompt is continued plainly once, by the best kernels of the machine. Then every kernel path and number of threads
asked for continues it with the self-draft, at every draft length in turn (1..16 and automatic), every other prompt
sampled with a seed. One differing token id fails the run.

    python benchmarks/exactness.py MODEL [MODEL ...] [--tokens 10000] [--isa avx2 ...] [--threads 1 ...] [--csv FILE]
"""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import click

import speq
from speq.backends.cpu import available_isas
from speq.bench.prompts import prompts_in_turn
from speq.bench.results import Figure, origin_here, table_figures, write_csv
from speq.processors import default_threads
from speq.serving.exactness import differing_ids

PROMPTS = Path(__file__).parent / "prompts"
FILES = ("mt_bench", "humaneval", "gsm8k_train_200")
LENGTHS: tuple[int | None, ...] = (None, *range(1, 17))


@dataclass
class Plain:
    """A prompt and its plain continuation."""

    text: str
    sampling: speq.Sampling
    draft_length: int | None
    token_ids: list[int]


@dataclass
class Tally:
    """Counts over one model on one kernel path."""

    prompts: int = 0
    tokens: int = 0
    differing: int = 0
    drafted: int = 0
    accepted: int = 0


def continue_plainly(model: speq.Model, tokens: int, new_tokens: int) -> list[Plain]:
    """Plain continuations of as many prompts as make up ``tokens``."""
    done: list[Plain] = []
    for i, prompt in enumerate(prompts_in_turn([PROMPTS / f"{name}.jsonl" for name in FILES])):
        sampling = speq.Sampling(temperature=0.8, top_p=0.95, seed=i) if i % 2 else speq.Sampling()
        result = model.generate(prompt.text, max_new_tokens=new_tokens, sampling=sampling, draft="none")
        done.append(Plain(prompt.text, sampling, LENGTHS[i % len(LENGTHS)], result.token_ids))
        if sum(len(plain.token_ids) for plain in done) >= tokens:
            return done
    raise AssertionError("the prompts never end")


def compare(model: speq.Model, references: list[Plain], new_tokens: int) -> Tally:
    """Continue the same prompts with the self-draft."""
    tally = Tally(prompts=len(references))
    for plain in references:
        drafted = model.generate(
            plain.text,
            max_new_tokens=new_tokens,
            sampling=plain.sampling,
            draft="self",
            draft_length=plain.draft_length,
        )
        tally.tokens += len(plain.token_ids)
        tally.differing += differing_ids(plain.token_ids, drafted.token_ids)
        tally.drafted += drafted.stats.drafted
        tally.accepted += drafted.stats.accepted
    return tally


def load(name: str, isa: str, threads: int) -> speq.Model:
    os.environ["SPEQ_ISA"] = isa
    return speq.load(name, threads=threads, context=4096)


@click.command()
@click.argument("models", nargs=-1, required=True)
@click.option("--tokens", default=10000, help="Tokens to compare for each model and path.")
@click.option("--new-tokens", default=128, help="Of each answer.")
@click.option("--isa", "isas", multiple=True, help="Kernel paths; the best one by default.")
@click.option("--threads", "counts", multiple=True, type=int, help="One per core by default.")
@click.option("--csv", "csv_path", type=click.Path(path_type=Path))
def main(
    models: tuple[str, ...],
    tokens: int,
    new_tokens: int,
    isas: tuple[str, ...],
    counts: tuple[int, ...],
    csv_path: Path | None,
) -> None:
    best, cores = available_isas()[0], default_threads()
    kept: list[Figure] = []
    differing = 0
    for name in models:
        references = continue_plainly(load(name, best, cores), tokens, new_tokens)
        for isa, threads in product(isas or (best,), counts or (cores,)):
            tally = compare(load(name, isa, threads), references, new_tokens)
            rate = tally.accepted / max(tally.drafted, 1)
            click.echo(
                f"{name} on {isa} with {threads} threads: {tally.differing} differing of {tally.tokens} token ids, "
                f"{tally.prompts} prompts, {tally.drafted} drafted, {rate:.3f} accepted"
            )
            differing += tally.differing
            origin = origin_here(Path(name).name, threads, isa)
            kept += table_figures(origin, "exactness", [{"draft": "self", **asdict(tally)}])
    if csv_path:
        write_csv(kept, csv_path)
    if differing:
        sys.exit(1)


if __name__ == "__main__":
    main()
