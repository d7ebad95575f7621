"""Where a conversion is put, what is refused at once, and how one that is there is brought up to date."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf_models import random_weights, write_gguf
from hf_models import MakeModel, llama_tensors, save

from speq.checkpoint.store import load_converted
from speq.conversion import convert as convert_module
from speq.conversion import locate as resolve_module
from speq.conversion import split as split_module
from speq.conversion import workplace as build_module
from speq.conversion.convert import convert
from speq.conversion.locate import converted_model
from speq.conversion.restore import restore
from speq.conversion.workplace import Workplace, destination
from speq.errors import SpeqError
from speq.formats import SplitTensor


@pytest.fixture(autouse=True)
def encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The matrices that are encoded, one entry each; and a cache of our own."""
    monkeypatch.setenv("SPEQ_CACHE", str(tmp_path / "cache"))
    done: list[object] = []
    original = split_module.encode

    def encode(*args: Any, **kwargs: Any) -> SplitTensor:
        done.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(split_module, "encode", encode)
    return done


def content(path: Path) -> dict[str, bytes]:
    """All files below a directory, hidden ones too."""
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def hidden(path: Path) -> list[str]:
    return [str(file) for file in path.rglob(".*")]


@pytest.mark.parametrize(
    "spelled", [".", "./", "../here", "../here/", "./x/..", "../link", "new", "./new/", "a/b/c", ".hidden", "n" * 255]
)
@pytest.mark.parametrize("action", ["convert", "restore"])
def test_every_way_to_name_a_place(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spelled: str, action: str
) -> None:
    source = make_model(llama_tensors())
    convert(source, tmp_path / "whole")
    (tmp_path / "here").mkdir()
    (tmp_path / "link").symlink_to("here")
    monkeypatch.chdir(tmp_path / "here")
    inode = Path.cwd().stat().st_ino
    if action == "convert":
        assert convert(source, Path(spelled)).path == Path(spelled)
        assert convert(source, Path(spelled)).seconds == 0
        assert content(Path(os.path.realpath(spelled))) == content(tmp_path / "whole")
    else:
        restore(tmp_path / "whole", Path(spelled))
        assert (Path(os.path.realpath(spelled)) / "model.safetensors").exists()
    assert Path.cwd().stat().st_ino == inode
    assert [path for path in hidden(tmp_path) if not path.endswith("/.hidden")] == []


def test_a_link_to_nothing_yet_is_followed(make_model: MakeModel, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("elsewhere")
    convert(make_model(llama_tensors()), tmp_path / "link")
    load_converted(tmp_path / "elsewhere")
    assert (tmp_path / "link").is_symlink()


def test_a_directory_that_looks_empty_to_people_is_empty(make_model: MakeModel, tmp_path: Path) -> None:
    (tmp_path / "disk/lost+found").mkdir(parents=True)
    convert(make_model(llama_tensors()), tmp_path / "disk")
    load_converted(tmp_path / "disk")
    assert (tmp_path / "disk/lost+found").is_dir()


def refused_places(tmp_path: Path, source: Path) -> dict[str, tuple[Path, str]]:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").touch()
    (tmp_path / "loop").symlink_to("loop")
    return {
        "a file": (tmp_path / "file", "exists and is not a directory"),
        "below a file": (tmp_path / "file/below", "a file is where its directory should be"),
        "somebody's directory": (tmp_path / "mine", "exists and is not this conversion"),
        "the source": (source, "exists and is not this conversion"),
        "what holds the source": (tmp_path, "exists and is not this conversion"),
        "a name that is too long": (tmp_path / ("n" * 256), "File name too long"),
        "a name with a zero byte": (tmp_path / "a\0b", "null byte"),
        "a link to itself": (tmp_path / "loop", "a link to itself"),
    }


@pytest.mark.parametrize(
    "place",
    [
        "a file",
        "below a file",
        "somebody's directory",
        "the source",
        "what holds the source",
        "a name that is too long",
        "a name with a zero byte",
        "a link to itself",
    ],
)
def test_what_cannot_be_written_is_refused_before_any_work(
    make_model: MakeModel, tmp_path: Path, place: str, encoded: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_model(llama_tensors())
    dst, message = refused_places(tmp_path, source)[place]
    before = content(tmp_path)
    monkeypatch.setattr(convert_module, "identity", lambda *_: pytest.fail("the source was read"))
    with pytest.raises(SpeqError, match=message):
        convert(source, dst)
    assert content(tmp_path) == before
    assert not encoded
    assert not hidden(tmp_path)


def test_a_place_without_permission_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "locked").mkdir()
    monkeypatch.setattr(os, "access", lambda path, _: not str(path).endswith("locked"))
    for dst in (tmp_path / "locked", tmp_path / "locked/new", tmp_path / "locked/a/b"):
        with pytest.raises(SpeqError, match=r"cannot write to .*locked \(permission denied\)"):
            destination(dst)
    (tmp_path / "inside").mkdir()  # its parent need not be writable
    monkeypatch.setattr(os, "access", lambda path, _: str(path).endswith("inside"))
    assert destination(tmp_path / "inside") == tmp_path / "inside"


def test_inside_its_source_is_fine(make_model: MakeModel, tmp_path: Path) -> None:
    source = make_model(llama_tensors())
    convert(source, source / "speq")
    assert convert(source, source / "speq").seconds == 0


def test_a_refused_model_leaves_no_directories(make_model: MakeModel, tmp_path: Path) -> None:
    tensors = llama_tensors("F32")
    tensors["model.layers.1.mlp.up_proj.weight"][1][0, 0] = 1e6
    source = make_model(tensors)
    for dst in ("out", "a/b/c"):
        with pytest.raises(SpeqError, match="beyond the range of fp16"):
            convert(source, tmp_path / dst, dtype="fp16")
    assert sorted(path.name for path in tmp_path.iterdir()) in (["model"], ["cache", "model"])


EDITS: dict[str, Callable[[Path], object]] = {
    "a template is added": lambda source: (source / "chat_template.jinja").write_text("{{ messages }}"),
    "the tokenizer is edited": lambda source: (source / "tokenizer.json").write_text('{"a": 1}'),
    "the tokenizer is removed": lambda source: (source / "tokenizer.json").unlink(),
    "the config is edited": lambda source: (source / "config.json").write_text(
        json.dumps(json.loads((source / "config.json").read_text()) | {"rope_theta": 7.0})
    ),
}


@pytest.mark.parametrize("edit", list(EDITS))
@pytest.mark.parametrize("place", ["out", "."])
def test_what_lies_beside_the_weights_is_written_anew_without_them(
    make_model: MakeModel,
    tmp_path: Path,
    encoded: list[object],
    edit: str,
    place: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = make_model(llama_tensors())
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out" if place == "." else tmp_path)
    convert(source, Path(place))
    weights = (tmp_path / "out/weights.safetensors").stat()
    (tmp_path / "out/my notes.txt").write_text("mine")
    EDITS[edit](source)
    encoded.clear()
    report = convert(source, Path(place))
    assert not encoded
    assert report.notes[0].startswith("the weights are as they were; written anew: ")
    assert (tmp_path / "out/weights.safetensors").stat().st_ino == weights.st_ino
    convert(source, tmp_path / "fresh")
    assert content(tmp_path / "out") == content(tmp_path / "fresh") | {"my notes.txt": b"mine"}
    assert not hidden(tmp_path)
    assert convert(source, Path(place)).seconds == 0


def test_other_weights_take_the_place_of_the_old_ones_when_complete(
    make_model: MakeModel, tmp_path: Path, encoded: list[object]
) -> None:
    source = make_model(llama_tensors())
    convert(source, tmp_path / "out")
    before = content(tmp_path / "out")
    save(source / "model.safetensors", llama_tensors(seed=1))

    def interrupt(_label: str, done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out", progress=interrupt)
    assert {name: data for name, data in content(tmp_path / "out").items() if "/" not in name} == before
    load_converted(tmp_path / "out")
    encoded.clear()
    report = convert(source, tmp_path / "out")
    assert 0 < len(encoded) < 15
    assert report.notes == ["the weights of out have changed: it is converted anew"]
    convert(source, tmp_path / "fresh")
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


def test_other_options_are_done_and_said(make_model: MakeModel, tmp_path: Path) -> None:
    source = make_model(llama_tensors())
    convert(source, tmp_path / "out")
    report = convert(source, tmp_path / "out", format="e3m0")
    assert report.notes == ["out was converted with other options or by another release: it is converted anew"]
    assert load_converted(tmp_path / "out").spec.format == "e3m0"


def test_another_model_is_replaced_only_if_asked_for(make_model: MakeModel, tmp_path: Path) -> None:
    convert(make_model(llama_tensors()), tmp_path / "out")
    before = content(tmp_path / "out")
    other = make_model(llama_tensors(seed=1), name="other")
    with pytest.raises(SpeqError, match=r"out is a conversion of another model \(model\); .* use --force"):
        convert(other, tmp_path / "out")
    assert content(tmp_path / "out") == before
    convert(other, tmp_path / "out", replace_other=True)
    assert load_converted(tmp_path / "out").source["name"] == "other"


@pytest.mark.parametrize("moved", range(5))
@pytest.mark.parametrize("weights", [False, True])
def test_a_replacement_cut_short_among_its_files_is_finished_by_the_next(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: bool, moved: int
) -> None:
    source = make_model(llama_tensors())
    (source / "LICENSE").write_text("old")
    convert(source, tmp_path / "out")
    (source / "LICENSE").unlink()
    (source / "tokenizer.json").write_text('{"new": 1}')
    if weights:
        save(source / "model.safetensors", llama_tensors(seed=1))
    convert(source, tmp_path / "fresh")
    original, count = Path.replace, 0

    def cut(self: Path, target: Path) -> Path:
        nonlocal count
        if target.parent == tmp_path / "out":
            if count == moved:
                raise KeyboardInterrupt
            count += 1
        return original(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", cut)
        try:
            convert(source, tmp_path / "out")
        except KeyboardInterrupt:
            assert count == moved
    assert converted_model(str(tmp_path / "out"), calibrate=False) == tmp_path / "out"
    assert content(tmp_path / "out") == content(tmp_path / "fresh")
    assert convert(source, tmp_path / "out").seconds == 0


def test_a_result_that_was_complete_but_not_in_its_place_is_put_there(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoded: list[object]
) -> None:
    source = make_model(llama_tensors())

    def killed(self: Workplace) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Workplace, "settle", killed)
        with pytest.raises(KeyboardInterrupt):
            convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    encoded.clear()
    convert(source, tmp_path / "out")
    assert not encoded
    load_converted(tmp_path / "out")
    assert not hidden(tmp_path)


def test_a_source_that_changes_meanwhile_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    source = make_model(llama_tensors())

    def edit(_label: str, done: int, total: int) -> None:
        if done == total:
            (source / "tokenizer.json").write_text('{"new": 1}')

    with pytest.raises(SpeqError, match="model has changed while it was converted; convert it again"):
        convert(source, tmp_path / "out", progress=edit)
    assert not (tmp_path / "out").exists()
    assert not hidden(tmp_path)

    def touch(_label: str, done: int, total: int) -> None:
        os.utime(source / "tokenizer.json", (5, 5))

    convert(source, tmp_path / "out", progress=touch)


def test_a_conversion_of_an_earlier_release_is_done_anew(make_model: MakeModel, tmp_path: Path) -> None:
    source = make_model(llama_tensors())
    convert(source, tmp_path / "out")
    manifest = json.loads((tmp_path / "out/speq.json").read_text())
    manifest["job"]["source"] = "0123456789abcdef"
    (tmp_path / "out/speq.json").write_text(json.dumps(manifest))
    convert(source, tmp_path / "out")
    convert(source, tmp_path / "fresh")
    assert content(tmp_path / "out") == content(tmp_path / "fresh")


def test_the_cache_shares_weights_and_keeps_both_conversions(
    make_model: MakeModel, tmp_path: Path, encoded: list[object]
) -> None:
    source = make_model(llama_tensors())
    first = converted_model(str(source), calibrate=False)
    encoded.clear()
    (source / "chat_template.jinja").write_text("new")
    other = converted_model(str(source), calibrate=False)
    assert other != first
    assert (other / "chat_template.jinja").read_text() == "new"
    assert not (first / "chat_template.jinja").exists()
    assert (other / "weights.safetensors").stat().st_ino == (first / "weights.safetensors").stat().st_ino
    (source / "chat_template.jinja").unlink()
    assert converted_model(str(source), calibrate=False) == first
    shutil.copytree(source, tmp_path / "copy")
    assert converted_model(str(tmp_path / "copy"), calibrate=False) == first
    assert not encoded


def test_damaged_weights_are_not_shared(make_model: MakeModel, tmp_path: Path, encoded: list[object]) -> None:
    source = make_model(llama_tensors())
    first = converted_model(str(source), calibrate=False)
    data = bytearray((first / "weights.safetensors").read_bytes())
    data[-100] ^= 1
    (first / "weights.safetensors").write_bytes(data)
    encoded.clear()
    (source / "chat_template.jinja").write_text("new")
    load_converted(converted_model(str(source), calibrate=False))
    assert len(encoded) == 15


def test_without_hard_links_weights_are_copied(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoded: list[object]
) -> None:
    source = make_model(llama_tensors())
    first = converted_model(str(source), calibrate=False)
    (source / "chat_template.jinja").write_text("new")
    encoded.clear()

    def no_links(*_: object) -> None:
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", no_links)
    other = converted_model(str(source), calibrate=False)
    assert not encoded
    assert (other / "weights.safetensors").read_bytes() == (first / "weights.safetensors").read_bytes()


def test_what_vanished_sources_left_in_the_cache_is_removed(make_model: MakeModel, tmp_path: Path) -> None:
    def interrupt(label: str, done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    gone, edited, kept = (make_model(llama_tensors(seed=seed), name=f"m{seed}") for seed in (1, 2, 3))
    for source in (gone, edited, kept):
        with pytest.raises(KeyboardInterrupt):
            converted_model(str(source), progress=interrupt, calibrate=False)
    cache = tmp_path / "cache/converted"
    (cache / ".old-0123.plain").mkdir()  # an earlier release's
    (cache / ".old-0123.plain/speq.json").write_text("{}")
    assert len(hidden(cache)) > 3
    shutil.rmtree(gone)
    save(edited / "model.safetensors", llama_tensors(seed=4))
    converted_model(str(edited), calibrate=False)
    left = [path.name for path in cache.glob(".*")]
    assert len(left) == 1
    assert left[0].startswith(".m3-")


def test_two_at_once_share_one_result(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoded: list[object]
) -> None:
    source = make_model(llama_tensors())
    original = convert_module.workplace

    def slower(target: Path, job: dict[str, Any], src: Path) -> Any:
        monkeypatch.setattr(convert_module, "workplace", original)
        convert(source, tmp_path / "out")  # the other process, between the look and the lock
        return original(target, job, src)

    monkeypatch.setattr(convert_module, "workplace", slower)
    convert(source, tmp_path / "out")
    assert len(encoded) == 15
    load_converted(tmp_path / "out")
    assert not hidden(tmp_path)


def test_a_gguf_with_another_template_keeps_its_weights(tmp_path: Path, encoded: list[object]) -> None:
    path = write_gguf(tmp_path / "m.gguf", random_weights())
    convert(path, tmp_path / "out")
    assert encoded
    other = tmp_path / "n/m.gguf"
    other.parent.mkdir()
    shutil.copy(path, other)
    assert convert(other, tmp_path / "out").seconds == 0
    assert build_module.source_at(tmp_path / "out")["file"] == "m.gguf"
    assert resolve_module.identity(other) == resolve_module.identity(path)
