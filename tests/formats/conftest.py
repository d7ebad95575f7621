"""Every default format, and the patterns that are hard to keep."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from speq.formats import Spec, SplitTensor, from_float32

SPECS = [
    Spec.default(format, dtype, group_size)
    for format in ("nested", "e3m0")
    for dtype in ("fp16", "bf16")
    for group_size in (32, 64, 128)
]


@pytest.fixture(params=SPECS, ids=lambda spec: f"{spec.format}-{spec.dtype}-{spec.group_size}")
def spec(request: pytest.FixtureRequest) -> Spec:
    return request.param


def hard_matrices(spec: Spec) -> dict[str, NDArray[np.uint16]]:
    """Matrices of 16-bit patterns by name."""
    rng = np.random.default_rng(7)
    every = np.arange(65536, dtype=np.uint16)
    infinity = 0x7C00 if spec.dtype == "fp16" else 0x7F80
    normal = from_float32(rng.normal(0, 0.02, (12, 320)).astype(np.float32), spec.dtype)
    outlier = normal.copy()
    outlier[:, ::64] = infinity - 1
    sprinkled = normal.copy()
    sprinkled[::2, ::7] = infinity
    sprinkled[::3, ::5] = 0x8000
    sprinkled[1::3, ::9] = 0xFFFF
    return {
        "every pattern in order": every.reshape(256, 256),
        "every pattern, 130 columns": np.resize(every, (505, 130)),
        "every pattern shuffled": rng.permutation(every).reshape(64, 1024),
        "zeros of both signs": np.tile(np.array([0, 0x8000], np.uint16), (5, 96)),
        "all infinite": np.full((3, 70), infinity, np.uint16),
        "all NaN": rng.integers(infinity + 1, 0x8000, (6, 200)).astype(np.uint16),
        "subnormal": rng.integers(0, 1 << (10 if spec.dtype == "fp16" else 7), (4, 128)).astype(np.uint16) | 0x8000,
        "one outlier in a group": outlier,
        "infinities, NaN and zeros among weights": sprinkled,
        "largest finite": np.full((1, 1), infinity - 1, np.uint16),
        "one row": normal[:1, :65],
        "one column": normal[:, :1].copy(),
        "ragged": normal[:7, :319].copy(),
        "alternately huge and tiny": np.tile(np.array([infinity - 1, 1], np.uint16), (4, 64)),
    }


@pytest.fixture
def hard() -> Callable[[Spec], dict[str, NDArray[np.uint16]]]:
    return hard_matrices


@pytest.fixture
def matrices(spec: Spec) -> dict[str, NDArray[np.uint16]]:
    return hard_matrices(spec)


def same_planes(a: SplitTensor, b: SplitTensor) -> bool:
    return all(
        first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()
        for first, second in zip(a.planes().values(), b.planes().values(), strict=True)
    )


@pytest.fixture
def assert_same():
    """Planes equal byte for byte."""

    def check(a: SplitTensor, b: SplitTensor, what: str = "") -> None:
        assert same_planes(a, b), what

    return check
