"""The native module checks what it is given: sizes, indices and lists that lead outside of an array raise there.

What Python promises does not count: each call here goes past it. `make sanitize` runs these as well.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import speq
from speq import _devtools, _native
from speq.backends.cpu import NativeStep
from speq.errors import SpeqError
from speq.formats import Spec, decode, encode, native_format
from speq.formats.scales import candidates
from speq.graph.ops import Attention, Embed, GatedLinear, Linear, LMHead, Norm, StepProgram
from speq.graph.step import chain
from speq.limits import PAGE
from speq.runtime.kv import KVPool

RNG = np.random.default_rng(0)
SPEC = Spec.default("nested", "bf16", 64)


def split(rows: int, columns: int) -> Any:
    values = (RNG.standard_normal((rows, columns)) * np.where(RNG.random((rows, columns)) < 0.1, 1e-5, 1)).astype("f4")
    return encode((values.view(np.uint32) >> 16).astype(np.uint16), SPEC, threads=1)


def fields(tensor: Any) -> dict[str, Any]:
    return {"format": native_format(tensor.spec), "shape": tensor.shape, **tensor.planes()}


def changed(array: Any, index: int, value: int) -> Any:
    array = array.copy()
    array[index] = value
    return array


def misaligned(array: Any) -> Any:
    room = np.zeros(array.nbytes + 1, np.uint8)
    room[1:] = array.reshape(-1).view(np.uint8)
    return room[1:].view(array.dtype).reshape(array.shape)


TENSOR = split(10, 130)
ESCAPES = TENSOR.escapes
ROW = int(np.argmax(np.diff(TENSOR.escape_rows.astype(np.int64)) > 1))  # with several escapes
FIRST = int(TENSOR.escape_rows[ROW])


@pytest.mark.parametrize(
    "wrong",
    [
        {"shape": (0, 130)},
        {"shape": (10, 0)},
        {"shape": (-10, 130)},
        {"shape": (10, 65537)},
        {"shape": (2**31 - 1, 130)},
        {"shape": (2**40, 130)},
        {"shape": (13, 130)},
        {"shape": (10, 193)},
        {"shape": (10, 64)},
        {"format": native_format(Spec.default("nested", "bf16", 32))},
        {"format": native_format(Spec.default("nested", "fp16", 64))},
        {"codes": TENSOR.codes[:2]},
        {"residual": TENSOR.residual[:2]},
        {"scales": TENSOR.scales[:2]},
        {"scales": misaligned(TENSOR.scales)},
        {"escape_rows": TENSOR.escape_rows[:-1]},
        {"escape_rows": changed(TENSOR.escape_rows, 0, 1)},
        {"escape_rows": changed(TENSOR.escape_rows, 3, 2**32 - 1)},
        {"escape_rows": changed(TENSOR.escape_rows, -1, ESCAPES + 1)},
        {"escape_rows": misaligned(TENSOR.escape_rows)},
        {"escape_columns": TENSOR.escape_columns[:-1]},
        {"escape_columns": changed(TENSOR.escape_columns, 0, 130)},
        {"escape_columns": changed(TENSOR.escape_columns, FIRST, TENSOR.escape_columns[FIRST + 1])},
        {"escape_values": TENSOR.escape_values[:-1]},
        {"table": np.zeros(0, np.uint16)},
    ],
    ids=lambda wrong: "-".join(wrong),
)
def test_a_matrix_whose_planes_do_not_fit(wrong: dict[str, Any]) -> None:
    _native.Matrix.make(**fields(TENSOR))
    with pytest.raises(ValueError, match=r"\w"):
        _native.Matrix.make(**fields(TENSOR) | wrong)


def test_a_matrix_outlives_the_arrays_that_it_was_made_of() -> None:
    expected = decode(TENSOR).view(np.uint16)
    copies = {key: value.copy() if isinstance(value, np.ndarray) else value for key, value in fields(TENSOR).items()}
    native = _native.Matrix.make(**copies)
    copies.clear()
    gc.collect()
    values = _devtools.decode_rows("portable", native)
    assert np.array_equal(values.view(np.uint32) >> 16, expected)


@pytest.mark.parametrize(
    "x", [np.zeros((2, 129), np.float32), np.zeros((2, 131), np.float32), np.zeros((0, 130), "f4")]
)
def test_a_product_with_other_columns(x: Any) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        _devtools.multiply("portable", _native.Matrix.make(**fields(TENSOR)), x, "exact")


WEIGHTS: dict[str, Any] = {
    "embed": split(20, 64),
    "q": split(64, 64),
    "k": split(32, 64),
    "o": split(64, 64),
    "gate": split(96, 64),
    "up": split(96, 64),
    "down": split(64, 96),
    "norm": np.ones(64, np.float32),
    "head norm": np.ones(16, np.float32),
    "bias": np.ones(32, np.float32),
}


def program(**changed: Any) -> StepProgram:
    """A model of one layer, one of its operators or sizes changed."""
    norm, head_norm = Norm("norm", 1e-5), Norm("head norm", 1e-5)
    ops: dict[str, Any] = {
        "embed": Embed("embed", "hidden"),
        "qkv": Linear("hidden", ("q", "k", "k"), "qkv", norm, (None, "bias", "bias")),
        "attention": Attention("qkv", "attention", 0, 4, 2, 16, 0.25, None, head_norm, head_norm),
        "o": Linear("attention", ("o",), "hidden", accumulate=True),
        "gated": GatedLinear("hidden", "gate", "up", "gated", norm),
        "down": Linear("gated", ("down",), "hidden", accumulate=True),
        "head": LMHead("hidden", "embed", norm),
    }
    buffers = {"hidden": 64, "qkv": 128, "attention": 64, "gated": 96}
    sizes: dict[str, Any] = {"layers": 1, "kv_heads": 2, "head_dim": 16, "vocab_size": 20, "inv_freq": (1.0,) * 8}
    for key, value in changed.items():
        if isinstance(value, dict):
            ops[key] = replace(ops[key], **value)
        elif key in buffers:
            buffers[key] = value
        else:
            sizes[key] = value
    return StepProgram(tuple(ops.values()), buffers, **sizes)


def run(changed: StepProgram, weights: dict[str, Any] = WEIGHTS) -> Any:
    step = NativeStep(changed, weights, KVPool(1, 2, 16, context=8), 8, threads=2)
    step.run(chain(np.arange(8, dtype=np.int32), logits="all"))
    return step.logits()


@pytest.mark.parametrize(
    "wrong",
    [
        {"hidden": 63},
        {"hidden": 65},
        {"qkv": 127},
        {"qkv": 129},
        {"attention": 48},
        {"gated": 95},
        {"gated": 2**30},
        {"hidden": 0},
        {"hidden": -64},
        {"vocab_size": 21},
        {"vocab_size": 19},
        {"vocab_size": 0},
        {"inv_freq": (1.0,) * 7},
        {"inv_freq": ()},
        {"attention": {"layer": 1}},
        {"attention": {"layer": -1}},
        {"attention": {"heads": 3}},
        {"attention": {"heads": 8}},
        {"attention": {"heads": 0}},
        {"attention": {"heads": 2**28}},
        {"attention": {"kv_heads": 4}},
        {"attention": {"kv_heads": 0}},
        {"attention": {"head_dim": 32}},
        {"attention": {"window": -1}},
        {"attention": {"q_norm": Norm("norm", 1e-5)}},
        {"attention": {"k_norm": Norm("norm", 1e-5)}},
        {"embed": {"out": "gated"}},
        {"embed": {"table": "q"}},
        {"qkv": {"weights": ("q", "q", "k")}},
        {"qkv": {"weights": ("q", "k", "k"), "biases": ("bias", "bias", "bias")}},
        {"qkv": {"norm": Norm("bias", 1e-5)}},
        {"o": {"weights": ("down",)}},
        {"gated": {"up": "q"}},
        {"gated": {"out": "attention"}},
        {"head": {"weight": "q"}},
        {"head": {"x": "gated"}},
    ],
    ids=str,
)
def test_an_operator_whose_widths_do_not_fit(wrong: dict[str, Any]) -> None:
    run(program())
    with pytest.raises(ValueError, match=r"\w"):
        run(program(**wrong))


def test_a_weight_of_another_kind_is_said() -> None:
    with pytest.raises(SpeqError, match="embed is not stored as a split matrix"):
        run(program(), WEIGHTS | {"embed": np.ones((20, 64), np.float32)})
    with pytest.raises(SpeqError, match="norm is stored as a split matrix"):
        run(program(), WEIGHTS | {"norm": split(1, 64)})


SHAPE = (2, 1, 2, PAGE, 16)


def new_step(**options: Any) -> Any:
    shape = options.pop("shape", SHAPE)
    arguments = {
        "isa": "portable",
        "threads": 1,
        "max_tokens": 4,
        "keys": np.zeros(shape, np.uint16),
        "values": np.zeros(shape, np.uint16),
        "inverse_frequencies": [1.0] * 8,
        "rotary_scale": 1.0,
        "vocab_size": 20,
    }
    return _native.Step.make(*(arguments | options).values())


@pytest.mark.parametrize(
    "wrong",
    [
        {"threads": 0},
        {"max_tokens": 0},
        {"max_tokens": 2**31 - 1},
        {"vocab_size": -1},
        {"shape": (0, 1, 2, PAGE, 16)},
        {"shape": (2, 0, 2, PAGE, 16)},
        {"shape": (2, 1, 2, PAGE - 1, 16)},
        {"shape": (2, 1, 2, 2 * PAGE, 16)},
        {"shape": (2, 1, 2, PAGE, 14)},
        {"values": np.zeros((1, 1, 2, PAGE, 16), np.uint16)},
        {"keys": misaligned(np.zeros(SHAPE, np.uint16))},
    ],
    ids=lambda wrong: "-".join(wrong),
)
def test_a_step_of_senseless_sizes(wrong: dict[str, Any]) -> None:
    new_step()
    with pytest.raises(ValueError, match=r"\w"):
        new_step(**wrong)


def test_a_cache_that_would_have_to_be_copied_is_refused() -> None:
    with pytest.raises(TypeError):
        new_step(keys=np.zeros(SHAPE, np.float32))


def test_what_does_not_exist_cannot_be_used() -> None:
    step = new_step()
    table = step.add_matrix(_native.Matrix.make(**fields(WEIGHTS["embed"])))
    hidden = step.add_buffer(64)
    none = (None, 0.0)
    calls: list[Callable[[], object]] = [
        lambda: step.embed(table + 1, hidden),
        lambda: step.embed(-1, hidden),
        lambda: step.embed(table, hidden + 1),
        lambda: step.embed(table, -1),
        lambda: step.linear(hidden, none, [(table, 0, None)], hidden + 1, False),
        lambda: step.linear(hidden, none, [(table + 1, 0, None)], hidden, False),
        lambda: step.gated_linear(hidden, none, table, table + 1, hidden, None, None),
        lambda: step.attention(hidden + 1, hidden, 0, 4, 2, 16, 1.0, 0, none, none),
        lambda: step.head(hidden, none, table + 1),
        lambda: step.tap(hidden + 1),
        lambda: step.tap(-1),
        lambda: step.buffer(hidden + 1),
        lambda: step.buffer(-1),
    ]
    for call in calls:
        with pytest.raises(IndexError):
            call()
    for column in (-1, 45, 2**31 - 1):
        with pytest.raises(ValueError, match="outside of their buffer"):
            step.linear(hidden, none, [(table, column, None)], hidden, False)


def test_the_order_of_calls() -> None:
    step = new_step()
    table = step.add_matrix(_native.Matrix.make(**fields(WEIGHTS["embed"])))
    hidden = step.add_buffer(64)
    step.embed(table, hidden)
    with pytest.raises(ValueError, match=r"bind\(\) comes before"):
        run_step(step)
    step.bind()
    late: list[Callable[[], object]] = [
        lambda: step.add_buffer(64),
        lambda: step.add_matrix(_native.Matrix.make(**fields(WEIGHTS["q"]))),
        lambda: step.embed(table, hidden),
        step.bind,
    ]
    for call in late:
        with pytest.raises(ValueError, match=r"after bind\(\)"):
            call()
    run_step(step)


def integers(*values: int) -> Any:
    return np.array(values, np.int32)


def run_step(step: Any, **changed: Any) -> None:
    """A pass over one token, some of its arguments changed."""
    arguments = {
        "tokens": integers(0),
        "spans": integers(0, 1).reshape(1, 2),
        "pages": integers(0),
        "parents": integers(),
        "wanted": integers(),
        "draft": False,
        "draws": [],
        "confidences": True,
        "taps": [],
        "first": 0,
        "last": step.operators,
    }
    step.run(*(arguments | changed).values())


@pytest.mark.parametrize(
    "wrong",
    [
        {"tokens": integers()},
        {"tokens": integers(20)},
        {"tokens": integers(-1)},
        {"tokens": misaligned(integers(0))},
        {"tokens": integers(0, 0)},
        {"spans": integers().reshape(0, 2)},
        {"spans": integers(0, 1, 0).reshape(1, 3)},
        {"spans": integers(0, 2).reshape(1, 2)},
        {"spans": integers(0, 0).reshape(1, 2)},
        {"spans": integers(0, -1).reshape(1, 2)},
        {"spans": integers(0, 1, 0, 1).reshape(2, 2)},
        {"spans": integers(-1, 1).reshape(1, 2)},
        {"spans": integers(2**31 - 1, 1).reshape(1, 2)},
        {"spans": integers(PAGE, 1).reshape(1, 2)},
        {"pages": integers()},
        {"pages": integers(0, 1)},
        {"pages": integers(2)},
        {"pages": integers(-1)},
        {"parents": integers(0)},
        {"parents": integers(-2)},
        {"parents": integers(-1, -1)},
        {"wanted": integers(1)},
        {"wanted": integers(-1)},
        {"wanted": integers(0, 0)},
        {"draws": [(0.0, 0, 1.0, 0.0, 0, 0, 0)]},
        {"wanted": integers(0), "draws": [(-1.0, 0, 1.0, 0.0, 0, 0, 0)]},
        {"wanted": integers(0), "draws": [(1.0, 0, 0.0, 0.0, 0, 0, 0)]},
        {"taps": [0]},
        {"taps": [-1]},
        {"first": 2},
        {"last": 9},
    ],
    ids=str,
)
def test_a_pass_that_does_not_fit(wrong: dict[str, Any]) -> None:
    step = new_step()
    step.embed(step.add_matrix(_native.Matrix.make(**fields(WEIGHTS["embed"]))), step.add_buffer(64))
    step.bind()
    run_step(step, wanted=integers(0), draws=[(0.0, 0, 1.0, 0.0, 0, 0, 0)])
    with pytest.raises(ValueError, match=r"\w"):
        run_step(step, **wrong)


def test_a_tap_that_kept_nothing_shows_nothing() -> None:
    step = new_step()
    hidden = step.add_buffer(64)
    step.embed(step.add_matrix(_native.Matrix.make(**fields(WEIGHTS["embed"]))), hidden)
    tap = step.tap(hidden)
    step.bind()
    run_step(step)
    for index in (tap, tap + 1, -1):
        with pytest.raises(ValueError, match="tap"):
            step.tapped(index)
    run_step(step, taps=[tap])
    assert np.array_equal(step.tapped(tap)[0], step.buffer(hidden)[0])


def test_logits_live_on_after_a_pass_that_has_more() -> None:
    step = NativeStep(program(), WEIGHTS, KVPool(1, 2, 16, context=8), 8, threads=1)
    step.run(chain(np.array([3], np.int32), logits="last"))
    one = step.logits()
    expected = one.copy()
    step.run(chain(np.arange(8, dtype=np.int32), logits="all"))
    del step
    gc.collect()
    assert np.array_equal(one, expected)


def test_vectors_outlive_those_who_gave_them() -> None:
    weights = {**WEIGHTS, "norm": np.ones(64, np.float64), "bias": [1.0] * 32}
    step = new_step()
    table = step.add_matrix(_native.Matrix.make(**fields(WEIGHTS["q"])))
    hidden, out = step.add_buffer(64), step.add_buffer(64)
    step.linear(hidden, (weights.pop("norm"), 1e-5), [(table, 0, np.full(64, 2.0))], out, False)
    gc.collect()
    step.bind()
    step.buffer(hidden)[:] = 0
    run_step(step)
    assert (step.buffer(out)[0] == 2).all()


PATTERNS = RNG.integers(0, 2**16, (10, 130)).astype(np.uint16)


def codec_format(**changed: Any) -> Any:
    arguments = {
        "dtype": "bf16",
        "table_per_group": True,
        "residual_bits": 10,
        "group_size": 64,
        "edges": np.array(SPEC.edges, np.float32),
        "drops": np.array(SPEC.drops, np.uint16),
        "levels": np.array(SPEC.levels, np.int8),
    }
    return _native.SplitFormat(**arguments | changed)


@pytest.mark.parametrize(
    "wrong",
    [
        {"dtype": "fp32"},
        {"residual_bits": 9},
        {"residual_bits": 12},
        {"residual_bits": 16},
        {"group_size": 0},
        {"group_size": 256},
        {"edges": np.zeros(4, np.float32)},
        {"edges": np.full(8, np.nan, np.float32)},
        {"drops": np.full(8, 0x8000, np.uint16)},
        {"drops": np.zeros(9, np.uint16)},
        {"levels": np.full(16, 65, np.int8)},
        {"levels": np.zeros(4, np.int8)},
    ],
    ids=lambda wrong: "-".join(wrong),
)
def test_a_format_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        codec_format(**wrong)


def encode_with(**changed: Any) -> Any:
    empty = np.zeros((0, 0, 0), np.float32)
    arguments = {
        "format": codec_format(),
        "table": np.zeros(8, np.uint16),
        "patterns": PATTERNS,
        "importance": np.ones(192, np.float32),
        "candidates": candidates(SPEC),
        "influence": empty,
        "coupling": empty,
        "passes": 1,
        "codes": np.zeros((3, 3, 4, 32), np.uint8),
        "residual": np.zeros((3, 3, 320), np.uint8),
        "scales": np.zeros((3, 3, 4), np.uint16),
        "escape_counts": np.zeros(12, np.uint32),
        "threads": 1,
    }
    return _native.encode(**arguments | changed)


@pytest.mark.parametrize(
    "wrong",
    [
        {"table": np.zeros(7, np.uint16)},
        {"patterns": PATTERNS[:4]},
        {"patterns": PATTERNS[:, :64].copy()},
        {"patterns": np.zeros((0, 130), np.uint16)},
        {"importance": np.ones(130, np.float32)},
        {"influence": np.zeros((1, 64, 64), np.float32), "coupling": np.zeros((1, 64, 64), np.float32)},
        {"influence": np.zeros((1, 192, 192), np.float32)},
        {"influence": np.zeros((3, 64, 32), np.float32), "coupling": np.zeros((3, 64, 32), np.float32)},
        {"influence": np.zeros(40000, np.float32), "coupling": np.zeros(40000, np.float32)},
        {"codes": np.zeros((3, 2, 4, 32), np.uint8)},
        {"residual": np.zeros((3, 3, 319), np.uint8)},
        {"scales": np.zeros((3, 2, 4), np.uint16)},
        {"escape_counts": np.zeros(10, np.uint32)},
    ],
    ids=lambda wrong: "-".join(wrong),
)
def test_an_encoder_whose_arrays_do_not_fit(wrong: dict[str, Any]) -> None:
    encode_with()
    with pytest.raises(ValueError, match=r"\w"):
        encode_with(**wrong)


def test_results_go_to_the_arrays_that_were_given_or_nowhere() -> None:
    with pytest.raises(TypeError):
        encode_with(codes=np.zeros((3, 3, 4, 32), np.int32))
    with pytest.raises(TypeError):
        encode_with(scales=np.zeros((3, 3, 8), np.uint16)[:, :, ::2])


@pytest.mark.parametrize("name", ["codes", "residual", "scales", "escape_rows", "escape_columns", "escape_values"])
def test_a_decoder_whose_planes_do_not_fit(name: str) -> None:
    plane = TENSOR.planes()[name]
    with pytest.raises(ValueError, match=r"\w"):
        decode(replace(TENSOR, **{name: plane[:-1].copy()}))
    with pytest.raises(ValueError, match=r"\w"):
        decode(replace(TENSOR, shape=(14, 130)))
    for wrong in ({"escape_columns": changed(TENSOR.escape_columns, 0, 131)}, {"table": np.zeros(3, np.uint16)}):
        with pytest.raises(ValueError, match=r"\w"):
            decode(replace(TENSOR, **wrong))


@pytest.mark.parametrize("shape", [(14, 130), (10, 193), (0, 130), (10, 0)])
def test_draft_values_of_another_shape(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        _native.draft_values(
            codec_format(), codes=TENSOR.codes, scales=TENSOR.scales, out=np.zeros(shape, np.float32), threads=1
        )


def test_a_histogram_that_is_too_short() -> None:
    with pytest.raises(ValueError, match="256"):
        _native.exponent_histogram(PATTERNS, True, np.zeros(255, np.int64))


@pytest.mark.parametrize(
    "wrong",
    [
        {"logits": np.zeros(0, np.float32)},
        {"logits": misaligned(np.zeros(5, np.float32))},
        {"temperature": 1e-310},
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": -3.0},
        {"top_p": 1.5},
        {"top_p": float("nan")},
        {"min_p": -0.5},
        {"min_p": 2.0},
        {"min_p": float("nan")},
        {"likely": -1},
        {"likely": 9},
    ],
    ids=str,
)
def test_a_draw_with_senseless_filters(wrong: dict[str, Any]) -> None:
    arguments = {"logits": np.zeros(5, np.float32), "temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    arguments["likely"] = 8
    rest = {"seed": 1, "position": 0, "with_confidence": True}
    _native.draw(**arguments, **rest)
    with pytest.raises(ValueError, match=r"\w"):
        _native.draw(**arguments | wrong, **rest)


def test_yardsticks_of_no_threads() -> None:
    with pytest.raises(ValueError, match="threads"):
        _native.read_bandwidth(4096, 0, 1)
    with pytest.raises(ValueError, match="threads"):
        _native.half_product(np.zeros((4, 8), np.uint16), np.zeros(8, np.float32), np.zeros(4, np.float32), 0)
    with pytest.raises(ValueError, match="width"):
        _native.half_product(np.zeros((4, 8), np.uint16), np.zeros(7, np.float32), np.zeros(4, np.float32), 1)


def test_only_tests_need_the_devtools() -> None:
    assert not hasattr(_native, "multiply")
    sources = [path for path in Path(speq.__file__).parent.rglob("*.py") if "_devtools" in path.read_text("utf-8")]
    assert not sources
