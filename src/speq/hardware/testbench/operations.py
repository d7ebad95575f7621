"""Operations of processing elements: cycle by cycle what is given to them, and what the golden model makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from speq.hardware.e3m0 import bin_exponents, pack_draft, split, unpack_draft
from speq.hardware.golden.pe import Accumulator, accumulate
from speq.hardware.parameters import AccumulatorParameters
from speq.hardware.testbench.coverage import Coverage

CORNERS = np.array(
    [0, 0, 0, 1, 0x3FF, 0x400, 0x401, 0x7FF, 0x3BFF, 0x3C00, 0x3C01, 0x3FFF, 0x7BFF, 0x7C00, 0x7C01, 0x7E00], np.uint16
)
"""FP16 magnitudes: zero (three times, for how often it is met), subnormal, normal, infinite, NaN."""


@dataclass(frozen=True)
class Operations:
    """What some elements get in some cycles.

    Attributes:
        activations: uint16 [cycles, elements, 4]
        weights: uint16 [cycles, elements], FP16 or four codes.
        draft, first, enable: bool [cycles, elements].
    """

    activations: NDArray[np.uint16]
    weights: NDArray[np.uint16]
    draft: NDArray[np.bool_]
    first: NDArray[np.bool_]
    enable: NDArray[np.bool_]


def random_operations(rng: np.random.Generator, cycles: int, elements: int, drafts: bool) -> Operations:
    """Everything at once: both modes (only exact ones without ``drafts``), idle cycles, sums of about 20 operations,
    ordinary numbers, random patterns and special values."""
    shape = (cycles, elements)
    draft = (rng.random(shape) < 0.5) & drafts
    weights = np.where(draft, rng.integers(0, 1 << 16, shape), _numbers(rng, shape)).astype(np.uint16)
    first = rng.random(shape) < 0.05
    first[0] = True
    enable = rng.random(shape) < 0.9
    enable[0] = True
    return Operations(_numbers(rng, (*shape, 4)), weights, draft, first, enable)


def dot_products(draft: bool, cycles: int, elements: int, seed: int = 0) -> Operations:
    """Dot products of normal activations with normal weights of deviation 1/50, one operation per cycle, in one mode.

    The codes of a draft are those of the weights in e3m0 with 2**-4 as the finest exponent.
    """
    rng = np.random.default_rng(seed)
    activations = rng.normal(0, 1, (cycles, elements, 4)).astype(np.float16).view(np.uint16)
    weights = rng.normal(0, 0.02, (cycles, elements, 4)).astype(np.float16).view(np.uint16)
    words = pack_draft(split(weights, bin_exponents(11))[0]) if draft else weights[..., 0]
    first = np.zeros((cycles, elements), np.bool_)
    first[0] = True
    return Operations(activations, words, np.full_like(first, draft), first, np.ones_like(first))


def golden_sums(operations: Operations, parameters: AccumulatorParameters) -> Iterator[Accumulator]:
    """The sums [elements] after each cycle; an idle cycle leaves them as they are."""
    state = Accumulator.zeros(operations.weights.shape[1:])
    each = zip(operations.activations, operations.weights, operations.draft, operations.first, strict=True)
    for enable, (activations, weights, draft, first) in zip(operations.enable, each, strict=True):
        after = accumulate(state, activations, weights, draft, first, parameters)
        state = Accumulator(
            *(np.where(enable, new, old) for new, old in zip(vars(after).values(), vars(state).values(), strict=True))
        )
        yield state


def cover(coverage: Coverage, variant: str, operations: Operations) -> None:
    """Count the operands of operations that were checked."""
    for draft in (False, True):
        chosen = operations.enable & (operations.draft == draft)
        activations, weights = operations.activations[chosen], operations.weights[chosen]
        if draft and chosen.any():
            coverage.add(variant, True, activations, unpack_draft(weights))
        elif chosen.any():
            coverage.add(variant, False, activations[:, 0], weights)


def accumulator_words(state: Accumulator, parameters: AccumulatorParameters) -> NDArray[np.int64]:
    """The bits of the accumulator's layout: mantissa lowest, then exponent, then flags; needs a width of up to 54."""
    width = parameters.width
    mantissa = state.mantissa & ((1 << width) - 1)
    return mantissa | state.exponent << width | state.flags.astype(np.int64) << width + 7


def _numbers(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.uint16]:
    """FP16 patterns: half of them ordinary, a third finite but of any kind, the others corners."""
    ordinary = (rng.normal(0, 1, shape) * 2.0 ** rng.integers(-6, 6, shape)).astype(np.float16).view(np.uint16)
    patterns = rng.integers(0, 1 << 16, shape).astype(np.uint16)
    finite = np.where(patterns & 0x7C00 == 0x7C00, patterns ^ 0x4000, patterns)
    corners = rng.choice(CORNERS, shape) | (patterns & 0x8000)
    kind = rng.random(shape)
    return np.where(kind < 0.5, ordinary, np.where(kind < 0.85, finite, corners)).astype(np.uint16)
