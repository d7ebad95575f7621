"""A converted checkpoint, mapped into memory as it lies on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from speq.bits import Spec, SplitTensor, to_float32
from speq.bits.tensor import PLANES
from speq.checkpoint.huggingface import read_json
from speq.checkpoint.layout import FORMAT_VERSION, MANIFEST, WEIGHTS, Record, checksum
from speq.checkpoint.rounding import DTYPES
from speq.checkpoint.safetensors import SafetensorsFile
from speq.errors import SpeqError
from speq.processors import map_in_threads

_VERIFY_THREADS = 2  # two read as fast as a disk gives
CONVERT_AGAIN = "delete the directory and convert the original again"


@dataclass(frozen=True)
class Converted:
    """A converted checkpoint.

    Attributes:
        path: its directory.
        config: the Hugging Face config.
        spec: the format of the matrices (of most weights, where several dtypes are mixed).
        split: the weight matrices by Hugging Face name; their planes are read-only views of the file.
        raw: all other float tensors, widened to float32.
        raw_dtypes: the stored type of each of those, a safetensors name.
        notes: what conversion changed or kept that the user should know.
        source: where it came from: ``name``, ``file``, and the options of the conversion.
        tokenizer: path of ``tokenizer.json``, None when there is none.
        records: the manifest's record of every tensor, in stored order.
        originals: the names that tensors had where they came from, of those that had others or several.
    """

    path: Path
    config: dict[str, Any]
    spec: Spec
    split: dict[str, SplitTensor]
    raw: dict[str, NDArray[np.float32]]
    raw_dtypes: dict[str, str]
    notes: list[str]
    source: dict[str, Any]
    tokenizer: Path | None
    records: list[Record]
    originals: dict[str, list[str]]

    @property
    def bytes(self) -> int:
        """Size of the weights on disk."""
        return (self.path / WEIGHTS).stat().st_size

    @property
    def bits_per_weight(self) -> float:
        """All planes of the matrices, in bits per weight."""
        weights = sum(tensor.shape[0] * tensor.shape[1] for tensor in self.split.values())
        stored = sum(plane.nbytes for tensor in self.split.values() for plane in tensor.planes().values())
        return 8 * stored / max(weights, 1)


def is_converted(path: Path) -> bool:
    """Whether a directory holds a converted checkpoint (of any format version)."""
    return (path / MANIFEST).is_file()


Fit: TypeAlias = Callable[[dict[str, Any], dict[str, tuple[int, ...]]], object]
"""Compares a config with the shapes of the tensors beside it, by name; raises SpeqError where they disagree."""


def load_converted(
    path: Path, *, verify: bool = True, threads: int | None = None, check: Fit | None = None
) -> Converted:
    """Map a converted checkpoint.

    Args:
        path: its directory.
        verify: compare every stored array with its checksum, which reads all of the file once.
        threads: at most so many of them; None for as many as pay.
        check: called before, to refuse a model by raising.

    Raises:
        SpeqError: a file is missing, truncated or damaged, a tensor does not match its checksum, or the format version
            is another.
    """
    manifest, records, specs = read_manifest(path)
    config = read_json(path / "config.json", f"{path} has no config.json; {CONVERT_AGAIN}")
    if check is not None:
        try:
            check(config, {record.name: record.shape for record in records})
        except SpeqError as error:
            raise SpeqError(f"{path}: {error}") from None
    file = SafetensorsFile(path / WEIGHTS)
    if verify:
        _verify(file, records, min(threads or _VERIFY_THREADS, _VERIFY_THREADS))
    split: dict[str, SplitTensor] = {}
    raw: dict[str, NDArray[np.float32]] = {}
    raw_dtypes: dict[str, str] = {}
    weights_of = [0] * len(specs)
    for record in records:
        if record.spec is not None:
            split[record.name] = split_tensor(file, record, specs[record.spec])
            weights_of[record.spec] += record.shape[0] * record.shape[1]
        elif record.dtype in ("F16", "BF16", "F32", "F64"):
            raw[record.name] = widen(whole_tensor(file, record), record.dtype)
            raw_dtypes[record.name] = record.dtype
    tokenizer = path / "tokenizer.json"
    return Converted(
        path=path,
        config=config,
        spec=specs[int(np.argmax(weights_of))],
        split=split,
        raw=raw,
        raw_dtypes=raw_dtypes,
        notes=manifest["notes"],
        source=manifest["source"],
        tokenizer=tokenizer if tokenizer.is_file() else None,
        records=records,
        originals={name: names for name, names in original_names(manifest, records).items() if names != [name]},
    )


def read_manifest(path: Path) -> tuple[dict[str, Any], list[Record], list[Spec]]:
    """The manifest as it is, its records and its specs.

    Raises:
        SpeqError: missing or damaged manifest, or another format version.
    """
    manifest = read_json(path / MANIFEST, f"{path} is no converted checkpoint: it has no {MANIFEST}")
    version = manifest.get("format_version")
    if version != FORMAT_VERSION:
        raise SpeqError(
            f"{path} has format version {version}, this speq reads version {FORMAT_VERSION}; {CONVERT_AGAIN}"
        )
    try:
        records = [Record.from_dict(item) for item in manifest["tensors"]]
        specs = [Spec.from_dict(item) for item in manifest["specs"]]
        manifest = manifest | {"notes": manifest.get("notes", []), "source": manifest.get("source", {})}
        names = [record.name for record in records]
        is_whole = (
            len(set(names)) == len(names)
            and bool(specs)
            and all(record.spec is None or 0 <= record.spec < len(specs) for record in records)
            and all(isinstance(note, str) for note in manifest["notes"])
            and isinstance(manifest["source"], dict)
            and all(isinstance(original, str) for names in manifest.get("originals", {}).values() for original in names)
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        is_whole = False
    if not is_whole:
        raise SpeqError(f"{path / MANIFEST} is damaged; {CONVERT_AGAIN}")
    return manifest, records, specs


def original_names(manifest: dict[str, Any], records: list[Record]) -> dict[str, list[str]]:
    """The names of each tensor in the checkpoint that was converted."""
    others: dict[str, list[str]] = manifest.get("originals", {})
    return {record.name: others.get(record.name, [record.name]) for record in records}


def whole_tensor(file: SafetensorsFile, record: Record) -> NDArray[Any]:
    """The array of a tensor that is stored as it is."""
    array = file.array(record.name)
    if (file.entries[record.name].dtype, array.shape) != (record.dtype, record.shape):
        raise SpeqError(f"{file.path}: tensor {record.name} is not what {MANIFEST} says; {CONVERT_AGAIN}")
    return array


def split_tensor(file: SafetensorsFile, record: Record, spec: Spec) -> SplitTensor:
    """The split matrix of a record, its planes views of the file."""
    planes = {plane: file.array(f"{record.name}.{plane}") for plane in PLANES}
    if len(record.shape) != 2 or DTYPES.get(record.dtype) != spec.dtype:
        raise SpeqError(f"{file.path}: tensor {record.name} is not what {MANIFEST} says; {CONVERT_AGAIN}")
    try:
        return SplitTensor.from_planes(spec, (record.shape[0], record.shape[1]), planes)
    except SpeqError as error:
        raise SpeqError(f"{file.path}: tensor {record.name}: {error}") from None


def widen(array: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """A stored float tensor, whose type has the safetensors name ``dtype``, as float32."""
    if dtype in ("F16", "BF16"):
        return to_float32(array, "fp16" if dtype == "F16" else "bf16")
    return array.astype(np.float32)


def _verify(file: SafetensorsFile, records: list[Record], threads: int) -> None:
    stored = [(record.name, name, value) for record in records for name, value in record.checksums.items()]

    def verify(item: tuple[str, str, str]) -> None:
        tensor, name, expected = item
        if checksum(file.array(name)) != expected:
            raise SpeqError(f"{file.path}: tensor {tensor} is corrupted (checksum of {name}); {CONVERT_AGAIN}")

    map_in_threads(verify, stored, threads)
