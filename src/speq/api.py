"""The Python interface: load a model, stream or generate text.

>>> model = speq.load("smollm2-135m-instruct")
>>> result = model.generate("Name three rivers.", sampling=speq.Sampling(temperature=0.8, seed=1))
>>> result.text, result.stats.tokens_per_second
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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

if TYPE_CHECKING:
    from speq.models.tokenizer import Tokenizer

Prompt: TypeAlias = str | Sequence[int] | Sequence[Mapping[str, str]]
"""Text for the chat template, token ids, or chat messages (mappings with ``role`` and ``content``)."""

DRAFTS = ("auto", "self", "none")
LONGEST_DRAFT = 16


class Stream(Iterator[Piece]):
    """A running generation. Iterating it gives pieces; ``result`` is right at any time, also after an interruption."""

    def __init__(
        self, model: Model, pieces: Iterator[Piece], stats: Statistics, draft: str, recorder: Recorder | None = None
    ) -> None:
        self._model, self._pieces, self._stats, self._draft = model, pieces, stats, draft
        self._recorder = recorder
        self._token_ids: list[int] = []
        self._texts: list[str] = []

    def __next__(self) -> Piece:
        if self._model.running is not self and not self._stats.finished:
            raise RuntimeError("another generation was started on this model")
        piece = next(self._pieces)
        self._token_ids += piece.token_ids
        self._texts.append(piece.text)
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
    """A model ready to generate, one text at a time.

    The KV cache stays between generations: a prompt that begins like the last text only computes what is new, which
    gives the same bits as computing all of it.

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
        self.running: Stream | None = None
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
            SpeqError: an option is out of range, or the prompt is empty or too long (when the iteration begins).
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
        self._reuse_cache(prompt_ids)
        pieces = stream_pieces(
            passes,
            stats=stats,
            silent=self.ends,
            detokenizer=self.tokenizer.stream(before) if self.tokenizer else None,
            stop=StopStrings(stop),
            keep=self._remember(prompt_ids),
        )
        self.running = Stream(self, pieces, stats, draft, recorder)
        return self.running

    def generate(self, prompt: Prompt, **options: Any) -> Result:
        """Generate to the end; the options are those of :meth:`stream`."""
        stream = self.stream(prompt, **options)
        for _ in stream:
            pass
        return stream.result

    def reset(self) -> None:
        """Empty the KV cache, so that the next prompt is computed from its first token, and forget measured costs."""
        self.running, self._exact, self._controllers = None, [], {}
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

    def _remember(self, prompt: list[int]) -> Callable[[list[int]], None]:
        """A callback that notes the tokens of each pass, after the prompt."""
        exact = list(prompt)

        def keep(tokens: list[int]) -> None:
            exact.extend(tokens)
            self._exact = exact

        return keep


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
    from speq.models.tokenizer import Tokenizer, end_ids
    from speq.processors import default_threads

    if threads is not None and threads < 1:
        raise SpeqError(f"threads {threads} is out of range: use at least 1")
    threads = threads or default_threads()
    path = converted_model(str(name), progress=progress, threads=threads)
    converted = load_converted(path)
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
