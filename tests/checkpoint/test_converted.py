"""The converted checkpoint on disk: alignment, checksums, versions, truncation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors
import xxhash
from hf_models import MakeModel, llama_tensors

from speq.checkpoint.safetensors import SafetensorsFile
from speq.checkpoint.store import is_converted, load_converted
from speq.conversion.convert import convert
from speq.conversion.restore import restore
from speq.errors import SpeqError


@pytest.fixture
def converted(make_model: MakeModel, tmp_path: Path) -> Path:
    convert(make_model(llama_tensors()), tmp_path / "out")
    return tmp_path / "out"


def test_the_official_library_reads_the_container(converted: Path) -> None:
    tensors = dict(safetensors.deserialize((converted / "weights.safetensors").read_bytes()))
    ours = load_converted(converted)
    for name, split in ours.split.items():
        for plane, array in split.planes().items():
            assert bytes(tensors[f"{name}.{plane}"]["data"]) == array.tobytes()
            assert tuple(tensors[f"{name}.{plane}"]["shape"]) == array.shape
    assert ours.bytes == (converted / "weights.safetensors").stat().st_size


def test_planes_are_aligned(converted: Path) -> None:
    for split in load_converted(converted).split.values():
        for plane in (split.codes, split.residual, split.scales):
            assert plane.ctypes.data % 64 == 0
        for plane in split.planes().values():
            assert plane.ctypes.data % plane.itemsize == 0
            assert not plane.flags.writeable


def test_checksums_are_xxh3(converted: Path) -> None:
    tensors = dict(safetensors.deserialize((converted / "weights.safetensors").read_bytes()))
    records = json.loads((converted / "speq.json").read_text())["tensors"]
    assert {record["name"] for record in records} == set(llama_tensors())
    for record in records:
        for name, value in record["checksums"].items():
            assert xxhash.xxh3_64_hexdigest(bytes(tensors[name]["data"])) == value


def test_any_flipped_bit_names_its_tensor(converted: Path) -> None:
    weights = converted / "weights.safetensors"
    content = weights.read_bytes()
    file = SafetensorsFile(weights)
    start = 8 + int.from_bytes(content[:8], "little")
    checked = 0
    for name, entry in file.entries.items():
        if name.endswith(".pad") or entry.begin == entry.end:
            continue
        at = start + (entry.begin + entry.end) // 2
        weights.write_bytes(content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :])
        tensor = name if name in llama_tensors() else name.rpartition(".")[0]
        with pytest.raises(SpeqError, match=f"tensor {tensor} is corrupted"):
            load_converted(converted)
        checked += 1
    assert checked > 60
    with pytest.raises(SpeqError, match="is corrupted"):
        restore(converted, converted.parent / "back")
    assert not (converted.parent / "back").exists()


def test_truncation_is_noticed_without_reading_everything(converted: Path) -> None:
    weights = converted / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(SpeqError, match=r"weights\.safetensors is truncated"):
        load_converted(converted, verify=False)
    weights.unlink()
    with pytest.raises(SpeqError, match=r"weights\.safetensors is missing"):
        load_converted(converted)


def test_other_versions_are_refused(converted: Path) -> None:
    manifest = json.loads((converted / "speq.json").read_text())
    (converted / "speq.json").write_text(json.dumps(manifest | {"format_version": 2}))
    for attempt in (load_converted, lambda path: restore(path, path.parent / "back")):
        with pytest.raises(
            SpeqError, match="format version 2, this speq reads version 1; delete the directory and convert"
        ):
            attempt(converted)
    assert is_converted(converted)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"format_version": 1}', '{"format_version": 1, "tensors": [{}]}'])
def test_damaged_manifests_are_refused(converted: Path, content: str) -> None:
    (converted / "speq.json").write_text(content)
    with pytest.raises(SpeqError, match=r"speq\.json"):
        load_converted(converted)


def test_missing_files_are_named(converted: Path, tmp_path: Path) -> None:
    (converted / "config.json").unlink()
    with pytest.raises(SpeqError, match=r"no config\.json"):
        load_converted(converted)
    with pytest.raises(SpeqError, match=r"no converted checkpoint"):
        load_converted(tmp_path / "model")
    assert not is_converted(tmp_path / "model")


def test_planes_that_do_not_fit_are_refused(converted: Path) -> None:
    manifest = json.loads((converted / "speq.json").read_text())
    manifest["tensors"][0]["shape"] = [51, 640]
    (converted / "speq.json").write_text(json.dumps(manifest))
    with pytest.raises(SpeqError, match=r"tensor model\.embed_tokens\.weight"):
        load_converted(converted)
