"""How often the draft alone picks the token that the full model picks, and how much their distributions overlap.

For each prompt the full model writes its greedy answer; the draft then reads the same answer (with the prompt's keys
and values exact and its own for the answer, as in a long draft) and both next-token distributions are compared at every
position. The formats are compared on the same weights: what is not stored in a format is re-encoded in memory.

    python benchmarks/agreement.py MODEL [--format nested] [--format e3m0] [--prompts 40] [--tokens 64] [--csv FILE]
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from speq.bench.prompts import read_prompts
from speq.bits import Spec, SplitTensor, decode, encode
from speq.checkpoint.converted import Converted, load_converted
from speq.checkpoint.resolve import resolve
from speq.kernels.step import Weights
from speq.models.model import Engine
from speq.models.tokenizer import Tokenizer

PROMPTS = Path(__file__).parent / "prompts"


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def weights_in(model: Converted, format_: str, group_size: int) -> Weights:
    """The model's weights, split as ``format_`` says."""

    def split(tensor: SplitTensor) -> SplitTensor:
        spec = Spec.default(format_, tensor.spec.dtype, group_size)  # type: ignore[arg-type]
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
@click.option("--format", "formats", multiple=True, default=("nested", "e3m0"), help="Formats to compare.")
@click.option("--group-size", default=64)
@click.option("--prompts", "count", default=40, help="Half from MT-Bench, half from HumanEval.")
@click.option("--tokens", default=64, help="Of each answer.")
@click.option("--csv", "csv_path", type=click.Path(path_type=Path))
def main(model: str, formats: tuple[str, ...], group_size: int, count: int, tokens: int, csv_path: Path | None) -> None:
    path = resolve(model)
    converted, tokenizer = load_converted(path), Tokenizer(path)
    ends = frozenset(tokenizer.eos_ids)
    prompts = [p for f in ("mt_bench", "humaneval") for p in read_prompts(PROMPTS / f"{f}.jsonl", count // 2)]
    exact = Engine(converted, context=2048)
    drafts = {f: Engine((converted.config, weights_in(converted, f, group_size)), context=2048) for f in formats}
    hits: dict[str, list[bool]] = {f: [] for f in formats}
    overlaps: dict[str, list[float]] = {f: [] for f in formats}
    for prompt in prompts:
        ids = tokenizer.chat([{"role": "user", "content": prompt.text}])
        chosen, truth = zip(*answer(exact, ids, tokens, ends), strict=True)
        for format_, engine in drafts.items():
            draft = draft_distributions(engine, ids, list(chosen))
            hits[format_] += (draft.argmax(axis=1) == np.array(chosen)).tolist()
            overlaps[format_] += np.minimum(draft, np.stack(truth)).sum(axis=1).tolist()
    rows = []
    for format_ in formats:
        rate, n = float(np.mean(hits[format_])), len(hits[format_])
        error, overlap = (rate * (1 - rate) / n) ** 0.5, float(np.mean(overlaps[format_]))
        rows.append([model, format_, group_size, n, f"{rate:.4f}", f"{error:.4f}", f"{overlap:.4f}"])
        click.echo(
            f"{format_:7s} g={group_size}: agreement {rate:.4f} +- {error:.4f}, overlap {overlap:.4f}, {n} tokens"
        )
    if csv_path:
        with csv_path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["model", "format", "group_size", "tokens", "agreement", "standard_error", "overlap"])
            writer.writerows(rows)


if __name__ == "__main__":
    main()
