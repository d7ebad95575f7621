"""Which tensors of a checkpoint a model reads: their names, their shapes, and the head that may be the embedding.

A ``config.json`` and the tensors beside it are written by different hands. They are compared here, before any work, so
that everything after may rely on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from speq.checkpoint.sources.source import INTEGERS, NamedSource, Source, TensorInfo
from speq.checkpoint.store import Converted, describe, load_converted
from speq.errors import SpeqError
from speq.formats.tensor import MAX_COLUMNS
from speq.models.config import ModelConfig, model_config
from speq.models.decoder import EMBEDDING, HEAD, weight_dimensions, weight_shapes

BASE_PREFIX = "model."
"""Before the names of everything but the head; a checkpoint of the bare decoder leaves it out."""

_HARMLESS = (".rotary_emb.inv_freq", ".rotary_emb.cos_cached", ".rotary_emb.sin_cached")
_NAMED = 3  # unread tensors, in a note
_COMPARED_ROWS = 4096  # of the embedding and the head, at a time


def fit(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], said_by: str = "config.json") -> ModelConfig:
    """The model that a parsed ``config.json`` and the tensors of a checkpoint make together.

    A head that is stored beside the embedding is the model's own, whatever ``tie_word_embeddings`` says.

    Args:
        config: the parsed file.
        shapes: of all tensors, by the names that :mod:`speq.models.decoder` gives them.
        said_by: what to call the config in errors.

    Raises:
        SpeqError: an unsupported model, or a tensor that is missing or has another shape than the config implies.
    """
    model = model_config(config)
    if HEAD in shapes:
        model = replace(model, tied_head=False)
    for name, dimensions in weight_dimensions(model):
        implied, found = tuple(d.size for d in dimensions), shapes.get(name)
        if found is None:
            reason = " (tie_word_embeddings is false)" if name == HEAD else ""
            raise SpeqError(f"the checkpoint has no tensor {name!r}, which its {said_by} calls for{reason}")
        if tuple(found) != implied:
            reason = ", ".join(dict.fromkeys(d.entries for d in dimensions))
            raise SpeqError(f"tensor {name!r} has shape {tuple(found)}, {said_by} implies {implied} ({reason})")
    return model


def load_fitting(path: Path, *, threads: int | None = None) -> Converted:
    """Map a converted checkpoint whose tensors are those that its config calls for.

    They are compared before a byte of the weights is read.

    Args:
        path: its directory.
        threads: as for :func:`speq.checkpoint.store.load_converted`.

    Raises:
        SpeqError: as :func:`fit` does, with the path, or as for loading.
    """
    described = describe(path)
    try:
        fit(described.config, {record.name: record.shape for record in described.records})
    except SpeqError as error:
        raise SpeqError(f"{path}: {error}") from None
    return load_converted(path, threads=threads, described=described)


def fit_source(source: Source) -> Source:
    """The source under the names that the model knows, every tensor compared with the config.

    Names are taken as transformers takes them: with or without the prefix of the base model; a head that equals the
    embedding is the same tensor where ``tie_word_embeddings`` says so, and an embedding that is missing there is the
    head. Tensors that the model does not read are kept, and named in a note.

    Raises:
        SpeqError: an unsupported model, or a tensor that is missing, twice there, or of another shape or type than the
            config implies; in a GGUF file also one that the model does not read, as its values would count elsewhere.
    """
    try:
        return _fit_source(source)
    except SpeqError as error:
        place = str(source.path)
        raise error if place in str(error) else SpeqError(f"{place}: {error}") from None


def _fit_source(source: Source) -> Source:
    model = model_config(source.config)
    layers = {part for info in source.tensors for part in info.name.split(".") if part.isdecimal()}
    # No more layers than there are tensors of: the count in the config is not to be trusted yet.
    known = set(weight_shapes(replace(model, tied_head=False, layers=min(model.layers, len(layers) + 1))))
    stored: dict[str, list[str]] = {}
    for info in source.tensors:
        stored.setdefault(_known_name(info.name, known), []).append(info.name)
    for name, names in stored.items():
        if len(names) > 1:
            raise SpeqError(f"the tensors {names[0]} and {names[1]} are both {name}; delete one of them")
    infos = {info.name: info for info in source.tensors}
    if model.tied_head and HEAD in stored:
        if EMBEDDING not in stored:
            stored[EMBEDDING] = stored.pop(HEAD)
        elif _equal(source, infos[stored[EMBEDDING][0]], infos[stored[HEAD][0]]):
            stored[EMBEDDING] += stored.pop(HEAD)
    tensors = [replace(infos[names[0]], name=name) for name, names in stored.items()]
    read = fit(source.config, {info.name: info.shape for info in tensors}, source.config_is)
    needed = weight_shapes(read)
    for info in tensors:
        if info.name in needed:
            _check_kind(info)
    unread = [info.name for info in tensors if info.name not in needed and not info.name.endswith(_HARMLESS)]
    if unread and source.all_tensors_count:
        raise SpeqError(f"the model does not read the tensor {unread[0]}; leaving it out would change the model")
    return NamedSource(source, tensors, stored, [*source.notes, *_unread_note(unread)])


def _known_name(name: str, known: set[str]) -> str:
    """The model's name of a stored tensor, or the name as it is."""
    bare = name.removeprefix(BASE_PREFIX)
    if bare != name and bare in known:
        return bare
    return BASE_PREFIX + name if BASE_PREFIX + name in known else name


def _equal(source: Source, one: TensorInfo, other: TensorInfo) -> bool:
    """Whether two tensors have the same type, shape and bits."""
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        return False
    rows = one.shape[0] if one.shape else 0
    return all(
        np.array_equal(_bits(source, one.name, start), _bits(source, other.name, start))
        for start in range(0, rows, _COMPARED_ROWS)
    )


def _bits(source: Source, name: str, start: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.ascontiguousarray(source.read(name, start, start + _COMPARED_ROWS)).reshape(-1).view(np.uint8)


def _check_kind(info: TensorInfo) -> None:
    """Refuse what has the right shape and cannot be a weight."""
    if info.dtype in INTEGERS:
        raise SpeqError(f"tensor {info.name} holds {info.dtype} numbers, weights are F16, BF16 or F32")
    if len(info.shape) == 2 and not info.is_matrix:
        rows, columns = info.shape
        raise SpeqError(
            f"tensor {info.name} has {rows} x {columns} weights, which cannot be split (at most {MAX_COLUMNS} columns "
            "and 2**32 - 1 weights)"
        )


def _unread_note(names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    kept = "tensors that the model does not read are kept" if len(names) > 1 else "a tensor that the model does not"
    if len(names) == 1:
        kept += " read is kept"
    return [f"{kept}: {', '.join(names[:_NAMED])}{more}"]
