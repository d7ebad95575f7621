"""A model as callers use it: it streams or generates any number of texts.

>>> model = speq.load("smollm2-135m-instruct")
>>> result = model.generate("Name three rivers.", sampling=speq.Sampling(temperature=0.8, seed=1))
>>> result.text, result.stats.tokens_per_second
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

from speq.decoding.checked import CheckedDrafter
from speq.decoding.draft_model import ModelDrafter
from speq.decoding.drafters import Cascade, Drafter, NoDrafter, SelfDrafter, Straight
from speq.decoding.head import Head, HeadDrafter
from speq.decoding.ngram import NgramDrafter
from speq.decoding.policy import Policy
from speq.decoding.scheduler import Scheduler
from speq.decoding.sequence import Progress, Request, Round
from speq.decoding.sequence import Sequence as Running
from speq.decoding.stats import Statistics
from speq.decoding.stop import StopStrings
from speq.decoding.stream import Piece, stream_pieces
from speq.decoding.successors import SuccessorTable
from speq.decoding.trace import Step, Trace
from speq.drafts import DRAFTS, HELPERS, DraftName, Helper, missing_helper
from speq.errors import SpeqError
from speq.limits import LONGEST_DRAFT
from speq.runtime.batch import Engine
from speq.runtime.sampling import Sampling
from speq.runtime.single import SingleSequence
from speq.runtime.turns import Turns
from speq.serving.result import Result

if TYPE_CHECKING:
    from speq.models.tokenizer import Tokenizer

Prompt: TypeAlias = str | Sequence[int] | Sequence[Mapping[str, str]]
"""Text for the chat template, token ids, or chat messages (mappings with ``role`` and ``content``)."""

Draft: TypeAlias = DraftName | Callable[[], Drafter]
"""What drafts: one of speq's own, or what makes a drafter for each text, such as a class of drafters."""

Setting: TypeAlias = tuple[str, int | None]
"""The draft and its length, as the caller chose them."""

OnRound: TypeAlias = Callable[[Round], None]


class Feed(Iterator[list[int]]):
    """The tokens that the passes of a model bring one request; whoever waits for some runs passes until they come."""

    def __init__(self, model: Model, request: Request, setting: Setting | None) -> None:
        self.request, self.setting = request, setting
        self.sequence: Running | None = None
        self._model = model
        self._taken = len(request.prompt)  # tokens of the sequence
        self._is_closed = False

    def start(self) -> None:
        """Take part in the passes from now on, within a turn of the model."""
        if self.sequence is None:
            self._model._begin(self)

    def __next__(self) -> list[int]:
        self.start()
        assert self.sequence is not None
        while len(self.sequence.tokens) == self._taken:
            if self.sequence.error:
                raise self.sequence.error
            if self.sequence.ended:
                raise StopIteration
            self._model._step()
        new = self.sequence.tokens[self._taken :]
        self._taken += len(new)
        return new

    def close(self) -> None:
        """Take part no more. Whoever closes may be anywhere, so the pages are given back in the next turn."""
        if self.sequence is not None and not self._is_closed:
            self._model._dropped.append(self)
            self._is_closed = True


class Stream(Iterator[Piece]):
    """A running generation. Iterating it gives pieces; ``result`` is right at any time, also after an interruption.

    Any number may run on one model, in one thread or in many: whoever wants a piece runs the passes that bring it, and
    these serve all that are running. An exception in the middle of a pass, Ctrl-C among them, ends the stream; one that
    is closed, or that nobody holds any more, gives its part of the cache back.
    """

    def __init__(self, model: Model, feed: Feed, pieces: Iterator[Piece], draft: str, trace: Trace | None) -> None:
        self._model, self._feed, self._pieces, self._draft, self._trace = model, feed, pieces, draft, trace
        self._token_ids: list[int] = []
        self._texts: list[str] = []

    def __next__(self) -> Piece:
        return self._model._turns.take(self._advance)

    def __del__(self) -> None:
        self._feed.close()

    def close(self) -> None:
        """End the generation here; ``result`` stays."""
        self._pieces = iter(())
        self._feed.close()

    def _advance(self) -> Piece:
        """The next piece, within a turn of the model."""
        try:
            piece = next(self._pieces)
        except BaseException:
            self.close()  # a piece may be lost, and what came after it would be another text
            raise
        self._token_ids += piece.token_ids
        self._texts.append(piece.text)
        stats = self._feed.request.stats
        if stats.finished and len(self._token_ids) == stats.new_tokens:
            self._feed.close()
        return piece

    @property
    def steps(self) -> list[Step]:
        """The passes so far as :mod:`speq.decoding.trace` describes them; empty unless they are recorded."""
        return self._trace.steps if self._trace else []

    @property
    def result(self) -> Result:
        """What was generated so far."""
        model, stats = self._model, self._feed.request.stats
        if len(self._token_ids) < stats.new_tokens:  # other streams' passes have brought more than was taken
            stats = replace(stats, new_tokens=len(self._token_ids), finish_reason="interrupted")
        return Result(
            "".join(self._texts),
            self._token_ids,
            stats,
            self._draft,
            model.name,
            model.format,
            model.threads,
        )


class Model:
    """A model ready to generate, several texts at a time; it may be used from any number of threads.

    The KV cache stays between generations: a prompt that begins like an earlier text only computes what is new, which
    gives the same bits as computing all of it.

    A pass is a turn: it serves all texts that are being generated, and whoever needs the next one waits for it. Whoever
    asks for one within another (from a ``progress`` callback) or in a process that was forked after the model was
    loaded gets a :class:`SpeqError`.

    Args:
        engine: see :class:`speq.decoding.scheduler.Engine`. The attribute of this name is a sequence of its own on it,
            for whoever wants to look at logits.
        tokenizer: ``None`` for a checkpoint without one; prompts are then token ids.
        name, format, threads: reported in results.
        ends: token ids that end a text.
        notes: what the conversion changed or kept that the user should know.
        clock: seconds, by which passes are timed.
        head: a trained head that proposes tokens, if there is one.
        draft_model: the engine of another model with the same tokens that proposes some, if there is one.
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
        clock: Callable[[], float] = time.perf_counter,
        head: Head | None = None,
        draft_model: Engine | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.name, self.format, self.threads = name, format, threads
        self.ends, self.notes = ends, list(notes)
        self._turns = Turns(f"the model {name}".rstrip())
        self.engine = SingleSequence(engine, self._turns)
        self._engine, self._scheduler = engine, Scheduler(engine, clock)
        self.head, self.draft_model = head, draft_model
        self._table = SuccessorTable()  # of all texts of this model, in this process
        self._dropped: deque[Feed] = deque()  # those that nobody waits for any more
        self._policies: dict[Setting, Policy] = {}  # of earlier generations, with what they measured

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
        draft: Draft = "auto",
        draft_length: int | None = None,
        stop: str | Sequence[str] = (),
        raw: bool = False,
        ignore_ends: bool = False,
        record: bool = False,
        progress: Progress | None = None,
        on_round: OnRound | None = None,
    ) -> Stream:
        """Generate piece by piece. Neither ``draft`` nor ``draft_length`` changes a token, only the speed.

        Args:
            prompt: text, token ids or chat messages.
            max_new_tokens: ``None`` goes on until the model ends its text or the context is full.
            sampling: greedy if ``None``.
            draft: ``auto`` chooses in every round what is fastest; ``self`` always drafts, ``none`` never; ``ngram``
                proposes what stood in the text before or is known to follow, without a draft; ``cascade`` lets the
                draft check that; ``head`` and ``model`` let the draft check what a trained head or another model
                proposes, which ``auto`` asks, too, where there is one, and ``head-direct`` and ``model-direct`` do
                without the draft.
                A callable without arguments makes a drafter of your own (:class:`speq.Drafter`) for this text, which
                drafts in every round.
            draft_length: tokens to draft each round, 1 .. 16; ``None`` decides by confidence and cost.
            stop: a string, or several, before which the text ends; special tokens, which have no text, may be written
                in them by name.
            raw: do not use the chat template: the text goes on where the prompt ends, so that both put together are
                the text of all tokens. Without it the text stands alone, and many tokenizers drop its first space.
            ignore_ends: go on after the model's end tokens.
            record: keep the kinds and sizes of all passes in ``steps`` of the stream.
            progress: called with ("prefill", tokens done, tokens in all) during a long prefill.
            on_round: called with each round when it is over: its passes, what was proposed and accepted, the seconds.

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
        trace = Trace() if record else None
        if isinstance(draft, str) and (missing := missing_helper(draft, self.helper)):
            raise SpeqError(missing)
        name = draft if isinstance(draft, str) else _name(draft)
        request = Request(
            prompt_ids,
            seeded,
            self._drafter(draft),
            self._policy(draft, draft_length),
            max_new_tokens,
            frozenset() if ignore_ends else self.ends,
            Statistics(seed=seeded.seed),
            progress,
            trace.on_prefill if trace else None,
            _both(trace.on_round, on_round) if trace else on_round,
        )
        feed = Feed(self, request, (draft, draft_length) if isinstance(draft, str) else None)
        pieces = stream_pieces(
            feed,
            stats=request.stats,
            silent=self.ends,
            detokenizer=self.tokenizer.stream(before) if self.tokenizer else None,
            stop=StopStrings(stop),
        )
        return Stream(self, feed, pieces, name, trace)

    def generate(self, prompt: Prompt, **options: Any) -> Result:
        """Generate to the end; the options are those of :meth:`stream`."""
        stream = self.stream(prompt, **options)
        for _ in stream:
            pass
        return stream.result

    def generate_many(self, prompts: Sequence[Prompt], **options: Any) -> list[Result]:
        """Generate a text for each prompt, together; the options, the same for all, are those of :meth:`stream`.

        Every text is what :meth:`generate` gives for its prompt alone.
        """
        streams = [self.stream(prompt, **options) for prompt in prompts]
        try:
            self._turns.take(lambda: self._start(streams))
            for stream in streams:
                for _ in stream:
                    pass
        finally:
            for stream in streams:
                stream.close()
        return [stream.result for stream in streams]

    @staticmethod
    def _start(streams: Sequence[Stream]) -> None:
        for stream in streams:
            stream._feed.start()

    def reset(self) -> None:
        """Forget earlier texts, so that the next prompt is computed from its first token, and all that was learnt."""
        self._turns.take(self._reset)

    def _reset(self) -> None:
        self._sweep()
        self._policies.clear()
        self._table = SuccessorTable()
        for each in (self._engine, self.head, self.draft_model):
            if each:
                each.kv.forget()

    @property
    def helper(self) -> Helper | None:
        """What kind of help there is beside the model."""
        return "head" if self.head else "model" if self.draft_model else None

    def _drafter(self, draft: Draft) -> Drafter:
        if draft == "none":
            return NoDrafter()
        if draft == "self":
            return SelfDrafter()
        if isinstance(draft, str):
            first = self._first_stage(self.helper if draft == "auto" else HELPERS.get(draft))
            is_straight = draft in ("ngram", "head-direct", "model-direct")
            return Straight(first) if is_straight else Cascade(first, may_skip=draft == "auto")
        made, engine = draft(), self._engine
        name = _name(draft)
        if not isinstance(made, Drafter):
            raise SpeqError(f"the draft {name} makes no drafter: give a callable that makes a speq.Drafter")
        return CheckedDrafter(
            made, name, vocab_size=engine.vocab_size, levels=engine.levels, limits=engine.limits, taps=engine.taps
        )

    def _first_stage(self, helper: Helper | None) -> Drafter:
        if helper == "head" and self.head:
            return HeadDrafter(self.head)
        if helper == "model" and self.draft_model:
            return ModelDrafter(self.draft_model, self._engine.vocab_size)
        return NgramDrafter(self._table)

    def _policy(self, draft: Draft, length: int | None) -> Policy:
        """That of an earlier generation with the same setting, which knows what passes cost, unless it is in use; a new
        one for callers' own drafters, of which nobody knows whether they are the same.
        """
        if not isinstance(draft, str):
            return Policy(length)
        return self._policies.pop((draft, length), None) or Policy(length, may_pause=draft == "auto")

    def _begin(self, feed: Feed) -> None:
        sequence = self._scheduler.prepare(feed.request)
        feed.sequence = sequence
        self._scheduler.add(sequence)

    def _step(self) -> None:
        """Run one pass."""
        self._sweep()
        self._scheduler.step()

    def _sweep(self) -> None:
        """Remove what nobody waits for any more."""
        while self._dropped:
            feed = self._dropped[0]
            if feed.sequence is not None:
                self._scheduler.remove(feed.sequence)
            if feed.setting:
                self._policies[feed.setting] = feed.request.policy
            self._dropped.popleft()


def _both(first: OnRound, second: OnRound | None) -> OnRound:
    """Tells two listeners of a round."""

    def tell(happened: Round) -> None:
        first(happened)
        if second:
            second(happened)

    return tell


def _name(draft: Callable[[], Drafter]) -> str:
    return getattr(draft, "__name__", type(draft).__name__)


def _is_chat(prompt: Prompt) -> bool:
    return not isinstance(prompt, str) and any(isinstance(item, Mapping) for item in prompt)


def _check_options(max_new_tokens: int | None, draft: Draft, draft_length: int | None, stop: Sequence[str]) -> None:
    if max_new_tokens is not None and max_new_tokens < 1:
        raise SpeqError(f"{max_new_tokens} new tokens is out of range: use at least 1")
    if not callable(draft) and draft not in DRAFTS:
        raise SpeqError(f"there is no draft {draft!r}: choose one of {', '.join(DRAFTS)}, or give a callable")
    if draft_length is not None and not 1 <= draft_length <= LONGEST_DRAFT:
        raise SpeqError(f"draft length {draft_length} is out of range: use 1 to {LONGEST_DRAFT}, or auto")
    if not all(stop):
        raise SpeqError("a stop string is empty: give at least one character")
