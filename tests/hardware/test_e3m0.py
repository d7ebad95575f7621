"""e3m0 as the hardware sees it is e3m0 of speq.formats, for every FP16 pattern and every finest exponent."""

from __future__ import annotations

import numpy as np
import pytest

from speq.errors import SpeqError
from speq.formats import Spec, encode
from speq.formats.bins import exponent_table
from speq.formats.layout import unpack_codes, unpack_residuals
from speq.hardware.e3m0 import TOPS, bin_exponents, pack_draft, split, unpack_draft
from speq.hardware.golden.decoder import decode, draft_levels

EVERY = np.arange(65536, dtype=np.uint16)


@pytest.mark.parametrize("top", TOPS)
def test_bins_are_those_of_the_format(top):
    histogram = np.zeros(256, np.int64)
    histogram[top] = 1
    assert np.array_equal(bin_exponents(top).astype(np.int64) * 1024, exponent_table(histogram, "fp16"))


@pytest.mark.parametrize("top", TOPS)
def test_decoding_restores_every_pattern_that_fits(top):
    exponents = bin_exponents(top)
    codes, residuals, escapes = split(EVERY, exponents)
    assert np.array_equal(escapes, 1024 * (int(exponents[7]) + 4) <= (EVERY & 0x7FFF))
    assert np.array_equal(decode(codes, residuals, exponents)[~escapes], EVERY[~escapes])
    words = codes[~escapes].astype(np.int64) << 12 | residuals[~escapes]
    assert len(np.unique(words)) == len(words)


@pytest.mark.parametrize("top", [9, 15, 26, 30])
def test_split_gives_the_planes_of_the_codec(top):
    """The codec finds the table itself, from a matrix whose finest exponent is ``top``."""
    bits = EVERY[1024 * (top + 1) > (EVERY & 0x7FFF)].reshape(-1, 512)
    spec = Spec.default("e3m0", "fp16", 64)
    tensor = encode(bits, spec)
    assert np.array_equal(tensor.table, bin_exponents(top).astype(np.uint16) * 1024)
    codes, residuals, escapes = split(bits, bin_exponents(top))
    rows, columns = bits.shape
    assert np.array_equal(unpack_codes(tensor.codes, "fp16")[:rows, :columns], codes)
    assert np.array_equal(unpack_residuals(tensor.residual, "fp16", 12)[:rows, :columns], residuals)
    assert not escapes.any()


def test_levels_are_those_of_the_format():
    codes = np.arange(16, dtype=np.uint8)
    assert tuple(draft_levels(codes)) == Spec.default("e3m0", "fp16", 64).levels


def test_four_codes_make_a_word():
    words = EVERY
    codes = unpack_draft(words)
    assert np.array_equal(codes[0xA5C3], [0x3, 0xC, 0x5, 0xA])
    assert np.array_equal(pack_draft(codes), words)


def test_words_that_no_encoder_writes_lose_what_exceeds_their_width():
    exponents = np.full(8, 31, np.uint8)
    decoded = decode(np.array(15, np.uint8), np.array(0xFFF, np.uint16), exponents)
    assert decoded == 0x8000 | (31 * 1024 + 0xFFF) % 0x8000


@pytest.mark.parametrize("top", [-1, 31])
def test_exponents_that_no_finite_number_has(top):
    with pytest.raises(SpeqError, match=f"{top} is not"):
        bin_exponents(top)
