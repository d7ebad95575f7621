"""Loading a model for use, with what proposes beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from speq.checkpoint.storage import expanded
from speq.decoding.sequence import Progress
from speq.drafts import ONE_HELPER
from speq.errors import SpeqError
from speq.limits import SEQUENCES
from speq.serving.api import Model
from speq.serving.heap import return_freed_memory


def load(
    name: str | Path,
    *,
    threads: int | None = None,
    context: int | None = None,
    sequences: int = SEQUENCES,
    backend: Literal["native", "reference"] = "native",
    draft_head: str | Path | None = None,
    draft_model: str | Path | None = None,
    progress: Progress | None = None,
) -> Model:
    """Load a model, fetching and converting it first if need be.

    Args:
        name: a directory (Hugging Face layout or converted), a .gguf file, a catalogue name or a hub id.
        threads: for the kernels; ``None`` uses every core.
        context: limits the KV cache; ``None`` allows the model's own context length.
        sequences: how many texts may be generated at once; more of them wait.
        backend: ``native`` kernels, or the ``reference`` ones in NumPy.
        draft_head: directory of a trained head (see ``speq train-head``), which proposes tokens for the draft to check.
        draft_model: a smaller model with the same tokenizer, named as ``name`` is, which does so instead.
        progress: called with (label, done, total) during a fetch or conversion.

    Raises:
        SpeqError: the model cannot be found, read, converted or run, or the head is none, damaged or another model's,
            or the same with the draft model, or its tokens are others, or both are given.
    """
    from speq.conversion.locate import converted_model
    from speq.models.head_files import read_head
    from speq.models.tensors import load_fitting
    from speq.models.tokenizer import Tokenizer, end_ids
    from speq.processors import checked_threads
    from speq.runtime.engine import Engine as ModelEngine

    if draft_head is not None and draft_model is not None:
        raise SpeqError(ONE_HELPER)
    threads = checked_threads(threads)
    stored = read_head(expanded(str(draft_head))) if draft_head is not None else None
    path = converted_model(str(name), progress=progress, threads=threads)
    converted = load_fitting(path, threads=threads)
    engine = ModelEngine(converted, backend=backend, threads=threads, context=context, sequences=sequences)
    head = None
    if stored is not None:
        from speq.runtime.head import head_of

        head = head_of(engine, stored, backend=backend, threads=threads)
    tokenizer = Tokenizer(path, name=str(name)) if converted.tokenizer else None
    drafting = None
    if draft_model is not None:
        from speq.serving.draft_model import load_draft_model

        drafting = load_draft_model(draft_model, tokenizer, engine, backend=backend, threads=threads, progress=progress)
    ends = tokenizer.eos_ids if tokenizer else end_ids(path, str(name))
    return_freed_memory()
    return Model(
        engine,
        tokenizer,
        name=str(name),
        format=converted.spec.format,
        threads=threads,
        ends=ends,
        notes=converted.notes,
        head=head,
        draft_model=drafting,
    )
