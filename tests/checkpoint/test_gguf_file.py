"""The GGUF container against the gguf package's own reader."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_models import random_weights, write_gguf

from speq.checkpoint.gguf.file import GGUFFile
from speq.errors import SpeqError


def test_agrees_with_the_gguf_package(tmp_path: Path) -> None:
    metadata = {
        "a.list": ["x", "ünï", ""],
        "a.numbers": [1, -2, 3],
        "a.floats": [0.5, 1.5],
        "a.flag": True,
        "a.text": "é",
    }
    path = write_gguf(tmp_path / "m.gguf", random_weights(), kind="Q8_0", metadata=metadata)
    ours, theirs = GGUFFile(path), gguf.GGUFReader(path)
    expected = {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert ours.metadata == expected
    assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        mine = ours.tensors[tensor.name]
        assert mine.type == tensor.tensor_type.name
        assert mine.shape == tuple(int(n) for n in reversed(tensor.shape))
        assert mine.data.tobytes() == np.ascontiguousarray(tensor.data).tobytes()


def test_truncations_are_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", random_weights(), kind="Q8_0")
    content = path.read_bytes()
    start = content.index(b"token_embd") + 2000
    for length in [*range(4, start, 7), start, len(content) // 2, len(content) - 200]:
        (tmp_path / "cut.gguf").write_bytes(content[:length])
        with pytest.raises(SpeqError, match=r"cut\.gguf is truncated"):
            GGUFFile(tmp_path / "cut.gguf")


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"something else")
    with pytest.raises(SpeqError, match="not a GGUF file"):
        GGUFFile(tmp_path / "a.gguf")
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + (7).to_bytes(4, "little") + bytes(64))
    with pytest.raises(SpeqError, match="GGUF version 7"):
        GGUFFile(tmp_path / "a.gguf")


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (5, bytes(4)),  # int32 0
        (5, b"\xe0\xff\xff\xff"),  # int32 -32
        (6, np.float32(1.5).tobytes()),
        (7, b"\1"),  # true
        (8, (2).to_bytes(8, "little") + b"32"),
    ],
)
def test_alignments_that_cannot_be_are_refused(tmp_path: Path, kind: int, value: bytes) -> None:
    content = write_gguf(tmp_path / "m.gguf", random_weights()).read_bytes()
    name = b"general.alignment"
    key = len(name).to_bytes(8, "little") + name + kind.to_bytes(4, "little") + value
    count = int.from_bytes(content[16:24], "little") + 1
    (tmp_path / "odd.gguf").write_bytes(content[:16] + count.to_bytes(8, "little") + key + content[24:])
    with pytest.raises(SpeqError, match=r"odd\.gguf is truncated or damaged"):
        GGUFFile(tmp_path / "odd.gguf")


def test_tensors_that_overlap_are_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", random_weights())
    content = bytearray(path.read_bytes())
    at = content.index(b"blk.0.attn_k.weight") + len(b"blk.0.attn_k.weight") + 4 + 16 + 4
    content[at : at + 8] = bytes(8)
    path.write_bytes(content)
    with pytest.raises(SpeqError, match=r"m\.gguf: tensor .* is there twice or overlaps another"):
        GGUFFile(path)
