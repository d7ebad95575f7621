"""Loading another model that drafts: its tokens must be those of the model that it drafts for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from speq.checkpoint.storage import Progress
from speq.errors import SpeqError
from speq.runtime.engine import Backend, Engine

if TYPE_CHECKING:
    from speq.models.tokenizer import Tokenizer

Tokens: TypeAlias = dict[int, str]
"""A vocabulary by ids."""


def load_draft_model(
    name: str | Path,
    tokenizer: Tokenizer | None,
    engine: Engine,
    *,
    backend: Backend = "native",
    threads: int | None = None,
    progress: Progress | None = None,
) -> Engine:
    """The engine of a model that drafts for another, with room for as many sequences.

    Args:
        name: what it is called, as for :func:`speq.load`.
        tokenizer, engine: of the one that it is to help.
        backend, threads, progress: as for :func:`speq.load`.

    Raises:
        SpeqError: the model cannot be found, read, converted or run, or its tokens are others.
    """
    from speq.conversion.locate import converted_model
    from speq.models.config import model_config
    from speq.models.tensors import load_fitting
    from speq.models.tokenizer import Tokenizer

    path = converted_model(str(name), progress=progress, threads=threads)
    converted = load_fitting(path, threads=threads)
    config = model_config(converted.config)
    own = Tokenizer(path).tokens if converted.tokenizer else None
    others = tokenizer.tokens if tokenizer else None
    if own is None and others is None:
        own, others = (dict.fromkeys(range(size), "") for size in (config.vocab_size, engine.vocab_size))
    check_same_tokens(str(name), own, others)
    context = min(config.context_length, engine.limits.context)
    return Engine(converted, backend, threads, context, engine.limits.sequences)


def check_same_tokens(name: str, own: Tokens | None, others: Tokens | None) -> None:
    """Compare the tokens of a draft model with those of the model; one of them may have more.

    Raises:
        SpeqError: an id means one thing here and another there, or nobody can tell.
    """
    if own is None or others is None:
        what = "it has no tokenizer" if own is None else "this model has no tokenizer"
        raise SpeqError(f"nobody can tell whether the draft model {name} has the same tokens: {what}")
    shared = own.keys() & others.keys()
    differing = min((token for token in shared if own[token] != others[token]), default=None)
    if differing is None and len(shared) == min(len(own), len(others)):
        return
    what = (
        f"{len(own)} tokens, of which this model has only {len(shared)}"
        if differing is None
        else f"token {differing} is {own[differing]!r} there and {others[differing]!r} here"
    )
    raise SpeqError(f"the draft model {name} has another tokenizer ({what}): give a smaller model of the same family")
