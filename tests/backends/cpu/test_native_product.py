"""The native products: exact weights, one order of summation for every path and token count, and a true draft."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from speq import _devtools
from speq.backends.cpu import available_isas, matrix
from speq.formats import Spec, SplitTensor, draft_values, encode, from_float32, to_float32
from speq.formats.spec import Dtype

FORMATS = list(itertools.product(["nested", "e3m0"], ["bf16", "fp16"], [32, 64, 128]))
ROWS, COLUMNS, TOKENS = 37, 331, 40


def awkward_weights(rng: np.random.Generator) -> NDArray[np.float32]:
    """Gaussian rows with zeros, tiny columns, a loud row and outliers, so that every format has escapes or extremes."""
    w = (rng.standard_normal((ROWS, COLUMNS)) * 0.03).astype(np.float32)
    w[3, 5] = 0.0
    w[:, 7] *= 1e-3
    w[2, 100:180] = 0.0
    w[5] *= 8
    w[11, 40] = -7.5
    return w


@pytest.fixture(params=FORMATS, ids=lambda f: "-".join(map(str, f)))
def case(request: pytest.FixtureRequest) -> tuple[SplitTensor, NDArray[np.float32], NDArray[np.float32]]:
    format_, dtype, group_size = request.param
    rng = np.random.default_rng(7)
    bits = from_float32(awkward_weights(rng), dtype)
    x = rng.standard_normal((TOKENS, COLUMNS)).astype(np.float32)
    return encode(bits, Spec.default(format_, dtype, group_size)), to_float32(bits, dtype), x


@pytest.mark.parametrize("isa", available_isas())
def test_rows_decode_to_the_exact_weights(case, isa: str) -> None:
    tensor, weights, _ = case
    np.testing.assert_array_equal(_devtools.decode_rows(isa, matrix(tensor)), weights)


@pytest.mark.parametrize("isa", available_isas())
def test_exact_product_is_batch_invariant(case, isa: str) -> None:
    tensor, _, x = case
    alone = np.concatenate([_devtools.multiply(isa, matrix(tensor), x[t : t + 1], "exact") for t in range(TOKENS)])
    for tokens in (*range(2, 21), 31, 32, TOKENS):
        together = _devtools.multiply(isa, matrix(tensor), x[:tokens], "exact")
        np.testing.assert_array_equal(together.view(np.uint32), alone[:tokens].view(np.uint32))


@pytest.mark.parametrize("product", ["exact", "draft"])
def test_every_instruction_set_gives_the_same_bits(case, product: str) -> None:
    tensor, _, x = case
    x = x[:16] if product == "draft" else x
    portable = _devtools.multiply("portable", matrix(tensor), x, product)
    for isa in available_isas():
        np.testing.assert_array_equal(
            _devtools.multiply(isa, matrix(tensor), x, product).view(np.uint32), portable.view(np.uint32)
        )


@pytest.mark.parametrize("isa", available_isas())
def test_the_draft_of_a_token_is_the_same_in_any_company(case, isa: str) -> None:
    tensor, _, x = case
    alone = np.concatenate([_devtools.multiply(isa, matrix(tensor), row[None], "draft") for row in x[:16]])
    for first, last in [*((0, tokens) for tokens in range(2, 17)), (5, 9), (9, 16)]:
        together = _devtools.multiply(isa, matrix(tensor), x[first:last], "draft")
        np.testing.assert_array_equal(together.view(np.uint32), alone[first:last].view(np.uint32))


BF16_DRAFTS_OF_FEW = [isa for isa in ("avx512bf16", "portable") if isa in available_isas()]
DRAFTS_ON_TILES = [isa for isa in ("amx",) if isa in available_isas()]
DRAFTS_OF_FEW = [*BF16_DRAFTS_OF_FEW, *DRAFTS_ON_TILES]


@pytest.fixture(params=itertools.product(["nested", "e3m0"], [32, 64, 128]), ids=lambda f: "-".join(map(str, f)))
def few(request: pytest.FixtureRequest) -> tuple[SplitTensor, NDArray[np.float32]]:
    """A BF16 matrix, and tokens with numbers of many sizes among their values."""
    format_, group_size = request.param
    rng = np.random.default_rng(11)
    tensor = encode(from_float32(awkward_weights(rng), "bf16"), Spec.default(format_, "bf16", group_size))
    x = rng.standard_normal((16, COLUMNS)).astype(np.float32)
    x[3] *= np.float32(1e30)
    x[4, ::3] *= np.float32(1e-30)
    x[5] = 0.0
    x[6, 9] = np.float32(3e38)
    x[7, ::2] *= np.float32(2.0**-128)
    return tensor, x


@pytest.mark.parametrize("tokens", range(1, 17))
def test_the_draft_of_few_has_the_same_bits_on_all_instruction_sets(few, tokens: int) -> None:
    tensor, x = few
    portable = _devtools.multiply("portable", matrix(tensor), x[:tokens], "draft of few")
    for isa in BF16_DRAFTS_OF_FEW:
        found = _devtools.multiply(isa, matrix(tensor), x[:tokens], "draft of few")
        np.testing.assert_array_equal(found.view(np.uint32), portable.view(np.uint32))


@pytest.mark.parametrize("isa", DRAFTS_OF_FEW)
def test_the_draft_of_few_is_batch_invariant(few, isa: str) -> None:
    tensor, x = few
    alone = np.concatenate([_devtools.multiply(isa, matrix(tensor), row[None], "draft of few") for row in x])
    for first, last in [*((0, tokens) for tokens in range(2, 17)), (5, 9), (9, 16)]:
        together = _devtools.multiply(isa, matrix(tensor), x[first:last], "draft of few")
        np.testing.assert_array_equal(together.view(np.uint32), alone[first:last].view(np.uint32))


def test_the_draft_of_few_multiplies_draft_values_by_rounded_activations(few) -> None:
    """The levels are rounded to BF16 as well, hence a difference of up to one in 2^9 for each weight."""
    tensor, _ = few
    x = np.random.default_rng(12).standard_normal((16, COLUMNS)).astype(np.float32)
    weights, rounded = draft_values(tensor).astype(np.float64), as_multiplied(x, "bf16").astype(np.float64)
    found = _devtools.multiply("portable", matrix(tensor), x, "draft of few")
    bound = 2.0**-8 * (np.abs(rounded) @ np.abs(weights).T) + 1e-6
    assert (np.abs(found - rounded @ weights.T) < bound).all()
    assert np.linalg.norm(found - rounded @ weights.T) < 2.0**-9 * np.linalg.norm(rounded @ weights.T)


def assert_same_products(tensor: SplitTensor, x: NDArray[np.float32], isa: str) -> None:
    """A draft on tiles adds the numbers that the draft of bytes adds, in another order."""
    found = _devtools.multiply(isa, matrix(tensor), x, "draft of few")
    expected = _devtools.multiply("portable", matrix(tensor), x, "draft")
    summed = np.abs(x.astype(np.float64)) @ np.abs(draft_values(tensor).astype(np.float64)).T
    assert (np.abs(found.astype(np.float64) - expected) <= 2.0**-20 * summed + 1e-38).all()


@pytest.mark.parametrize("isa", DRAFTS_ON_TILES)
@pytest.mark.parametrize("tokens", [1, 2, 7, 15, 16])
def test_a_draft_on_tiles_adds_what_the_draft_of_bytes_adds(case, tokens: int, isa: str) -> None:
    tensor, _, x = case
    assert_same_products(tensor, x[:tokens], isa)


@pytest.mark.parametrize("isa", DRAFTS_ON_TILES)
def test_a_draft_on_tiles_takes_numbers_of_all_sizes(few, isa: str) -> None:
    tensor, x = few
    assert_same_products(tensor, x, isa)


@pytest.mark.parametrize("isa", DRAFTS_ON_TILES)
@pytest.mark.parametrize("rows", range(1, 34))
def test_a_draft_on_tiles_has_any_number_of_rows(rows: int, isa: str) -> None:
    rng = np.random.default_rng(rows)
    tensor = encode(from_float32(rng.standard_normal((rows, 130)).astype(np.float32), "bf16"), Spec.default("nested"))
    assert_same_products(tensor, rng.standard_normal((5, 130)).astype(np.float32), isa)


def test_what_has_no_draft_of_few_says_so(few) -> None:
    tensor, x = few
    half = encode(from_float32(np.ones((4, 64), np.float32), "fp16"), Spec.default("nested", "fp16", 64))
    for isa in available_isas():
        if isa not in DRAFTS_ON_TILES:
            with pytest.raises(ValueError, match="no such product"):
                _devtools.multiply(isa, matrix(half), np.ones((1, 64), np.float32), "draft of few")
        if isa not in DRAFTS_OF_FEW:
            with pytest.raises(ValueError, match="no such product"):
                _devtools.multiply(isa, matrix(tensor), x, "draft of few")
    with pytest.raises(ValueError, match="no such product"):
        _devtools.multiply("portable", matrix(tensor), np.ones((17, COLUMNS), np.float32), "draft of few")
    with pytest.raises(ValueError, match="no such product"):
        _devtools.multiply("portable", matrix(tensor), x, "drafted")


def as_multiplied(x: NDArray[np.float32], dtype: Dtype) -> NDArray[np.float32]:
    """BF16 matrices meet activations rounded to BF16 (8 significant bits), FP16 ones float32 activations."""
    mantissa, exponent = np.frexp(x)
    return np.ldexp(np.rint(mantissa * 256) / 256, exponent).astype(np.float32) if dtype == "bf16" else x


def test_numbers_at_the_edge_of_float32_have_the_same_bits_everywhere() -> None:
    """Products and sums below 2^-126, ties between two BF16, and activations that round to infinity."""
    rng = np.random.default_rng(5)
    weights = (rng.standard_normal((8, 256)) * 2.0 ** rng.integers(-30, -20, (8, 1))).astype(np.float32)
    tensor = encode(from_float32(weights, "bf16"), Spec.default("nested", "bf16", 64))
    x = rng.standard_normal((12, 256)).astype(np.float32)
    x[:4] *= np.float32(2.0**-103)
    x[4:6] *= np.float32(2.0**-128)
    x[6] = (x[6].view(np.uint32) & 0xFFFF0000 | 0x8000).view(np.float32)
    x[7, 9] = np.float32(3.4e38)
    expected = _devtools.multiply("portable", matrix(tensor), x, "exact").view(np.uint32)
    for isa in available_isas():
        np.testing.assert_array_equal(_devtools.multiply(isa, matrix(tensor), x, "exact").view(np.uint32), expected)


@pytest.mark.parametrize("isa", available_isas())
def test_a_sum_just_above_the_middle_of_two_floats_is_rounded_up(isa: str) -> None:
    """1 + 2^-24 + 10 * 2^-58: in double precision it is the middle itself, and rounding that again would give 1."""
    weights = np.linspace(1.0, 1.98, 64, dtype=np.float32)[None]
    weights[0, [0, 8]] = 1979 / 1024, 1.0
    tensor = encode(from_float32(weights, "fp16"), Spec.default("nested", "fp16", 64))
    assert not {0, 8} & set(tensor.escape_columns.tolist())
    x = np.zeros((1, 64), np.float32)
    x[0, [0, 8]] = 8681086 * 2.0**-48, 1.0  # a lane adds column 8 before column 0
    assert _devtools.multiply(isa, matrix(tensor), x, "exact")[0, 0] == 1 + 2.0**-23


def test_exact_product_matches_float64(case) -> None:
    tensor, weights, x = case
    x = as_multiplied(x, tensor.spec.dtype)
    truth = x.astype(np.float64) @ weights.astype(np.float64).T
    # float32 accumulation of 331 products: an error of a few ulps of the sum of magnitudes
    bound = 331**0.5 * 2.0**-24 * (np.abs(x.astype(np.float64)) @ np.abs(weights.astype(np.float64)).T) + 1e-7
    assert (np.abs(_devtools.multiply("", matrix(tensor), x, "exact") - truth) < bound).all()


def test_draft_product_differs_only_by_the_activations_rounding(case) -> None:
    tensor, _, x = case
    x = x[:16]
    truth = x.astype(np.float64) @ draft_values(tensor).astype(np.float64).T
    error = np.linalg.norm(_devtools.multiply("", matrix(tensor), x, "draft") - truth) / np.linalg.norm(truth)
    # int8 in -127..127 with one scale per 64 Gaussian values: a step of about 2.6 sigma / 127
    assert error < 0.01


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_a_matrix_that_consists_of_escapes(isa: str, dtype: str) -> None:
    rng = np.random.default_rng(3)
    values = (rng.standard_normal((9, 400)) * 2e-5).astype(np.float32)
    values[:, ::64] = 1.0
    bits = from_float32(values, dtype)
    tensor = encode(bits, Spec.default("nested", dtype, 64))
    assert tensor.escapes > 3000
    x = rng.standard_normal((TOKENS, 400)).astype(np.float32)
    together = _devtools.multiply(isa, matrix(tensor), x, "exact")
    alone = np.concatenate([_devtools.multiply(isa, matrix(tensor), x[t : t + 1], "exact") for t in range(TOKENS)])
    np.testing.assert_array_equal(together.view(np.uint32), alone.view(np.uint32))
    truth = as_multiplied(x, dtype).astype(np.float64) @ to_float32(bits, dtype).T.astype(np.float64)
    np.testing.assert_allclose(together, truth, atol=1e-3)


def test_not_a_number_and_infinity_reach_the_result() -> None:
    weights = np.full((4, 64), 0.5, dtype=np.float32)
    weights[1, 3], weights[2, 60] = np.nan, np.inf
    tensor = encode(from_float32(weights, "bf16"), Spec.default("nested", "bf16", 64))
    y = _devtools.multiply("", matrix(tensor), np.ones((1, 64), dtype=np.float32), "exact")[0]
    assert np.isfinite(y[[0, 3]]).all()
    assert np.isnan(y[1])
    assert np.isinf(y[2])
