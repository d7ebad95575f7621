"""The engine: a model bound to a backend and to a KV pool. Batches of spans go in, draws come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from speq.errors import SpeqError
from speq.graph.step import Draw, Rows, SpanRows, Step, Weight, Weights, positions
from speq.limits import BATCH_ROWS, QUICK_ROWS, TREE_ROWS
from speq.models.config import ModelConfig
from speq.models.decoder import EMBEDDING, FINAL_NORM, HEAD, build_program, tap_name
from speq.models.tensors import fit
from speq.runtime.batch import Batch, Level, Limits
from speq.runtime.kv import KVHandle, KVPool
from speq.runtime.sampling import GREEDY, Choice, checked

Backend: TypeAlias = Literal["native", "reference"]


class Checkpoint(Protocol):
    """What the engine needs of a converted checkpoint: ``config.json`` and the weights, split matrices and vectors."""

    @property
    def config(self) -> Mapping[str, Any]: ...
    @property
    def split(self) -> Weights: ...
    @property
    def raw(self) -> Weights: ...


class Ends(NamedTuple):
    """What a model begins and ends with, which others may use, too.

    Attributes:
        embedding: the rows that tokens become.
        norm, norm_eps: of the last hidden state.
        head: the output head behind that norm.
    """

    embedding: Weight
    norm: Weight
    norm_eps: float
    head: Weight


class Engine:
    """A model that computes batches.

    Attributes:
        config: the model.
        vocab_size: columns of the logits.
        levels: what a batch may read of the weights, the cheapest first; the last one defines the text.
        limits: what a batch and a sequence may be.
        taps: names of the hidden states that a batch can keep, from the first layer on.
        kv: keys and values of all sequences.
        ends: what the model begins and ends with.
    """

    levels: tuple[Level, ...] = ("draft", "exact")

    def __init__(
        self,
        model: Checkpoint | tuple[Mapping[str, Any], Weights],
        backend: Backend = "native",
        threads: int | None = None,
        context: int | None = None,
        sequences: int = 1,
        isa: str | None = None,
    ) -> None:
        """Bind a model.

        Args:
            model: a converted checkpoint, or a parsed ``config.json`` and the weights by their Hugging Face names.
            backend: who computes.
            threads: of the native backend; None for one per core.
            context: most tokens of a sequence; None for all that the model is made for.
            sequences: of full length, for which there is room.
            isa: instruction set of the native backend; None for the best one here, or what ``SPEQ_ISA`` says.

        Raises:
            SpeqError: unsupported model, missing or misshapen weights, or a context that the model is not made for.
        """
        config, weights = model if isinstance(model, tuple) else (model.config, {**model.raw, **model.split})
        self.config: ModelConfig = fit(config, {name: weight.shape for name, weight in weights.items()})
        limit = self.config.context_length
        if context is not None and not 0 < context <= limit:
            raise SpeqError(f"a context of {context} tokens is outside what the model is made for, 1 to {limit}")
        if sequences < 1:
            raise SpeqError(f"{sequences} sequences at once is out of range: use at least 1")
        self.vocab_size = self.config.vocab_size
        length = context or limit
        self.limits = Limits(length, min(BATCH_ROWS, length), TREE_ROWS, QUICK_ROWS, sequences)
        self.taps = tuple(tap_name(layer) for layer in range(self.config.layers))
        head = weights[EMBEDDING if self.config.tied_head else HEAD]
        self.ends = Ends(weights[EMBEDDING], weights[FINAL_NORM], self.config.norm_eps, head)
        self.kv = KVPool(
            self.config.layers, self.config.kv_heads, self.config.head_dim, context=length, sequences=sequences
        )
        self._step = _bind(backend, self.config, weights, self.kv, self.limits.rows, threads, isa)

    def run(self, batch: Batch) -> BatchOutput:
        """Compute a batch: every span's tokens follow in its sequence, and stay there until they are cut away.

        Raises:
            SpeqError: a sequence would be longer than the context, or a token id lies outside the vocabulary. No
                sequence has changed then.
            ValueError: no spans, too many tokens, or a tree that is none.
        """
        rows = self._rows(batch)
        self._step.run(rows)
        output = BatchOutput(self._step, batch, rows)
        for span in batch.spans:
            self.kv.extend(span.kv, list(span.tokens), exact=batch.level == self.levels[-1])
        return output

    def check(self, kv: KVHandle, tokens: Sequence[int]) -> None:
        """Whether ``tokens`` could follow in a sequence.

        Raises:
            SpeqError: it would be longer than the context, or one of them lies outside the vocabulary.
        """
        if kv.length + len(tokens) > self.limits.context:
            raise SpeqError(
                f"{kv.length + len(tokens)} tokens do not fit in the context of {self.limits.context}; "
                "shorten the input"
            )
        for token in tokens:
            if not 0 <= token < self.vocab_size:
                raise SpeqError(f"token id {token} is outside the model's vocabulary of {self.vocab_size}")

    def _rows(self, batch: Batch) -> Rows:
        count = sum(len(span.tokens) for span in batch.spans)
        if not 0 < count <= self.limits.rows:
            raise ValueError(f"a batch has 1 to {self.limits.rows} tokens, not {count}")
        for span in batch.spans:
            self.check(span.kv, span.tokens)
        tokens = np.array([token for span in batch.spans for token in span.tokens], np.int32)
        spans: list[SpanRows] = []
        wanted: list[int] = []
        draws: list[Draw] = []
        first = 0
        for span in batch.spans:
            if span.parents is not None and len(span.tokens) > self.limits.tree_rows:
                raise ValueError(f"a tree has at most {self.limits.tree_rows} tokens, not {len(span.tokens)}")
            pages = self.kv.make_room(span.kv, len(span.tokens))
            placed = SpanRows(span.kv.length, len(span.tokens), pages, span.parents)
            wanted += [first + index for index in span.wanted]
            at = positions(placed)
            draws += [(span.sampling or GREEDY).draw(int(at[index]) + 1, span.likely) for index in span.wanted]
            spans.append(placed)
            first += len(span.tokens)
        return Rows(
            tokens,
            spans,
            draft=batch.level == "draft",
            wanted=np.array(wanted, np.int32),
            draws=draws if any(span.sampling for span in batch.spans) else (),
            confidences=any(span.confidences for span in batch.spans),
            taps=batch.taps,
        )


class BatchOutput:
    """See :class:`speq.runtime.batch.Output`."""

    def __init__(self, step: Step, batch: Batch, rows: Rows) -> None:
        self._step, self._spans = step, batch.spans
        self._wanted = np.cumsum([0, *(len(span.wanted) for span in batch.spans)])
        self._first = np.cumsum([0, *(len(span.tokens) for span in batch.spans)])
        self._drawn, self._draws = step.drawn(), rows.draws

    def drawn(self, span: int) -> list[Choice]:
        first, last = self._wanted[span], self._wanted[span + 1]
        if self._spans[span].sampling is None:
            return []
        results = zip(self._drawn[first:last], self._draws[first:last], strict=True)
        return [checked(result, draw.position) for result, draw in results]

    def logits(self, span: int) -> NDArray[np.float32]:
        return self._step.logits()[self._wanted[span] : self._wanted[span + 1]]

    def tap(self, span: int, name: str) -> NDArray[np.float32]:
        return self._step.tapped(name)[self._first[span] : self._first[span + 1]]


def _bind(
    backend: Backend,
    config: ModelConfig,
    weights: Weights,
    kv: KVPool,
    max_tokens: int,
    threads: int | None,
    isa: str | None,
) -> Step:
    program = build_program(config)
    if backend == "reference":
        from speq.backends.reference.step import ReferenceStep

        return ReferenceStep(program, weights, kv, max_tokens)
    from speq.backends.cpu import NativeStep

    return NativeStep(program, weights, kv, max_tokens, threads=threads, isa=isa)
