"""What is left of a conversion that was cut short, and how it goes on."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from hf_models import MakeModel, llama_tensors

from speq.checkpoint.store import load_converted
from speq.checkpoint.writer import WeightsWriter
from speq.conversion import split as split_module
from speq.conversion.convert import convert
from speq.conversion.restore import restore
from speq.errors import SpeqError
from speq.formats import SplitTensor


class Encoder:
    """Counts the matrices that are encoded, and raises when there were enough."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.encoded = 0
        self.limit: int | None = None
        self.error: BaseException = KeyboardInterrupt()
        self._encode = split_module.encode
        monkeypatch.setattr(split_module, "encode", self)

    def __call__(self, *args: Any, **kwargs: Any) -> SplitTensor:
        if self.encoded == self.limit:
            raise self.error
        self.encoded += 1
        return self._encode(*args, **kwargs)


@pytest.fixture
def encoder(monkeypatch: pytest.MonkeyPatch) -> Encoder:
    return Encoder(monkeypatch)


def test_an_interrupted_conversion_goes_on(make_model: MakeModel, tmp_path: Path, encoder: Encoder) -> None:
    source = make_model(llama_tensors())
    convert(source, tmp_path / "whole")
    matrices = encoder.encoded
    for limit in (0, 1, 6, 14):
        encoder.encoded, encoder.limit = 0, limit
        with pytest.raises(KeyboardInterrupt):
            convert(source, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        encoder.encoded, encoder.limit = 0, None
        convert(source, tmp_path / "out")
        assert encoder.encoded == matrices - limit
        load_converted(tmp_path / "out")
        for name in ("weights.safetensors", "speq.json", "config.json"):
            assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
        shutil.rmtree(tmp_path / "out")
        assert not list(tmp_path.glob(".*"))


def test_a_disk_that_is_full_at_the_very_end_loses_nothing(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: Encoder
) -> None:
    source = make_model(llama_tensors())

    def full(self: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(SpeqError, match="no space left"):
            convert(source, tmp_path / "out")
    encoder.encoded = 0
    convert(source, tmp_path / "out")
    assert encoder.encoded == 0
    load_converted(tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json",
        "speq.json",
        "tokenizer.json",
        "weights.safetensors",
    ]


def test_damage_to_the_unfinished_part_is_noticed(make_model: MakeModel, tmp_path: Path, encoder: Encoder) -> None:
    source = make_model(llama_tensors())
    encoder.limit = 5
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out")
    weights = tmp_path / ".out.partial/weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-3000])
    encoder.encoded, encoder.limit = 0, None
    convert(source, tmp_path / "out")
    assert 15 - 5 < encoder.encoded < 15
    load_converted(tmp_path / "out")


def test_other_options_start_over(make_model: MakeModel, tmp_path: Path, encoder: Encoder) -> None:
    source = make_model(llama_tensors())
    encoder.limit = 5
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out")
    encoder.encoded, encoder.limit = 0, None
    convert(source, tmp_path / "out", group_size=32)
    assert encoder.encoded == 15
    assert load_converted(tmp_path / "out").spec.group_size == 32


def test_the_same_conversion_is_not_done_twice(make_model: MakeModel, tmp_path: Path, encoder: Encoder) -> None:
    source = make_model(llama_tensors())
    first = convert(source, tmp_path / "out")
    again = convert(source, tmp_path / "out")
    assert encoder.encoded == 15
    assert (again.weights, again.bytes, again.seconds) == (first.weights, first.bytes, 0.0)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    with pytest.raises(SpeqError, match="exists and is not this conversion"):
        convert(source, tmp_path / "other")
    assert (tmp_path / "other/file").exists()


def test_an_empty_directory_is_fine(make_model: MakeModel, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "back").mkdir()
    convert(make_model(llama_tensors()), tmp_path / "out")
    restore(tmp_path / "out", tmp_path / "back")
    assert (tmp_path / "back/model.safetensors").exists()


def test_a_full_disk_is_said_and_survived(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: Encoder
) -> None:
    source = make_model(llama_tensors())
    add = WeightsWriter.add

    def full(self: WeightsWriter, *args: Any) -> None:
        if len(self.records) == 7:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        add(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(WeightsWriter, "add", full)
        with pytest.raises(SpeqError, match=r"no space left on the disk of .*free some and run again"):
            convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    convert(source, tmp_path / "out")
    load_converted(tmp_path / "out")


def test_too_little_space_is_noticed_before_any_work(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoder: Encoder
) -> None:
    source = make_model(llama_tensors())
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("speq.checkpoint.storage.shutil.disk_usage", lambda _: usage)
    with pytest.raises(SpeqError, match=r"needs 1 MB in .*, 0 MB are free"):
        convert(source, tmp_path / "out")
    assert encoder.encoded == 0
    assert not list(tmp_path.glob(".*"))


def test_a_read_only_place_is_named(make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_model(llama_tensors())

    def read_only(self: Path, *args: Any, **kwargs: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", read_only)
    with pytest.raises(SpeqError, match=r"cannot write to .*\(read-only file system\)"):
        convert(source, tmp_path / "out")


def test_two_at_once_do_not_mix(make_model: MakeModel, tmp_path: Path) -> None:
    source = make_model(llama_tensors())
    messages: list[str] = []

    def convert_meanwhile(_label: str, done: int, _total: int) -> None:
        if done and not messages:
            with pytest.raises(SpeqError) as caught:
                convert(source, tmp_path / "out")
            messages.append(str(caught.value))

    convert(source, tmp_path / "out", progress=convert_meanwhile)
    assert "another speq process" in messages[0]
    load_converted(tmp_path / "out")


def test_restoring_that_fails_leaves_nothing(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert(make_model(llama_tensors()), tmp_path / "out")
    before = sorted(tmp_path.iterdir())

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        restore(tmp_path / "out", tmp_path / "back", progress=interrupted)
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(SpeqError, match="out exists"):
        restore(tmp_path / "out", tmp_path / "out")
