"""`speq bench kernels`, `passes` and `decode`: the single measurements put together into reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from speq.bench.attention import AttentionRow, measure_attention
from speq.bench.endtoend import EndToEnd, bytes_per_token, measure_end_to_end
from speq.bench.kernels import TOKENS, KernelRow, measure_kernels
from speq.bench.machine import describe_machine
from speq.bench.memory import measure_memory
from speq.bench.overhead import measure_overhead
from speq.bench.passes import PassRow, measure_passes
from speq.bench.prefill import measure_prefill
from speq.bench.prompts import Prompt
from speq.bench.report import Column, Report, Table, describe_model, row_of
from speq.bench.small_operators import OperatorRow, measure_small_operators
from speq.checkpoint.store import Converted, load_converted
from speq.graph.step import Weights
from speq.models.tensors import fit
from speq.runtime.engine import Engine
from speq.serving.loading import load

Say = Callable[[str], None]
"""Told in a few words what is measured next."""

_MS = Column("seconds", "ms", ".3f", 1e3)
_GB_S = Column("rate", "GB/s", ".1f", 1e-9)
_SHARE = Column("bandwidth_share", "of bandwidth", ".2f")


def kernels_report(
    name: str, path: Path, *, threads: int | None, tokens: Sequence[int] = TOKENS, rounds: int = 15, say: Say
) -> Report:
    """Every matrix product, and attention by context, of the converted model at ``path``."""
    converted = load_converted(path, verify=False)
    weights = _weights(converted)
    config = fit(converted.config, {name: weight.shape for name, weight in weights.items()})
    settings = {"tokens": list(tokens), "rounds": rounds}
    report = Report("kernels", describe_model(name, converted), describe_machine(threads), settings)
    rows = measure_kernels(
        config,
        weights,
        threads=threads,
        tokens=tokens,
        rounds=rounds,
        report=lambda operator: say(f"product {operator}"),
    )
    say("attention")
    attention = measure_attention(config, weights, threads=threads, rounds=rounds)
    small = measure_small_operators(config, weights, threads=threads)
    report.tables = [_kernel_table(rows), _attention_table(attention), _small_table(small)]
    report.notes.append("the operators of all layers together; the plain FP16 product is for one token")
    return report


def passes_report(name: str, path: Path, *, threads: int | None, rounds: int = 25, say: Say) -> Report:
    """Plain, draft and verify passes of the converted model at ``path``."""
    converted = load_converted(path, verify=False)
    report = Report("passes", describe_model(name, converted), describe_machine(threads), {"rounds": rounds})
    say("passes")
    report.tables = [pass_table(measure_passes(Engine(converted, threads=threads), rounds=rounds))]
    return report


def decode_report(
    name: str,
    path: Path,
    prompts: Sequence[Prompt],
    *,
    threads: int | None,
    new_tokens: int,
    draft: Any = "auto",
    draft_length: int | None = None,
    rounds: int = 25,
    say: Say,
) -> Report:
    """Passes, prompts end to end, prefill, overhead, attention and memory of the converted model at ``path``."""
    say("start-up and memory")
    memory = measure_memory(path, threads=threads)
    converted = load_converted(path, verify=False)
    weights = _weights(converted)
    config = fit(converted.config, {name: weight.shape for name, weight in weights.items()})
    settings = {
        "prompts": len(prompts) - 1,
        "new_tokens": new_tokens,
        "draft": draft,
        "draft_length": draft_length,
        "rounds": rounds,
    }
    report = Report("decode", describe_model(name, converted), describe_machine(threads), settings)
    model = load(path, threads=threads)
    say("passes")
    passes = measure_passes(model.engine.engine, rounds=rounds)
    model.reset()
    per_token = bytes_per_token(config, weights)
    total = measure_end_to_end(
        model,
        prompts,
        per_token,
        new_tokens=new_tokens,
        draft=draft,
        draft_length=draft_length,
        report=lambda row: say(f"{row.prompt}: {row.plain_rate:.1f} -> {row.speculative_rate:.1f} tokens/s"),
    )
    say("prefill")
    prefill = measure_prefill(model.engine, config, weights, threads=threads)
    model.reset()
    say("overhead")
    overhead = measure_overhead(config, weights, threads=threads)
    say("attention")
    attention = measure_attention(config, weights, threads=threads)
    report.tables = [
        pass_table(passes),
        *_end_to_end_tables(total),
        _prefill_table(prefill),
        _overhead_table(overhead),
        _attention_table(attention),
        _memory_table(memory),
    ]
    if total.differing:
        report.notes.append(f"{total.differing} prompts have differing token ids: this is a bug, please report it")
    return report


def _weights(converted: Converted) -> Weights:
    return {**converted.raw, **converted.split}


def _kernel_table(rows: Sequence[KernelRow]) -> Table:
    columns = (
        Column("operator", "product"),
        Column("kind", "pass"),
        Column("tokens", "tokens", "d"),
        _MS,
        _GB_S,
        _SHARE,
        Column("half_ratio", "time / plain FP16", ".2f"),
        Column("gflops", "GFLOP/s", ".0f"),
    )
    properties = ("rate", "bandwidth_share", "half_ratio", "gflops")
    return Table("kernels", "Matrix products, all layers", columns, [row_of(row, *properties) for row in rows])


def _small_table(rows: Sequence[OperatorRow]) -> Table:
    return Table(
        "others", "Other operators of one token", (Column("operator", "operator"), _MS), [asdict(row) for row in rows]
    )


def _attention_table(rows: Sequence[AttentionRow]) -> Table:
    columns = (Column("context", "positions", ",d"), _MS, _GB_S, _SHARE)
    found = [row_of(row, "rate", "bandwidth_share") for row in rows]
    return Table("attention", "Attention of one token, all layers", columns, found)


def pass_table(rows: Sequence[PassRow]) -> Table:
    """How passes are shown, and kept under the name ``passes``."""
    columns = (
        Column("kind", "pass"),
        Column("tokens", "tokens", "d"),
        _MS,
        Column("low", "quartiles", ".3f", 1e3),
        Column("high", "", ".3f", 1e3),
        Column("plain_ratio", "of a plain pass", ".2f"),
    )
    return Table("passes", "Whole passes", columns, [row_of(row) for row in rows])


def _end_to_end_tables(total: EndToEnd) -> list[Table]:
    rates = (
        Column("plain_rate", "plain, tokens/s", ".2f"),
        Column("speculative_rate", "speculative", ".2f"),
        Column("speed_up", "speed-up", ".2f"),
    )
    drafts = (Column("acceptance_rate", "accepted", ".3f"), Column("tokens_per_round", "tokens per round", ".2f"))
    prompts = [row_of(row, "speed_up") for row in total.rows]
    tables = [Table("prompts", "Prompts", (Column("prompt", "prompt"), *rates, *drafts), prompts)]
    if total.rows:
        names = ("plain_rate", "speculative_rate", "speed_up", "bandwidth", "bandwidth_share", "bytes_per_token")
        summary = {name: getattr(total, name) for name in names} | {"differing": total.differing}
        columns = (
            *rates,
            Column("bandwidth", "read GB/s", ".1f", 1e-9),
            Column("bandwidth_share", "plain / limit", ".2f"),
        )
        differing = Column("differing", "prompts that differ", "d")
        tables.append(Table("end_to_end", "Medians; geometric mean of the speed-ups", (*columns, differing), [summary]))
    return tables


def _prefill_table(rows: Sequence[Any]) -> Table:
    columns = (
        Column("tokens", "prompt tokens", "d"),
        Column("rate", "tokens/s", ".1f"),
        Column("gflops", "GFLOP/s", ".0f"),
        Column("numpy_share", "of NumPy's product", ".2f"),
        Column("torch_share", "of torch's", ".2f"),
    )
    return Table(
        "prefill", "Prefill", columns, [row_of(row, "rate", "gflops", "numpy_share", "torch_share") for row in rows]
    )


def _overhead_table(rows: Sequence[Any]) -> Table:
    columns = (
        Column("kind", "pass"),
        _MS,
        Column("products", "products alone", ".3f", 1e3),
        Column("overhead", "the rest", ".3f", 1e3),
        Column("share", "share", ".1%"),
    )
    found = [row_of(row, "overhead", "share") for row in rows]
    return Table("overhead", "Outside of the matrix products, one token, empty cache", columns, found)


def _memory_table(row: Any) -> Table:
    columns = (
        Column("load_seconds", "load, s", ".2f"),
        Column("start_seconds", "to first token, s", ".2f"),
        Column("resident", "resident, MB", ",.1f", 1e-6),
        Column("peak", "at most", ",.1f", 1e-6),
        Column("anonymous", "not from files", ",.1f", 1e-6),
        Column("file", "weights on disk", ",.1f", 1e-6),
        Column("cache", "KV cache", ",.1f", 1e-6),
        Column("ratio", "resident / (weights + cache)", ".3f"),
    )
    return Table("memory", "A fresh process, weights in the page cache", columns, [row_of(row, "ratio")])
