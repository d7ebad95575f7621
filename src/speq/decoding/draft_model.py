"""Another, smaller model as first stage: it proposes a chain, token by token, with the draws that are to be repeated.

It has an engine of its own and keeps up with the text there: a prompt is read at its exact level, many tokens at a
time, and what it proposes comes from its draft codes. Draws take the noise of the sequence's own sampling, so a sampled
text is guessed as well as a greedy one.
"""

from __future__ import annotations

from collections.abc import Sequence

from speq.decoding.drafters import Aside, Context, Drafter, Proposing
from speq.decoding.verify import Proposal
from speq.errors import SpeqError
from speq.limits import MOST_CHECKED, QUICK_ROWS
from speq.runtime.batch import Batch, Engine, Output, Span
from speq.runtime.kv import KVHandle
from speq.runtime.sampling import Choice


class ModelDrafter(Drafter):
    """Proposes what another model draws.

    Args:
        engine: of the other model; may be shared among sequences.
        vocab_size: of the model that is drafted for. Tokens that only one of the two has end a proposal.
        nodes: most tokens to propose.
    """

    def __init__(self, engine: Engine, vocab_size: int, nodes: int = MOST_CHECKED) -> None:
        self._engine, self._vocab_size, self._nodes = engine, vocab_size, nodes
        self._kv: KVHandle | None = None
        self._common = 0  # first tokens of the cache that are known to be the text's

    def begin(self, tokens: Sequence[int]) -> int:
        self.close()
        self._engine.kv.settle()
        self._kv = self._engine.kv.open(tokens)
        self._common = self._kv.length
        return len(tokens)

    def follow(self, tokens: Sequence[int]) -> None:
        self._read_up_to(tokens, len(tokens) - QUICK_ROWS + 1)  # the token that follows has its row, too

    def close(self) -> None:
        if self._kv is not None:
            self._engine.kv.close(self._kv)
        self._kv, self._common = None, 0

    def propose(self, context: Context) -> Proposing:
        proposal = Proposal()
        limit = min(context.limit, self._nodes, self._engine.limits.context - context.position)
        if limit <= 0:
            return proposal
        tokens = [*context.tokens, *context.tentative]
        self._cut(tokens, len(context.tokens))
        self._read_up_to(tokens, len(tokens) - QUICK_ROWS)
        fed = tokens[self._opened.length :]
        while self._knows(fed):
            span = Span(self._opened, fed, wanted=(len(fed) - 1,), sampling=context.sampling, confidences=True)
            ask = Aside(self._engine, self._run, span, len(fed), self._engine.limits.rows)
            yield ask
            drawn = ask.answer
            if drawn is None or drawn.token >= self._vocab_size:
                break
            proposal.tokens.append(drawn.token)
            proposal.confidences.append(drawn.confidence)
            count = len(proposal.tokens)
            if count >= limit or drawn.token in context.ends or (context.worth and context.worth(proposal) < count):
                break
            fed = [drawn.token]
        return proposal

    @property
    def _opened(self) -> KVHandle:
        if self._kv is None:
            raise ValueError("begin() comes first")
        return self._kv

    def _cut(self, tokens: Sequence[int], certain: int) -> None:
        """Forget what is not in the text, of which so many first tokens are certain; its last one is always read."""
        kv = self._opened
        common, end = self._common, min(kv.length, len(tokens) - 1)
        while common < end and kv.tokens[common] == tokens[common]:
            common += 1
        self._engine.kv.truncate(kv, min(common, end))
        self._common = min(common, end, certain)

    def _read_up_to(self, tokens: Sequence[int], end: int) -> None:
        """Read what is missing of the first so many tokens of a text, without drawing anything."""
        kv = self._opened
        while (count := min(end - kv.length, self._engine.limits.rows)) > 0:
            part = tokens[kv.length : kv.length + count]
            if not self._knows(part):
                return
            # Only what is exact up to its last token is of use to a text that begins alike.
            self._engine.run(Batch([Span(kv, part)], "exact" if kv.exact == kv.length else "draft"))

    def _knows(self, tokens: Sequence[int]) -> bool:
        """Whether the model has all these tokens, not more than it reads at once while drawing, and room for them."""
        room = self._engine.limits.context - self._opened.length
        return len(tokens) <= min(room, self._engine.limits.rows) and max(tokens) < self._engine.vocab_size

    def _run(self, spans: Sequence[Span]) -> list[Choice | None]:
        """What the model draws after each of these; ``None`` where its numbers overflow."""
        output = self._engine.run(Batch(spans, "draft"))
        return [self._drawn(output, index) for index in range(len(spans))]

    @staticmethod
    def _drawn(output: Output, index: int) -> Choice | None:
        try:
            (drawn,) = output.drawn(index)
        except SpeqError:
            return None
        return drawn
