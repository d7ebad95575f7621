"""What the conversion of a checkpoint asks for: second moments of every matrix's inputs, segment by segment."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speq.bits.feedback import DAMPING, PASSES
from speq.calibration.observe import WIDEST, observe
from speq.calibration.samples import LONGEST, Sample, read_samples, text_identity
from speq.checkpoint.converted import Converted
from speq.checkpoint.kept import Kept
from speq.errors import SpeqError
from speq.models.config import model_config
from speq.models.tokenizer import Tokenizer


class Calibration:
    """Activations on the text that comes with speq; a :class:`speq.checkpoint.recode.Calibration`."""

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
