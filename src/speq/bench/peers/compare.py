"""The comparison: all engines on the same prompts, one at a time, taking turns prompt by prompt.

What makes it fair: every engine continues the same token ids by the same number of tokens (as many as the model's own
answer has), with the same number of threads, in its own process and with its own defaults; the order changes from
prompt to prompt; no prompt is used twice; there is a pause before every run, after which the threads of the engine
before sleep (what the idle engines still use is measured and reported). Speed is that of decoding: tokens after the
first one over the seconds after the first one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from speq.bench.peers import PLAIN, EngineSpec, Generation
from speq.bench.peers.files import PeerFiles
from speq.bench.peers.process import Worker
from speq.errors import SpeqError

_PAUSE = 0.5  # seconds; spinning threads of every engine have given up by then
_WARM_UP_TOKENS = 16
_IDLE_LIMIT = 0.02  # of a processor


@dataclass(frozen=True)
class Question:
    """A prompt's token ids and the greedy answer of plain decoding, whose length every engine produces."""

    id: str
    ids: list[int]
    answer: list[int]


@dataclass(frozen=True)
class PeerRow:
    """One engine on one prompt.

    Attributes:
        rate: tokens per second of decoding.
        first_seconds: to the first token.
        agreement: tokens until the first one that differs from speq's; ``tokens`` if none does.
    """

    engine: str
    prompt: str
    tokens: int
    rate: float
    first_seconds: float
    agreement: int


@dataclass(frozen=True)
class EngineRow:
    """One engine over all prompts: quartiles of the rate, and the geometric mean of its ratios to plain speq."""

    engine: str
    about: str
    prompts: int
    rate: float
    low: float
    high: float
    plain_ratio: float | None
    first_seconds: float
    same_answers: int
    resident: int | None


@dataclass
class Comparison:
    """Rows of all runs, of the engines, and what could not be run or was not as it should be."""

    runs: list[PeerRow] = field(default_factory=list)
    engines: list[EngineRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def compare_engines(
    specs: Sequence[EngineSpec],
    files: PeerFiles,
    questions: Sequence[Question],
    *,
    threads: int,
    context: int,
    checkpoint_bytes: int,
    say: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Run all engines over all questions.

    Args:
        specs: the engines; those that are absent, or fail, are noted and left out.
        files: where their files come from.
        questions: the first one only warms up.
        threads: for every engine.
        context: most tokens of a prompt and its answer.
        checkpoint_bytes: of the 16-bit checkpoint, to tell what does not fit into memory.
    """
    result = Comparison()
    warm_up, *timed = questions
    with _workers() as workers:
        for spec in specs:
            say(f"loading {spec.name}")
            try:
                _check_fits(spec, workers, checkpoint_bytes)
                worker = Worker(spec, files.path(spec.files), threads, context)
                workers.append(worker)
                worker.generate(warm_up.ids, _WARM_UP_TOKENS)
            except SpeqError as error:
                _drop(spec, workers, result, error)
        memory = {worker.spec.name: worker.resident for worker in workers}
        for number, question in enumerate(timed):
            start = number % max(len(workers), 1)
            for worker in [*workers[start:], *workers[:start]]:
                try:
                    row = _run(worker, workers, question, result.notes)
                except SpeqError as error:
                    _drop(worker.spec, workers, result, error)
                    continue
                result.runs.append(row)
                say(f"{row.prompt}: {row.engine} {row.rate:.2f} tokens/s")
    finished = {row.engine for row in result.runs}
    result.engines = [_summary(spec, result.runs, memory[spec.name]) for spec in specs if spec.name in finished]
    return result


@contextmanager
def _workers() -> Iterator[list[Worker]]:
    workers: list[Worker] = []
    try:
        yield workers
    finally:
        for worker in workers:
            worker.close()


def _drop(spec: EngineSpec, workers: list[Worker], result: Comparison, error: SpeqError) -> None:
    """Note the error and go on without the engine."""
    result.notes.append(str(error))
    for worker in [worker for worker in workers if worker.spec is spec]:
        worker.close()
        workers.remove(worker)


def _run(worker: Worker, workers: Sequence[Worker], question: Question, notes: list[str]) -> PeerRow:
    others = [other for other in workers if other is not worker]
    time.sleep(_PAUSE)
    used, started = [other.cpu_seconds for other in others], time.perf_counter()
    generation = worker.generate(question.ids, len(question.answer))
    elapsed = time.perf_counter() - started
    for other, before in zip(others, used, strict=True):
        share = (other.cpu_seconds - before) / elapsed
        # The clock of processes ticks a hundred times a second; two ticks are no use of a processor.
        if share > _IDLE_LIMIT and other.cpu_seconds - before > 0.02:
            notes.append(f"{other.spec.name} used {share:.0%} of a processor while {worker.spec.name} ran")
    return _row(worker.spec.name, question, generation)


def _row(engine: str, question: Question, generation: Generation) -> PeerRow:
    pairs = zip(generation.token_ids, question.answer, strict=True)
    agreement = next((i for i, (given, known) in enumerate(pairs) if given != known), len(question.answer))
    tokens = len(generation.token_ids)
    rate = (tokens - 1) / max(generation.decode_seconds, 1e-9)
    return PeerRow(engine, question.id, tokens, rate, generation.first_seconds, agreement)


def _summary(spec: EngineSpec, runs: Sequence[PeerRow], resident: int | None) -> EngineRow:
    own = {row.prompt: row for row in runs if row.engine == spec.name}
    plain = {row.prompt: row.rate for row in runs if row.engine == PLAIN}
    ratios = [row.rate / plain[prompt] for prompt, row in own.items() if prompt in plain]
    low, rate, high = (float(value) for value in np.percentile([row.rate for row in own.values()], (25, 50, 75)))
    return EngineRow(
        engine=spec.name,
        about=spec.about,
        prompts=len(own),
        rate=rate,
        low=low,
        high=high,
        plain_ratio=statistics.geometric_mean(ratios) if ratios else None,
        first_seconds=statistics.median(row.first_seconds for row in own.values()),
        same_answers=sum(row.agreement == row.tokens for row in own.values()),
        resident=resident,
    )


def _check_fits(spec: EngineSpec, workers: Sequence[Worker], checkpoint_bytes: int) -> None:
    """Refuse an engine that would push the others out of memory, as far as the system tells what is available.

    It calls mapped files available; those of the workers must stay, or they would be read from disk again and again.
    """
    info = Path("/proc/meminfo")
    lines = info.read_text().splitlines() if info.exists() else []
    available = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)
    if available is None:
        return
    available -= checkpoint_bytes * len({worker.spec.files for worker in workers})
    needed = spec.memory * checkpoint_bytes
    if needed > available:
        figures = f"it needs about {needed / 1e9:.1f} GB of memory and {max(available, 0) / 1e9:.1f} GB are free"
        raise SpeqError(f"{spec.name} is left out: {figures} beside the others; run it with fewer of them (--engine)")
