"""Checkpoints from the Hugging Face hub, into the cache that all its libraries share."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import Any

from speq.checkpoint.digests import recall, remember, stamp
from speq.checkpoint.fetching.watch import directory_bytes, watching
from speq.checkpoint.fetching.wheels import file_sha256
from speq.checkpoint.sources.huggingface import CARRIED, WEIGHTS_INDEX
from speq.checkpoint.storage import Progress, writing_to
from speq.errors import SpeqError

_CONNECT_SECONDS = 5.0


def fetch_snapshot(repo: str, progress: Progress | None) -> Path:
    """Download a model's config, tokenizer and safetensors weights; returns the snapshot's directory.

    Files that are in the cache already are not downloaded again, interrupted ones are continued; weights are checked
    against the sha256 that the hub states. Without a connection, a complete snapshot in the cache will do.

    Raises:
        SpeqError: no such model, no access, no connection, no safetensors weights, a wrong checksum, no space.
    """
    import huggingface_hub
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    try:
        info = huggingface_hub.HfApi().model_info(repo, timeout=_CONNECT_SECONDS, files_metadata=True)
    except Exception as error:  # the hub's, the HTTP library's and the system's errors share no base class
        cached = _cached_snapshot(repo)
        if cached is not None:
            return cached
        raise SpeqError(_reason(repo, error)) from None
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or []}
    names = _wanted(repo, list(siblings))
    total = sum(siblings[name].size or 0 for name in names)
    blobs = Path(huggingface_hub.constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / "blobs"
    present = min(directory_bytes(blobs), total)
    own_bars = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        with (
            watching(blobs, repo, present, total, progress),
            writing_to(blobs, "free some and run again: it continues there"),
        ):
            path = Path(huggingface_hub.snapshot_download(repo, allow_patterns=names, etag_timeout=_CONNECT_SECONDS))
    except SpeqError:
        raise
    except Exception as error:
        raise SpeqError(_reason(repo, error)) from None
    finally:
        if own_bars:
            enable_progress_bars()
    if progress is not None:
        progress(repo, total, total)
    for name in names:
        expected = getattr(siblings[name].lfs, "sha256", None)
        if expected and _sha256_once(path / name) != expected:
            (path / name).resolve().unlink()
            raise SpeqError(f"{repo}: {name} does not have the sha256 that the hub states; pull it again")
    return path


def _sha256_once(path: Path) -> str:
    """The sha256 of a file, remembered as long as nobody touches it."""
    seen, what = stamp(path), "sha256"
    found = recall(path, what)
    if found is None:
        found = file_sha256(path)
        remember(path, what, found, seen)
    return found


def _wanted(repo: str, names: list[str]) -> list[str]:
    """The files of a repository that make up a checkpoint, small ones first."""
    weights = sorted(name for name in names if name.endswith(".safetensors") and "/" not in name)
    weights = [name for name in weights if name.startswith("model")] or weights
    if "config.json" not in names or not weights:
        ggufs = [name for name in names if name.endswith(".gguf")]
        hint = f"; download one of its GGUF files ({ggufs[0]}) and give its path" if ggufs else ""
        raise SpeqError(f"{repo} on the hub has no config.json and safetensors weights{hint}")
    wanted = (*CARRIED, WEIGHTS_INDEX)
    return ["config.json", *(name for pattern in wanted for name in fnmatch.filter(names, pattern)), *weights]


def _cached_snapshot(repo: str) -> Path | None:
    """A snapshot that an earlier download completed."""
    import huggingface_hub

    try:
        patterns = ["config.json", *CARRIED, WEIGHTS_INDEX, "model*.safetensors"]
        path = Path(huggingface_hub.snapshot_download(repo, allow_patterns=patterns, local_files_only=True))
    except Exception:  # not there, in whatever words
        return None
    has_weights = (path / "model.safetensors").exists() or (path / WEIGHTS_INDEX).exists()
    return path if (path / "config.json").exists() and has_weights else None


def _reason(repo: str, error: Any) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403, 404):
        return f"the hub has no model {repo}, or it asks for a login (huggingface-cli login)"
    lines = str(error).strip().splitlines()
    return f"the hub cannot be reached ({lines[0] if lines else type(error).__name__})"
