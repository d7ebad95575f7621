"""How turns of a conversation begin and end in the tokens of a model, read off its chat template.

A model that is given the opening of the user's turn goes on with a question of its own, and answers it when the turn is
closed (Magpie, arXiv 2406.08464). So a chat model writes the text that a head is trained on without any data.
"""

from __future__ import annotations

from dataclasses import dataclass

from speq.errors import SpeqError
from speq.models.tokenizer import Tokenizer

USER, ANSWER = 0, 1

OPENINGS = (
    "Write a", "Explain", "How can I", "What is", "How many", "Why", "Can you", "Give me", "List", "Describe",
    "Summarize the following", "Rewrite", "Imagine", "You are", "Suppose", "Compare", "Create", "Design", "Discuss",
    "Translate", "Solve", "Find", "Calculate", "If", "A train", "There are", "John has", "Mary bought", "Tom", "Each",
    "Write a function", "Write a Python", "Implement", "Fix the", "Given a list", "from typing import List\n\n\ndef ",
    "def ", "import math\n\n\ndef ", "class ", "Complete the following code:\n\n", "What does this code do?\n\n",
    "Write a SQL", "Write a story about", "Write an email", "Compose", "Help me", "I want to", "Please", "Could you",
    "Let", "In", "The", "Who", "When", "Where", "Is", "Are", "Do", "My", "Tell me", "Provide", "Generate", "Draft",
    "Edit", "Classify", "Extract",
)  # fmt: skip
"""Words that half of the questions are made to begin with: of themselves, small models ask about few things."""


@dataclass(frozen=True)
class Turns:
    """The tokens around the turns of a conversation.

    Attributes:
        opening: before the first word of the user.
        closing: after a turn, by who spoke: what ends it and opens the turn of the other. The first token is what the
            speaker says when the turn is over.
        after: who speaks next.
        ends: ids that end any turn.
    """

    opening: tuple[int, ...]
    closing: tuple[tuple[int, ...], tuple[int, ...]]
    after: tuple[int, int]
    ends: frozenset[int]

    @property
    def first(self) -> int:
        """Who speaks first."""
        return USER if self.after[ANSWER] == USER else ANSWER


def read_turns(tokenizer: Tokenizer) -> Turns:
    """The turns of a model: of its chat template, or texts from beginning to end if it has none.

    Raises:
        SpeqError: nothing begins or ends a text of this model.
    """
    if not tokenizer.has_chat_template:
        return _plain(tokenizer)
    said = ("speq-user-0", "speq-answer-0", "speq-user-1")
    messages = [{"role": "user" if i % 2 == 0 else "assistant", "content": text} for i, text in enumerate(said)]
    rest = tokenizer.render(messages, add_generation_prompt=False)
    pieces = []
    for text in said:
        before, found, rest = rest.partition(text)
        if not found:
            raise SpeqError("the model's chat template changes what is said: train on text of yours (--text FILE)")
        pieces.append(tuple(tokenizer.encode(before, special=False)))
    opening, after_user, after_answer = pieces
    if not after_user or not after_answer:
        raise SpeqError("the model's chat template does not end turns: train on text of yours (--text FILE)")
    return Turns(opening, (after_user, after_answer), (ANSWER, USER), tokenizer.eos_ids)


def _plain(tokenizer: Tokenizer) -> Turns:
    ends = sorted(tokenizer.eos_ids)
    opening = tuple(tokenizer.encode("")) or tuple(ends[:1])
    if not opening or not ends:
        raise SpeqError(
            "the model has neither a chat template nor tokens that begin and end a text: train on text of yours "
            "(--text FILE)"
        )
    closing = (ends[0], *(token for token in opening if token != ends[0]))
    return Turns(opening, (closing, closing), (ANSWER, ANSWER), tokenizer.eos_ids)
