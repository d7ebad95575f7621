"""A source of either kind from its path, and its identity: what tells it from all others, wherever it lies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import xxhash

from speq.checkpoint.digests import data_digest, recall, remember, stamp
from speq.checkpoint.sources.gguf import GGUFSource
from speq.checkpoint.sources.huggingface import HuggingFaceSource
from speq.checkpoint.sources.source import Source
from speq.checkpoint.storage import Progress
from speq.checkpoint.store import MANIFEST
from speq.errors import SpeqError


def open_source(path: Path) -> Source:
    """Open a Hugging Face directory or a ``.gguf`` file.

    Args:
        path: directory with ``config.json`` and safetensors weights, or a GGUF file.

    Raises:
        SpeqError: nothing readable there, a damaged file, or weights of a kind that cannot be read.
    """
    if not path.exists():
        raise SpeqError(f"{path} does not exist")
    if path.is_dir():
        if (path / MANIFEST).exists():
            raise SpeqError(f"{path} is converted already; convert the original, or get it back with speq restore")
        return HuggingFaceSource(path)
    return GGUFSource(path)


def identity(path: Path, progress: Progress | None = None) -> str:
    """A name for the content of a source: equal for equal content wherever it lies, whatever its files' times say.

    It has two halves, ``weights-carried``. The first comes from every byte of the tensors' data and from what the
    source makes of it: names, types, shapes and places. The second comes from what is written beside the converted
    weights: the config and all carried files. See :mod:`speq.checkpoint.digests` for why this is fast.

    Args:
        path: a Hugging Face directory or a GGUF file.
        progress: called with counts of bytes while large files are read.

    Raises:
        SpeqError: as for :func:`open_source`; a file cannot be read or is being written to.
    """
    if not path.is_file():
        return identity_of(open_source(path), progress)
    # What is carried from a GGUF file is made from its metadata, which takes a second or two.
    seen, what = stamp(path), f"identity as seen by {_code()}"
    known = recall(path, what)
    if known is None:
        known = identity_of(open_source(path), progress)
        remember(path, what, known, seen)
    return known


def identity_of(source: Source, progress: Progress | None = None) -> str:
    """The :func:`identity` of a source that is open."""
    carried = {name: xxhash.xxh3_128_hexdigest(content) for name, content in sorted(source.files.items())}
    done, total = 0, sum(stamp(path)[0] - begin for path, begin in source.data)

    def read(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None and done < total:
            progress(f"reading {source.path.name}", done, total)

    data = [data_digest(path, begin, read) for path, begin in source.data]
    return f"{_digest_of([source.layout, data])}-{_digest_of([source.config, carried])}"


def same_weights(one: str, other: str) -> bool:
    """Whether two identities are of the same weights, whatever lies beside them."""
    return "-" in one and one.partition("-")[0] == other.partition("-")[0]


def _digest_of(content: Any) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())


def _code() -> str:
    """Changes when this package is installed again or edited: it may then read the same file differently."""
    directory = Path(__file__).parents[1]
    files = sorted(directory.rglob("*.py"))
    return _digest_of([[str(file.relative_to(directory)), *stamp(file)[:2]] for file in files])
