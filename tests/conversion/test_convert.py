"""Conversion and back: bits, dtypes, notes, options."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import safetensors
from gguf_models import HUGGING_FACE, random_weights, write_gguf
from hf_models import MakeModel, Tensors, llama_tensors

from speq.checkpoint.sources.opening import open_source
from speq.checkpoint.store import load_converted
from speq.conversion.convert import convert
from speq.conversion.restore import restore
from speq.errors import SpeqError
from speq.formats import decode, from_float32


def stored(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Every tensor of a safetensors file as the official library sees it: type, shape, bytes."""
    tensors = dict(safetensors.deserialize((path / "model.safetensors").read_bytes()))
    return {name: (item["dtype"], list(item["shape"]), bytes(item["data"])) for name, item in tensors.items()}


def expected(tensors: Tensors) -> dict[str, tuple[str, list[int], bytes]]:
    return {name: (kind, list(array.shape), array.tobytes()) for name, (kind, array) in tensors.items()}


def odd_tensors(dtype: str) -> Tensors:
    """Every kind of pattern, sizes that are no multiple of anything, tensors that are no matrices."""
    every = np.arange(1 << 16, dtype=np.uint16)
    rng = np.random.default_rng(0)
    return llama_tensors(dtype) | {
        "every.weight": (dtype, rng.permutation(every).reshape(128, 512)),
        "odd.weight": (dtype, rng.permutation(every)[: 7 * 77].reshape(7, 77)),
        "zero.weight": (dtype, np.zeros((5, 130), np.uint16)),
        "row.weight": (dtype, every[15000:15100].reshape(1, 100)),
        "column.weight": (dtype, every[15000:15100].reshape(100, 1)),
        "empty.weight": (dtype, np.zeros((0, 8), np.uint16)),
        "nan.bias": (dtype, every[-5:]),
        "position_ids": ("I64", np.arange(9).reshape(1, 9)),
        "scalar": ("F32", np.array(3, np.float32)),
        "cube": (dtype, every[:24].reshape(2, 3, 4)),
    }


@pytest.mark.parametrize("format", ["nested", "e3m0"])
@pytest.mark.parametrize("dtype", ["F16", "BF16"])
@pytest.mark.parametrize("group_size", [32, 64, 128])
def test_restores_every_bit(make_model: MakeModel, tmp_path: Path, format: Any, dtype: str, group_size: int) -> None:
    tensors = odd_tensors(dtype)
    source = make_model(tensors, shards=2)
    report = convert(source, tmp_path / "out", format=format, group_size=group_size)
    converted = load_converted(tmp_path / "out")
    assert set(converted.split) == {n for n, (k, a) in tensors.items() if a.ndim == 2 and a.size and k == dtype}
    for name, split in converted.split.items():
        assert np.array_equal(decode(split), tensors[name][1])
    assert (converted.spec.format, converted.spec.group_size) == (format, group_size)
    restore(tmp_path / "out", tmp_path / "back")
    assert stored(tmp_path / "back") == expected(tensors)
    assert json.loads((tmp_path / "back/config.json").read_text()) == converted.config
    assert (tmp_path / "back/tokenizer.json").read_text() == "{}"
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert report.weights == sum(tensors[name][1].size for name in converted.split)
    assert report.bits_per_weight == pytest.approx(converted.bits_per_weight, rel=0.01)
    assert not list(tmp_path.glob(".*"))


def test_non_matrices_are_widened_exactly(make_model: MakeModel, tmp_path: Path) -> None:
    convert(make_model(odd_tensors("BF16")), tmp_path / "out")
    converted = load_converted(tmp_path / "out")
    norm = odd_tensors("BF16")["model.norm.weight"][1]
    assert np.array_equal(converted.raw["model.norm.weight"].view(np.uint32), norm.astype(np.uint32) << 16)
    assert converted.raw_dtypes["model.norm.weight"] == "BF16"
    assert converted.raw["scalar"] == 3
    assert converted.raw["scalar"].shape == ()
    assert "position_ids" not in converted.raw
    assert converted.tokenizer == tmp_path / "out/tokenizer.json"


def test_not_finite_weights_are_kept_and_named(make_model: MakeModel, tmp_path: Path) -> None:
    tensors = llama_tensors("F16")
    tensors["model.layers.1.mlp.up_proj.weight"][1][3, :3] = [0x7E01, 0x7C00, 0xFC00]
    report = convert(make_model(tensors), tmp_path / "out")
    assert report.notes == ["model.layers.1.mlp.up_proj.weight has 3 weights that are NaN or infinite, kept exactly"]
    assert load_converted(tmp_path / "out").notes == report.notes
    restore(tmp_path / "out", tmp_path / "back")
    assert stored(tmp_path / "back") == expected(tensors)


@pytest.mark.parametrize(("dtype", "name"), [(None, "BF16"), ("bf16", "BF16"), ("fp16", "F16")])
def test_float32_is_rounded_with_a_note(make_model: MakeModel, tmp_path: Path, dtype: Any, name: str) -> None:
    tensors = llama_tensors("F32")
    report = convert(make_model(tensors), tmp_path / "out", dtype=dtype)
    assert report.notes == [f"F32 weights are rounded to {name}: exactness is with respect to the rounded weights"]
    for tensor, split in load_converted(tmp_path / "out").split.items():
        values = tensors[tensor][1]
        if name == "F16":
            rounded = values.astype(np.float16).view(np.uint16)
        else:
            bits = values.view(np.uint32).astype(np.uint64)
            rounded = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
        assert np.array_equal(decode(split), rounded)
    assert load_converted(tmp_path / "out").raw_dtypes["model.norm.weight"] == "F32"


def test_mixed_types_keep_their_own(make_model: MakeModel, tmp_path: Path) -> None:
    tensors = llama_tensors("F16") | {"lm_head.weight": llama_tensors("BF16")["model.embed_tokens.weight"]}
    tensors["model.layers.0.mlp.gate_proj.weight"] = ("F32", np.full((96, 64), 0.25, np.float32))
    convert(make_model(tensors), tmp_path / "out")
    converted = load_converted(tmp_path / "out")
    assert converted.spec.dtype == "fp16"
    assert converted.split["lm_head.weight"].spec.dtype == "bf16"
    assert converted.split["model.layers.0.mlp.gate_proj.weight"].spec.dtype == "fp16"
    restore(tmp_path / "out", tmp_path / "back")
    quarter = ("F16", np.full((96, 64), 0x3400, np.uint16))
    assert stored(tmp_path / "back") == expected(tensors | {"model.layers.0.mlp.gate_proj.weight": quarter})


def test_weights_beyond_the_asked_type_are_refused(make_model: MakeModel, tmp_path: Path) -> None:
    tensors = llama_tensors("F32")
    tensors["model.layers.0.mlp.up_proj.weight"][1][0, 0] = 1e6
    with pytest.raises(
        SpeqError, match=r"up_proj.weight has weights beyond the range of fp16; convert with --dtype bf16"
    ):
        convert(make_model(tensors), tmp_path / "out", dtype="fp16")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("dither", [None, 3])
@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_quantised_gguf(tmp_path: Path, kind: str, dither: int | None) -> None:
    weights = random_weights()
    path = write_gguf(tmp_path / "m.gguf", weights, kind=kind)
    report = convert(path, tmp_path / "out", dither=dither)
    assert kind in report.notes[0]
    converted = load_converted(tmp_path / "out")
    quantised = gguf.GGMLQuantizationType[kind]
    for stem, values in weights.items():
        if values.ndim == 1:
            assert np.array_equal(converted.raw[f"{HUGGING_FACE[stem]}.weight"], values)
            continue
        dequantised = gguf.quants.dequantize(gguf.quants.quantize(values, quantised), quantised)
        same = np.array_equal(
            decode(converted.split[f"{HUGGING_FACE[stem]}.weight"]), from_float32(dequantised, "bf16")
        )
        assert same == (dither is None)
    assert converted.source["dither"] == dither


@pytest.mark.usefixtures("any_tensors")
def test_bits_per_weight(make_model: MakeModel, tmp_path: Path) -> None:
    for dtype, limit in (("BF16", 14.6), ("F16", 16.75)):
        rng = np.random.default_rng(0)
        values = rng.normal(0, 0.02, (256, 1024)).astype(np.float32)
        bits = values.astype(np.float16).view(np.uint16) if dtype == "F16" else from_float32(values, "bf16")
        report = convert(make_model({"w.weight": (dtype, bits)}, name=dtype), tmp_path / f"{dtype}-out")
        assert report.bits_per_weight <= limit


@pytest.mark.parametrize(
    "options", [{"format": "int4"}, {"group_size": 48}, {"dtype": "fp8"}, {"dither": 1}], ids=lambda o: next(iter(o))
)
def test_options_that_do_not_exist_are_refused(make_model: MakeModel, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(SpeqError):
        convert(make_model(llama_tensors()), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_model_is_refused_before_any_work(make_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(SpeqError, match="'gpt2' is not supported"):
        convert(make_model(llama_tensors(), model_type="gpt2"), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_a_converted_checkpoint_is_not_converted_again(make_model: MakeModel, tmp_path: Path) -> None:
    convert(make_model(llama_tensors()), tmp_path / "out")
    with pytest.raises(SpeqError, match="out is converted already; convert the original"):
        convert(tmp_path / "out", tmp_path / "again")


def test_every_file_of_the_tokenizer_and_its_templates_is_carried_along_and_restored(
    make_model: MakeModel, tmp_path: Path
) -> None:
    path = make_model(llama_tensors())
    files = {
        "added_tokens.json": b'{"<a>": 3}',
        "special_tokens_map.json": b'{"eos_token": "<a>"}',
        "chat_template.jinja": b"default",
        "chat_template.json": b'{"chat_template": "x"}',
        "additional_chat_templates/rag.jinja": b"rag",
        "additional_chat_templates/tool_use.jinja": b"tools",
    }
    (path / "additional_chat_templates").mkdir()
    for name, content in files.items():
        (path / name).write_bytes(content)
    convert(path, tmp_path / "converted", threads=1)
    restore(tmp_path / "converted", tmp_path / "restored")
    for name, content in files.items():
        assert open_source(path).files[name] == content
        assert (tmp_path / "converted" / name).read_bytes() == content
        assert (tmp_path / "restored" / name).read_bytes() == content


def test_progress_counts_weights(make_model: MakeModel, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    tensors = llama_tensors()
    convert(make_model(tensors), tmp_path / "out", progress=lambda *call: calls.append(call))
    total = sum(array.size for _, array in tensors.values())
    assert calls[0] == ("converting", 0, total)
    assert calls[-1] == ("converting", total, total)
    assert [done for _, done, _ in calls] == sorted(done for _, done, _ in calls)
