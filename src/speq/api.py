"""The Python interface: load a model, stream or generate text.

>>> model = speq.load("smollm2-135m-instruct")
>>> result = model.generate("Name three rivers.", sampling=speq.Sampling(temperature=0.8, seed=1))
>>> result.text, result.stats.tokens_per_second
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from speq.decoding.controller import Controller
from speq.decoding.drafter import NoDrafter, SelfDrafter
from speq.decoding.engine import Engine
from speq.decoding.generate import Progress, generate_tokens
from speq.decoding.sampling import Sampling
from speq.decoding.stats import Statistics
from speq.decoding.stop import StopStrings
from speq.decoding.stream import Piece, stream_pieces
from speq.decoding.trace import Recorder
from speq.errors import SpeqError
from speq.heap import return_freed_memory
from speq.result import Result
from speq.turns import Turns

if TYPE_CHECKING:
    from speq.models.tokenizer import Tokenizer

Prompt: TypeAlias = str | Sequence[int] | Sequence[Mapping[str, str]]
"""Text for the chat template, token ids, or chat messages (mappings with ``role`` and ``content``)."""

DRAFTS = ("auto", "self", "none")
LONGEST_DRAFT = 16


class Stream(Iterator[Piece]):
    """A running generation. Iterating it gives pieces; ``result`` is right at any time, also after an interruption.

    Several may run on one model, in one thread or in many: each waits for its turn. One that goes on after another had
    the model first computes its own text again, which changes its speed and nothing else. An exception in the middle of
    a pass, Ctrl-C among them, ends the stream.
    """

    def __init__(
        self, model: Model, prompt: list[int], stats: Statistics, draft: str, recorder: Recorder | None = None
    ) -> None:
        self._model, self._stats, self._draft = model, stats, draft
        self._recorder = recorder
        self._pieces: Iterator[Piece] = iter(())
        self._prompt_tokens, self._tokens = len(prompt), list(prompt)
        self._token_ids: list[int] = []
        self._texts: list[str] = []

    def __next__(self) -> Piece:
        return self._model._turns.take(self._advance)

    def close(self) -> None:
        """End the generation here; ``result`` stays."""
        self._pieces = iter(())

    def _keep(self, tokens: list[int]) -> None:
        """Note the token ids of a pass, shown or not."""
        self._tokens.extend(tokens)
        self._model._exact = self._tokens

    def _finish(self) -> Result:
        """All other pieces, within a turn of the model."""
        while not self._stats.finished:
            self._advance()
        return self.result

    def _advance(self) -> Piece:
        """The next piece, within a turn of the model."""
        if self._stats.finished:
            raise StopIteration
        self._model._lend_cache(self, self._tokens, begun=len(self._tokens) > self._prompt_tokens)
        try:
            piece = next(self._pieces)
            self._token_ids += piece.token_ids
            self._texts.append(piece.text)
        except BaseException:
            self.close()  # a piece may be lost, and what came after it would be another text
            raise
        return piece

    @property
    def steps(self) -> list[dict[str, int]]:
        """The passes so far as :mod:`speq.decoding.trace` describes them; empty unless they are recorded."""
        return self._recorder.steps if self._recorder else []

    @property
    def result(self) -> Result:
        """What was generated so far."""
        model = self._model
        return Result(
            "".join(self._texts), self._token_ids, self._stats, self._draft, model.name, model.format, model.threads
        )


class Model:
    """A model ready to generate, one text at a time; it may be used from any number of threads, which take turns.

    The KV cache stays between generations: a prompt that begins like the last text only computes what is new, which
    gives the same bits as computing all of it.

    A turn is a piece of a stream or all of :meth:`generate`. Whoever asks for one within another (from a ``progress``
    callback) or in a process that was forked after the model was loaded gets a :class:`SpeqError`.

    Args:
        engine: see :class:`speq.decoding.engine.Engine`.
        tokenizer: ``None`` for a checkpoint without one; prompts are then token ids.
        name, format, threads: reported in results.
        ends: token ids that end a text.
        notes: what the conversion changed or kept that the user should know.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Tokenizer | None,
        *,
        name: str = "",
        format: str = "",
        threads: int = 1,
        ends: frozenset[int] = frozenset(),
        notes: Sequence[str] = (),
    ) -> None:
        self.engine, self.tokenizer = engine, tokenizer
        self.name, self.format, self.threads = name, format, threads
        self.ends, self.notes = ends, list(notes)
        self._turns = Turns(f"the model {name}".rstrip())
        self._running: Stream | None = None  # whose tokens the cache holds
        self._exact: list[int] = []  # tokens whose cache entries are exact, all of them but perhaps the last
        self._controllers: dict[tuple[str, int | None], Controller] = {}

    def encode(self, prompt: Prompt, *, raw: bool = False) -> list[int]:
        """Token ids of a prompt; text goes through the chat template unless ``raw``.

        Raises:
            SpeqError: there is no tokenizer or no chat template.
        """
        if isinstance(prompt, str):
            messages: list[Mapping[str, str]] = [{"role": "user", "content": prompt}]
        else:
            messages = [item for item in prompt if isinstance(item, Mapping)]
            if not messages:
                return [int(item) for item in prompt if not isinstance(item, Mapping)]
            if len(messages) < len(prompt):
                raise SpeqError("a prompt is text, token ids, or messages, not some of each")
        if self.tokenizer is None:
            raise SpeqError(f"{self.name} has no tokenizer: give token ids (--ids) instead of text")
        if raw and isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        return self.tokenizer.chat(messages)

    def stream(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int | None = None,
        sampling: Sampling | None = None,
        draft: Literal["auto", "self", "none"] = "auto",
        draft_length: int | None = None,
        stop: str | Sequence[str] = (),
        raw: bool = False,
        ignore_ends: bool = False,
        record: bool = False,
        progress: Progress | None = None,
    ) -> Stream:
        """Generate piece by piece. Neither ``draft`` nor ``draft_length`` changes a token, only the speed.

        Args:
            prompt: text, token ids or chat messages.
            max_new_tokens: ``None`` goes on until the model ends its text or the context is full.
            sampling: greedy if ``None``.
            draft: ``self`` drafts in every round, ``auto`` only while it pays, ``none`` never.
            draft_length: tokens to draft each round, 1 .. 16; ``None`` decides by confidence and cost.
            stop: a string, or several, before which the text ends; special tokens, which have no text, may be written
                in them by name.
            raw: do not use the chat template: the text goes on where the prompt ends, so that both put together are
                the text of all tokens. Without it the text stands alone, and many tokenizers drop its first space.
            ignore_ends: go on after the model's end tokens.
            record: keep the kinds and sizes of all passes in ``steps`` of the stream.
            progress: called with ("prefill", tokens done, tokens in all) during a long prefill.

        Raises:
            SpeqError: an option is out of range, or the prompt is empty or too long (when the iteration begins), or
                the model is used where it cannot be (see :class:`Model`).
        """
        stop = (stop,) if isinstance(stop, str) else stop
        _check_options(max_new_tokens, draft, draft_length, stop)
        if stop and self.tokenizer is None:
            raise SpeqError(f"{self.name} has no tokenizer, so stop strings cannot be found: leave out --stop")
        prompt_ids = self.encode(prompt, raw=raw)
        before = prompt_ids if raw and not _is_chat(prompt) else []
        seeded = (sampling or Sampling()).seeded()
        ends = frozenset() if ignore_ends else self.ends
        stats = Statistics(seed=seeded.seed)
        recorder = Recorder(self.engine) if record else None
        engine = recorder or self.engine
        stream = Stream(self, prompt_ids, stats, draft, recorder)
        passes = generate_tokens(
            engine,
            prompt_ids,
            sampling=seeded,
            drafter=NoDrafter() if draft == "none" else SelfDrafter(engine, seeded, ends),
            controller=self._controller(draft, draft_length),
            stats=stats,
            max_new_tokens=max_new_tokens,
            ends=ends,
            progress=progress,
        )
        pieces = stream_pieces(
            passes,
            stats=stats,
            silent=self.ends,
            detokenizer=self.tokenizer.stream(before) if self.tokenizer else None,
            stop=StopStrings(stop),
            keep=stream._keep,
        )
        stream._pieces = pieces
        return stream

    def generate(self, prompt: Prompt, **options: Any) -> Result:
        """Generate to the end, in one turn; the options are those of :meth:`stream`."""
        stream = self.stream(prompt, **options)
        return self._turns.take(stream._finish)

    def reset(self) -> None:
        """Empty the KV cache, so that the next prompt is computed from its first token, and forget measured costs."""
        self._turns.take(self._reset)

    def _lend_cache(self, stream: Stream, tokens: list[int], *, begun: bool) -> None:
        """Make the cache hold ``tokens`` of a stream, all but the last, or what is there of them if it has not begun.

        To be called within a turn.
        """
        if self._running is stream:
            return
        self._running = None  # nobody's, if this is interrupted
        self._reuse_cache(tokens)
        if begun:
            missing = tokens[self.engine.length : -1]
            if missing:
                self.engine.forward(missing, logits="none")
            self._exact = tokens
        self._running = stream

    def _reset(self) -> None:
        self._running, self._exact, self._controllers = None, [], {}
        self.engine.truncate(0)

    def _controller(self, draft: str, length: int | None) -> Controller:
        """One controller per setting, kept so that later generations start with what earlier ones measured."""
        return self._controllers.setdefault((draft, length), Controller(length, may_pause=draft == "auto"))

    def _reuse_cache(self, prompt: list[int]) -> None:
        """Cut the cache to what it shares with ``prompt``, leaving at least the last token to compute."""
        most = min(len(self._exact) - 1, self.engine.length, len(prompt) - 1)
        shared = 0
        while shared < most and self._exact[shared] == prompt[shared]:
            shared += 1
        self.engine.truncate(shared)
        # Until the prefill is through, nothing beyond the shared part may be relied on.
        self._exact = prompt[: shared + 1]


def load(
    name: str | Path,
    *,
    threads: int | None = None,
    context: int | None = None,
    backend: Literal["native", "reference"] = "native",
    progress: Progress | None = None,
) -> Model:
    """Load a model, fetching and converting it first if need be.

    Args:
        name: a directory (Hugging Face layout or converted), a .gguf file, a catalogue name or a hub id.
        threads: for the kernels; ``None`` uses every core.
        context: limits the KV cache; ``None`` allows the model's own context length.
        backend: ``native`` kernels, or the ``reference`` ones in NumPy.
        progress: called with (label, done, total) during a fetch or conversion.

    Raises:
        SpeqError: the model cannot be found, read, converted or run.
    """
    from speq.checkpoint.converted import load_converted
    from speq.locate import converted_model
    from speq.models.model import Engine as ModelEngine
    from speq.models.tensors import fit
    from speq.models.tokenizer import Tokenizer, end_ids
    from speq.processors import checked_threads

    threads = checked_threads(threads)
    path = converted_model(str(name), progress=progress, threads=threads)
    converted = load_converted(path, threads=threads, check=fit)
    engine = ModelEngine(converted, backend=backend, threads=threads, context=context)
    tokenizer = Tokenizer(path, name=str(name)) if converted.tokenizer else None
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
    )


def _is_chat(prompt: Prompt) -> bool:
    return not isinstance(prompt, str) and any(isinstance(item, Mapping) for item in prompt)


def _check_options(max_new_tokens: int | None, draft: str, draft_length: int | None, stop: Sequence[str]) -> None:
    if max_new_tokens is not None and max_new_tokens < 1:
        raise SpeqError(f"{max_new_tokens} new tokens is out of range: use at least 1")
    if draft not in DRAFTS:
        raise SpeqError(f"there is no draft {draft!r}: choose one of {', '.join(DRAFTS)}")
    if draft_length is not None and not 1 <= draft_length <= LONGEST_DRAFT:
        raise SpeqError(f"draft length {draft_length} is out of range: use 1 to {LONGEST_DRAFT}, or auto")
    if not all(stop):
        raise SpeqError("a stop string is empty: give at least one character")
