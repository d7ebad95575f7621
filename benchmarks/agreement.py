"""How often the draft alone picks the token that the full model picks, and how much their distributions overlap.

For each prompt the full model writes its greedy answer; the draft then reads the same answer (with the prompt's keys
and values exact and its own for the answer, as in a long draft) and both next-token distributions are compared at every
position. Formats and code tables are compared on the same weights, re-encoded in memory where they are not stored so.

    python benchmarks/agreement.py MODEL [--table nested] [--table e3m0] [--prompts 40] [--tokens 64] [--csv FILE]
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import click
import numpy as np
from numpy.typing import NDArray

from speq.bench.prompts import read_prompts
from speq.bits import Spec, SplitTensor, decode, encode
from speq.checkpoint.converted import Converted, load_converted
from speq.kernels.step import Weights
from speq.locate import converted_model
from speq.models.model import Engine
from speq.models.tokenizer import Tokenizer

PROMPTS = Path(__file__).parent / "prompts"

Dtype = Literal["fp16", "bf16"]


def with_magnitudes(dtype: Dtype, group_size: int, edges: Sequence[float], magnitudes: Sequence[int]) -> Spec:
    """The nested format with other bins (``edges`` of bins 1 to 7) and draft values (``magnitudes`` of 64)."""
    spec = Spec.default("nested", dtype, group_size)
    levels = (*magnitudes, *(-m for m in magnitudes))
    return replace(spec, edges=(edges[0], *edges), levels=levels)


TABLES: dict[str, Callable[[Dtype, int], Spec]] = {
    "nested": lambda dtype, g: Spec.default("nested", dtype, g),
    "e3m0": lambda dtype, g: Spec.default("e3m0", dtype, g),
    # Bin means between edges chosen by hand, where the search for a table began.
    "nested-by-hand": lambda dtype, g: with_magnitudes(
        dtype, g, (0.07, 0.15, 0.24, 0.34, 0.45, 0.58, 0.75), (2, 7, 12, 18, 25, 33, 42, 58)
    ),
    # A lowest level of exactly zero, as the weights that are pruned or tiny would like it.
    "nested-zero": lambda dtype, g: with_magnitudes(
        dtype,
        g,
        (2 / 64, 7 / 64, 12.5 / 64, 18.5 / 64, 26.5 / 64, 35.5 / 64, 48.5 / 64),
        (0, 4, 10, 15, 22, 31, 40, 57),
    ),
}


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    e: NDArray[np.float32] = np.exp(logits - logits.max(axis=-1, keepdims=True))
    e /= e.sum(axis=-1, keepdims=True)
    return e


def weights_in(model: Converted, table: str, group_size: int) -> Weights:
    """The model's weights, split as ``table`` says."""

    def split(tensor: SplitTensor) -> SplitTensor:
        spec = TABLES[table](tensor.spec.dtype, group_size)
        return tensor if spec == tensor.spec else encode(decode(tensor), spec)

    return {**model.raw, **{name: split(tensor) for name, tensor in model.split.items()}}


def answer(
    engine: Engine, prompt: list[int], tokens: int, ends: frozenset[int]
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """The full model's greedy answer: each token with the distribution it was chosen from."""
    engine.truncate(0)
    feed = prompt
    for _ in range(tokens):
        probabilities = softmax(engine.forward(feed)[-1].copy())
        token = int(probabilities.argmax())
        yield token, probabilities
        if token in ends:
            return
        feed = [token]


def draft_distributions(engine: Engine, prompt: list[int], tokens: list[int]) -> NDArray[np.float32]:
    """The draft's distributions [len(tokens), vocab] at the positions where ``tokens`` were chosen."""
    engine.truncate(0)
    if len(prompt) > 1:
        engine.forward(prompt[:-1], logits="none")
    return softmax(engine.forward([prompt[-1], *tokens[:-1]], draft=True, logits="all").copy())


@click.command()
@click.argument("model")
@click.option("--table", "tables", multiple=True, default=("nested", "e3m0"), type=click.Choice(list(TABLES)))
@click.option("--group-size", default=64)
@click.option("--prompts", "count", default=40, help="Half from MT-Bench, half from HumanEval.")
@click.option("--tokens", default=64, help="Of each answer.")
@click.option("--csv", "csv_path", type=click.Path(path_type=Path))
def main(model: str, tables: tuple[str, ...], group_size: int, count: int, tokens: int, csv_path: Path | None) -> None:
    path = converted_model(model)
    converted, tokenizer = load_converted(path), Tokenizer(path)
    ends = frozenset(tokenizer.eos_ids)
    prompts = [p for f in ("mt_bench", "humaneval") for p in read_prompts(PROMPTS / f"{f}.jsonl", count // 2)]
    exact = Engine(converted, context=2048)
    drafts = {f: Engine((converted.config, weights_in(converted, f, group_size)), context=2048) for f in tables}
    hits: dict[str, list[bool]] = {f: [] for f in tables}
    overlaps: dict[str, list[float]] = {f: [] for f in tables}
    for prompt in prompts:
        ids = tokenizer.chat([{"role": "user", "content": prompt.text}])
        chosen, truth = zip(*answer(exact, ids, tokens, ends), strict=True)
        for table, engine in drafts.items():
            draft = draft_distributions(engine, ids, list(chosen))
            hits[table] += (draft.argmax(axis=1) == np.array(chosen)).tolist()
            overlaps[table] += np.minimum(draft, np.stack(truth)).sum(axis=1).tolist()
    rows = []
    for table in tables:
        rate, n = float(np.mean(hits[table])), len(hits[table])
        error, overlap = (rate * (1 - rate) / n) ** 0.5, float(np.mean(overlaps[table]))
        rows.append([model, table, group_size, n, f"{rate:.4f}", f"{error:.4f}", f"{overlap:.4f}"])
        click.echo(
            f"{table:14s} g={group_size}: agreement {rate:.4f} +- {error:.4f}, overlap {overlap:.4f}, {n} tokens"
        )
    if csv_path:
        with csv_path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["model", "table", "group_size", "tokens", "agreement", "standard_error", "overlap"])
            writer.writerows(rows)


if __name__ == "__main__":
    main()
