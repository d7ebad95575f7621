"""The text that activations are taken from: questions and answers of many kinds, as a conversation of the model.

``text.jsonl`` holds our questions with answers that Qwen2.5-Coder-1.5B-Instruct (Apache-2.0) wrote to them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from itertools import takewhile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from speq.errors import SpeqError
from speq.models.tokenizer import Tokenizer

LONGEST = 256
"""Tokens of a sample that are used."""


@dataclass(frozen=True)
class Sample:
    """Token ids, of which the first ``known`` are those that the sample before began with."""

    tokens: NDArray[np.int32]
    known: int


@cache
def _text() -> bytes:
    return (Path(__file__).parent / "text.jsonl").read_bytes()


def text_identity() -> str:
    """Changes when the text does."""
    return sha256(_text()).hexdigest()[:12]


def read_samples(tokenizer: Tokenizer, context: int) -> list[Sample]:
    """The samples in the tokens of a model, as conversations if it has a chat template that takes them, each at most
    ``context`` long.

    What a sample shares with the one before (the system prompt of a chat template) has the same activations, so it need
    not be counted again.
    """
    samples: list[Sample] = []
    before: list[int] = []
    for line in _text().decode().splitlines():
        turn = json.loads(line)
        ids = _tokens(tokenizer, turn["question"], turn["answer"])
        ids = ids[: min(context, LONGEST)]
        known = sum(takewhile(bool, (a == b for a, b in zip(ids, before, strict=False))))
        if known < len(ids):
            samples.append(Sample(np.array(ids, np.int32), known))
        before = ids
    return samples


def _tokens(tokenizer: Tokenizer, question: str, answer: str) -> list[int]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    try:
        if tokenizer.has_chat_template:
            return tokenizer.chat(messages, add_generation_prompt=False)
    except SpeqError:  # a template that fails concerns conversations; the weights are the same without it
        pass
    return tokenizer.encode(question + "\n" + answer)
