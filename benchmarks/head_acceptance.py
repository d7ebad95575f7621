"""How many proposals of a trained head the draft level accepts, and the tokens of a draft pass that they make.

The exact level writes its greedy answers; from every eighth token of them the draft level goes on by itself for twelve
tokens, and the head proposes a chain from each of the first places. Nothing here is trained on.

    python benchmarks/head_acceptance.py MODEL HEAD [--prompts 20] [--tokens 128] [--device auto] [--csv FILE]
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click
import torch

from speq.bench.prompts import read_prompts
from speq.bench.results import Figure, origin_here, table_figures, write_csv
from speq.checkpoint.store import load_converted
from speq.conversion.locate import converted_model
from speq.models.head_files import read_head
from speq.models.tokenizer import Tokenizer
from speq.processors import default_threads
from speq.training.chains import bind_head, measure
from speq.training.conversation import read_turns
from speq.training.documents import question_ids
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
    origin = origin_here(path.name)
    if chosen == "cuda":
        origin = replace(origin, machine=torch.cuda.get_device_name())
    kept: list[Figure] = []
    for name in FILES:
        ids = [question_ids(tokenizer, prompt.text) for prompt in read_prompts(PROMPTS / f"{name}.jsonl", count)]
        result = measure(target, bound, known, turns, [prompt for prompt in ids if len(prompt) <= LONGEST], tokens)
        kept += table_figures(
            origin,
            "heads",
            [
                {
                    "prompts_file": name,
                    "prompts": result.prompts,
                    "chains": result.chains,
                    "agreement": result.agreement,
                }
            ],
        )
        chains = [
            {"prompts_file": name, "level": level, "place": place, "right": share}
            for level, shares in (("draft", result.draft), ("exact", result.exact))
            for place, share in enumerate(shares, 1)
        ]
        kept += table_figures(origin, "head_chains", chains)
        passes = [{"prompts_file": name, "rows": rows, "gained": gained} for rows, gained in result.by_rows.items()]
        kept += table_figures(origin, "head_passes", passes)
        click.echo(
            f"{name:16s} {result.prompts} prompts, {result.chains} chains, draft agrees {result.agreement:.3f}\n"
            f"    by the draft level {', '.join(f'{x:.3f}' for x in result.draft)}\n"
            f"    by the exact level {', '.join(f'{x:.3f}' for x in result.exact)}\n"
            f"    tokens per draft pass {', '.join(f'{x:.2f} with {n} rows' for n, x in result.by_rows.items())}"
        )
    if csv_path:
        write_csv(kept, csv_path)


if __name__ == "__main__":
    main()
