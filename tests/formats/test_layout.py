"""The planes hold what docs/formats.md says, bit by bit: a slow decoder written from that page reads them."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

from speq.formats import SplitTensor, encode, from_float32
from speq.formats.layout import low_nibble_order


def places(dtype: str, k: int) -> tuple[int, bool]:
    """Code byte and nibble (high or not) of column k of a block."""
    high, k = k >= 32, k % 32
    vector, position = k // 8, k % 8
    for byte in range(32):
        lane, i = byte // 16, byte % 16
        if dtype == "bf16":
            found = (vector, position) == (2 * (i // 8) + i % 2, i % 8 // 2 + 4 * lane)
        else:
            found = (vector, position) == (2 * (i // 8) + lane, i % 8)
        if found:
            return byte, high
    raise AssertionError(f"column {k} has no place")


def bin_start(tensor: SplitTensor, c: int, scale_bits: int) -> int:
    """T[c] in exact rational arithmetic: one rounding to float32, one truncation to 16 bits."""
    if tensor.spec.format == "e3m0":
        return int(tensor.table[c])
    scale = np.array([scale_bits << 16], np.uint32).view(np.float32)[0]
    exact = Fraction(tensor.spec.edges[c]) * Fraction(float(scale))
    product = Fraction(float(np.float32(float(exact))))
    if tensor.spec.dtype == "bf16":
        bits = int(np.array([float(product)], np.float32).view(np.uint32)[0] >> 16)
    elif product < Fraction(2) ** -14:
        bits = int(product * 2**24)
    else:
        exponent = math.frexp(float(product))[1] - 1
        bits = min((exponent + 15 << 10) + int(product / Fraction(2) ** exponent * 1024) - 1024, 0x7BFF)
    return max(bits - tensor.spec.drops[c], 0)


def read(tensor: SplitTensor, row: int, column: int) -> int:
    block, k = divmod(column, 64)
    row_block, r = divmod(row, 4)
    byte, high = places(tensor.spec.dtype, k)
    code = int(tensor.codes[row_block, block, r, byte]) >> (4 if high else 0) & 15
    tile = [int(value) for value in tensor.residual[row_block, block]]
    low = tile[(128 if high else 0) + 32 * r + byte]
    if tensor.spec.residual_bits == 12:
        top = tile[256 + 32 * r + byte] >> (4 if high else 0) & 15
    else:
        top = tile[256 + 16 * r + byte % 16] >> (2 * (byte // 16) + (4 if high else 0)) & 3
    scale = int(tensor.scales[row_block, column // tensor.spec.group_size, r])
    first, last = int(tensor.escape_rows[row]), int(tensor.escape_rows[row + 1])
    for escape in range(first, last):
        if tensor.escape_columns[escape] == column:
            assert (code, low, top) == (0, 0, 0)
            return int(tensor.escape_values[escape])
    return code >> 3 << 15 | bin_start(tensor, code & 7, scale) + (low | top << 8)


def test_a_slow_decoder_reads_the_planes(spec):
    rng = np.random.default_rng(5)
    values = rng.laplace(0, 0.02, (6, 150)).astype(np.float32)
    values[1, 7], values[2, 70], values[3] = np.inf, 0, values[3] * 1e-6
    bits = from_float32(values, spec.dtype)
    tensor = encode(bits, spec)
    for row, column in np.ndindex(bits.shape):
        assert read(tensor, row, column) == bits[row, column], (row, column)


def test_padding_is_zero(spec):
    tensor = encode(np.full((5, 70), 0x3C01, np.uint16), spec)
    codes = tensor.codes[..., :]
    assert codes[1, :, 1:].max() == 0
    order = low_nibble_order(spec.dtype)
    for byte, column in enumerate(order):
        if column >= 6:
            assert codes[0, 1, 0, byte] & 15 == 0
        assert codes[0, 1, 0, byte] >> 4 == 0
    assert tensor.scales[1, :, 1:].max() == 0
    assert (tensor.scales[0, 3:] == 0).all()


def test_escapes_ascend_within_a_row(spec):
    bits = np.random.default_rng(2).integers(0, 1 << 16, (9, 500)).astype(np.uint16)
    tensor = encode(bits, spec)
    assert tensor.escape_rows[0] == 0
    assert tensor.escape_rows[-1] == tensor.escapes == len(tensor.escape_values)
    for first, last in zip(tensor.escape_rows[:-1], tensor.escape_rows[1:], strict=True):
        assert (np.diff(tensor.escape_columns[first:last].astype(int)) > 0).all()
