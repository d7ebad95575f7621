"""Where a model that the user names lies, ready to run: fetched, checked, converted and calibrated first if need be."""

from __future__ import annotations

from pathlib import Path

from speq.calibration import Calibration
from speq.checkpoint.resolve import resolve
from speq.checkpoint.storage import Progress
from speq.models.tensors import fit_source


def converted_model(name: str, *, progress: Progress | None = None, threads: int | None = None) -> Path:
    """The converted checkpoint of a directory, .gguf file, catalogue name or hub id.

    Raises:
        SpeqError: nothing of that name, an unsupported model, or what fetching or converting it says.
    """
    return resolve(name, progress=progress, threads=threads, check=fit_source, calibration=Calibration())
