"""The plain FP16 product that kernels are measured against is right for every shape and number of threads."""

from __future__ import annotations

import numpy as np
import pytest

from speq import _native


@pytest.mark.parametrize("shape", [(1, 1), (3, 15), (4, 16), (7, 33), (64, 96), (130, 1000)])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_it_multiplies(shape, threads):
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(shape).astype(np.float16)
    x, y = rng.standard_normal(shape[1]).astype(np.float32), np.empty(shape[0], np.float32)
    seconds = _native.half_product(weights.view(np.uint16), x, y, threads)
    assert seconds > 0
    np.testing.assert_allclose(y, weights.astype(np.float64) @ x, rtol=1e-4, atol=1e-4)


def test_other_shapes_are_refused():
    weights, x, y = np.zeros((4, 8), np.uint16), np.zeros(8, np.float32), np.zeros(4, np.float32)
    for wrong in ((x[:7], y, 1), (x, y[:3], 1), (x, y, 0)):
        with pytest.raises(ValueError, match=r"width|threads"):
            _native.half_product(weights, *wrong)
