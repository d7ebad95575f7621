"""GGUF files as a source: names and row order as Hugging Face has them, quantised weights dequantised.

llama.cpp stores the query and key rows of Llama models so that the two halves of each rotary pair are neighbours;
this is undone here. Values come from the ``gguf`` package's own dequantisation.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speq.checkpoint.gguf.config import (
    absent_biases,
    build_config,
    hugging_face_name,
    rotary_row_order,
    unread_keys,
)
from speq.checkpoint.gguf.file import GGUFFile
from speq.checkpoint.gguf.tokenizer import build_tokenizer_files
from speq.checkpoint.sources.source import TensorInfo, natural_order
from speq.errors import SpeqError

_ORDERING = ("model_type", "num_attention_heads", "num_key_value_heads")  # what the order of rows depends on


class GGUFSource:
    """A ``.gguf`` file; see :class:`speq.checkpoint.sources.source.Source`.

    Args:
        path: the file.

    Raises:
        SpeqError: damaged file or tokenizer, unsupported architecture, a tensor of unknown purpose, a type that cannot
            be read.
    """

    config_is, all_tensors_count = "metadata", True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.weight_files = [path]
        self.originals: dict[str, list[str]] = {}
        self._file = GGUFFile(path)
        self.name = str(self._file.metadata.get("general.name") or path.stem)
        self.config = build_config(self._file)
        architecture = self.config["model_type"]
        stored_names = {hugging_face_name(stored, path, architecture): stored for stored in self._file.tensors}
        self._stored = {name: stored for name, stored in stored_names.items() if name is not None}
        self._zero_biases = absent_biases(self._file, self.config)
        names = sorted([*self._stored, *self._zero_biases], key=natural_order)
        self.tensors = [self._info(name) for name in names]
        self._check_attention()
        try:
            self.files, tokenizer_notes = build_tokenizer_files(self._file.metadata)
        except SpeqError as error:
            raise SpeqError(f"{path}: {error}") from None
        self.notes = self._quantisation_notes() + self._reading_notes() + tokenizer_notes
        self.data = [(path, min(self._file.data_start, path.stat().st_size))]
        self.layout = {
            "tensors": {name: self._place(name) for name in self._stored},
            "heads": [self.config.get(key) for key in _ORDERING],
        }

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows of a tensor: uint16 bits for F16 and BF16, float32 for F32 and dequantised types."""
        if name in self._zero_biases:
            return np.zeros(self._zero_biases[name], np.float32)
        tensor = self._file.tensors[self._stored[name]]
        order = self._row_order(name, tensor.shape[0])
        if len(tensor.shape) == 1:
            values: NDArray[Any] = self._decode(tensor.type, tensor.data)[0]
            return values if order is None else np.asarray(values[order])
        return self._decode(tensor.type, self.stored(name, start, stop))

    def stored(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Rows of a matrix as the file has them, ``uint8 [rows, bytes per row]``, in the order of Hugging Face."""
        tensor = self._file.tensors[self._stored[name]]
        order = self._row_order(name, tensor.shape[0])
        return tensor.data[start:stop] if order is None else np.asarray(tensor.data[order[start:stop]])

    def _info(self, name: str) -> TensorInfo:
        if name in self._zero_biases:
            return TensorInfo(name, (self._zero_biases[name],), "F32")
        tensor = self._file.tensors[self._stored[name]]
        return TensorInfo(name, tensor.shape, tensor.type)

    def _place(self, name: str) -> list[Any]:
        tensor = self._file.tensors[self._stored[name]]
        return [tensor.type, tensor.shape, tensor.begin - self._file.data_start]

    def _row_order(self, name: str, rows: int) -> NDArray[np.intp] | None:
        """For each row in Hugging Face order its place in the file; None where they agree."""
        heads_key = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(name.split(".")[-2])
        if heads_key is None or self.config["model_type"] != "llama":
            return None
        return rotary_row_order(rows, int(self.config[heads_key]))

    def _check_attention(self) -> None:
        """Refuse query and key matrices whose rows are not the heads that the metadata tells of."""
        rows_of = {
            "q_proj": int(self.config["num_attention_heads"]) * int(self.config["head_dim"]),
            "k_proj": int(self.config["num_key_value_heads"]) * int(self.config["head_dim"]),
        }
        for info in self.tensors:
            rows = rows_of.get(info.name.split(".")[-2], info.shape[0])
            if info.shape[0] != rows:
                raise SpeqError(f"{self.path}: {info.name} has {info.shape[0]} rows where its heads need {rows}")

    def _decode(self, kind: str, data: NDArray[np.uint8]) -> NDArray[Any]:
        if kind in ("F16", "BF16"):
            return data.view("<u2")
        if kind in ("F32", "F64"):
            return data.view("<f4" if kind == "F32" else "<f8")
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        values: NDArray[np.float32] = dequantize(data, GGMLQuantizationType[kind])
        return values

    def _quantisation_notes(self) -> list[str]:
        counts = Counter(info.dtype for info in self.tensors if info.quantised)
        for info in {info.dtype: info for info in self.tensors}.values():
            self._check_type(info)
        if not counts:
            return []
        kinds = ", ".join(f"{kind} ({count} tensors)" for kind, count in counts.most_common())
        return [f"dequantised from {kinds}: exactness is with respect to the dequantised weights, rounded to 16 bits"]

    def _reading_notes(self) -> list[str]:
        notes = []
        if self._zero_biases:
            notes.append(f"{len(self._zero_biases)} biases that the file leaves out beside others are stored as zeros")
        if unread := unread_keys(self._file):
            notes.append(f"{', '.join(unread)} not used: nor does llama.cpp for this architecture")
        return notes

    def _check_type(self, info: TensorInfo) -> None:
        """Refuse a type that cannot be read, before any work."""
        if info.name in self._zero_biases:
            return
        tensor = self._file.tensors[self._stored[info.name]]
        if not info.size:
            raise SpeqError(f"{self.path}: tensor {info.name} is empty; copy or download it again")
        try:
            self._decode(tensor.type, tensor.data[:1])
        except NotImplementedError:
            raise SpeqError(f"{self.path}: tensor {info.name} is {info.dtype}, which cannot be read") from None
