"""The original 16-bit checkpoint back from a converted one, bit for bit."""

from __future__ import annotations

import shutil
from math import prod
from pathlib import Path

import numpy as np

from speq.checkpoint.safetensors import ITEM_BYTES, SafetensorsFile, write_header
from speq.checkpoint.storage import (
    Progress,
    check_space,
    empty,
    exclusive,
    hidden,
    is_empty,
    place,
    remove_new,
    writing_to,
)
from speq.checkpoint.store import (
    CONVERT_AGAIN,
    MANIFEST,
    WEIGHTS,
    Record,
    as_bytes,
    checksum,
    original_names,
    read_manifest,
    split_tensor,
    whole_tensor,
)
from speq.conversion.workplace import put
from speq.errors import SpeqError
from speq.formats import Spec, decode


def restore(model_dir: Path, dst: Path, progress: Progress | None = None) -> Path:
    """Write a Hugging Face directory: ``model.safetensors``, the config and the tokenizer files.

    Every matrix has the bits that were converted; checksums are verified on the way. The directory appears when it is
    complete.

    Args:
        model_dir: a converted checkpoint.
        dst: the directory to create; an empty one may exist.
        progress: called with counts of bytes.

    Raises:
        SpeqError: not a converted checkpoint, a corrupted tensor, ``dst`` exists, no space.
    """
    manifest, records, specs = read_manifest(model_dir)
    file = SafetensorsFile(model_dir / WEIGHTS)
    originals = original_names(manifest, records)
    target = place(dst)
    if target.exists() and not is_empty(target):
        raise SpeqError(f"{dst} exists; choose another name, or an empty directory")
    partial = hidden(target)
    new_parents = [path for path in target.parents if not path.exists()]
    try:
        with writing_to(target.parent), exclusive(partial):
            try:
                _write(model_dir, file, records, originals, specs, partial, progress)
                put(partial, target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    finally:
        remove_new(new_parents)
    return dst


def _write(
    model_dir: Path,
    file: SafetensorsFile,
    records: list[Record],
    originals: dict[str, list[str]],
    specs: list[Spec],
    directory: Path,
    progress: Progress | None,
) -> None:
    empty(directory)
    total = sum(prod(record.shape) * ITEM_BYTES[record.dtype] * len(originals[record.name]) for record in records)
    check_space(directory, total, "restoring")
    with (directory / "model.safetensors").open("wb") as out:
        shapes = {record.name: (record.dtype, record.shape) for record in records}
        write_header(out, {name: shapes[key] for key, names in originals.items() for name in names})
        done = 0
        for record in records:
            for name, expected in record.checksums.items():
                if checksum(file.array(name)) != expected:
                    raise SpeqError(f"{file.path}: tensor {record.name} is corrupted; {CONVERT_AGAIN}")
            if record.spec is None:
                array = whole_tensor(file, record)
            else:
                array = decode(split_tensor(file, record, specs[record.spec]))
            for _ in originals[record.name]:
                out.write(as_bytes(np.ascontiguousarray(array)))
                done += array.nbytes
            if progress is not None:
                progress("restoring", done, total)
    shutil.copytree(model_dir, directory, ignore=shutil.ignore_patterns(MANIFEST, WEIGHTS), dirs_exist_ok=True)
