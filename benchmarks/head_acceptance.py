"""How many proposals of a trained head the draft level accepts, and the tokens of a draft pass that they make.

The exact level writes its greedy answers; from every eighth token of them the draft level goes on by itself for twelve
tokens, and the head proposes a chain from each of the first places. Nothing here is trained on.

    python benchmarks/head_acceptance.py MODEL HEAD [--prompts 20] [--tokens 128] [--device auto] [--csv FILE]
"""

from __future__ import annotations

import csv
from pathlib import Path

import click
import torch

from speq.bench.prompts import read_prompts
from speq.checkpoint.store import load_converted
from speq.conversion.locate import converted_model
from speq.models.tokenizer import Tokenizer
from speq.processors import default_threads
from speq.training.chains import bind_head, measure
from speq.training.conversation import read_turns
from speq.training.documents import question_ids
from speq.training.layout import read_head
from speq.training.target import Target

PROMPTS = Path(__file__).parent / "prompts"
FILES = ("mt_bench", "humaneval", "gsm8k_train_200")
LONGEST = 768
"""Tokens of a prompt; longer ones are left out."""


@click.command()
@click.argument("model")
@click.argument("head", type=click.Path(path_type=Path))
@click.option("--prompts", "count", default=20, help="Of each file.")
@click.option("--tokens", default=128, help="Of each answer.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto")
@click.option("--csv", "csv_path", type=click.Path(path_type=Path))
def main(model: str, head: Path, count: int, tokens: int, device: str, csv_path: Path | None) -> None:
    torch.set_num_threads(default_threads())
    path = converted_model(model)
    converted, tokenizer = load_converted(path), Tokenizer(path)
    stored, turns = read_head(head), read_turns(tokenizer)
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    target = Target(converted.config, {**converted.raw, **converted.split}, chosen)
    bound, known = bind_head(stored, target)
    rows = []
    for name in FILES:
        ids = [question_ids(tokenizer, prompt.text) for prompt in read_prompts(PROMPTS / f"{name}.jsonl", count)]
        result = measure(target, bound, known, turns, [prompt for prompt in ids if len(prompt) <= LONGEST], tokens)
        shares = [*result.draft, *result.exact, *result.by_rows.values()]
        rows.append(
            [path.name, name, result.prompts, result.chains, f"{result.agreement:.4f}", *(f"{x:.4f}" for x in shares)]
        )
        click.echo(
            f"{name:16s} {result.prompts} prompts, {result.chains} chains, draft agrees {result.agreement:.3f}\n"
            f"    by the draft level {', '.join(f'{x:.3f}' for x in result.draft)}\n"
            f"    by the exact level {', '.join(f'{x:.3f}' for x in result.exact)}\n"
            f"    tokens per draft pass {', '.join(f'{x:.2f} with {n} rows' for n, x in result.by_rows.items())}"
        )
    if csv_path:
        with csv_path.open("w", newline="") as file:
            writer = csv.writer(file)
            header = ["model", "prompts_file", "prompts", "chains", "agreement"]
            header += [f"{level}_{i}" for level in ("draft", "exact") for i in range(1, len(result.draft) + 1)]
            writer.writerow([*header, *(f"tokens_per_pass_{rows_}" for rows_ in result.by_rows)])
            writer.writerows(rows)


if __name__ == "__main__":
    main()
