"""A Hugging Face checkpoint as a GGUF file in F16 or BF16, for engines that read nothing else.

Matrices become F16 (BF16 weights are rounded to it, and one beyond its range is an error) or stay BF16; vectors become
F32, as llama.cpp has them. Query and key rows of Llama models are put into llama.cpp's order, which
:mod:`speq.checkpoint.sources.gguf` undoes. Tensors are written one by one, so the memory of one is enough.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from speq.bench.peers.gguf_vocabulary import Vocabulary, read_vocabulary
from speq.checkpoint.gguf.config import ARCHITECTURES, rotary_row_order, stored_name
from speq.checkpoint.sources.huggingface import HuggingFaceSource
from speq.checkpoint.sources.source import Source, TensorInfo
from speq.checkpoint.storage import check_space, writing_to
from speq.checkpoint.store import widen
from speq.errors import SpeqError
from speq.models.config import ModelConfig
from speq.models.rope import rope_settings
from speq.models.tensors import fit, fit_source

Kind: TypeAlias = Literal["F16", "BF16"]
_FILE_TYPES = {"F16": 1, "BF16": 32}


def export_gguf(model_dir: Path, path: Path, kind: Kind = "F16") -> Path:
    """Write the checkpoint in ``model_dir`` to the file ``path``, which appears when it is complete.

    Raises:
        SpeqError: an architecture, tensor or RoPE scaling that GGUF cannot hold, a weight outside F16, no space.
    """
    import gguf

    source = fit_source(HuggingFaceSource(model_dir))
    config = fit(source.config, {info.name: info.shape for info in source.tensors})
    architecture = {"mistral": "llama"}.get(config.model_type, config.model_type)
    if architecture not in ARCHITECTURES:
        raise SpeqError(f"{model_dir}: architecture {config.model_type} cannot be written as GGUF")
    size = sum(info.size * (2 if info.is_matrix else 4) for info in source.tensors)
    check_space(path, size, "writing a GGUF file")
    partial = path.with_name(f".{path.name}.partial")
    writer = gguf.GGUFWriter(partial, architecture)
    try:
        with writing_to(path.parent):
            _write(writer, source, config, kind)
            partial.rename(path)
    finally:
        writer.close()
        partial.unlink(missing_ok=True)
    return path


def _write(writer: Any, source: Source, config: ModelConfig, kind: Kind) -> None:
    _add_metadata(writer, source, config, kind)
    _add_vocabulary(writer, read_vocabulary(source.path, config.vocab_size), source.config)
    divisors = _rope_divisors(source.config, config)
    if divisors is not None:
        writer.add_tensor_info("rope_freqs.weight", divisors.shape, divisors.dtype, divisors.nbytes)
    for info in source.tensors:
        _add_info(writer, info, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    if divisors is not None:
        writer.write_tensor_data(divisors)
    for info in source.tensors:
        writer.write_tensor_data(_stored(source, info, config, kind))
    writer.flush()


def _add_metadata(writer: Any, source: Source, config: ModelConfig, kind: Kind) -> None:
    raw = source.config
    writer.add_name(source.name)
    writer.add_file_type(_FILE_TYPES[kind])
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(int(raw.get("max_position_embeddings") or config.context_length))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    rope = rope_settings(raw)
    writer.add_rope_freq_base(rope.theta)
    if rope.kind == "linear":
        import gguf

        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope.entries["factor"]))
    elif rope.kind not in ("default", "llama3"):
        raise SpeqError(f"{source.path}: RoPE scaling {rope.kind!r} cannot be written as GGUF")
    windows = set(config.windows)
    if windows != {None}:
        if len(windows) > 1 or None in windows:
            raise SpeqError(f"{source.path}: sliding windows that differ between layers cannot be written as GGUF")
        writer.add_sliding_window(windows.pop())


def _add_vocabulary(writer: Any, vocabulary: Vocabulary | None, raw: dict[str, Any]) -> None:
    """The vocabulary, or a statement that there is none: engines then take and give token ids only."""
    if vocabulary is None:
        writer.add_tokenizer_model("none")
        return
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(vocabulary.pre_tokenizer)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.kinds)
    writer.add_token_merges(vocabulary.merges)
    writer.add_add_bos_token(False)
    for role, add in (("bos", writer.add_bos_token_id), ("eos", writer.add_eos_token_id)):
        token = raw.get(f"{role}_token_id")
        token = token[0] if isinstance(token, list) else token
        if isinstance(token, int):
            add(token)


def _rope_divisors(raw: dict[str, Any], config: ModelConfig) -> NDArray[np.float32] | None:
    """Llama 3's scaling, of which GGUF holds what each frequency is divided by; None for other models."""
    rope = rope_settings(raw)
    if rope.kind != "llama3":
        return None
    base = rope.theta ** (-np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim)
    return np.asarray(base / np.array(config.rotary.inv_freq), dtype=np.float32)


def _add_info(writer: Any, info: TensorInfo, kind: Kind) -> None:
    import gguf

    name = stored_name(info.name)
    if info.is_matrix:
        stored = gguf.GGMLQuantizationType[kind]
        writer.add_tensor_info(name, info.shape, np.dtype(np.float16), 2 * info.size, raw_dtype=stored)
    else:
        writer.add_tensor_info(name, info.shape, np.dtype(np.float32), 4 * info.size)


def _stored(source: Source, info: TensorInfo, config: ModelConfig, kind: Kind) -> NDArray[Any]:
    """A tensor as the file has it: float16 or BF16 bits for matrices, float32 for vectors; rows in its order."""
    array = source.read(info.name)
    if config.model_type in ("llama", "mistral"):
        heads = {"q_proj": config.heads, "k_proj": config.kv_heads}.get(info.name.split(".")[-2])
        if heads is not None:
            array = array[np.argsort(rotary_row_order(len(array), heads))]
    if not info.is_matrix:
        return np.ascontiguousarray(widen(array, info.dtype))
    if kind == info.dtype:
        return np.ascontiguousarray(array).view(np.float16)
    if kind == "BF16":
        raise SpeqError(f"{source.path}: {info.name} is {info.dtype}; only BF16 weights are written as BF16")
    floats = widen(array, info.dtype)
    with np.errstate(over="ignore"):
        halves = floats.astype(np.float16)
    if not np.isfinite(halves).all() and np.isfinite(floats).all():
        raise SpeqError(f"{source.path}: {info.name} has weights beyond the range of F16; write BF16 instead")
    return halves
