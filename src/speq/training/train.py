"""The training of a head, from a model to a directory: text, vocabulary, steps of the optimiser, measurements.

Everything that is drawn is a function of the seed and of the number of a step, so a job that was killed and goes on
gives the head that it would have given.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from speq.checkpoint.storage import Progress, replacing
from speq.checkpoint.store import Converted, load_converted
from speq.errors import SpeqError
from speq.models.config import model_config
from speq.models.head import HeadConfig
from speq.models.tokenizer import Tokenizer
from speq.training.conversation import OPENINGS, USER, read_turns
from speq.training.corpus import HELD_OUT, Corpus, given_text, own_text
from speq.training.documents import Documents, read_documents
from speq.training.head import Head, initial_parameters
from speq.training.job import (
    CHECKPOINT,
    OWN_TOKENS,
    STEPS,
    Options,
    check_free,
    job_of,
    model_identity,
    working_directory,
)
from speq.training.layout import write_head
from speq.training.pool import Pool
from speq.training.target import LEVELS, Level, Target, default_taps
from speq.training.unroll import Counts, chain_loss, count_right
from speq.training.vocabulary import choose_vocabulary, draft_bytes

Report: TypeAlias = Callable[[str], None]
"""Takes one line about what has been reached."""

UNROLL = 4
"""Proposals of the chains that are trained."""

RATE = 0.048
"""Of the optimiser, over the root of the hidden size."""

WARM_UP = 0.03
LAST_RATE = 0.02
CLIP = 1.0
BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.01

POOL_BATCHES = 32
"""Batches whose rows the model is run on at a time."""

REUSE = 3
"""How often a row is used before the model is run on the next ones."""

MEASUREMENTS = 20
"""Measurements of a training, evenly spaced."""

MEASURED_ROWS = 64
"""Held-out rows that are measured, at most."""

SAVE_SECONDS = 60.0
"""Between two checkpoints."""

_AT_ONCE = {"cpu": 32, "cuda": 1024}
"""Rows that are written side by side, if there is memory for so many."""

_LOGITS = 8
"""Copies of a row's logits, float32, that drawing a token takes."""

_ROWS = "rows-at-once"

_PARTS = 1000
"""Of a training, for the progress bar: it may be limited by steps, by time, or by both."""


@dataclass(frozen=True)
class Trained:
    """What a training gave.

    Attributes:
        path: the head's directory.
        training: what ``training.json`` says.
    """

    path: Path
    training: dict[str, Any]

    @property
    def acceptance(self) -> list[float]:
        """Share of chains on held-out text whose first 1, 2, ... proposals are all what the draft level chooses."""
        return list(self.training["acceptance"])

    @property
    def tokens_per_pass(self) -> list[float]:
        """Tokens of a draft pass that checks 1, 2, ... proposals."""
        return [1 + sum(self.acceptance[: count + 1]) for count in range(len(self.acceptance))]


def train_head(
    path: Path,
    name: str,
    out: Path,
    options: Options,
    files: Sequence[Path] = (),
    *,
    progress: Progress | None = None,
    report: Report | None = None,
) -> Trained:
    """Train a head for a model and write it to the directory ``out``.

    An interrupted training goes on when the same job is asked for again.

    Args:
        path: the converted checkpoint.
        name: what the model is called, for the head's config.
        out: the directory to create; an empty one may exist.
        options: how.
        files: text to train on; the model writes its own if there are none.
        progress: called with counts of tokens and steps.
        report: called with a line per measurement.

    Raises:
        SpeqError: no tokenizer, unusable text or device, a model that is not finite, too little memory, ``out`` exists,
            or the work of another job is in its place.
    """
    check_free(out)
    model = load_converted(path)
    if model.tokenizer is None:
        raise SpeqError(f"{name} has no tokenizer, which training a head needs")
    tokenizer = Tokenizer(path)
    device = _device(options.device)
    documents = read_documents(files, tokenizer) if files else None
    with _enough_memory(), working_directory(out, job_of(model, options, device, files)) as working:
        task = _Task(model, tokenizer, options, device, progress, report or (lambda line: None))
        corpus = task.text(documents, working)
        trained = _Training(task, corpus, working).run()
        finished = working / "head"
        shutil.rmtree(finished, ignore_errors=True)
        finished.mkdir()
        training = trained.write(finished, name, files)
        if out.exists():
            out.rmdir()
        finished.rename(out)
    shutil.rmtree(working, ignore_errors=True)
    return Trained(out, training)


@dataclass
class _Task:
    """What a job works with; the model is decoded when it is first needed."""

    model: Converted
    tokenizer: Tokenizer
    options: Options
    device: str
    progress: Progress | None
    report: Report

    @cached_property
    def target(self) -> Target:
        return Target(self.model.config, {**self.model.raw, **self.model.split}, self.device)

    def text(self, documents: Documents | None, working: Path) -> Corpus:
        """The text of the job."""
        options = self.options
        length = min(options.length, model_config(self.model.config).context_length)
        at_once = self._rows_at_once(working, length)
        if documents is not None:
            end = min(self.tokenizer.eos_ids, default=None)
            return given_text(
                lambda: self.target,
                lambda: read_turns(self.tokenizer),
                documents,
                end,
                working,
                tokens=options.tokens,
                length=length,
                at_once=at_once,
                seed=options.seed,
                progress=self.progress,
            )
        tokens = OWN_TOKENS if options.tokens is None else options.tokens
        turns = read_turns(self.tokenizer)
        openings = [self.tokenizer.encode(text, special=False) for text in OPENINGS] if turns.first == USER else []
        return own_text(
            lambda: self.target,
            turns,
            openings,
            working,
            rows=max(2, -(-tokens // length)),
            length=length,
            at_once=at_once,
            seed=options.seed,
            progress=self.progress,
        )

    def _rows_at_once(self, working: Path, length: int) -> int:
        """How many rows are written side by side. On a GPU its free memory decides, once for all of a job: the text
        depends on it.
        """
        most = _AT_ONCE[self.device]
        if self.device == "cpu":
            return most
        file = working / _ROWS
        if not file.exists():
            config = self.target.config
            cache = 2 * 2 * config.layers * config.kv_heads * config.head_dim * length
            free, _ = torch.cuda.mem_get_info()
            rows = free // 2 // (cache + 4 * _LOGITS * config.vocab_size)
            file.write_text(str(max(1, min(most, rows))))
        return int(file.read_text())


@dataclass
class _State:
    """What a checkpoint holds beside the parameters and the optimiser."""

    step: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


class _Training:
    """The steps of one job."""

    def __init__(self, task: _Task, corpus: Corpus, working: Path) -> None:
        self._task, self._corpus, self._working = task, corpus, working
        options, target = task.options, task.target
        config = target.config
        training = corpus.training
        texts = corpus.tokens[training]
        counts = np.bincount(texts[corpus.answers[training]], minlength=config.vocab_size).astype(np.int64)
        known = choose_vocabulary(
            counts, options.vocabulary, task.tokenizer.eos_ids, config, draft_bytes(task.model, config)
        )
        self._known = known
        self._share = float(counts[known].sum() / max(counts.sum(), 1))
        self._known_ids = torch.from_numpy(known).to(target.device)
        self._is_known = torch.zeros(config.vocab_size, dtype=torch.bool, device=target.device)
        self._is_known[self._known_ids] = True
        self._draft_head = target.head("draft")[self._known_ids]
        taps = default_taps(config.layers) if options.taps is None else options.taps
        inner = options.inner or min(2 * config.hidden_size, config.intermediate_size)
        self._config = HeadConfig.of(config, inner, len(known), taps)
        self._parameters = initial_parameters(self._config, target, self._known_ids, options.seed)
        for value in self._parameters.values():
            value.requires_grad_(True)
        self._head = Head(self._config, self._parameters, target.embedding)
        self._rate = RATE / math.sqrt(config.hidden_size)
        self._optimizer = torch.optim.AdamW(
            list(self._parameters.values()),
            lr=self._rate,
            betas=BETAS,
            weight_decay=WEIGHT_DECAY,
            fused=task.device == "cuda",
        )
        self._state = _State()
        self._saved = time.monotonic()
        self._batch = max(1, min(options.batch // corpus.tokens.shape[1], len(training)))
        self._batches = max(1, min(POOL_BATCHES, len(training) // self._batch))
        self._pool: tuple[int, Pool] | None = None
        spread = np.linspace(0, len(corpus.held_out) - 1, min(len(corpus.held_out), MEASURED_ROWS))
        self._held_out = self._make_pool(corpus.held_out[spread.astype(np.intp)], -1)

    def run(self) -> _Training:
        """All steps that remain."""
        self._load()
        options = self._task.options
        limit = None if options.minutes is None else 60 * options.minutes
        steps = options.steps if options.steps is not None else STEPS if limit is None else None
        began, before = time.monotonic(), self._state.seconds
        while True:
            done = max(
                0.0 if steps is None else self._state.step / steps,
                0.0 if limit is None else self._state.seconds / limit,
            )
            if len(self._state.history) <= done * MEASUREMENTS:
                self._measure()
            if self._task.progress is not None:
                self._task.progress("training", round(_PARTS * min(done, 1)), _PARTS)
            if done >= 1:
                break
            self._step(done)
            self._state.seconds = before + time.monotonic() - began
            if time.monotonic() - self._saved > SAVE_SECONDS:
                self._save()
        self._save()
        return self

    def write(self, directory: Path, name: str, files: Sequence[Path]) -> dict[str, Any]:
        """The head's files; returns what ``training.json`` says."""
        task, corpus = self._task, self._corpus
        device = torch.cuda.get_device_name() if task.device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
        last = self._state.history[-1]
        training: dict[str, Any] = {
            "model": {"name": name, "identity": model_identity(task.model)},
            "source": dict(task.model.source),
            "text": [file.name for file in files] or "written by the model",
            "tokens": int(corpus.tokens.size),
            "rows": len(corpus.tokens),
            "length": int(corpus.tokens.shape[1]),
            "held_out": f"every {HELD_OUT}th row, {len(corpus.held_out)} of {len(corpus.tokens)}; "
            f"{self._held_out.rows} of them measured",
            "steps": self._state.step,
            "batch": self._batch * int(corpus.tokens.shape[1]),
            "unrolled": UNROLL,
            "seconds": round(self._state.seconds, 1),
            "device": device,
            "seed": task.options.seed,
            "vocabulary": len(self._known),
            "vocabulary_share": round(self._share, 5),
            "step_weights": self._config.step_weights,
            "draft_bytes": draft_bytes(task.model, task.target.config),
            "acceptance": last["acceptance"],
            "acceptance_after_exact": last["acceptance_after_exact"],
            "history": self._state.history,
        }
        arrays = {key: value.detach().float().cpu().numpy() for key, value in self._parameters.items()}
        write_head(directory, self._config, arrays, self._known, task.model.config, name, UNROLL, training)
        return training

    def _step(self, done: float) -> None:
        """One step of the optimiser; ``done`` is the part of the training that lies behind."""
        state, seed = self._state, self._task.options.seed
        pool_number, within = divmod(state.step, self._batches * REUSE)
        pool = self._pool_of(pool_number)
        use, batch = divmod(within, self._batches)
        order = np.random.default_rng([seed, 1, pool_number, use]).permutation(pool.rows)
        chosen = order[batch * self._batch : (batch + 1) * self._batch]
        rows = torch.from_numpy(chosen).to(self._task.target.device)
        generator = torch.Generator().manual_seed(seed * 1_000_003 + state.step)
        rate = self._rate * min(1.0, done / WARM_UP + 1e-3) * _cosine(done)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        with self._computing():
            loss = chain_loss(
                self._head,
                pool.mixed(rows, generator),
                pool.truth(rows),
                pool.likely(rows, self._draft_head),
                self._is_known,
                UNROLL,
            )
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(list(self._parameters.values()), CLIP)
        if not torch.isfinite(norm):
            raise SpeqError(
                f"step {state.step} gives no finite gradient: the model's activations on this text are not finite, or "
                "the training has come apart; look at the model with speq generate, or use a larger --batch"
            )
        self._optimizer.step()
        state.step += 1

    def _measure(self) -> None:
        """Acceptance on held-out rows, with hidden states of the draft level and with those of the exact level."""
        counts: dict[Level, Counts] = dict.fromkeys(LEVELS, Counts((0,) * UNROLL, (0,) * UNROLL))
        held_out = self._held_out
        for level in LEVELS:
            for first in range(0, held_out.rows, self._batch):
                last = min(first + self._batch, held_out.rows)
                rows = torch.arange(first, last, device=self._task.target.device)
                with self._computing():
                    features = held_out.features(rows, level)
                    counts[level] += count_right(self._head, features, held_out.truth(rows), self._known_ids, UNROLL)
        acceptance = [round(value, 4) for value in counts["draft"].acceptance]
        self._state.history.append(
            {
                "step": self._state.step,
                "seconds": round(self._state.seconds, 1),
                "acceptance": acceptance,
                "acceptance_after_exact": [round(value, 4) for value in counts["exact"].acceptance],
            }
        )
        shares = ", ".join(f"{value:.3f}" for value in acceptance)
        self._task.report(
            f"step {self._state.step}, {self._state.seconds:.0f} s: held-out acceptance of the first 1, 2, ... "
            f"proposals {shares}; {1 + sum(acceptance[:3]):.2f} tokens per draft pass of 4 rows"
        )

    def _pool_of(self, number: int) -> Pool:
        """The rows that this part of the training uses: the training rows in a new order each time round."""
        if self._pool is None or self._pool[0] != number:
            self._pool = None  # the memory of the last one is needed
            size, training = self._batches * self._batch, self._corpus.training
            rows = _shuffled(training, self._task.options.seed, number * size, size)
            self._pool = number, self._make_pool(rows, number)
        return self._pool[1]

    def _make_pool(self, rows: NDArray[np.intp], number: int) -> Pool:
        rng = np.random.default_rng([self._task.options.seed, 2, number + 1])
        return Pool(
            self._task.target,
            self._config.taps,
            self._corpus.tokens[rows],
            self._corpus.answers[rows],
            self._batch,
            lambda: int(rng.integers(1 << 16)),
        )

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Products in BF16 on a GPU, whose parameters are float32."""
        with torch.autocast(self._task.device, dtype=torch.bfloat16, enabled=self._task.device == "cuda"):
            yield

    def _save(self) -> None:
        content = {
            "parameters": {key: value.detach() for key, value in self._parameters.items()},
            "optimizer": self._optimizer.state_dict(),
            "state": vars(self._state),
        }
        with replacing(self._working / CHECKPOINT, self._working / f"{CHECKPOINT}.partial") as file:
            torch.save(content, file)
        self._saved = time.monotonic()

    def _load(self) -> None:
        file = self._working / CHECKPOINT
        if not file.exists():
            return
        content = torch.load(file, map_location=self._task.target.device, weights_only=True)
        with torch.no_grad():
            for key, value in self._parameters.items():
                value.copy_(content["parameters"][key])
        self._optimizer.load_state_dict(content["optimizer"])
        self._state = _State(**content["state"])


def _shuffled(rows: NDArray[np.intp], seed: int, first: int, count: int) -> NDArray[np.intp]:
    """``count`` numbers, from ``first`` on, of an endless sequence: ``rows`` in one random order after another."""
    begin, place = divmod(first, len(rows))
    end = -(-(first + count) // len(rows))
    orders = [np.random.default_rng([seed, 0, epoch]).permutation(len(rows)) for epoch in range(begin, end)]
    return rows[np.concatenate(orders)[place : place + count]]


def _cosine(done: float) -> float:
    return LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def _device(wanted: str) -> str:
    usable = torch.cuda.is_available()
    if wanted == "cuda" and not usable:
        raise SpeqError("torch finds no CUDA GPU here: use --device cpu, or install a torch that is built for CUDA")
    return ("cuda" if usable else "cpu") if wanted == "auto" else wanted


@contextmanager
def _enough_memory() -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise SpeqError(
            "the GPU has too little memory for this: use a smaller --batch or --length, or --device cpu"
        ) from None
