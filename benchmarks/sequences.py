"""Several texts at once: what sharing passes gives, and that it changes no token.

Speed: 1, 2, 4 and 8 sequences decode together with the default draft, each from a prompt of its own, in turns; a figure
counts the tokens of all after the last prefill. One sequence, and two, are measured with four texts, as texts differ.
Equality: texts arrive and leave at random times until enough tokens have come, and each is compared with the same
request alone and plain.

    python benchmarks/sequences.py MODEL [--new-tokens 64] [--rounds 3] [--equal 20000] [--csv FILE]
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import click

import speq
from speq.backends.cpu import available_isas
from speq.bench.prompts import prompts_in_turn
from speq.bench.results import origin_here, table_figures, write_csv
from speq.checkpoint.store import load_converted
from speq.conversion.locate import converted_model
from speq.decoding import Cascade, Drafter, NgramDrafter, Policy, Request, Scheduler, SuccessorTable
from speq.models.tokenizer import Tokenizer
from speq.processors import default_threads
from speq.runtime.engine import Engine
from speq.runtime.sampling import GREEDY
from speq.serving.exactness import differing_ids

PROMPTS = Path(__file__).parent / "prompts"
FILES = ("mt_bench", "humaneval", "gsm8k_train_200")
COUNTS = (1, 2, 4, 8)
LEAST_TEXTS = 4  # behind a figure
CONTEXT = 2048


def texts_in_turn() -> Iterator[str]:
    """The prompts of all files, over and over."""
    return (prompt.text for prompt in prompts_in_turn([PROMPTS / f"{name}.jsonl" for name in FILES]))


def tokens_per_second(
    scheduler: Scheduler, drafters: list[Drafter], texts: list[list[int]], policies: list[Policy], new_tokens: int
) -> float:
    """Of all texts together, over so many new tokens of each on the average, while all of them decode."""
    sequences = []
    for ids, policy, drafter in zip(texts, policies, drafters, strict=False):
        sequences.append(scheduler.prepare(Request(ids, GREEDY, drafter, policy)))
        scheduler.add(sequences[-1])
    while any(sequence.in_prefill for sequence in sequences):
        scheduler.step()
    started, before = time.perf_counter(), sum(len(sequence.tokens) for sequence in sequences)
    produced = 0
    while produced < new_tokens * len(sequences):
        scheduler.step()
        produced = sum(len(sequence.tokens) for sequence in sequences) - before
    seconds = time.perf_counter() - started
    for sequence in sequences:
        scheduler.remove(sequence)
    return produced / seconds


def differing_tokens(model: speq.Model, wanted: int, new_tokens: int) -> tuple[int, int]:
    """Tokens compared, and how many differ from the same request alone, under arrivals and departures at random."""
    rng, texts = random.Random(0), texts_in_turn()
    live: list[tuple[str, speq.Sampling, int, speq.Stream]] = []
    ended = []
    produced = 0
    while live or produced < wanted:
        if produced < wanted and len(live) < 8 and rng.random() < 0.3:
            sampling = speq.Sampling(temperature=0.8, seed=rng.randrange(99)) if rng.random() < 0.5 else GREEDY
            text, most = next(texts), rng.randrange(8, 2 * new_tokens)
            draft = rng.choice(["auto", "self", "ngram", "cascade", "none"])
            stream = model.stream(text, max_new_tokens=most, sampling=sampling, draft=draft)
            live.append((text, sampling, most, stream))
        if not live:
            continue
        one = rng.choice(live)
        leaves = rng.random() < 0.005
        if leaves or next(one[3], None) is None:
            live.remove(one)
            ended.append((*one[:3], one[3].result.token_ids))
            produced += len(ended[-1][3])
            one[3].close()
    differing = 0
    for text, sampling, most, found in ended:
        alone = model.generate(text, max_new_tokens=most, sampling=sampling, draft="none").token_ids[: len(found)]
        differing += differing_ids(alone, found)
    return produced, differing


@click.command()
@click.argument("model")
@click.option("--new-tokens", default=64, help="Of each text.")
@click.option("--rounds", default=3)
@click.option("--equal", default=20000, help="Tokens to compare; 0 for none.")
@click.option("--csv", "csv_path", type=click.Path(path_type=Path))
def main(model: str, new_tokens: int, rounds: int, equal: int, csv_path: Path | None) -> None:
    path = converted_model(model)
    rows: list[dict[str, object]] = []
    if rounds:
        engine = Engine(load_converted(path), context=CONTEXT, sequences=max(COUNTS))
        tokenizer = Tokenizer(path)
        texts = (tokenizer.chat([{"role": "user", "content": text}]) for text in texts_in_turn())
        scheduler, table = Scheduler(engine), SuccessorTable()
        policies = {count: [Policy(may_pause=True) for _ in range(count)] for count in COUNTS}
        rates: dict[int, list[float]] = {count: [] for count in COUNTS}
        for number in range(rounds + 1):
            for count in COUNTS:
                seconds_per_token = []
                for _ in range(-(-LEAST_TEXTS // count)):
                    drafters: list[Drafter] = [Cascade(NgramDrafter(table), may_skip=True) for _ in range(count)]
                    asked = list(islice(texts, count))
                    rate = tokens_per_second(scheduler, drafters, asked, policies[count], new_tokens)
                    seconds_per_token.append(1 / rate)
                if number:  # the first round warms up and teaches the policies what passes cost
                    rates[count].append(1 / statistics.mean(seconds_per_token))
        for count, found in rates.items():
            ratio = statistics.median(a / b for a, b in zip(found, rates[1], strict=True))
            row = {"sequences": count, "rate": statistics.median(found), "low": min(found), "high": max(found)}
            rows.append({**row, "ratio": ratio})
            click.echo("{sequences} sequences: {rate:.1f} tokens/s ({low:.1f} to {high:.1f})".format(**row), nl=False)
            click.echo(f", {ratio:.2f} of one")
    differing = 0
    if equal:
        compared, differing = differing_tokens(speq.load(path, context=CONTEXT), equal, new_tokens)
        click.echo(f"{differing} of {compared} token ids differ from the same requests alone")
    if csv_path:
        origin = origin_here(Path(model).name, default_threads(), available_isas()[0])
        write_csv(table_figures(origin, "sequences", rows), csv_path)
    if differing:
        sys.exit(1)


if __name__ == "__main__":
    main()
