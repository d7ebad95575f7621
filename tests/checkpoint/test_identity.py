"""What makes two sources the same: their content, whatever their names and times say, and how rarely it is read."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_models import random_weights, write_gguf
from hf_models import MakeModel, llama_tensors, save

from speq.checkpoint import digests as digests_module
from speq.checkpoint.digests import data_digest
from speq.checkpoint.sources import opening as source_module
from speq.checkpoint.sources.huggingface import CARRIED
from speq.checkpoint.sources.opening import identity, same_weights
from speq.errors import SpeqError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPEQ_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The parts of files that are really read, in a time when all files are old enough to be remembered."""
    monkeypatch.setattr(digests_module, "_SETTLED_NS", -(10**18))
    done: list[str] = []
    original = digests_module._digest_of

    def digest_of(file: Any, buffer: memoryview, first: int, *rest: Any) -> str:
        done.append(f"{Path(file.name).name} from {first}")
        return original(file, buffer, first, *rest)

    monkeypatch.setattr(digests_module, "_digest_of", digest_of)
    return done


def same_times(*directories: Path) -> None:
    for directory in directories:
        for path in (directory, *directory.rglob("*")):
            os.utime(path, (1, 1))


def test_equal_sizes_and_times_do_not_make_two_models_one(make_model: MakeModel) -> None:
    first, other = make_model(llama_tensors()), make_model(llama_tensors(seed=1), name="other")
    same_times(first, other)
    assert identity(first) != identity(other)
    assert not same_weights(identity(first), identity(other))


@pytest.mark.parametrize("shards", [1, 3])
def test_one_changed_bit_anywhere_in_the_weights_is_seen(make_model: MakeModel, shards: int) -> None:
    source = make_model(llama_tensors(), shards=shards)
    known = identity(source)
    for path in sorted(source.glob("*.safetensors")):
        content = path.read_bytes()
        begin = 8 + int.from_bytes(content[:8], "little")
        for at in (begin, (begin + len(content)) // 2, len(content) - 1):
            path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
            same_times(source)
            assert not same_weights(identity(source), known), (path.name, at)
        path.write_bytes(content)
    assert identity(source) == known


def test_tensors_that_change_places_are_seen(make_model: MakeModel) -> None:
    tensors = llama_tensors()
    source = make_model(tensors)
    known = identity(source)
    path = source / "model.safetensors"
    content = path.read_bytes()
    a, b = b"layers.0.mlp.gate_proj", b"layers.1.mlp.gate_proj"
    path.write_bytes(content.replace(a, b"#" * len(a)).replace(b, a).replace(b"#" * len(a), b))
    assert not same_weights(identity(source), known)


@pytest.mark.parametrize("name", ["config.json", *CARRIED])
def test_every_carried_file_counts_and_leaves_the_weights_as_they_are(make_model: MakeModel, name: str) -> None:
    source = make_model(llama_tensors())
    config = json.loads((source / "config.json").read_text())

    file = source / name.replace("*", "tool_use")
    file.parent.mkdir(exist_ok=True)

    def edited(value: int) -> str:
        file.write_text(json.dumps(config | {"added": value}))
        same_times(source)
        return identity(source)

    first, other = edited(1), edited(2)
    assert first != other
    assert same_weights(first, other)
    assert edited(1) == first
    (source / "notes.md").write_text("not carried")
    assert identity(source) == first


def test_a_copy_elsewhere_is_the_same_model(make_model: MakeModel, tmp_path: Path) -> None:
    source = make_model(llama_tensors(), shards=2)
    shutil.copytree(source, tmp_path / "copy")
    (tmp_path / "link").symlink_to(source)
    assert identity(tmp_path / "copy") == identity(tmp_path / "link") == identity(source)
    path = write_gguf(tmp_path / "m.gguf", random_weights())
    shutil.copy(path, tmp_path / "n.gguf")
    assert identity(path) == identity(tmp_path / "n.gguf")


def test_metadata_of_a_gguf_leaves_its_weights_as_they_are(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", random_weights())
    other = tmp_path / "n.gguf"
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(other, "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            kind = field.types[0]
            sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            value = 5e5 if field.name == "llama.rope.freq_base" else field.contents()
            writer.add_key_value(field.name, value, kind, sub)
    writer.add_rope_freq_base(5e5)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert identity(path) != identity(other)
    assert same_weights(identity(path), identity(other))


def test_a_file_that_nobody_touched_is_read_once(
    make_model: MakeModel, tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source, path = make_model(llama_tensors(), shards=2), write_gguf(tmp_path / "m.gguf", random_weights())
    known = identity(source), identity(path)
    assert len(reads) == 3
    monkeypatch.setattr(source_module, "data_digest", digests_module.data_digest)
    assert (identity(source), identity(path)) == known
    assert len(reads) == 3
    weights = source / "model-00001-of-00002.safetensors"
    times = weights.stat()
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    with weights.open("r+b") as file:
        file.write(content)
    os.utime(weights, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert identity(source) != known[0]
    assert len(reads) == 4
    same_times(source)
    identity(source)
    assert len(reads) == 6


def test_a_file_that_has_just_been_changed_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"one")
    before = path.stat()
    first = data_digest(path, 0)
    # A change within the step in which the file system counts time leaves all its times as they were.
    monkeypatch.setattr(digests_module, "stamp", lambda _: [3, before.st_mtime_ns, before.st_ctime_ns, before.st_ino])
    path.write_bytes(b"two")
    assert data_digest(path, 0) != first
    now = time.time_ns
    monkeypatch.setattr(digests_module.time, "time_ns", lambda: now() + 10**10)
    settled = data_digest(path, 0)
    path.write_bytes(b"six")  # what the stamp does not tell is not noticed later on
    assert data_digest(path, 0) == settled


def test_reading_that_is_cut_short_goes_on(tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests_module, "_PART_BYTES", 1000)
    path = tmp_path / "data"
    path.write_bytes(np.random.default_rng(0).bytes(4500))

    whole = data_digest(tmp_path / "data", 100)
    assert len(reads) == 5
    shutil.copy(path, tmp_path / "copy")
    original = digests_module._digest_of
    for left in range(5):
        count = 0

        def one(*args: Any) -> str:
            nonlocal count
            if count:
                raise KeyboardInterrupt
            count += 1
            return original(*args)

        monkeypatch.setattr(digests_module, "_digest_of", one)
        if left < 4:
            with pytest.raises(KeyboardInterrupt):
                data_digest(tmp_path / "copy", 100)
    monkeypatch.setattr(digests_module, "_digest_of", original)
    assert data_digest(tmp_path / "copy", 100) == whole
    assert len(reads) == 10


def test_a_cache_that_cannot_be_written_to_costs_time_only(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[str]
) -> None:
    source = make_model(llama_tensors())
    known = identity(source)
    (tmp_path / "file").touch()
    monkeypatch.setenv("SPEQ_CACHE", str(tmp_path / "file"))
    assert identity(source) == identity(source) == known
    assert len(reads) == 3


@pytest.mark.parametrize("content", ["", "[]", "{", '{"stamp": 1}', '{"stamp": [], "values": []}'])
def test_a_damaged_memory_is_no_memory(tmp_path: Path, cache: Path, reads: list[str], content: str) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"one")
    known = data_digest(path, 0)
    (place,) = (cache / "digests").iterdir()
    place.write_text(content)
    assert data_digest(path, 0) == known
    assert len(reads) == 2


def test_what_vanished_is_forgotten(tmp_path: Path, cache: Path, reads: list[str]) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(name)
        data_digest(tmp_path / name, 0)
        (tmp_path / name).unlink()
    assert len(list((cache / "digests").iterdir())) == 1


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"one")

    def grow(_: int) -> None:
        with path.open("ab") as file:
            file.write(b"more")

    with pytest.raises(SpeqError, match="data is being written to; wait"):
        data_digest(path, 0, grow)


def test_saving_the_same_tensors_again_changes_nothing(make_model: MakeModel) -> None:
    source = make_model(llama_tensors())
    known = identity(source)
    save(source / "model.safetensors", llama_tensors())
    assert identity(source) == known
