"""The GGUF container against the gguf package's own reader."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf_models import random_weights, write_gguf

from speq.checkpoint.gguf_file import GGUFFile
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
