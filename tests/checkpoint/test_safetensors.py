"""The container against the official library, and what a damaged file says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hf_models import llama_tensors, save
from safetensors import deserialize

from speq.checkpoint.safetensors import SafetensorsFile, write_header
from speq.errors import SpeqError


def test_reads_what_the_official_library_writes(tmp_path: Path) -> None:
    tensors = llama_tensors("BF16") | {"ids": ("I64", np.arange(5)), "scalar": ("F32", np.array(7, np.float32))}
    save(tmp_path / "a.safetensors", tensors)
    file = SafetensorsFile(tmp_path / "a.safetensors")
    assert set(file.entries) == set(tensors)
    assert file.metadata == {"format": "pt"}
    for name, (kind, array) in tensors.items():
        assert file.entries[name].dtype == kind
        assert np.array_equal(file.array(name), array)


def test_the_official_library_reads_what_we_write(tmp_path: Path) -> None:
    arrays = {"a": np.arange(7, dtype=np.uint16), "b": np.arange(6, dtype=np.float32).reshape(2, 3)}
    with (tmp_path / "b.safetensors").open("wb") as out:
        write_header(out, {"a": ("BF16", (7,)), "b": ("F32", (2, 3))})
        for array in arrays.values():
            out.write(array.tobytes())
    content = (tmp_path / "b.safetensors").read_bytes()
    read = dict(deserialize(content))
    assert {name: item["shape"] for name, item in read.items()} == {"a": [7], "b": [2, 3]}
    assert all(bytes(read[name]["data"]) == arrays[name].tobytes() for name in arrays)
    assert (8 + int.from_bytes(content[:8], "little")) % 64 == 0


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "a.safetensors", {"w": ("F32", np.ones((3, 5), np.float32))})
    content = (tmp_path / "a.safetensors").read_bytes()
    for length in range(1, len(content)):
        (tmp_path / "cut.safetensors").write_bytes(content[:length])
        with pytest.raises(SpeqError, match=r"cut\.safetensors is truncated"):
            SafetensorsFile(tmp_path / "cut.safetensors")


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{",
        b'{"w": 3}',
        b'{"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        b'{"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
        b'{"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}',
        b'{"w": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}',
        b'{"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "v": {"dtype": "F32", "shape": [1], '
        b'"data_offsets": [0, 4]}}',
        b'{"w": {"dtype": "F32", "shape": [1e999], "data_offsets": [0, 4]}}',
        b'{"w": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}',
        b'{"w": {"dtype": "F32", "shape": ["1"], "data_offsets": [0, 4]}}',
        b'{"w": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}',
        b'{"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "v": {"dtype": "F32", "shape": '
        b'[0, 4611686018427387904, 4], "data_offsets": [4, 4]}}',
        b'{"w": {"dtype": "F32", "shape": [' + b"1," * 99 + b'1], "data_offsets": [0, 4]}}',
        b'{"w": ' + b"[" * 200000 + b"}",
    ],
)
def test_senseless_headers_are_refused(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "bad.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(SpeqError, match=r"bad\.safetensors"):
        SafetensorsFile(tmp_path / "bad.safetensors")


def test_unknown_type_and_missing_things_are_named(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F3", "shape": [4], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "odd.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(SpeqError, match="tensor w has the unknown type F3"):
        SafetensorsFile(tmp_path / "odd.safetensors")
    with pytest.raises(SpeqError, match=r"none\.safetensors is missing"):
        SafetensorsFile(tmp_path / "none.safetensors")
    save(tmp_path / "a.safetensors", {"w": ("F32", np.ones(1, np.float32))})
    with pytest.raises(SpeqError, match="no tensor v"):
        SafetensorsFile(tmp_path / "a.safetensors").array("v")
