"""The second half of a conversion: other draft codes for the same weights, chosen with the model's activations in view.

Weights that share a product make up for each other's errors (:mod:`speq.formats.feedback`). What they are worth exactly
does not change; :mod:`speq.conversion.calibrate` supplies the moments.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from speq.checkpoint.safetensors import SafetensorsFile
from speq.checkpoint.storage import Progress
from speq.checkpoint.store import WEIGHTS, Converted, Record, stored_planes
from speq.checkpoint.writer import WeightsWriter
from speq.conversion.kept import Kept, Pace, in_ranges
from speq.conversion.observe import WIDEST, observe
from speq.conversion.samples import LONGEST, Sample, read_samples, text_identity
from speq.conversion.split import rows_at_once
from speq.errors import SpeqError
from speq.formats import Feedback, Spec, SplitTensor, decode, encode, feedback_of
from speq.formats.feedback import DAMPING, PASSES
from speq.formats.spec import Format
from speq.models.config import model_config
from speq.models.tokenizer import Tokenizer

Moments = NDArray[np.float32]

_CHUNK_WEIGHTS = 1 << 20  # for each thread: a fraction of a second
_UNUSABLE = "matrices with unusable activations"
_REFUSED = "the draft is not calibrated: "
_DRAFTS = "the drafts of "


class Calibration:
    """The activations of a model on the text that comes with speq.

    Attributes:
        identity: changes when the moments of the same model would.
    """

    identity = (
        f"{text_identity()}, {LONGEST} tokens, blocks of up to {WIDEST}, damping {DAMPING:g}, "
        f"{PASSES} passes of descent"
    )

    def __init__(self) -> None:
        self._read: tuple[Path, list[Sample]] | None = None

    def refusal(self, model: Converted) -> str | None:
        """Why this model cannot be calibrated, or None."""
        if model.tokenizer is None:
            return "the checkpoint has no tokenizer"
        described = model_config(model.config)
        try:
            samples = self._samples_of(model)
        except SpeqError as error:
            return str(error)
        largest = max((int(sample.tokens.max()) for sample in samples), default=0)
        if largest >= described.vocab_size:
            return f"its tokenizer makes the token id {largest}, its vocabulary has {described.vocab_size}"
        return None

    def moments(
        self, model: Converted, threads: int, kept: Kept | None = None
    ) -> Iterator[Mapping[str, NDArray[np.float32]]]:
        """E[x x^T] of the inputs of the matrices named, float32 ``[blocks, columns, columns]``; see :func:`observe`.

        What is needed to go on from there is kept in ``kept``. Then only moments that have not been made use of are
        sure to come: those of one step are made use of when the next are asked for.

        Raises:
            SpeqError: the tokenizer makes no tokens of the text.
        """
        samples = self._samples_of(model)
        if not samples:
            raise SpeqError(f"{model.path}: the tokenizer makes no tokens of the calibration text; use --no-calibrate")
        return observe(model.config, {**model.raw, **model.split}, samples, threads, kept)

    def _samples_of(self, model: Converted) -> list[Sample]:
        """The text in the model's tokens, read once; messages name the file that was converted, not the one in the
        making.
        """
        if self._read is None or self._read[0] != model.path:
            tokenizer = Tokenizer(model.path, name=model.source.get("file"))
            self._read = model.path, read_samples(tokenizer, model_config(model.config).context_length)
        return self._read[1]


def identity_for(calibration: Calibration | None, format: Format) -> str | None:
    """What tells a conversion to ``format`` with this calibration from others; None where it changes nothing."""
    return None if calibration is None or format == "e3m0" else calibration.identity


def recode(
    model: Converted,
    calibration: Calibration,
    writer: WeightsWriter,
    kept: Kept,
    progress: Progress | None,
    threads: int,
) -> list[str]:
    """Write every tensor of ``model``, the matrices with calibrated codes; returns what there is to note."""
    weights = {record.name: prod(record.shape) for record in model.records}
    total = sum(weights.values())
    records = {record.name: record for record in model.records}
    file = SafetensorsFile(model.path / WEIGHTS)
    unusable = {str(arrays["name"]) for _, _, arrays in kept.ranges(_UNUSABLE)}

    def report() -> None:
        if progress is not None:
            progress("calibrating", sum(weights[name] for name in writer.records), total)

    report()
    refusal = calibration.refusal(model)
    for segment in calibration.moments(model, threads, kept) if refusal is None else ():
        first_of: dict[int, str] = {}
        feedback_by: dict[int, Feedback | None] = {}
        for name, moments in segment.items():
            key = id(moments)
            step = f"feedback of {first_of.setdefault(key, name)}"
            if name in writer.records or name in unusable:
                continue
            if key not in feedback_by:
                feedback_by[key] = _feedback(moments, step, kept)
            feedback = feedback_by[key]
            if feedback is None:
                kept.keep(_UNUSABLE, len(unusable), len(unusable) + 1, {"name": np.array(name)})
                unusable.add(name)
                continue
            tensor = calibrated(model.split[name], moments, feedback, threads, kept=kept, step=f"codes of {name}")
            writer.add(replace(records[name], escapes=tensor.escapes), stored_planes(name, tensor))
            kept.drop(f"codes of {name}")
            report()
        for name in first_of.values():
            kept.drop(f"feedback of {name}")
    for name, record in records.items():
        if name not in writer.records:
            writer.add(record, _as_stored(file, record))
            report()
    notes = [_REFUSED + refusal] if refusal else []
    if unusable:
        notes.append(_DRAFTS + f"{len(unusable)} matrices are not calibrated: their activations are not finite")
    return notes


def calibration_notes(notes: list[str]) -> list[str]:
    """Those of a converted checkpoint's notes that :func:`recode` made."""
    return [note for note in notes if note.startswith((_REFUSED, _DRAFTS))]


def was_refused(notes: list[str]) -> bool:
    """Whether these notes say that a checkpoint could not be calibrated."""
    return any(note.startswith(_REFUSED) for note in notes)


def _feedback(moments: Moments, step: str, kept: Kept) -> Feedback | None:
    """None for activations that have no finite moments."""
    for _, _, arrays in kept.ranges(step):
        return Feedback(**arrays)
    pace = Pace()
    if not np.isfinite(moments).all():
        return None
    try:
        feedback = feedback_of(moments)
    except np.linalg.LinAlgError:
        return None
    if not (np.isfinite(feedback.influence).all() and np.isfinite(feedback.coupling).all()):
        return None
    if pace.due():
        kept.keep(step, 0, 1, {"influence": feedback.influence, "coupling": feedback.coupling})
    return feedback


def calibrated(
    tensor: SplitTensor,
    moments: Moments,
    feedback: Feedback,
    threads: int,
    spec: Spec | None = None,
    *,
    kept: Kept | None = None,
    step: str = "",
) -> SplitTensor:
    """A tensor of the same weights with codes for these activations, in the tensor's own format or in ``spec``.

    With ``kept`` the codes of finished rows are kept there under the name ``step``.
    """
    importance = np.einsum("bii->bi", moments).reshape(-1)[: tensor.shape[1]]

    def work(start: int, stop: int) -> dict[str, NDArray[Any]]:
        bits = decode(tensor.rows(start, stop), threads=threads)
        return encode(bits, spec or tensor.spec, column_weights=importance, feedback=feedback, threads=threads).planes()

    rows, columns = tensor.shape
    if kept is None:
        return SplitTensor.of_rows(spec or tensor.spec, tensor.shape, [work(0, rows)])
    parts = in_ranges(kept, step, rows, rows_at_once(columns, _CHUNK_WEIGHTS, threads), work)
    return SplitTensor.of_rows(spec or tensor.spec, tensor.shape, parts)


def _as_stored(file: SafetensorsFile, record: Record) -> dict[str, tuple[str, NDArray[Any]]]:
    return {name: (file.entries[name].dtype, file.array(name)) for name in record.checksums}
