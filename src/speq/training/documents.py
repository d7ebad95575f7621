"""Text that the user gives to train on: plain files, or JSON lines.

A line of a ``.jsonl`` (or ``.ndjson``) file is an object with one of

    text       a text, taken as it is
    messages   a conversation, a list of objects with role and content, which goes through the chat template
    prompt     a question, which the model answers itself
    turns      a list of questions, of which the first is used: the prompt files of speq's benchmarks
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speq.errors import SpeqError
from speq.models.tokenizer import Tokenizer

_LINES = (".jsonl", ".ndjson")


@dataclass(frozen=True)
class Documents:
    """What was read.

    Attributes:
        texts: token ids of texts and conversations.
        prompts: token ids of questions, up to where the model is to answer.
    """

    texts: tuple[tuple[int, ...], ...]
    prompts: tuple[tuple[int, ...], ...]


def read_documents(files: Sequence[Path], tokenizer: Tokenizer) -> Documents:
    """Read files.

    Raises:
        SpeqError: one is missing, empty, not UTF-8 text, or not JSON lines of the objects above.
    """
    texts: list[tuple[int, ...]] = []
    prompts: list[tuple[int, ...]] = []
    for file in files:
        before = len(texts) + len(prompts)
        content = _read(file)
        if file.suffix.lower() in _LINES:
            for number, line in enumerate(content.split("\n"), 1):
                if line.strip():
                    _add_record(_record(file, number, line), f"{file}, line {number}", tokenizer, texts, prompts)
        elif content.strip():
            texts.append(tuple(tokenizer.encode(content)))
        if len(texts) + len(prompts) == before:
            raise SpeqError(f"{file} has no text to train on")
    return Documents(tuple(text for text in texts if text), tuple(prompts))


def _read(file: Path) -> str:
    try:
        content = file.read_bytes()
    except OSError as error:
        raise SpeqError(f"cannot read {file}: {(error.strerror or str(error)).lower()}") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpeqError(f"{file} is not UTF-8 text (at byte {error.start})") from None
    if "\0" in text:
        raise SpeqError(f"{file} is not text: it holds a zero byte")
    return text


def _record(file: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise SpeqError(f"{file}, line {number} is not a JSON object")
    return record


def _add_record(
    record: dict[str, Any],
    where: str,
    tokenizer: Tokenizer,
    texts: list[tuple[int, ...]],
    prompts: list[tuple[int, ...]],
) -> None:
    text, messages = record.get("text"), record.get("messages")
    question = record.get("prompt")
    if question is None and isinstance(record.get("turns"), list):
        question = next(iter(record["turns"]), None)
    if isinstance(text, str):
        texts.append(_encoded(where, lambda: tokenizer.encode(text)))
    elif isinstance(messages, list) and _is_conversation(messages):
        texts.append(_encoded(where, lambda: tokenizer.chat(messages, add_generation_prompt=False)))
    elif isinstance(question, str):
        prompts.append(_encoded(where, lambda: question_ids(tokenizer, question)))
    else:
        raise SpeqError(f"{where} has none of text, messages, prompt and turns (or it is of another type)")


def question_ids(tokenizer: Tokenizer, question: str) -> list[int]:
    """Token ids of a question up to where the model is to answer; as it is if the model has no chat template."""
    if not tokenizer.has_chat_template:
        return tokenizer.encode(question)
    return tokenizer.chat([{"role": "user", "content": question}])


def _encoded(where: str, encode: Callable[[], list[int]]) -> tuple[int, ...]:
    try:
        return tuple(encode())
    except SpeqError as error:
        raise SpeqError(f"{where}: {error}") from None


def _is_conversation(messages: list[Any]) -> bool:
    return bool(messages) and all(
        isinstance(message, dict) and isinstance(message.get("role"), str) and "content" in message
        for message in messages
    )
