"""The second half of a conversion: other draft codes for the same weights, chosen with the model's activations in view.

Weights that share a product make up for each other's errors (:mod:`speq.bits.feedback`). What they are worth exactly
does not change; :mod:`speq.calibration` supplies the moments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from speq.bits import Feedback, Spec, SplitTensor, decode, encode, feedback_of
from speq.bits.spec import Format
from speq.checkpoint.converted import Converted
from speq.checkpoint.layout import WEIGHTS, Record, stored_planes
from speq.checkpoint.safetensors import SafetensorsFile
from speq.checkpoint.storage import Progress
from speq.checkpoint.writer import WeightsWriter

Moments = NDArray[np.float32]


class Calibration(Protocol):
    """Who knows the activations of a model."""

    @property
    def identity(self) -> str:
        """Changes when the moments of the same model would."""

    def refusal(self, model: Converted) -> str | None:
        """Why a model cannot be calibrated, or None."""

    def moments(self, model: Converted, threads: int) -> Iterator[Mapping[str, Moments]]:
        """Second moments of the inputs of matrices by name, float32 ``[blocks, columns, columns]``, some at a time."""


def identity_for(calibration: Calibration | None, format: Format) -> str | None:
    """What tells a conversion to ``format`` with this calibration from others; None where it changes nothing."""
    return None if calibration is None or format == "e3m0" else calibration.identity


def recode(
    model: Converted, calibration: Calibration, writer: WeightsWriter, progress: Progress | None, threads: int
) -> list[str]:
    """Write every tensor of ``model``, the matrices with calibrated codes; returns what there is to note."""
    weights = {record.name: prod(record.shape) for record in model.records}
    total = sum(weights.values())
    records = {record.name: record for record in model.records}
    file = SafetensorsFile(model.path / WEIGHTS)
    unusable = 0

    def report() -> None:
        if progress is not None:
            progress("calibrating", sum(weights[name] for name in writer.records), total)

    report()
    refusal = calibration.refusal(model)
    for segment in calibration.moments(model, threads) if refusal is None else ():
        shared: dict[int, Feedback | None] = {}
        for name, moments in segment.items():
            if name in writer.records:
                continue
            if id(moments) not in shared:
                shared[id(moments)] = _feedback(moments)
            feedback = shared[id(moments)]
            if feedback is None:
                unusable += 1
                continue
            tensor = calibrated(model.split[name], moments, feedback, threads)
            writer.add(replace(records[name], escapes=tensor.escapes), stored_planes(name, tensor))
            report()
    for name, record in records.items():
        if name not in writer.records:
            writer.add(record, _as_stored(file, record))
            report()
    notes = [f"the draft is not calibrated: {refusal}"] if refusal else []
    if unusable:
        notes.append(f"the drafts of {unusable} matrices are not calibrated: their activations are not finite")
    return notes


def _feedback(moments: Moments) -> Feedback | None:
    """None for activations that have no finite moments."""
    if not np.isfinite(moments).all():
        return None
    try:
        feedback = feedback_of(moments)
    except np.linalg.LinAlgError:
        return None
    return feedback if np.isfinite(feedback.influence).all() and np.isfinite(feedback.coupling).all() else None


def calibrated(
    tensor: SplitTensor, moments: Moments, feedback: Feedback, threads: int, spec: Spec | None = None
) -> SplitTensor:
    """The same weights with codes for these activations, in the tensor's own format or in ``spec``."""
    importance = np.einsum("bii->bi", moments).reshape(-1)[: tensor.shape[1]]
    bits = decode(tensor, threads=threads)
    return encode(bits, spec or tensor.spec, column_weights=importance, feedback=feedback, threads=threads)


def _as_stored(file: SafetensorsFile, record: Record) -> dict[str, tuple[str, NDArray[Any]]]:
    return {name: (file.entries[name].dtype, file.array(name)) for name in record.checksums}
