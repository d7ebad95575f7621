"""Hugging Face checkpoint directories: ``config.json``, safetensors weights in one file or shards, tokenizer files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from speq.checkpoint.foreign import quantisation_method
from speq.checkpoint.safetensors import SafetensorsFile
from speq.checkpoint.sources.source import FLOATS, INTEGERS, TensorInfo, natural_order
from speq.checkpoint.storage import read_json
from speq.errors import SpeqError

CARRIED = (
    "tokenizer.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json", "added_tokens.json",
    "chat_template.jinja", "chat_template.json", "tokenizer.model", "vocab.json", "merges.txt", "LICENSE", "NOTICE",
    "additional_chat_templates/*.jinja",
)  # fmt: skip
"""Names, or patterns of them, of the files that go along with the weights."""
_OTHER_WEIGHTS = (".bin", ".gguf", ".pth", ".pt", ".onnx", ".h5", ".msgpack", ".npz")

WEIGHTS_INDEX = "model.safetensors.index.json"


class HuggingFaceSource:
    """A directory in the layout of the Hugging Face hub; see :class:`speq.checkpoint.sources.source.Source`.

    Raises:
        SpeqError: no config or safetensors weights, a missing or damaged shard, quantised weights.
    """

    config_is, all_tensors_count = "config.json", False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.resolve().name
        self.config = read_json(path / "config.json", f"{path} is no model directory: it has no config.json")
        if quantisation := self.config.get("quantization_config"):
            method = quantisation.get("quant_method", "unknown") if isinstance(quantisation, dict) else "unknown"
            raise _quantised(path, str(method))
        self._files = _open_weights(path)
        if found := quantisation_method({name: file.entries[name].dtype for name, file in self._files.items()}):
            raise _quantised(path, f"{found.method} (tensor {found.tensor})")
        self.weight_files = [file.path for file in dict.fromkeys(self._files.values())]
        infos = [
            TensorInfo(name, file.entries[name].shape, file.entries[name].dtype) for name, file in self._files.items()
        ]
        for info in infos:
            if info.dtype not in FLOATS + INTEGERS:
                raise SpeqError(f"{path}: tensor {info.name} is {info.dtype}; speq needs F16, BF16 or F32 weights")
        self.tensors = sorted(infos, key=lambda info: natural_order(info.name))
        shards = list(dict.fromkeys(self._files.values()))
        self.data = [(file.path, file.data_start) for file in shards]
        self.layout = {name: [shards.index(file), *astuple(file.entries[name])] for name, file in self._files.items()}
        self.notes = _reading_notes(self.config)
        self.originals: dict[str, list[str]] = {}
        carried = [file for name in CARRIED for file in sorted(path.glob(name)) if file.is_file()]
        self.files = {file.relative_to(path).as_posix(): file.read_bytes() for file in carried}
        if "tokenizer.json" not in self.files:
            self.notes.append("no tokenizer.json: text needs one, token ids (--ids) do not")

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[Any]:
        """Rows of a tensor as a view of the mapped file; 16-bit floats as uint16 bits."""
        array = self._files[name].array(name)
        return array if array.ndim == 0 else array[start:stop]


def _reading_notes(config: Mapping[str, Any]) -> list[str]:
    notes = []
    if config.get("rope_scaling") and config.get("rope_parameters"):
        notes.append("config.json has both rope_scaling and rope_parameters: rope_scaling counts, as in transformers")
    if config.get("auto_map"):
        notes.append("the checkpoint names code of its own (auto_map), which is not run: the model type's counts")
    return notes


def _quantised(path: Path, method: str) -> SpeqError:
    return SpeqError(f"{path} holds weights quantised with {method}; speq needs the 16-bit checkpoint (or a GGUF)")


def _open_weights(path: Path) -> dict[str, SafetensorsFile]:
    """Each tensor's name with the opened file that holds it: all tensors of all shards, as transformers reads them."""
    index_path = path / WEIGHTS_INDEX
    shard_of: dict[str, str] = {}
    if (path / "model.safetensors").is_file():
        shards = ["model.safetensors"]
    elif index_path.is_file():
        shard_of = _weight_map(index_path)
        shards = sorted(set(shard_of.values()))
    else:
        shards = sorted(file.name for file in path.glob("*.safetensors"))
    if not shards:
        raise _no_weights(path)
    files = {shard: SafetensorsFile(path / shard) for shard in shards}
    for name, shard in shard_of.items():
        if name not in files[shard].entries:
            raise SpeqError(f"{path / shard} lacks the tensor {name}; copy or download it again")
    found = {name: files[shard] for name, shard in shard_of.items()}
    for shard, file in files.items():
        for name in file.entries:
            if name not in shard_of and found.setdefault(name, file) is not file:
                raise SpeqError(
                    f"the tensor {name} is both in {found[name].path} and in {shard}; move one of the files away"
                )
    return found


def _weight_map(index_path: Path) -> dict[str, str]:
    """The index's shard of each tensor."""
    shard_of = read_json(index_path, "").get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise SpeqError(f"{index_path} has no weight_map; copy or download it again")
    for name, shard in shard_of.items():
        if not isinstance(shard, str) or not shard or Path(shard).name != shard:
            raise SpeqError(f"{index_path}: tensor {name} is in {shard!r}, which is no file name")
    return shard_of


def _no_weights(path: Path) -> SpeqError:
    other = next((file for kind in _OTHER_WEIGHTS for file in sorted(path.glob(f"*{kind}"))), None)
    hint = ""
    if other:
        way_out = "give that file's path" if other.suffix == ".gguf" else "save it as safetensors"
        hint = f"; {other.name} is there: {way_out}"
    return SpeqError(f"{path} has no safetensors weights{hint}")
