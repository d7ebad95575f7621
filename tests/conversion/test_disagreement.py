"""A config and tensors that disagree, and damaged files: one clear line or a right result, never anything else.

Every entry of the config is changed and every tensor resized, removed or renamed, in both kinds of sources and in
converted files. `make sanitize` runs this under the sanitizers, so it needs no framework: results are compared with
those of the NumPy backend on the original tensors.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from gguf_models import write_gguf
from hf_models import Tensors, save
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from speq.conversion.convert import convert
from speq.conversion.inspection import inspect_model
from speq.conversion.restore import restore
from speq.errors import SpeqError
from speq.formats import from_float32, to_float32
from speq.models.config import model_config
from speq.models.decoder import weight_shapes
from speq.models.tensors import load_fitting
from speq.runtime.single import SingleSequence

CONFIG: dict[str, Any] = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 30,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1000.0,
    "attention_bias": True,
    "tie_word_embeddings": False,
    "use_sliding_window": True,
    "sliding_window": 4,
    "max_window_layers": 1,
}
VALUES: list[Any] = [
    None, True, False, 0, 1, 2, 3, 5, 7, 16, 47, 49, 64, 96, -1, 2**31 - 1, 2**31, 2**40, 2**63, 10**30, 0.5, 4.0, -2.5,
    1e300, "", "8", "silu", "llama", "qwen2", "mistral", [], [4], ["full_attention"] * 2, {}, {"a": 1},
]  # fmt: skip
IDS = [3, 29, 0, 11, 7, 7, 20, 1]
SLOW_EXAMPLES = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def tensors_of(config: dict[str, Any]) -> dict[str, NDArray[np.float32]]:
    """Random BF16 values, matrices with some weights far out, so that there are escapes."""
    rng = np.random.default_rng(0)
    tensors = {}
    for name, shape in weight_shapes(model_config(config)).items():
        values = rng.standard_normal(shape) * (1.5 / shape[-1] ** 0.5 if len(shape) == 2 else 0.1)
        if len(shape) == 2:
            values[rng.random(shape) < 0.02] *= 1e-4
        tensors[name] = to_float32(from_float32((values + ("norm" in name)).astype(np.float32), "bf16"), "bf16")
    return tensors


TENSORS = tensors_of(CONFIG)


def write(path: Path, config: dict[str, Any], tensors: dict[str, NDArray[Any]]) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    stored: Tensors = {
        name: ("BF16", np.asarray(from_float32(array, "bf16")))
        if array.dtype == np.float32
        else ("U8", array.astype(np.uint8))
        for name, array in tensors.items()
    }
    save(path / "model.safetensors", stored)
    return path


def logits(config: dict[str, Any], weights: Any, **options: Any) -> NDArray[np.float32]:
    engine = SingleSequence.of((config, weights), **options)
    ids = [token % engine.vocab_size for token in IDS][: engine.context_length]
    return engine.forward(ids, logits="all").copy()


def one_line(error: SpeqError, work: Path) -> str:
    """What a refusal says; nothing hidden is left behind."""
    line = str(error)
    assert "\n" not in line
    assert len(line) < 600
    assert not list(work.glob(".*"))
    return line


def accepted(source: Path, work: Path) -> str | None:
    """Convert and run a source: None when all went well, the line of the refusal otherwise; no trace of it is left."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        convert(source, work / "out", threads=1)
        model = load_fitting(work / "out")
        weights = {**model.raw, **model.split}
        native, reference = (logits(model.config, weights, **o) for o in ({"threads": 2}, {"backend": "reference"}))
    except SpeqError as error:
        return one_line(error, work)
    if np.isfinite(reference).all():
        scale = np.abs(reference).max()
        np.testing.assert_allclose(native, reference, rtol=0, atol=2e-2 * scale)
    restore(work / "out", work / "back")
    return None


@pytest.mark.parametrize("key", CONFIG)
def test_every_entry_of_a_config_may_say_anything(tmp_path: Path, key: str) -> None:
    for index, value in enumerate(VALUES):
        source = write(tmp_path / str(index), CONFIG | {key: value}, TENSORS)
        line = accepted(source, tmp_path / "work")
        counts = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
        if key in (*counts, "vocab_size") and value != CONFIG[key]:
            assert line is not None, value
            assert key in line or "config.json" in line


def shapes_near(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    for axis, size in enumerate(shape):
        for other in {0, 1, size - 1, size + 1, 2 * size, 4 * size + 3} - {size}:
            yield (*shape[:axis], other, *shape[axis + 1 :])
    yield shape[::-1] if shape[::-1] != shape else (*shape, 1)
    yield ()
    yield (1, *shape)


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_of_another_size_is_named(tmp_path: Path, name: str) -> None:
    for index, shape in enumerate(shapes_near(TENSORS[name].shape)):
        source = write(tmp_path / str(index), CONFIG, TENSORS | {name: np.zeros(shape, np.float32)})
        line = accepted(source, tmp_path / "work")
        assert line is not None
        assert f"tensor {name!r} has shape {shape}" in line
        assert f"implies {TENSORS[name].shape}" in line


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_that_is_missing_or_not_of_floats_is_named(tmp_path: Path, name: str) -> None:
    without = {key: array for key, array in TENSORS.items() if key != name}
    line = accepted(write(tmp_path / "without", CONFIG, without), tmp_path / "work")
    assert line is not None
    assert repr(name) in line
    line = accepted(write(tmp_path / "renamed", CONFIG, without | {name + "s": TENSORS[name]}), tmp_path / "work")
    assert line is not None
    assert repr(name) in line
    whole = np.ones(TENSORS[name].shape, np.uint8)
    line = accepted(write(tmp_path / "whole", CONFIG, TENSORS | {name: whole}), tmp_path / "work")
    assert line is not None
    assert name in line
    assert "U8" in line


GGUF_KEYS = {
    "block_count": 2,
    "context_length": 64,
    "embedding_length": 64,
    "feed_forward_length": 96,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.key_length": 16,
    "attention.value_length": 16,
    "rope.dimension_count": 16,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.freq_base": 1000.0,
}


def gguf_weights() -> dict[str, NDArray[np.float32]]:
    shapes = {"token_embd": (30, 64), "output": (30, 64), "output_norm": (64,)}
    for layer in range(2):
        shapes |= {
            f"blk.{layer}.attn_q": (64, 64),
            f"blk.{layer}.attn_k": (32, 64),
            f"blk.{layer}.attn_v": (32, 64),
            f"blk.{layer}.attn_output": (64, 64),
            f"blk.{layer}.ffn_gate": (96, 64),
            f"blk.{layer}.ffn_up": (96, 64),
            f"blk.{layer}.ffn_down": (64, 96),
            f"blk.{layer}.attn_norm": (64,),
            f"blk.{layer}.ffn_norm": (64,),
        }
    rng = np.random.default_rng(1)
    return {
        stem: (rng.standard_normal(shape) / shape[-1] ** 0.5 + (len(shape) == 1)).astype(np.float32)
        for stem, shape in shapes.items()
    }


GGUF_VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    2,
    3,
    7,
    8,
    16,
    32,
    63,
    128,
    2**31,
    2**32 - 1,
    0.5,
    -1.5,
    "16",
    "",
    [4, 4],
    [2, 2],
]


def metadata(**changed: Any) -> dict[str, Any]:
    return {f"llama.{key}": value for key, value in (GGUF_KEYS | changed).items()}


@pytest.mark.parametrize("key", GGUF_KEYS)
def test_every_key_of_a_gguf_file_may_say_anything(tmp_path: Path, key: str) -> None:
    for index, value in enumerate(GGUF_VALUES):
        path = write_gguf(tmp_path / f"{index}.gguf", gguf_weights(), metadata=metadata(**{key: value}))
        line = accepted(path, tmp_path / "work")
        if key in ("embedding_length", "feed_forward_length", "attention.head_count") and value not in (
            GGUF_KEYS[key],
            [GGUF_KEYS[key]] * GGUF_KEYS["block_count"],
        ):
            assert line is not None, value
            assert str(path) in line


@pytest.mark.parametrize("stem", gguf_weights())
def test_every_tensor_of_a_gguf_file_may_be_another(tmp_path: Path, stem: str) -> None:
    weights = gguf_weights()
    for index, shape in enumerate(shapes_near(weights[stem].shape)):
        if 0 in shape or not shape or (len(shape) == 1) != (weights[stem].ndim == 1):
            continue
        rotary = stem.endswith(("attn_q", "attn_k"))
        heads = {"attn_q": 4, "attn_k": 2}.get(stem.rpartition(".")[2], 1)
        if rotary and shape[0] % (2 * heads):
            continue  # which the writer of these files cannot bring into llama.cpp's order
        path = write_gguf(tmp_path / f"{index}.gguf", weights | {stem: np.ones(shape, np.float32)}, metadata=metadata())
        line = accepted(path, tmp_path / "work")
        assert line is not None
        assert str(path) in line
    without = {key: array for key, array in weights.items() if key != stem}
    line = accepted(write_gguf(tmp_path / "without.gguf", without, metadata=metadata()), tmp_path / "work")
    assert (line is None) == (stem == "output")
    path = write_gguf(tmp_path / "more.gguf", weights, metadata=metadata(), extra={"blk.2.ffn_up.bias": np.ones(3)})
    line = accepted(path, tmp_path / "work")
    assert line is not None
    assert "ffn_up" in line or "up_proj" in line


@given(data=st.data())
@SLOW_EXAMPLES
def test_a_gguf_file_with_any_bytes_changed(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "m.gguf"
    if not path.exists():
        write_gguf(path, gguf_weights(), metadata=metadata())
    content = bytearray(path.read_bytes())
    start = len(content) - sum(array.nbytes // (2 if array.ndim == 2 else 1) for array in gguf_weights().values())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(4, start - 1))
        width = data.draw(st.sampled_from([1, 4, 8]))
        content[at : at + width] = data.draw(st.binary(min_size=width, max_size=width) | st.just(b"\xff" * width))
    (tmp_path / "changed.gguf").write_bytes(content)
    accepted(tmp_path / "changed.gguf", tmp_path / "work")


@given(data=st.data())
@SLOW_EXAMPLES
def test_a_safetensors_header_with_any_entry_changed(tmp_path: Path, data: st.DataObject) -> None:
    source = tmp_path / "model"
    if not source.exists():
        write(source, CONFIG, TENSORS)
        shutil.copyfile(source / "model.safetensors", tmp_path / "original")
    content = (tmp_path / "original").read_bytes()
    (source / "model.safetensors").write_bytes(with_changed_header(content, data))
    accepted(source, tmp_path / "work")


def with_changed_header(content: bytes, data: st.DataObject) -> bytes:
    size = int.from_bytes(content[:8], "little")
    header = changed(json.loads(content[8 : 8 + size]), data)
    encoded = json.dumps(header).encode()
    encoded = encoded.ljust(-(-(len(encoded) + 8) // 64) * 64 - 8 + data.draw(st.sampled_from([0, 0, 1, 2])))
    return len(encoded).to_bytes(8, "little") + encoded + content[8 + size :]


def changed(content: Any, data: st.DataObject) -> Any:
    """The JSON content with a value somewhere in it that is another, gone, or under another name."""
    places = [(content, key) for key in _keys(content)]
    for parent, key in places:
        places += [(parent[key], other) for other in _keys(parent[key])]
    parent, key = data.draw(st.sampled_from(places), label="place")
    match data.draw(st.sampled_from(["value", "value", "number", "gone"])):
        case "value":
            parent[key] = data.draw(st.sampled_from(VALUES), label="value")
        case "number" if isinstance(parent[key], int):
            parent[key] += data.draw(st.sampled_from([-64, -1, 1, 2, 64, 2**32, 2**62]))
        case _:
            del parent[key]
    return content


def _keys(content: Any) -> list[Any]:
    if isinstance(content, dict):
        return list(content)
    return list(range(len(content))) if isinstance(content, list) else []


def run_converted(path: Path) -> None:
    """Whatever lies there: what the commands do with it either works or is refused in a line."""
    shutil.rmtree(path.parent / "back", ignore_errors=True)
    steps: list[Callable[[], object]] = [
        lambda: restore(path, path.parent / "back"),
        lambda: inspect_model(load_fitting(path)),
        lambda: _draft_and_verify(path),
    ]
    for step in steps:
        try:
            step()
        except SpeqError as error:
            one_line(error, path.parent)


def _draft_and_verify(path: Path) -> None:
    model = load_fitting(path)
    engine = SingleSequence.of(model, threads=2)
    ids = [token % engine.vocab_size for token in IDS][: engine.context_length]
    for count in (len(ids), 1):
        for draft in (True, False):
            engine.forward(ids[:count], draft=draft, logits="all")
            engine.truncate(0)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("converted")
    convert(write(path / "model", CONFIG, TENSORS), path / "out", threads=1)
    return path / "out"


@given(data=st.data())
@SLOW_EXAMPLES
def test_a_manifest_with_any_entry_changed(converted: Path, tmp_path: Path, data: st.DataObject) -> None:
    shutil.copytree(converted, tmp_path / "out", dirs_exist_ok=True)
    name = data.draw(st.sampled_from(["speq.json", "speq.json", "config.json"]))
    content = changed(json.loads((converted / name).read_text()), data)
    (tmp_path / "out" / name).write_text(json.dumps(content))
    run_converted(tmp_path / "out")


@given(data=st.data())
@SLOW_EXAMPLES
def test_a_converted_container_with_any_entry_changed(converted: Path, tmp_path: Path, data: st.DataObject) -> None:
    shutil.copytree(converted, tmp_path / "out", dirs_exist_ok=True)
    content = with_changed_header((converted / "weights.safetensors").read_bytes(), data)
    (tmp_path / "out" / "weights.safetensors").write_bytes(content)
    run_converted(tmp_path / "out")


@given(data=st.data())
@SLOW_EXAMPLES
def test_planes_with_any_content_under_right_checksums(converted: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Someone else's file: its checksums say nothing about its escapes, scales and tables."""
    shutil.copytree(converted, tmp_path / "out", dirs_exist_ok=True)
    weights = tmp_path / "out" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    manifest = json.loads((converted / "speq.json").read_text())
    planes = [name for name, entry in header.items() if name != "__metadata__" and entry["data_offsets"][1] > 0]
    name = data.draw(st.sampled_from([name for name in planes if not name.endswith(".pad")]))
    begin, end = (start + offset for offset in header[name]["data_offsets"])
    if data.draw(st.booleans()):
        content[begin:end] = data.draw(st.sampled_from([b"\xff", b"\0", b"\x7f", b"\x80"])) * (end - begin)
    elif end - begin >= 4:
        at = begin + data.draw(st.integers(0, (end - begin) // 4 - 1)) * 4
        content[at : at + 4] = struct.pack("<I", data.draw(st.integers(0, 2**32 - 1)))
    for record in manifest["tensors"]:
        if name in record["checksums"]:
            record["checksums"][name] = xxhash.xxh3_64_hexdigest(bytes(content[begin:end]))
    weights.write_bytes(content)
    (tmp_path / "out" / "speq.json").write_text(json.dumps(manifest))
    run_converted(tmp_path / "out")
