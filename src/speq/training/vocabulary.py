"""Which of the model's tokens a head can propose.

A token is worth its row of the head's output layer as long as the proposals that it makes right save more than reading
the row costs. A round of a head reads the row once per proposal, and a right proposal saves about a draft pass; so a
token pays if its share of the text is at least the bytes of its rows over those of a draft pass.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from speq.checkpoint.store import Converted
from speq.errors import SpeqError
from speq.models.config import ModelConfig
from speq.models.decoder import EMBEDDING

PROPOSALS = 3
"""Rows of the output layer that a token costs in a draft pass: one for each proposal."""

BITS = 4.25
"""Bits of a weight of a head, as it is read."""

_MULTIPLE = 64


def draft_bytes(model: Converted, config: ModelConfig) -> int:
    """Bytes of weights that a draft pass of the model reads."""
    read = (t for name, t in model.split.items() if config.tied_head or name != EMBEDDING)
    return sum(tensor.codes.nbytes + tensor.scales.nbytes for tensor in read)


def choose_vocabulary(
    counts: NDArray[np.int64], size: int | None, always: frozenset[int], config: ModelConfig, bytes_of_draft: int
) -> NDArray[np.int64]:
    """The model's ids of the head's tokens, ascending: the most frequent ones.

    Args:
        counts: how often each of the model's tokens is in the text, ``[vocabulary]``.
        size: how many; None for all that pay.
        always: ids to have in any case, such as those that end a text.
        config: the model.
        bytes_of_draft: see :func:`draft_bytes`.

    Raises:
        SpeqError: there is no text.
    """
    if not counts.any():
        raise SpeqError("the rows of text end before the model says anything: use a larger --length")
    if size is None:
        row = config.hidden_size * BITS / 8
        least = PROPOSALS * row / bytes_of_draft * counts.sum()
        size = int((counts >= max(least, 1)).sum())
        size = -(-size // _MULTIPLE) * _MULTIPLE
    size = min(size, len(counts))
    ranked = counts.astype(np.float64)
    ranked[[token for token in always if token < len(counts)]] = np.inf
    return np.sort(np.argsort(-ranked, kind="stable")[:size]).astype(np.int64)
