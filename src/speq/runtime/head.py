"""A head bound to a backend: what proposes tokens by one small layer, with keys and values of its own.

The head's slot p stands for the text up to its token p + 1: it reads the model's hidden states at token p and the token
after it. So it lags one slot behind the model's own cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from speq.backends.cpu import NativeStep
from speq.backends.reference import functional as F
from speq.backends.reference.step import ReferenceStep
from speq.formats import Spec, SplitTensor, encode, from_float32
from speq.graph.ops import StepProgram
from speq.graph.step import PartStep, Rows, SpanRows, Weight, positions
from speq.limits import BATCH_ROWS, MOST_LIKELY
from speq.models.decoder import EMBEDDING
from speq.models.head import (
    EMBEDDED,
    FEATURES,
    HIDDEN,
    LAYER,
    OUTPUT_HEAD,
    build_embedding_program,
    build_head_program,
    program_parameters,
)
from speq.models.head_files import StoredHead
from speq.runtime.batch import HeadSpan
from speq.runtime.engine import Backend, Ends, Engine
from speq.runtime.kv import KVPool
from speq.runtime.sampling import Likely

GROUP = 32
"""Weights that share a scale of the head's draft codes."""


class ExecutedHead:
    """A head that computes.

    Attributes:
        taps: of the model, that it reads, side by side.
        kv: keys and values of its layer, of all sequences.
    """

    def __init__(
        self,
        stored: StoredHead,
        model: Ends,
        *,
        context: int,
        sequences: int = 1,
        backend: Backend = "native",
        threads: int | None = None,
        isa: str | None = None,
    ) -> None:
        """Bind a head.

        Args:
            stored: what was read, as a head of the model (:meth:`StoredHead.of_model`).
            model: what the model begins and ends with, of which the head uses what it has not of its own.
            context: most tokens of a sequence.
            sequences: of full length, for which there is room.
            backend, threads, isa: as of :class:`speq.runtime.engine.Engine`.

        Raises:
            SpeqError: the system refuses the addresses, or the threads.
        """
        config = self._config = stored.config
        self.taps = config.tap_names
        self.kv = KVPool(1, config.kv_heads, config.head_dim, context=context, sequences=sequences)
        self._known = stored.known.tolist()
        self._vectors = {name: value for name, value in stored.parameters.items() if value.ndim == 1}
        self._last_norm = (_vector(model.norm), model.norm_eps)
        weights: dict[str, Weight] = {EMBEDDING: model.embedding, OUTPUT_HEAD: model.head}
        spec = Spec.default("nested", "bf16", GROUP)
        for name, value in program_parameters(config, stored.parameters).items():
            weights[name] = encode(from_float32(value, "bf16"), spec, threads=threads) if value.ndim == 2 else value

        def bind(program: StepProgram, threads: int | None) -> PartStep:
            if backend == "reference":
                return ReferenceStep(program, weights, self.kv, BATCH_ROWS)
            return NativeStep(program, weights, self.kv, BATCH_ROWS, threads=threads, isa=isa)

        described = build_head_program(config)
        self._fuse, self._operators = described.fuse, len(described.program.ops)
        self._step, self._embed = bind(described.program, threads), bind(build_embedding_program(config), 1)
        self._looked_up = self._embed.buffer(EMBEDDED)
        self._state, self._embedded, self._hidden = map(self._step.buffer, (described.state, EMBEDDED, HIDDEN))

    def fuse(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """Hidden states at the taps ``[rows, taps * hidden]`` as one ``[rows, hidden]``, in exact weights: they are not
        normalised, and a few of their columns are far larger than the others.
        """
        if not self._fuse:
            return F.rms_norm(states, *self._last_norm)
        fused, features = [], self._step.buffer(FEATURES)
        for first in range(0, len(states), BATCH_ROWS):
            part = states[first : first + BATCH_ROWS]
            count = len(part)
            features[:count] = self._normed_depths(part)
            rows = Rows(np.zeros(count, np.int32), [SpanRows(0, count, range(1))])  # no attention looks at the page
            self._step.run_part(rows, 0, self._fuse)
            fused.append(self._hidden[:count].copy())
        return np.concatenate(fused)

    def _normed_depths(self, states: NDArray[np.float32]) -> NDArray[np.float32]:
        """The hidden states of each depth behind its norm, where the head has such."""
        if "fc_norm.0.weight" not in self._vectors:
            return states
        parts = np.split(states, len(self.taps), axis=1)
        return np.concatenate([self._normed(part, f"fc_norm.{i}.weight") for i, part in enumerate(parts)], axis=1)

    def _normed(self, x: NDArray[np.float32], name: str) -> NDArray[np.float32]:
        return F.rms_norm(x, self._vectors[name], self._config.norm_eps)

    def run(self, spans: Sequence[HeadSpan], *, draft: bool = True) -> list[tuple[NDArray[np.float32], list[Likely]]]:
        """One step of the layer over spans of different sequences, at most ``BATCH_ROWS`` rows in all. The cache stays
        as it is until it is extended.

        Args:
            draft: read the weights' draft codes alone.

        Returns:
            of each span the rows' outputs ``[rows, hidden]``, which stand for hidden states after their tokens; and for
            each wanted row the model's ids of the most probable next tokens with their probabilities, the most probable
            first.
        """
        placed = [
            SpanRows(each.kv.length, len(each.tokens), self.kv.make_room(each.kv, len(each.tokens)), each.parents)
            for each in spans
        ]
        tokens = np.array([token for span in spans for token in span.tokens], np.int32)
        count, ends = len(tokens), np.cumsum([span.count for span in placed]).tolist()
        states = self._states(spans)
        self._embed.run(Rows(tokens, placed))
        self._embedded[:count], self._state[:count] = self._looked_up[:count], states
        wanted, draws = [], []
        for span, rows, end in zip(spans, placed, ends, strict=True):
            at = positions(rows)
            wanted += [end - rows.count + row for row in span.wanted]
            draws += [span.sampling.draw(int(at[row]) + 1, MOST_LIKELY) for row in span.wanted]
        self._step.run_part(
            Rows(
                np.zeros(count, np.int32),
                placed,
                draft=draft,
                wanted=np.array(wanted, np.int32),
                draws=draws,
                confidences=False,
            ),
            self._fuse,
            self._operators,
        )
        after = self._hidden[:count]
        outputs = self._normed(after, "norm.weight") if self._config.goes_on_normed else after.copy()
        drawn = iter(self._step.drawn())
        return [
            (
                outputs[end - rows.count : end],
                [[(self._known[token], p) for token, p in next(drawn)[2]] for _ in span.wanted],
            )
            for span, rows, end in zip(spans, placed, ends, strict=True)
        ]

    def _states(self, spans: Sequence[HeadSpan]) -> NDArray[np.float32]:
        """What the layer reads beside the tokens of spans ``[rows, hidden]``."""
        of_model = [span.states for span in spans if span.of_model]
        fused = self.fuse(np.concatenate(of_model)) if of_model else np.zeros((0, self._hidden.shape[1]), np.float32)
        parts, first = [], 0
        for span in spans:
            last = first + len(span.states) * span.of_model
            parts.append(fused[first:last] if span.of_model else span.states)
            first = last
        states = np.concatenate(parts)
        return self._normed(states, LAYER + "hidden_norm.weight") if self._config.adds_to_normed else states


def head_of(
    engine: Engine, stored: StoredHead, *, backend: Backend = "native", threads: int | None = None
) -> ExecutedHead:
    """A head for the sequences of an engine.

    Raises:
        SpeqError: it is a head of another model, or the system refuses the addresses or the threads.
    """
    stored, limits = stored.of_model(engine.config), engine.limits
    return ExecutedHead(
        stored, engine.ends, context=limits.context, sequences=limits.sequences, backend=backend, threads=threads
    )


def _vector(weight: Weight) -> NDArray[np.float32]:
    assert not isinstance(weight, SplitTensor)
    return weight
