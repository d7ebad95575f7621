"""`speq verify`: nothing changes a byte, shown on the user's own machine.

Every check computes the same tokens in two ways and compares the bytes of their logits, or the ids of their texts. The
controls are the same checks on an engine that is disturbed on purpose, in a sum, in a mask or in a draw: a check that
does not notice is no check, so a control without a difference is a failure, too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import numpy as np
import xxhash
from numpy.typing import NDArray

from speq.backends.cpu import available_isas
from speq.checkpoint.store import Converted
from speq.decoding.head import Head
from speq.drafts import HELPERS
from speq.graph.step import path
from speq.limits import PAGE
from speq.runtime.batch import Batch, Engine, Level, Limits, Output, Span
from speq.runtime.engine import Engine as ModelEngine
from speq.runtime.kv import KVHandle, KVPool
from speq.runtime.sampling import Sampling
from speq.serving.api import Model

ROWS = (2, 3, 4, 6, 8, 12, 16, 17, 24, 32, 48, 64)
_CONTEXT = 4 * PAGE
_TOKENS = 64  # of a text whose logits are compared
_TREES = (9, 33, 64)  # rows
_LENGTHS = (1, 4, 8, 16, None)
_SAMPLINGS = {
    "greedy": Sampling(),
    "sampled": Sampling(temperature=0.8, top_k=50, top_p=0.95, min_p=0.01, seed=11),
    "hot": Sampling(temperature=1.5, seed=3),
}

Digests: TypeAlias = list[int]


@dataclass(frozen=True)
class Outcome:
    """One check.

    Attributes:
        name, compared_with: what was compared with what.
        compared, differing: rows of logits, or tokens.
        control: whether the engine was disturbed, so that there must be a difference.
        seconds: it took.
    """

    name: str
    compared_with: str
    compared: int
    differing: int
    control: bool
    seconds: float

    @property
    def passed(self) -> bool:
        return self.compared > 0 and (self.differing > 0) == self.control


class Subject:
    """The model under test: engines of any kind on the same weights.

    Args:
        converted: the checkpoint.
        prompts: token ids of texts to generate from; at least two.
        threads: of the engine that the others are compared with.
        new_tokens: to generate from each prompt.
        head, draft_model: of the model, what proposes beside it and is to be tried among the drafts.
    """

    def __init__(
        self,
        converted: Converted,
        prompts: Sequence[Sequence[int]],
        threads: int,
        new_tokens: int,
        head: Head | None = None,
        draft_model: Engine | None = None,
    ) -> None:
        self._converted, self._threads = converted, threads
        self.prompts, self.new_tokens = [list(prompt) for prompt in prompts], new_tokens
        self.base = self.engine()
        self.head, self.draft_model = head, draft_model
        ids = [token for prompt in self.prompts for token in prompt]
        self.tokens = (ids * (-(-_TOKENS // len(ids))))[:_TOKENS]
        self.alone = rows_of(self.base, self.tokens, [1] * _TOKENS)

    def engine(self, *, threads: int | None = None, isa: str | None = None) -> ModelEngine:
        """Another engine."""
        return ModelEngine(
            self._converted, threads=threads or self._threads, context=self._context, sequences=9, isa=isa
        )

    @property
    def _context(self) -> int | None:
        limit = self._converted.config.get("max_position_embeddings")
        return min(_CONTEXT, limit) if isinstance(limit, int) else None


def rows_of(
    engine: Engine,
    tokens: Sequence[int],
    sizes: Sequence[int],
    *,
    kv: KVHandle | None = None,
    parents: Sequence[int] | None = None,
    level: Level = "exact",
) -> Digests:
    """Digests of the logits after each token, fed in passes of these sizes to a new sequence or to one that is open."""
    handle = engine.kv.open() if kv is None else kv
    digests: Digests = []
    first = 0
    for size in sizes:
        part = tokens[first : first + size]
        span = Span(handle, part, parents, wanted=range(len(part)))
        digests += _digests(engine.run(Batch([span], level)).logits(0))
        first += size
    if kv is None:
        engine.kv.close(handle, leave=False)
    return digests


def outcomes(subject: Subject) -> Iterator[Outcome]:
    """Run all checks, then all controls."""
    base = subject.base
    yield _timed("rows in a pass", "one row", lambda: check_rows(subject, base))
    yield _timed("trees", "chains", lambda: check_trees(subject, base, base))
    yield _timed("trees, drafted", "chains, drafted", lambda: check_trees(subject, base, base, "draft"))
    yield _timed("other pages, shared prefixes", "a sequence alone", lambda: check_pages(subject, base))
    yield _timed("neighbours in a pass", "a sequence alone", lambda: check_neighbours(subject, base))
    for threads in (1, 2, 4):
        engine = subject.engine(threads=threads)
        yield _timed(f"{threads} threads", "the first engine", partial(check_engine, subject, engine))
    for isa in available_isas():
        engine = subject.engine(isa=isa)
        yield _timed(f"instruction set {isa}", "the first engine", partial(check_engine, subject, engine))
    for name, sampling in _SAMPLINGS.items():
        yield _timed(f"drafts of all lengths, {name}", "no drafts", partial(check_drafts, subject, base, sampling))
    yield _timed("texts at once", "each alone", lambda: check_texts_at_once(subject, base))
    yield _timed("disturbed sum", "one row", lambda: check_rows(subject, DisturbedSum(base)), control=True)
    yield _timed("disturbed mask", "chains", lambda: check_trees(subject, base, DisturbedMask(base)), control=True)
    yield _timed(
        "disturbed draw",
        "no drafts",
        lambda: check_drafts(subject, DisturbedDraw(base), _SAMPLINGS["hot"]),
        control=True,
    )


Compared: TypeAlias = tuple[int, int]
"""How many were compared, and how many differ."""


def check_rows(subject: Subject, engine: Engine) -> Compared:
    """Passes of 2 to 64 rows against passes of one."""
    found: Digests = []
    for rows in ROWS:
        sizes = [rows] * (_TOKENS // rows) + ([_TOKENS % rows] if _TOKENS % rows else [])
        found += rows_of(engine, subject.tokens, sizes)
    return _compare(subject.alone * len(ROWS), found)


def check_trees(subject: Subject, engine: Engine, tree_engine: Engine, level: Level = "exact") -> Compared:
    """Every row of random trees against the end of the chain that leads to it."""
    rng = np.random.default_rng(0)
    expected: Digests = []
    found: Digests = []
    for count in _TREES:
        parents = [int(rng.integers(max(-1, row - 4), row)) for row in range(count)]
        tokens = rng.choice(subject.tokens, count).tolist()
        start = subject.tokens[:20]
        tree = _after(tree_engine, start)
        found += rows_of(tree_engine, tokens, [count], kv=tree, parents=parents, level=level)
        tree_engine.kv.close(tree, leave=False)
        for row in range(count):
            way = path(parents, row)
            chain = _after(engine, start)
            # A draft pass of one token may be of another kind than one of several: it gets a companion.
            fed = [tokens[i] for i in way] + [tokens[row]]
            expected.append(rows_of(engine, fed, [len(fed)], kv=chain, level=level)[len(way) - 1])
            engine.kv.close(chain, leave=False)
    return _compare(expected, found)


def check_pages(subject: Subject, engine: Engine) -> Compared:
    """A sequence on whatever pages are free, one that shares what another has computed, and one that was forked."""
    tokens, half = subject.tokens, _TOKENS // 2
    others = [_after(engine, tokens[i : i + 3]) for i in range(3)]
    engine.kv.close(others[1], leave=False)
    found = rows_of(engine, tokens, [_TOKENS])
    donor = _after(engine, tokens)
    shared = engine.kv.open(tokens)
    taken = shared.length
    found += rows_of(engine, tokens[taken:], [_TOKENS - taken], kv=shared)
    engine.kv.truncate(donor, half)
    fork = engine.kv.fork(donor)
    found += rows_of(engine, tokens[half:], [_TOKENS - half], kv=fork)
    found += rows_of(engine, tokens[half:], [_TOKENS - half], kv=donor)
    for handle in (others[0], others[2], donor, shared, fork):
        engine.kv.close(handle, leave=False)
    alone = subject.alone
    return _compare(alone + alone[taken:] + alone[half:] * 2, found)


def check_neighbours(subject: Subject, engine: Engine) -> Compared:
    """Sequences of different lengths in one pass against each alone."""
    expected: Digests = []
    found: Digests = []
    for count in (2, 3, 8):
        starts = [1 + 5 * i for i in range(count)]
        handles = [_after(engine, subject.tokens[:start]) for start in starts]
        parts = [subject.tokens[start : start + 1 + i % 4] for i, start in enumerate(starts)]
        spans = [Span(kv, part, wanted=range(len(part))) for kv, part in zip(handles, parts, strict=True)]
        output = engine.run(Batch(spans))
        for i, (start, part) in enumerate(zip(starts, parts, strict=True)):
            found += _digests(output.logits(i))
            expected += subject.alone[start : start + len(part)]
        for handle in handles:
            engine.kv.close(handle, leave=False)
    return _compare(expected, found)


def check_engine(subject: Subject, engine: Engine) -> Compared:
    """Another engine, in passes of several sizes."""
    return _compare(subject.alone[:33], rows_of(engine, subject.tokens[:33], [16, 1, 8, 6, 2]))


def check_drafts(subject: Subject, engine: Engine, sampling: Sampling) -> Compared:
    """Texts with drafts of every kind and length against texts without."""
    model, compared, differing = Model(engine, None, head=subject.head, draft_model=subject.draft_model), 0, 0
    plain = Model(subject.base, None)
    helped = [draft for draft, helper in HELPERS.items() if helper == model.helper]
    for index, prompt in enumerate(subject.prompts):
        options = {"sampling": sampling, "max_new_tokens": subject.new_tokens, "ignore_ends": True}
        expected = plain.generate(prompt, draft="none", **options).token_ids
        kinds = [
            *(("self", length) for length in _LENGTHS),
            ("cascade", 8),
            ("ngram", 3),
            ("ngram", None),
            ("auto", None),
            *((draft, length) for draft in helped for length in (None, 8)),
        ]
        for draft, length in kinds[index % 2 :: 2] or kinds:
            found = model.generate(prompt, draft=draft, draft_length=length, **options).token_ids
            compared += len(expected)
            differing += differing_ids(expected, found)
    return compared, differing


def check_texts_at_once(subject: Subject, engine: Engine) -> Compared:
    """All texts together against each alone."""
    model, compared, differing = Model(engine, None), 0, 0
    for sampling in _SAMPLINGS.values():
        options = {"sampling": sampling, "max_new_tokens": subject.new_tokens, "ignore_ends": True}
        together = model.generate_many(subject.prompts, draft="self", **options)
        for prompt, result in zip(subject.prompts, together, strict=True):
            alone = model.generate(prompt, draft="none", **options).token_ids
            compared += len(alone)
            differing += differing_ids(alone, result.token_ids)
    return compared, differing


class _Disturbed:
    """An engine that does what another does, but for one thing."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def vocab_size(self) -> int:
        return self._engine.vocab_size

    @property
    def levels(self) -> tuple[Level, ...]:
        return self._engine.levels

    @property
    def limits(self) -> Limits:
        return self._engine.limits

    @property
    def taps(self) -> tuple[str, ...]:
        return self._engine.taps

    @property
    def kv(self) -> KVPool:
        return self._engine.kv

    def check(self, kv: KVHandle, tokens: Sequence[int]) -> None:
        self._engine.check(kv, tokens)

    def run(self, batch: Batch) -> Output:
        return self._engine.run(batch)


class DisturbedSum(_Disturbed):
    """Passes of several rows leave the last bit of one number wrong, as a sum in another order would."""

    def run(self, batch: Batch) -> Output:
        slots = [(span.kv, span.kv.length) for span in batch.spans if len(span.tokens) > 1]
        output = super().run(batch)
        for kv, slot in slots:
            key = self.kv.keys[kv.pages[slot // PAGE], 0, 0, slot % PAGE].view(np.uint16)
            key[0] ^= 1
        return output


class DisturbedMask(_Disturbed):
    """In trees one row follows its sibling instead of its parent."""

    def run(self, batch: Batch) -> Output:
        return super().run(replace(batch, spans=[replace(s, parents=_wrong(s.parents)) for s in batch.spans]))


class DisturbedDraw(_Disturbed):
    """Passes of several rows draw with another seed."""

    def run(self, batch: Batch) -> Output:
        return super().run(replace(batch, spans=[self._reseeded(span) for span in batch.spans]))

    @staticmethod
    def _reseeded(span: Span) -> Span:
        if len(span.tokens) == 1 or span.sampling is None or span.sampling.seed is None:
            return span
        return replace(span, sampling=replace(span.sampling, seed=span.sampling.seed + 1))


def _wrong(parents: Sequence[int] | None) -> Sequence[int] | None:
    if parents is None:
        return None
    for row in range(len(parents) - 1, 0, -1):
        siblings = [other for other in range(row) if parents[other] == parents[row]]
        if siblings:
            return [*parents[:row], siblings[-1], *parents[row + 1 :]]
    return parents


def _after(engine: Engine, tokens: Sequence[int]) -> KVHandle:
    """A sequence that holds ``tokens``."""
    handle = engine.kv.open()
    if tokens:
        engine.run(Batch([Span(handle, tokens)]))
    return handle


def _digests(logits: NDArray[np.float32]) -> Digests:
    return [xxhash.xxh3_64_intdigest(row.tobytes()) for row in logits]


def differing_ids(expected: Sequence[int], found: Sequence[int]) -> int:
    """Places at which two texts have different token ids; those that only the longer one has are different, too."""
    return sum(a != b for a, b in zip(expected, found, strict=False)) + abs(len(expected) - len(found))


def _compare(expected: Digests, found: Digests) -> Compared:
    return len(expected), sum(a != b for a, b in zip(expected, found, strict=True))


def _timed(name: str, compared_with: str, check: Callable[[], Compared], *, control: bool = False) -> Outcome:
    started = time.perf_counter()
    compared, differing = check()
    return Outcome(name, compared_with, compared, differing, control, time.perf_counter() - started)
