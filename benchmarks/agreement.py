"""How often the draft alone picks the token that the full model picks, and how much their distributions overlap.

For each prompt the full model writes its greedy answer; the draft then reads the same answer in rounds, as in decoding:
a round begins with exact keys and values of everything before it and goes on with the draft's own. Both next-token
distributions are compared at every position. Rounds of 8 tokens are as long as drafts are; rounds of all 64 show what
errors in keys and values add up to if nothing is ever verified. Formats and code tables are compared on the same
weights, encoded again in memory where need be:

    stored        as converted
    plain         nested, without calibration
    zero          nested, calibrated, with a lowest level of exactly zero
    e3m0          the format of the paper
    array         as converted, which must be e3m0 of FP16, in the arithmetic of the accelerator: products of drafts bit
                  for bit as its array computes them, of activations rounded to FP16; attention, norms and the residual
                  stream in float32, as everything is that its array does not draft

    python benchmarks/agreement.py MODEL [--table stored] [--round 8] [--prompts 40] [--tokens 64] [--csv FILE]
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray

from speq.backends.reference.step import ReferenceStep
from speq.bench.prompts import read_prompts
from speq.bench.results import origin_here, table_figures, write_csv
from speq.checkpoint.store import Converted, load_converted
from speq.conversion.calibrate import Calibration, calibrated
from speq.conversion.locate import converted_model
from speq.formats import Spec, decode, encode, feedback_of
from speq.formats.spec import Dtype, Format
from speq.graph.step import Weights, chain
from speq.hardware.golden.array import Weights as ArrayWeights
from speq.hardware.golden.layer import Layer
from speq.models.decoder import build_program
from speq.models.tensors import fit
from speq.models.tokenizer import Tokenizer
from speq.processors import default_threads
from speq.runtime.kv import KVPool
from speq.runtime.single import Logits, SingleSequence

PROMPTS = Path(__file__).parent / "prompts"


def zero_spec(dtype: Dtype, group_size: int) -> Spec:
    """The nested format with a lowest level of exactly zero, as weights that are pruned or tiny would like it."""
    magnitudes = (0, 4, 10, 15, 22, 31, 40, 57)
    return replace(
        Spec.default("nested", dtype, group_size),
        edges=(magnitudes[1] / 64, 2.0**-6, *(m / 64 for m in magnitudes[1:-1])),
        levels=(*magnitudes, *(-m for m in magnitudes)),
    )


TABLES = ("stored", "plain", "zero", "e3m0", "array")
CONTEXT = 2048


class ArrayStep(ReferenceStep):
    """The reference backend with the accelerator's draft products."""

    def __init__(self, model: Converted) -> None:
        weights = {**model.raw, **model.split}
        config = fit(model.config, {name: weight.shape for name, weight in weights.items()})
        self._layers: dict[str, Layer] = {}
        self._split = model.split
        cache = KVPool(config.layers, config.kv_heads, config.head_dim, context=CONTEXT)
        super().__init__(build_program(config), weights, cache, CONTEXT)

    def _multiply(self, x: NDArray[np.float32], name: str, draft: bool) -> NDArray[np.float32]:
        rounded = x.astype(np.float16)
        if not draft:
            return super()._multiply(rounded.astype(np.float32), name, draft)
        if name not in self._layers:
            self._layers[name] = Layer(ArrayWeights.from_split(self._split[name]))
        return self._layers[name].draft(rounded.view(np.uint16)).view(np.float32)


class Array:
    """What :func:`draft_distributions` needs of an engine, on :class:`ArrayStep`."""

    def __init__(self, model: Converted) -> None:
        self._step, self.length = ArrayStep(model), 0

    def truncate(self, length: int) -> None:
        self.length = length

    def forward(self, tokens: list[int], *, draft: bool = False, logits: Logits = "last") -> NDArray[np.float32]:
        self._step.run(chain(np.array(tokens), self.length, draft=draft, logits=logits))
        self.length += len(tokens)
        return self._step.logits()


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    e: NDArray[np.float32] = np.exp(logits - logits.max(axis=-1, keepdims=True))
    e /= e.sum(axis=-1, keepdims=True)
    return e


def weights_in(model: Converted, table: str) -> Weights:
    """The model's weights, split as ``table`` says."""
    group_size = model.spec.group_size
    if table == "stored":
        return {**model.raw, **model.split}
    if table in ("plain", "e3m0"):
        format: Format = "nested" if table == "plain" else "e3m0"
        plain = {n: encode(decode(t), Spec.default(format, t.spec.dtype, group_size)) for n, t in model.split.items()}
        return {**model.raw, **plain}
    zero = dict(model.split)
    for segment in Calibration().moments(model, default_threads()):
        for name, moments in segment.items():
            tensor = model.split[name]
            spec = zero_spec(tensor.spec.dtype, group_size)
            zero[name] = calibrated(tensor, moments, feedback_of(moments), default_threads(), spec)
    return {**model.raw, **zero}


def answer(
    engine: SingleSequence, prompt: list[int], tokens: int, ends: frozenset[int]
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


def draft_distributions(
    engine: SingleSequence | Array, prompt: list[int], tokens: list[int], length: int
) -> NDArray[np.float32]:
    """The draft's distributions [len(tokens), vocab] at the positions where ``tokens`` were chosen, in rounds."""
    engine.truncate(0)
    if len(prompt) > 1:
        engine.forward(prompt[:-1], logits="none")
    fed, parts = [prompt[-1], *tokens[:-1]], []
    for begin in range(0, len(fed), length):
        part, start = fed[begin : begin + length], engine.length
        parts.append(softmax(engine.forward(part, draft=True, logits="all").copy()))
        engine.truncate(start)
        engine.forward(part, logits="none")
    return np.concatenate(parts)


@click.command()
@click.argument("model")
@click.option("--table", "tables", multiple=True, default=("stored", "e3m0"), type=click.Choice(TABLES))
@click.option("--round", "rounds", multiple=True, default=(8, 64), help="Tokens that the draft reads in a row.")
@click.option("--prompts", "count", default=40, help="Half from MT-Bench, half from HumanEval.")
@click.option("--tokens", default=64, help="Of each answer.")
@click.option("--csv", "csv_path", type=click.Path(path_type=Path))
def main(
    model: str, tables: tuple[str, ...], rounds: tuple[int, ...], count: int, tokens: int, csv_path: Path | None
) -> None:
    path = converted_model(model)
    converted, tokenizer = load_converted(path), Tokenizer(path)
    ends = frozenset(tokenizer.eos_ids)
    prompts = [p for f in ("mt_bench", "humaneval") for p in read_prompts(PROMPTS / f"{f}.jsonl", count // 2)]
    exact = SingleSequence.of(converted, context=CONTEXT)
    drafts: dict[str, SingleSequence | Array] = {
        table: Array(converted)
        if table == "array"
        else SingleSequence.of((converted.config, weights_in(converted, table)), context=CONTEXT)
        for table in tables
    }
    cases = list(product(tables, rounds))
    hits: dict[tuple[str, int], list[bool]] = {case: [] for case in cases}
    overlaps: dict[tuple[str, int], list[float]] = {case: [] for case in cases}
    for prompt in prompts:
        ids = tokenizer.chat([{"role": "user", "content": prompt.text}])
        chosen, truth = zip(*answer(exact, ids, tokens, ends), strict=True)
        for case in cases:
            draft = draft_distributions(drafts[case[0]], ids, list(chosen), case[1])
            hits[case] += (draft.argmax(axis=1) == np.array(chosen)).tolist()
            overlaps[case] += np.minimum(draft, np.stack(truth)).sum(axis=1).tolist()
    rows, group_size = [], converted.spec.group_size
    for table, length in cases:
        rate, n = float(np.mean(hits[table, length])), len(hits[table, length])
        error, overlap = (rate * (1 - rate) / n) ** 0.5, float(np.mean(overlaps[table, length]))
        rows.append(
            {
                "table": table,
                "group_size": group_size,
                "round": length,
                "tokens": n,
                "agreement": rate,
                "standard_error": error,
                "overlap": overlap,
            }
        )
        click.echo(
            f"{table:8s} g={group_size}, rounds of {length:2d}: "
            f"agreement {rate:.4f} +- {error:.4f}, overlap {overlap:.4f}, {n} tokens"
        )
    if csv_path:
        write_csv(table_figures(origin_here(path.name), "agreement", rows), csv_path)


if __name__ == "__main__":
    main()
