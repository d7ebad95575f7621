"""The decoding loop: prefill the prompt, then rounds of draft and verify until the text ends.

The loop works on token ids and knows neither text nor files. The last token is never in the cache: it goes into the
next pass together with the drafted ones. Token ids do not depend on the drafter or the controller, only the number of
passes does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from speq.decoding.controller import Controller
from speq.decoding.drafter import Drafter
from speq.decoding.engine import Engine
from speq.decoding.sampling import Sampling, choose
from speq.decoding.stats import Statistics
from speq.decoding.verifier import verify
from speq.errors import SpeqError

PREFILL_CHUNK = 256  # tokens between two reports of progress

Progress = Callable[[str, int, int], None]


def generate_tokens(
    engine: Engine,
    prompt: Sequence[int],
    *,
    sampling: Sampling,
    drafter: Drafter,
    controller: Controller,
    stats: Statistics,
    max_new_tokens: int | None = None,
    ends: frozenset[int] = frozenset(),
    progress: Progress | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[list[int]]:
    """Yield the new tokens of each pass: one from the prefill, then ``accepted + 1`` from every round.

    Args:
        engine: its cache may already hold a proper prefix of ``prompt``.
        prompt: token ids, at least one and fewer than the context length.
        sampling: seeded options; ``drafter`` must use the same ones.
        stats: filled in while the generation runs, so that it is right even if the caller stops early.
        max_new_tokens: ``None`` goes on to the end of the context.
        ends: token ids that end the text; the one that does is yielded.
        progress: called with ("prefill", tokens done, tokens in all).

    Raises:
        SpeqError: the prompt is empty or does not fit the context, or logits are not finite.
    """
    _check_prompt(engine, prompt)
    room = engine.context_length - len(prompt)
    wanted = room if max_new_tokens is None else min(max_new_tokens, room)
    stats.prompt_tokens, stats.seed = len(prompt), sampling.seed
    tokens = list(prompt)

    started = clock()
    new = [_prefill(engine, tokens, sampling, progress)]
    stats.prefill_seconds = clock() - started
    while True:
        new = _until_end(new, ends)
        tokens += new
        stats.new_tokens += len(new)
        ended = new[-1] in ends
        if ended or stats.new_tokens >= wanted:
            stats.finish_reason = "stop" if ended else "length"
            yield new
            return
        yield new
        started = clock()
        limit = controller.plan(wanted - stats.new_tokens - 1)
        draft = drafter.propose(tokens, limit, controller.more)
        drafted = clock()
        verdict = verify(engine, sampling, tokens, draft.tokens)
        verified = clock()
        new = verdict.tokens
        controller.observe(draft.confidences, verdict.accepted, drafted - started, verified - drafted)
        seconds = (drafted - started, verified - drafted, verified - started)
        stats.add_round(len(draft.tokens), verdict.accepted, seconds)


def _check_prompt(engine: Engine, prompt: Sequence[int]) -> None:
    if not prompt:
        raise SpeqError("the prompt is empty: give at least one token")
    for token in prompt:
        if not 0 <= token < engine.vocab_size:
            raise SpeqError(
                f"token id {token} is outside the model's vocabulary: use ids from 0 to {engine.vocab_size - 1}"
            )
    if len(prompt) >= engine.context_length:
        raise SpeqError(
            f"the prompt has {len(prompt)} tokens and the model's context {engine.context_length}: shorten the prompt"
        )


def _prefill(engine: Engine, tokens: list[int], sampling: Sampling, progress: Progress | None) -> int:
    """Append the part of ``tokens`` that the cache lacks, and draw the token after them."""
    done = engine.length
    report = progress if progress and len(tokens) - done > PREFILL_CHUNK else lambda *_: None
    while len(tokens) - done > PREFILL_CHUNK:
        engine.forward(tokens[done : done + PREFILL_CHUNK], logits="none")
        done += PREFILL_CHUNK
        report("prefill", done, len(tokens))
    logits = engine.forward(tokens[done:], logits="last")
    report("prefill", len(tokens), len(tokens))
    return choose(logits[0], sampling, len(tokens), with_confidence=False).token


def _until_end(tokens: list[int], ends: frozenset[int]) -> list[int]:
    """Cut ``tokens`` after the first that ends the text."""
    for i, token in enumerate(tokens):
        if token in ends:
            return tokens[: i + 1]
    return tokens
