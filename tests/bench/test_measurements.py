"""The single measurements: that they cover what they say, and that their figures follow from what was counted."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest

import speq
from speq.bench import attention, endtoend, kernels, memory, overhead, passes, prefill, programs, small_operators
from speq.bench.prompts import builtin_prompts
from speq.bench.timing import Timing, take_turns
from speq.checkpoint.store import load_converted
from speq.models.config import model_config


@pytest.fixture(scope="module")
def model(tiny_converted):
    """The parts of the tiny model that measurements take."""
    converted = load_converted(tiny_converted)
    weights = {**converted.raw, **converted.split}
    return SimpleNamespace(config=model_config(converted.config), weights=weights, split=converted.split)


def test_variants_take_turns_and_the_first_round_is_not_counted():
    calls = []
    taken = take_turns({name: lambda name=name: calls.append(name) or len(calls) for name in "ab"}, 3)
    assert calls == list("ababbaab")
    assert taken == {"a": [3, 6, 7], "b": [4, 5, 8]}
    assert len(take_turns({"a": lambda: 0.0}, 3, limit=0.0)["a"]) == 1
    assert Timing.of([3.0, 1.0, 2.0, 5.0, 4.0]) == Timing(3.0, 2.0, 4.0, 5)


def test_the_products_cover_every_matrix_once(model):
    names = [name for group in programs.products(model.config) for name in group.matrices]
    assert sorted(names) == sorted(model.split)  # the head is the embedding here
    assert [group.name for group in programs.groups(model.config)][5:] == ["embedding row", "attention"]


def test_kernel_figures_follow_from_the_weights(model, slow_memory):
    rows = kernels.measure_kernels(model.config, model.weights, threads=1, tokens=(1, 3), rounds=1)
    assert [(row.kind, row.tokens) for row in rows[:3]] == [("draft", 1), ("plain", 1), ("verify", 3)]
    assert len(rows) == 3 * 5
    plain = [row for row in rows if row.kind == "plain"]
    weights = sum(math.prod(tensor.shape) for tensor in model.split.values())
    assert sum(row.operations for row in plain) == 2 * weights
    stored = sum(tensor.bits_per_weight * math.prod(tensor.shape) / 8 for tensor in model.split.values())
    assert sum(row.bytes for row in plain) == pytest.approx(stored)
    drafted = sum(tensor.draft_bits_per_weight * math.prod(tensor.shape) / 8 for tensor in model.split.values())
    assert sum(row.bytes for row in rows if row.kind == "draft") == pytest.approx(drafted)
    row = replace(rows[0], seconds=0.5, bytes=10**9, half_seconds=0.25, operations=4 * 10**9)
    assert (row.rate, row.bandwidth_share, row.half_ratio, row.gflops) == (2e9, 2.0, 2.0, 8.0)


def test_attention_reads_the_keys_and_values_of_its_context(model, slow_memory):
    rows = attention.measure_attention(model.config, model.weights, threads=1, contexts=(16, 100000), rounds=1)
    assert [row.context for row in rows] == [16, 256]  # no longer than the model's own
    assert [row.bytes for row in rows] == [2 * 2 * 2 * 16 * 2 * context for context in (16, 256)]
    assert all(row.seconds > 0 for row in rows)


def test_passes_cost_what_the_engine_takes(mock_engine, monkeypatch):
    engine = mock_engine(draft_cost=0.25, verify_cost=(1.0, 1.0, 1.5))

    def virtual_seconds(call):
        before = engine.now
        call()
        return engine.now - before

    monkeypatch.setattr(passes, "seconds_of", virtual_seconds)
    rows = passes.measure_passes(engine, tokens=(2, 3), drafted=(1, 2), context=10, rounds=2)
    assert [(row.kind, row.tokens, row.plain_ratio) for row in rows] == [
        ("draft", 1, 0.25),
        ("draft", 2, 0.25),
        ("plain", 1, 1.0),
        ("verify", 2, 1.0),
        ("verify", 3, 1.5),
    ]
    assert engine.kv.used_pages == 0


def test_end_to_end_compares_ids_and_speeds(tiny_converted, slow_memory, model):
    loaded = speq.load(tiny_converted, threads=1)
    per_token = endtoend.bytes_per_token(model.config, model.weights)
    assert per_token == programs.plane_bytes(model.weights, tuple(model.split), draft=False)
    reported = []
    result = endtoend.measure_end_to_end(loaded, builtin_prompts(3), per_token, new_tokens=12, report=reported.append)
    assert [row.prompt for row in result.rows] == ["builtin/story", "builtin/code"]
    assert (result.rows, result.differing, len(result.bandwidths)) == (reported, 0, 3)
    a = replace(result.rows[0], plain_rate=10.0, speculative_rate=20.0)
    b = replace(a, plain_rate=30.0, speculative_rate=15.0, same=False)
    made = endtoend.EndToEnd(10**8, [a, b], [3e9, 1e9, 4e9])
    assert (made.plain_rate, made.speculative_rate, made.speed_up, made.differing) == (20.0, 17.5, 1.0, 1)
    assert made.bandwidth_share == pytest.approx(20.0 / 30.0)


def test_prefill_counts_its_operations(tiny_converted, model):
    engine = speq.load(tiny_converted, threads=1).engine
    (row,) = prefill.measure_prefill(engine, model.config, model.weights, threads=1, blocks=(8,), rounds=1)
    head = 259 * 64
    layers = sum(math.prod(tensor.shape) for tensor in model.split.values()) - head
    assert row.operations == 2 * (8 * layers + head)
    assert row.rate == 8 / row.seconds
    assert row.numpy_share == pytest.approx(row.operations / row.seconds / 1e9 / row.numpy_gflops)
    assert engine.length == 0


def test_overhead_is_what_the_products_leave(model):
    rows = overhead.measure_overhead(model.config, model.weights, threads=1, rounds=2)
    assert [row.kind for row in rows] == ["plain", "draft"]
    assert rows[0].overhead == rows[0].seconds - rows[0].products
    assert overhead.OverheadRow("plain", 4.0, 3.0).share == 0.25


def test_small_operators_are_timed(model):
    rows = small_operators.measure_small_operators(model.config, model.weights, threads=1, rounds=3)
    assert [row.operator for row in rows] == ["call, embedding row", "attention, no context"]
    assert rows[0].seconds > 0


def test_memory_is_that_of_another_process(tiny_converted):
    row = memory.measure_memory(tiny_converted, threads=1, new_tokens=4)
    assert row.file == (tiny_converted / "weights.safetensors").stat().st_size
    assert row.tokens == 12
    assert row.cache == 4 * 2 * 2 * 16 * 12
    assert row.start_seconds > row.load_seconds + row.first_token_seconds > row.load_seconds > 0
    if row.resident is not None:
        assert row.file < row.resident <= row.peak


def test_start_up_is_not_that_of_the_first_process_which_may_wait_for_a_disk(tiny_converted, monkeypatch):
    run, starts = memory.subprocess.run, []

    def slow_at_first(arguments, **options):
        *command, started = arguments
        starts.append(float(started) - (0 if starts else 1000))
        return run([*command, str(starts[-1])], **options)

    monkeypatch.setattr(memory.subprocess, "run", slow_at_first)
    assert memory.measure_memory(tiny_converted, threads=1, new_tokens=4).start_seconds < 1000
    assert starts[0] < starts[-1] - 1000


def test_a_failing_process_is_one_line(tmp_path):
    with pytest.raises(speq.errors.SpeqError, match=r"memory failed: .*nothing"):
        memory.measure_memory(tmp_path / "nothing")
