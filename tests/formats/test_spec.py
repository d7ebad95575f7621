"""Descriptions of formats survive JSON, and wrong input is refused in one clear line."""

from __future__ import annotations

import json

import numpy as np
import pytest

from speq.errors import SpeqError
from speq.formats import Spec, SplitTensor, decode, encode


def test_a_spec_survives_json(spec):
    assert Spec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_residual_bits():
    widths = {(f, d): Spec.default(f, d).residual_bits for f in ("nested", "e3m0") for d in ("fp16", "bf16")}
    assert widths == {("nested", "fp16"): 12, ("nested", "bf16"): 10, ("e3m0", "fp16"): 12, ("e3m0", "bf16"): 12}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "int4"}, "unknown format 'int4'"),
        ({"dtype": "fp32"}, "unknown dtype 'fp32'"),
        ({"group_size": 48}, "group size 48"),
        ({"edges": [0.1] * 7}, "8 edges"),
        ({"edges": [float("nan")] * 8}, "8 edges"),
        ({"edges": [1e-7] * 8}, "8 edges"),
        ({"drops": [40000] * 8}, "8 drops"),
        ({"levels": [65] * 16}, "16 levels"),
        ({"levels": None}, "damaged"),
    ],
)
def test_wrong_specs_are_refused(change, message):
    with pytest.raises(SpeqError, match=message):
        Spec.from_dict(Spec.default().to_dict() | change)


@pytest.mark.parametrize(
    ("bits", "weights", "message"),
    [
        (np.zeros((2, 3), np.int16), None, "uint16 matrix"),
        (np.zeros(3, np.uint16), None, "uint16 matrix"),
        (np.zeros((0, 3), np.uint16), None, "empty"),
        (np.zeros((1, 65537), np.uint16), None, "65537 columns"),
        (np.broadcast_to(np.uint16(0), (1 << 17, 1 << 15)), None, "cannot be split"),
        (np.zeros((2, 3), np.uint16), np.ones(2, np.float32), "column weights have shape"),
        (np.zeros((2, 3), np.uint16), np.array([1, np.nan, 1], np.float32), "finite"),
        (np.zeros((2, 3), np.uint16), np.array([1, -1, 1], np.float32), "not negative"),
    ],
)
def test_wrong_matrices_are_refused(bits, weights, message):
    with pytest.raises(SpeqError, match=message):
        encode(bits, Spec.default(), column_weights=weights)


@pytest.fixture
def tensor() -> SplitTensor:
    return encode(np.random.default_rng(0).integers(0, 1 << 16, (9, 100)).astype(np.uint16), Spec.default())


def test_planes_rebuild_the_tensor(tensor):
    again = SplitTensor.from_planes(tensor.spec, tensor.shape, tensor.planes())
    assert np.array_equal(decode(again), decode(tensor))


def test_damaged_planes_are_refused(tensor):
    planes = tensor.planes()
    beyond = planes["escape_rows"].copy()
    beyond[1] = 1 << 31
    damaged = {
        "missing": {name: plane for name, plane in planes.items() if name != "scales"},
        "plane 'codes'": planes | {"codes": planes["codes"][:1]},
        "plane 'scales'": planes | {"scales": planes["scales"].astype(np.int16)},
        "outside": planes | {"escape_columns": planes["escape_columns"] | 0x8000},
        "points outside": planes | {"escape_rows": beyond},
    }
    for message, changed in damaged.items():
        with pytest.raises(SpeqError, match=message):
            SplitTensor.from_planes(tensor.spec, tensor.shape, changed)
