"""From a name to a converted checkpoint, converted once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_models import random_weights, write_gguf
from hf_models import MakeModel, llama_tensors

from speq.checkpoint.sources.opening import identity
from speq.checkpoint.store import load_converted
from speq.conversion import locate as resolve_module
from speq.conversion.convert import convert
from speq.conversion.locate import converted_model, locate
from speq.errors import SpeqError
from speq.formats import decode


@pytest.fixture(autouse=True)
def conversions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """A cache of our own, and the list of conversions that happen."""
    monkeypatch.setenv("SPEQ_CACHE", str(tmp_path / "cache"))
    done: list[Path] = []

    def counted(src: Path, dst: Path, **options: Any) -> Any:
        done.append(dst)
        return convert(src, dst, **options)

    monkeypatch.setattr(resolve_module, "convert", counted)
    return done


def test_paths_are_converted_once_per_options(make_model: MakeModel, tmp_path: Path, conversions: list[Path]) -> None:
    model = make_model(llama_tensors())
    first = converted_model(str(model), calibrate=False)
    assert first.parent == tmp_path / "cache/converted"
    assert first.name.startswith("model-")
    assert converted_model(str(model), calibrate=False) == first
    assert converted_model(str(model), format="nested", group_size=64, calibrate=False) == first
    other = converted_model(str(model), format="e3m0", group_size=32, calibrate=False)
    assert other != first
    assert load_converted(other).spec.format == "e3m0"
    assert len(conversions) == 2


def test_a_changed_file_is_converted_again(tmp_path: Path, conversions: list[Path]) -> None:
    path = write_gguf(tmp_path / "m.gguf", random_weights())
    first = converted_model(str(path), calibrate=False)
    write_gguf(path, random_weights(1))
    assert converted_model(str(path), calibrate=False) != first
    assert len(conversions) == 2


def test_two_models_of_equal_sizes_and_times_have_a_conversion_each(
    make_model: MakeModel, tmp_path: Path, conversions: list[Path]
) -> None:
    paths = []
    for seed, parent in enumerate(("a", "b")):
        (tmp_path / parent).mkdir()
        model = make_model(llama_tensors(seed=seed), name=f"{parent}/model")
        for file in model.iterdir():
            os.utime(file, (1, 1))
        paths.append(converted_model(str(model), calibrate=False))
    assert len(conversions) == len(set(paths)) == 2
    name = "model.layers.0.mlp.up_proj.weight"
    for seed, path in enumerate(paths):
        assert np.array_equal(decode(load_converted(path).split[name]), llama_tensors(seed=seed)[name][1])


def test_a_pull_of_an_earlier_release_outlives_its_source_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, conversions: list[Path]
) -> None:
    source = write_gguf(tmp_path / "pulled.gguf", random_weights())
    monkeypatch.setattr(resolve_module, "identity", lambda *_: "0123456789abcdef")  # as it named sources
    monkeypatch.setattr("speq.conversion.convert.identity", lambda *_: "0123456789abcdef")
    directory = tmp_path / "cache/models/smollm2-135m-instruct"
    directory.mkdir(parents=True)
    record = {"path": str(source), "identity": "0123456789abcdef"}
    path = converted_model(str(source), calibrate=False)
    source.unlink()
    (directory / "source.json").write_text(json.dumps(record))
    monkeypatch.undo()
    monkeypatch.setenv("SPEQ_CACHE", str(tmp_path / "cache"))
    assert converted_model("smollm2-135m-instruct", calibrate=False) == path


def test_converted_directories_are_taken_as_they_are(make_model: MakeModel, tmp_path: Path) -> None:
    convert(make_model(llama_tensors()), tmp_path / "mine", group_size=32)
    assert converted_model(str(tmp_path / "mine"), calibrate=False) == tmp_path / "mine"
    assert converted_model(str(tmp_path / "mine"), group_size=32, dtype="bf16", calibrate=False) == tmp_path / "mine"
    with pytest.raises(SpeqError, match="is converted with --group-size 32, not 64"):
        converted_model(str(tmp_path / "mine"), group_size=64, calibrate=False)
    with pytest.raises(SpeqError, match="is converted with --dtype bf16, not fp16"):
        converted_model(str(tmp_path / "mine"), dtype="fp16", calibrate=False)


def test_a_pulled_model_outlives_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, conversions: list[Path]
) -> None:
    source = write_gguf(tmp_path / "pulled.gguf", random_weights())
    directory = tmp_path / "cache/models/smollm2-135m-instruct"
    directory.mkdir(parents=True)
    (directory / "source.json").write_text(json.dumps({"path": str(source), "identity": identity(source)}))
    path = converted_model("smollm2-135m-instruct", calibrate=False)
    assert path.name.startswith("smollm2-135m-instruct-")
    source.unlink()
    assert converted_model("HuggingFaceTB/SmolLM2-135M-Instruct", calibrate=False) == path
    assert len(conversions) == 1


def test_what_does_not_exist_is_said(tmp_path: Path) -> None:
    for name in (str(tmp_path / "none"), "./none", "none.gguf"):
        with pytest.raises(SpeqError, match=r"none(\.gguf)? does not exist"):
            locate(name)
    with pytest.raises(SpeqError, match="no model named none"):
        converted_model("none", calibrate=False)
