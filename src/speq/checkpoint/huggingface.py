"""Hugging Face checkpoint directories: ``config.json``, safetensors weights in one file or shards, tokenizer files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from speq.checkpoint.safetensors import SafetensorsFile
from speq.checkpoint.source import FLOATS, INTEGERS, TensorInfo
from speq.errors import SpeqError

CARRIED = (
    "tokenizer.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json", "tokenizer.model", "vocab.json", "merges.txt", "LICENSE", "NOTICE",
    "additional_chat_templates/*.jinja",
)  # fmt: skip
"""Names, or patterns of them, of the files that go along with the weights."""


class HuggingFaceSource:
    """A directory in the layout of the Hugging Face hub; see :class:`speq.checkpoint.source.Source`.

    Raises:
        SpeqError: no config or safetensors weights, a missing or damaged shard, quantised weights.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.resolve().name
        self.config = read_json(path / "config.json", f"{path} is no model directory: it has no config.json")
        if quantisation := self.config.get("quantization_config"):
            method = quantisation.get("quant_method", "unknown") if isinstance(quantisation, dict) else "unknown"
            raise SpeqError(
                f"{path} holds weights quantised with {method}; speq needs the 16-bit checkpoint (or a GGUF)"
            )
        self._files = _open_weights(path)
        self.weight_files = [file.path for file in dict.fromkeys(self._files.values())]
        infos = [
            TensorInfo(name, file.entries[name].shape, file.entries[name].dtype) for name, file in self._files.items()
        ]
        for info in infos:
            if info.dtype not in FLOATS + INTEGERS:
                raise SpeqError(f"{path}: tensor {info.name} is {info.dtype}; speq needs F16, BF16 or F32 weights")
        self.tensors = sorted(infos, key=lambda info: natural_order(info.name))
        self.notes: list[str] = []
        carried = [file for name in CARRIED for file in sorted(path.glob(name)) if file.is_file()]
        self.files = {file.relative_to(path).as_posix(): file.read_bytes() for file in carried}
        if "tokenizer.json" not in self.files:
            self.notes.append("no tokenizer.json: text needs one, token ids (--ids) do not")

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows of a tensor as a view of the mapped file; 16-bit floats as uint16 bits."""
        array = self._files[name].array(name)
        return array if array.ndim == 0 else array[start:stop]


def natural_order(name: str) -> tuple[int, list[tuple[int, str]]]:
    """Sort key for the order a step reads them in: embeddings, layers in numeric order, the final norm, the head."""
    layered = re.search(r"\.\d+\.", name) is not None
    group = 1 if layered else 0 if "embed" in name else 2 if "norm" in name else 3
    return group, [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def read_json(path: Path, missing: str) -> dict[str, Any]:
    """A JSON object from a file; ``missing`` is the error message when there is no such file."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise SpeqError(missing) from None
    except (ValueError, OSError) as error:
        raise SpeqError(f"cannot read {path}: {error}") from None
    if not isinstance(content, dict):
        raise SpeqError(f"cannot read {path}: it is not a JSON object")
    return content


def _open_weights(path: Path) -> dict[str, SafetensorsFile]:
    """Each tensor's name with the opened file that holds it."""
    index_path = path / "model.safetensors.index.json"
    if (path / "model.safetensors").is_file():
        file = SafetensorsFile(path / "model.safetensors")
        return dict.fromkeys(file.entries, file)
    if index_path.is_file():
        shard_of = read_json(index_path, "").get("weight_map")
        if not isinstance(shard_of, dict):
            raise SpeqError(f"{index_path} has no weight_map; copy or download it again")
        shards = {shard: SafetensorsFile(path / shard) for shard in sorted(set(shard_of.values()))}
        for name, shard in shard_of.items():
            if name not in shards[shard].entries:
                raise SpeqError(f"{path / shard} lacks the tensor {name}; copy or download it again")
        return {name: shards[shard] for name, shard in shard_of.items()}
    files = [SafetensorsFile(file) for file in sorted(path.glob("*.safetensors"))]
    if not files:
        other = next(iter(sorted(path.glob("*.bin")) + sorted(path.glob("*.gguf"))), None)
        hint = (
            f"; {other.name} is there: "
            + ("give that file's path" if other.suffix == ".gguf" else "save it as safetensors")
            if other
            else ""
        )
        raise SpeqError(f"{path} has no safetensors weights{hint}")
    return {name: file for file in files for name in file.entries}
