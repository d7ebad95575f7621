"""A drafter of your own: it looks for the last two tokens earlier in the text and proposes what followed them there.

It is a coroutine: it never computes anything, it asks. Where the text says nothing, this one asks the model's own 4-bit
draft for a token. Whatever a drafter proposes, the text stays the same; a bad one only costs time.

    python examples/drafter.py [MODEL]
"""

from __future__ import annotations

import sys

import speq

PROMPT = "Repeat this three times: one two three four five six seven eight nine ten."


class LookUp(speq.Drafter):
    """Made once for each text, so that it may remember things about it."""

    def propose(self, context: speq.Context) -> speq.Proposing:
        tokens = list(context.tokens)
        for start in range(len(tokens) - 3, -1, -1):
            if tokens[start : start + 2] == tokens[-2:]:
                found = tokens[start + 2 : start + 2 + context.limit]
                return speq.Proposal(found, confidences=[0.5] * len(found))
        if not context.limit:
            return speq.Proposal()
        (drawn,) = yield speq.Ask(tokens[-1:], level="draft", confidences=True)
        return speq.Proposal([drawn.token], confidences=[drawn.confidence])


def main(name: str = "smollm2-135m-instruct") -> None:
    model = speq.load(name)
    plain = model.generate(PROMPT, max_new_tokens=80, draft="none")
    drafted = model.generate(PROMPT, max_new_tokens=80, draft=LookUp)
    stats = drafted.stats
    print(drafted.text)
    print(
        f"\n{stats.accepted} of {stats.drafted} proposed tokens were right, {stats.tokens_per_round:.2f} tokens a round"
    )
    print("the same text as plain decoding:", drafted.token_ids == plain.token_ids)


if __name__ == "__main__":
    main(*sys.argv[1:])
