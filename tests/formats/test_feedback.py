"""Error feedback: its factors, its bytes against the reference, and that products come out better for it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speq.errors import SpeqError
from speq.formats import (
    Feedback,
    Spec,
    codec,
    decode,
    draft_values,
    encode,
    feedback_of,
    from_float32,
    reference,
    to_float32,
)
from speq.formats.feedback import DAMPING

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


def damped(moments: np.ndarray) -> np.ndarray:
    wide = moments.astype(np.float64)
    return wide + DAMPING * np.einsum("bii->b", wide)[:, None, None] / wide.shape[1] * np.eye(wide.shape[1])


def none(blocks: int, size: int) -> Feedback:
    return Feedback(np.zeros((blocks, size, size), np.float32), np.zeros((blocks, size, size), np.float32))


def test_the_factor_makes_up_the_moments():
    moments = moments_of(activations(300, 96), 48)
    influence = feedback_of(moments).influence.astype(np.float64)
    assert not np.tril(influence).any()
    for block, moment in zip(influence, damped(moments), strict=True):
        unit = block + np.eye(48)
        diagonal = np.linalg.solve(unit, np.linalg.solve(unit, moment).T)  # unit^-1 moment unit^-T
        assert np.abs(diagonal - np.diag(np.diagonal(diagonal))).max() < 1e-3 * np.abs(moment).max()


def test_the_coupling_leads_to_the_least_error():
    moments = moments_of(activations(300, 96), 48)
    coupling = feedback_of(moments).coupling.astype(np.float64)
    errors = RNG.normal(0, 1, 48)
    for block, moment in zip(coupling, damped(moments), strict=True):
        for k in (0, 20, 47):
            best = errors.copy()
            best[k] = -errors @ block[:, k]  # the draft is at its target: w[k] - d[k] = -pull
            assert abs(best @ moment[k]) < 1e-4 * np.abs(errors * moment[k]).sum()  # half the slope of the error


def test_columns_that_are_never_active_influence_nothing():
    x = activations(200, 64)
    x[:, 10:20] = 0
    feedback = feedback_of(moments_of(x, 64))
    for values in (feedback.influence[0], feedback.coupling[0]):
        assert np.isfinite(values).all()
        assert not values[10:20].any()
        assert not values[:, 10:20].any()


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
    feedback = Feedback(*(rng.normal(0, 1, (2, -(-columns // size), size, size)) * scale).astype(np.float32))
    spec = Spec.default("nested", dtype, 64)
    tensor = encode(bits, spec, feedback=feedback)
    assert np.array_equal(decode(tensor), bits)
    for name, plane in reference.encode(bits, spec, feedback=feedback).planes().items():
        assert plane.tobytes() == tensor.planes()[name].tobytes(), name


@pytest.mark.parametrize(("dtype", "ratio"), [("bf16", 0.35), ("fp16", 0.4)])
def test_products_come_out_better(dtype, ratio):
    x = activations(2000, 512)
    fit, check = x[:1500], x[1500:]
    bits = from_float32(RNG.normal(0, 0.02, (64, 512)).astype(np.float32), dtype)
    spec = Spec.default("nested", dtype, 64)
    feedback = feedback_of(moments_of(fit, 256))
    assert product_error(check, bits, spec, feedback) < ratio * product_error(check, bits, spec)


def product_error(x: np.ndarray, bits: np.ndarray, spec: Spec, feedback: Feedback | None = None) -> float:
    error = draft_values(encode(bits, spec, feedback=feedback)) - to_float32(bits, spec.dtype)
    return float(np.square(x @ error.T).sum())


def test_a_short_calibration_does_no_harm():
    x = RNG.normal(0, 1, (1100, 512)).astype(np.float32)  # nothing is correlated but by chance
    bits = from_float32(RNG.normal(0, 0.02, (64, 512)).astype(np.float32), "bf16")
    spec = Spec.default("nested", "bf16", 64)
    feedback = feedback_of(moments_of(x[:100], 512))
    assert product_error(x[100:], bits, spec, feedback) < 1.5 * product_error(x[100:], bits, spec)


def test_descent_makes_products_better(monkeypatch):
    x = activations(2000, 512)
    bits = from_float32(RNG.normal(0, 0.02, (64, 512)).astype(np.float32), "bf16")
    spec = Spec.default("nested", "bf16", 64)
    feedback = feedback_of(moments_of(x[:1500], 512))
    descended = product_error(x[1500:], bits, spec, feedback)
    monkeypatch.setattr(codec, "PASSES", 0)
    assert descended < 0.6 * product_error(x[1500:], bits, spec, feedback)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 150), st.integers(1, 160), st.integers(0, 1 << 30))
def test_descent_never_raises_the_error(rows, columns, size, seed):
    rng = np.random.default_rng(seed)
    bits = from_float32((rng.normal(0, 1, (rows, columns)) ** 3).astype(np.float32), "bf16")
    moments = moments_of(rng.normal(0, 1, (20, columns)).astype(np.float32) ** 3, size)
    spec, feedback = Spec.default("nested", "bf16", 64), feedback_of(moments)
    padded = np.zeros((rows, len(moments) * size))
    errors = []
    for passes in range(4):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(codec, "PASSES", passes)
            draft = draft_values(encode(bits, spec, feedback=feedback))
        padded[:, :columns] = to_float32(bits, "bf16") - draft
        blocks = padded.reshape(rows, len(moments), size)
        errors.append(np.einsum("rbj,bjk,rbk->r", blocks, damped(moments), blocks))
    for before, after in itertools.pairwise(errors):
        assert (after <= before * (1 + 1e-5)).all()


def test_no_influence_changes_nothing(assert_same):
    bits = from_float32(RNG.normal(0, 0.02, (9, 200)).astype(np.float32), "bf16")
    spec = Spec.default("nested", "bf16", 64)
    assert_same(encode(bits, spec, feedback=none(4, 64)), encode(bits, spec))


@pytest.mark.parametrize(
    ("format", "feedback", "message"),
    [
        ("nested", np.zeros((1, 64, 64), np.float32), "does not cover 100 columns"),
        ("nested", np.zeros((2, 64, 32), np.float32), "does not cover 100 columns"),
        ("nested", np.zeros((100, 100), np.float32), "does not cover 100 columns"),
        ("nested", np.full((2, 64, 64), np.nan, np.float32), "must be finite"),
        ("nested", np.zeros((3, 64, 64), np.float32), "must have the same blocks"),
        ("e3m0", np.zeros((2, 64, 64), np.float32), "codes of e3m0 follow from the weights alone"),
    ],
)
@pytest.mark.parametrize("name", ["influence", "coupling"])
def test_feedback_that_does_not_fit_is_refused(format, feedback, message, name):
    with pytest.raises(SpeqError, match=message):
        encode(
            np.zeros((4, 100), np.uint16),
            Spec.default(format, "bf16", 64),
            feedback=replace(none(2, 64), **{name: feedback}),
        )
