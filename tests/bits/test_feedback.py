"""Error feedback: its factor, its bytes against the reference, and that products come out better for it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speq.bits import Spec, decode, draft_values, encode, feedback_of, from_float32, reference, to_float32
from speq.bits.feedback import DAMPING
from speq.errors import SpeqError

RNG = np.random.default_rng(5)


def activations(tokens: int, columns: int) -> np.ndarray:
    """Correlated columns, as those of a model are: a few directions carry most of the power."""
    directions = RNG.normal(0, 1, (max(1, columns // 8), columns))
    common = RNG.normal(0, 1, (tokens, len(directions))) @ directions
    return (common + RNG.normal(0, 0.3, (tokens, columns))).astype(np.float32)


def moments_of(x: np.ndarray, size: int) -> np.ndarray:
    blocks = -(-x.shape[1] // size)
    padded = np.zeros((len(x), blocks * size), np.float32)
    padded[:, : x.shape[1]] = x
    parts = padded.reshape(len(x), blocks, size).transpose(1, 0, 2)
    return parts.transpose(0, 2, 1) @ parts / np.float32(len(x))


def test_the_factor_makes_up_the_moments():
    moments = moments_of(activations(300, 96), 48)
    influence = feedback_of(moments).astype(np.float64)
    assert not np.tril(influence).any()
    for block, moment in zip(influence, moments.astype(np.float64), strict=True):
        damped = moment + DAMPING * np.diagonal(moment).mean() * np.eye(48)
        unit = block + np.eye(48)
        diagonal = np.linalg.solve(unit, np.linalg.solve(unit, damped).T)  # unit^-1 damped unit^-T
        assert np.abs(diagonal - np.diag(np.diagonal(diagonal))).max() < 1e-3 * np.abs(damped).max()


def test_columns_that_are_never_active_influence_nothing():
    x = activations(200, 64)
    x[:, 10:20] = 0
    influence = feedback_of(moments_of(x, 64))[0]
    assert np.isfinite(influence).all()
    assert not influence[10:20].any()
    assert not influence[:, 10:20].any()


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_native_is_the_reference(dtype, group_size, assert_same, hard):
    spec = Spec.default("nested", dtype, group_size)
    for name, bits in hard(spec).items():
        if bits.size > 20_000:
            bits = bits[:19, :300]
        columns = bits.shape[1]
        for size in (1, 48, 128):
            feedback = feedback_of(moments_of(activations(64, columns), size))
            native = encode(bits, spec, feedback=feedback)
            assert np.array_equal(decode(native), bits), name
            assert_same(native, reference.encode(bits, spec, feedback=feedback), f"{name}, blocks of {size}")
            assert_same(native, encode(bits, spec, feedback=feedback, threads=3), name)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 140), st.integers(1, 80), st.sampled_from(["fp16", "bf16"]), st.data())
def test_any_feedback_keeps_any_weights(rows, columns, size, dtype, data):
    seed = data.draw(st.integers(0, 1 << 30))
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 1 << 16, (rows, columns)).astype(np.uint16)
    scale = 10.0 ** data.draw(st.integers(-30, 30))
    feedback = (rng.normal(0, 1, (-(-columns // size), size, size)) * scale).astype(np.float32)
    spec = Spec.default("nested", dtype, 64)
    tensor = encode(bits, spec, feedback=feedback)
    assert np.array_equal(decode(tensor), bits)
    for name, plane in reference.encode(bits, spec, feedback=feedback).planes().items():
        assert plane.tobytes() == tensor.planes()[name].tobytes(), name


@pytest.mark.parametrize(("dtype", "ratio"), [("bf16", 0.6), ("fp16", 0.7)])
def test_products_come_out_better(dtype, ratio):
    x = activations(2000, 512)
    fit, check = x[:1500], x[1500:]
    bits = from_float32(RNG.normal(0, 0.02, (64, 512)).astype(np.float32), dtype)
    spec = Spec.default("nested", dtype, 64)
    exact = to_float32(bits, dtype)

    def error(tensor):
        return np.square(check @ (draft_values(tensor) - exact).T).sum()

    moments = moments_of(fit, 128)
    assert error(encode(bits, spec, feedback=feedback_of(moments))) < ratio * error(encode(bits, spec))


def test_no_influence_changes_nothing(assert_same):
    bits = from_float32(RNG.normal(0, 0.02, (9, 200)).astype(np.float32), "bf16")
    spec = Spec.default("nested", "bf16", 64)
    assert_same(encode(bits, spec, feedback=np.zeros((4, 64, 64), np.float32)), encode(bits, spec))


@pytest.mark.parametrize(
    ("format", "feedback", "message"),
    [
        ("nested", np.zeros((1, 64, 64), np.float32), "does not cover 100 columns"),
        ("nested", np.zeros((2, 64, 32), np.float32), "does not cover 100 columns"),
        ("nested", np.zeros((100, 100), np.float32), "does not cover 100 columns"),
        ("nested", np.full((2, 64, 64), np.nan, np.float32), "must be finite"),
        ("e3m0", np.zeros((2, 64, 64), np.float32), "codes of e3m0 follow from the weights alone"),
    ],
)
def test_feedback_that_does_not_fit_is_refused(format, feedback, message):
    with pytest.raises(SpeqError, match=message):
        encode(np.zeros((4, 100), np.uint16), Spec.default(format, "bf16", 64), feedback=feedback)
