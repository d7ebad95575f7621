"""Files that are not the weights they are given for are named by what they are."""

from __future__ import annotations

import gzip
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import gguf
import numpy as np
import pytest

from speq.checkpoint.foreign import describe_file
from speq.checkpoint.safetensors import SafetensorsFile
from speq.checkpoint.sources.opening import open_source
from speq.conversion.locate import locate
from speq.errors import SpeqError

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 269060552\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>"


def test_pickled_checkpoints(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    tensors = {"model.embed_tokens.weight": torch.ones(3, 4)}
    torch.save(tensors, tmp_path / "model.pth")
    torch.save(tensors, tmp_path / "model.bin", _use_new_zipfile_serialization=False)
    for name in ("model.pth", "model.bin"):
        with pytest.raises(SpeqError, match=rf"{name} is a pickled PyTorch checkpoint.*safetensors"):
            open_source(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty: download the file itself again"),
        (bytes(5000), "begins with zeros"),
        (POINTER, "is a git-lfs pointer and not the file itself: run `git lfs pull`"),
        (PAGE, "is a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is a web page"),
        (b'{"weight_map": {}}', "is JSON and not weights: give the directory"),
        (b"lmgg" + bytes(60), "is in the GGML format, which GGUF replaced"),
        (b"fmgg" + bytes(60), "is in the GGMF format"),
        (b"tjgg\x03\0\0\0" + bytes(60), "is in the GGJT format"),
        (b"\x08\x07\x12\x07pytorch\x1a\x051.9.0", "is an ONNX model"),
        (b"\x89HDF\r\n\x1a\n" + bytes(60), "is an HDF5 file"),
        (b"\x1c\0\0\0TFL3" + bytes(60), "is a TensorFlow Lite model"),
        (gzip.compress(b"weights"), "is a gzip archive: unpack it first"),
    ],
)
def test_other_files_are_named_by_their_content(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "model.gguf").write_bytes(content)
    with pytest.raises(SpeqError, match=r"model\.gguf ") as failed:
        open_source(tmp_path / "model.gguf")
    assert message in str(failed.value)


def test_archives(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"weights")
    np.savez(tmp_path / "arrays.npz", a=np.ones(3))
    np.save(tmp_path / "array.npy", np.ones(3))
    with zipfile.ZipFile(tmp_path / "model.zip", "w") as packed:
        packed.write(tmp_path / "weights")
    with tarfile.open(tmp_path / "model.tar", "w") as tar:
        tar.add(tmp_path / "weights", "weights")
    for name, message in [
        ("arrays.npz", "is an archive of NumPy arrays"),
        ("array.npy", "is a single NumPy array"),
        ("model.zip", "is a ZIP archive: unpack it first"),
        ("model.tar", "is a tar archive: unpack it first"),
        ("weights", "is not a GGUF file (nor a model directory)"),
    ]:
        with pytest.raises(SpeqError) as failed:
            open_source(tmp_path / name)
        assert message in str(failed.value)


def test_weights_without_their_directory(tmp_path: Path, tiny_checkpoint: Path) -> None:
    weights = tiny_checkpoint / "model.safetensors"
    with pytest.raises(SpeqError, match=rf"without its config: give its directory, {tiny_checkpoint}"):
        open_source(weights)
    with pytest.raises(SpeqError, match="without its config: get the config and the tokenizer"):
        open_source(Path(shutil.copy(weights, tmp_path)))


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize(("content", "message"), [(POINTER, "git-lfs pointer"), (PAGE, "web page"), (b"", "is empty")])
def test_files_of_a_directory_that_are_something_else(
    tmp_path: Path, tiny_checkpoint: Path, name: str, content: bytes, message: str
) -> None:
    directory = shutil.copytree(tiny_checkpoint, tmp_path / "copy")
    (directory / name).write_bytes(content)
    with pytest.raises(SpeqError) as failed:
        open_source(directory)
    assert str(directory / name) in str(failed.value)
    assert message in str(failed.value)


def test_a_gguf_file_under_another_name(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"GGUF\x03\0\0\0" + bytes(40))
    with pytest.raises(SpeqError, match=r"model\.safetensors is a GGUF file: give its own path"):
        SafetensorsFile(tmp_path / "model.safetensors")


def test_what_was_expected_is_not_described(tmp_path: Path, tiny_checkpoint: Path) -> None:
    assert describe_file(tiny_checkpoint / "model.safetensors", "safetensors") is None
    assert describe_file(tiny_checkpoint / "config.json", "json") is None
    assert describe_file(tmp_path / "absent", "gguf") is None


def test_big_endian_files_and_the_first_version(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "big.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_tensor("t", np.ones((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(SpeqError, match=r"big-endian GGUF file \(version 3\).*gguf-convert-endian"):
        open_source(tmp_path / "big.gguf")
    (tmp_path / "old.gguf").write_bytes(b"GGUF\x01\0\0\0" + bytes(64))
    with pytest.raises(SpeqError, match="is GGUF version 1"):
        open_source(tmp_path / "old.gguf")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names here")
def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    for name in (str(tmp_path / "pipe.gguf"), os.devnull):
        with pytest.raises(SpeqError, match="is neither a directory nor a file"):
            locate(name)
