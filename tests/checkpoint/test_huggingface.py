"""Hugging Face directories: single and sharded files, and what is wrong with broken ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hf_models import MakeModel, llama_tensors, save

from speq.checkpoint.sources.opening import open_source
from speq.errors import SpeqError


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
def test_reads_every_tensor(make_model: MakeModel, shards: int, dtype: str) -> None:
    tensors = llama_tensors(dtype)
    source = open_source(make_model(tensors, shards=shards))
    assert {info.name for info in source.tensors} == set(tensors)
    for info in source.tensors:
        assert (info.dtype, info.shape) == (dtype, tensors[info.name][1].shape)
        assert np.array_equal(source.read(info.name), tensors[info.name][1])
    assert np.array_equal(source.read("model.embed_tokens.weight", 3, 7), tensors["model.embed_tokens.weight"][1][3:7])
    assert source.config["hidden_size"] == 64
    assert source.files == {"tokenizer.json": b"{}"}
    assert source.notes == []
    assert len(source.weight_files) == shards


def test_order_is_that_of_a_step(make_model: MakeModel) -> None:
    row = ("BF16", np.zeros((1, 64), np.uint16))
    names = ["lm_head.weight", "model.norm.weight"] + [f"model.layers.{i}.mlp.up_proj.weight" for i in (10, 9, 2)]
    source = open_source(make_model(dict.fromkeys([*names, "model.embed_tokens.weight"], row)))
    order = [info.name.removeprefix("model.").removesuffix(".mlp.up_proj.weight") for info in source.tensors]
    assert order == ["embed_tokens.weight", "layers.2", "layers.9", "layers.10", "norm.weight", "lm_head.weight"]


def test_names_of_any_kind_have_an_order(make_model: MakeModel) -> None:
    row = ("BF16", np.zeros((1, 64), np.uint16))
    names = ["model.layers." + "9" * 5000, "a.1.\u00b2", "a.\u0661.b", "", "1", "layers.01.x", "layers.1.x"]
    assert {info.name for info in open_source(make_model(dict.fromkeys(names, row))).tensors} == set(names)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, []),
        ({"rope_scaling": {}, "rope_parameters": {"rope_theta": 500.0}}, []),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_theta": 5e2}}, ["rope_scaling"]),
        ({"auto_map": {"AutoModelForCausalLM": "modeling.Own"}}, ["auto_map"]),
    ],
)
def test_what_a_config_says_in_vain_is_a_note(make_model: MakeModel, config: dict[str, Any], said: list[str]) -> None:
    notes = open_source(make_model(llama_tensors(), **config)).notes
    assert len(notes) == len(said)
    assert all(word in note for word, note in zip(said, notes, strict=True))


def test_no_tokenizer_is_a_note(make_model: MakeModel) -> None:
    assert "--ids" in open_source(make_model(llama_tensors(), tokenizer=False)).notes[0]


def test_missing_shard_and_tensor_are_named(make_model: MakeModel) -> None:
    path = make_model(llama_tensors(), shards=2)
    index = path / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    index.write_text(json.dumps({"weight_map": weight_map | {"extra": "model-00001-of-00002.safetensors"}}))
    with pytest.raises(SpeqError, match=r"model-00001-of-00002.safetensors lacks the tensor extra"):
        open_source(path)
    (path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(SpeqError, match=r"model-00002-of-00002.safetensors is missing"):
        open_source(path)
    index.write_text("{}")
    with pytest.raises(SpeqError, match="no weight_map"):
        open_source(path)


def test_what_is_no_model_says_so(tmp_path: Path, make_model: MakeModel) -> None:
    with pytest.raises(SpeqError, match="does not exist"):
        open_source(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(SpeqError, match=r"no config\.json"):
        open_source(tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text("{oops")
    with pytest.raises(SpeqError, match=r"cannot read .*config\.json"):
        open_source(tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text("{}")
    (tmp_path / "empty" / "pytorch_model.bin").write_text("")
    with pytest.raises(SpeqError, match=r"no safetensors weights; pytorch_model\.bin is there: save it as safetensors"):
        open_source(tmp_path / "empty")
    with pytest.raises(SpeqError, match="quantised with gptq"):
        open_source(make_model(llama_tensors(), quantization_config={"quant_method": "gptq"}))


def test_eight_bit_floats_are_refused(make_model: MakeModel) -> None:
    path = make_model({})
    header = json.dumps({"w": {"dtype": "F8_E4M3", "shape": [2, 2], "data_offsets": [0, 4]}}).encode()
    (path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(SpeqError, match=r"quantised with FP8 \(F8_E4M3\) \(tensor w\)"):
        open_source(path)


def test_other_safetensors_names_are_found(make_model: MakeModel) -> None:
    path = make_model(llama_tensors())
    (path / "model.safetensors").rename(path / "weights.safetensors")
    assert len(open_source(path).tensors) == len(llama_tensors())
    save(path / "more.safetensors", {"x": ("F32", np.ones(3, np.float32))})
    assert len(open_source(path).tensors) == len(llama_tensors()) + 1


def test_a_tensor_in_two_files_is_refused(make_model: MakeModel) -> None:
    path = make_model(llama_tensors())
    (path / "model.safetensors").rename(path / "a.safetensors")
    save(path / "b.safetensors", {"model.norm.weight": ("F32", np.ones(64, np.float32))})
    with pytest.raises(
        SpeqError, match=r"tensor model\.norm\.weight is both in .*a\.safetensors and in b\.safetensors"
    ):
        open_source(path)


def test_the_index_decides_between_shards_and_does_not_hide_what_it_leaves_out(make_model: MakeModel) -> None:
    tensors = llama_tensors()
    path = make_model(tensors, shards=2)
    index = path / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    other = {"model.norm.weight": ("F32", np.ones(64, np.float32))}
    save(path / "model-00003.safetensors", other | {"x": ("F32", np.ones(2, np.float32))})
    del weight_map["model.layers.0.mlp.up_proj.weight"]
    index.write_text(json.dumps({"weight_map": weight_map | {"x": "model-00003.safetensors"}}))
    source = open_source(path)
    assert {info.name for info in source.tensors} == {*tensors, "x"}
    assert np.array_equal(source.read("model.norm.weight"), tensors["model.norm.weight"][1])


@pytest.mark.parametrize("shard", [None, 3, ["a"], "", "../model.safetensors", "/model.safetensors", "."])
def test_an_index_that_names_no_file_is_refused(make_model: MakeModel, shard: object) -> None:
    path = make_model(llama_tensors(), shards=2)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"model.norm.weight": shard}}))
    with pytest.raises(SpeqError, match=r"index\.json: tensor model\.norm\.weight is in .*, which is no file name"):
        open_source(path)
