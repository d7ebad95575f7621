"""decode(encode(w)) has the bits of w, whatever they are, and the native codec gives the reference's bytes."""

from __future__ import annotations

import numpy as np
import pytest

from speq.formats import Spec, decode, draft_values, encode, from_float32, reference


def test_every_pattern_comes_back(spec, matrices):
    for name, bits in matrices.items():
        assert np.array_equal(decode(encode(bits, spec)), bits), name


def test_native_is_the_reference(spec, matrices, assert_same):
    for name, bits in matrices.items():
        native, plain = encode(bits, spec), reference.encode(bits, spec)
        assert_same(native, plain, name)
        assert np.array_equal(reference.decode(native), bits), name
        assert draft_values(native).tobytes() == reference.draft_values(native).tobytes(), name


def test_column_weights_native_is_the_reference(spec, assert_same):
    rng = np.random.default_rng(3)
    bits = from_float32(rng.standard_t(3, (9, 200)).astype(np.float32), spec.dtype)
    for weights in (rng.random(200), np.zeros(200), np.where(np.arange(200) < 64, 0, 1e30), np.full(200, 1e-44)):
        weights = weights.astype(np.float32)
        native = encode(bits, spec, column_weights=weights)
        assert_same(native, reference.encode(bits, spec, column_weights=weights))
        assert np.array_equal(decode(native), bits)


def test_result_does_not_depend_on_threads(spec, matrices, assert_same):
    bits = matrices["every pattern shuffled"]
    one, many = encode(bits, spec, threads=1), encode(bits, spec, threads=5)
    assert_same(one, many)
    assert np.array_equal(decode(one, threads=3), decode(one, threads=1))
    assert draft_values(one, threads=3).tobytes() == draft_values(one, threads=1).tobytes()


def test_strided_read_only_input(spec):
    bits = np.random.default_rng(1).integers(0, 1 << 16, (20, 300)).astype(np.uint16)
    bits.setflags(write=False)
    view = bits[::2, 3:200:2]
    assert np.array_equal(decode(encode(view, spec)), view)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_all_escapes(dtype, assert_same):
    """Bins so far from the weights that nothing fits: storage grows, nothing is lost."""
    default = Spec.default("nested", dtype, 64)
    spec = Spec("nested", dtype, 64, (1000.0,) * 8, (0,) * 8, default.levels)
    bits = from_float32(np.random.default_rng(0).normal(0, 1e-3, (10, 150)).astype(np.float32), dtype)
    tensor = encode(bits, spec)
    assert tensor.escapes == bits.size
    assert tensor.bits_per_weight > 40
    assert np.array_equal(decode(tensor), bits)
    assert_same(tensor, reference.encode(bits, spec))


def test_widest_matrix():
    bits = np.random.default_rng(0).integers(0, 1 << 16, (1, 65536)).astype(np.uint16)
    for format in ("nested", "e3m0"):
        assert np.array_equal(decode(encode(bits, Spec.default(format, "bf16", 64))), bits)
