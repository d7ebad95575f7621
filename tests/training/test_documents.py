"""Text that the user gives: what is read, and one clear line for what cannot be."""

from __future__ import annotations

import json

import pytest

from speq.errors import SpeqError
from speq.models.tokenizer import Tokenizer
from speq.training.documents import read_documents


@pytest.fixture(scope="module")
def tokenizer(tiny_checkpoint):
    return Tokenizer(tiny_checkpoint)


def test_texts_conversations_and_questions_are_read(tokenizer, tmp_path):
    plain, lines = tmp_path / "a.txt", tmp_path / "b.jsonl"
    plain.write_bytes("\ufeffcafé".encode())
    conversation = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    records = [{"text": "one"}, {"messages": conversation}, {"prompt": "why"}, {"id": 1, "turns": ["how", "so"]}]
    lines.write_text("\n\n".join(json.dumps(record) for record in records) + "\n")
    found = read_documents([plain, lines], tokenizer)
    texts = [tokenizer.decode(text, skip_special=False) for text in found.texts]
    prompts = [tokenizer.decode(prompt, skip_special=False) for prompt in found.prompts]
    assert texts == ["café", "one", "<|turn|>user: hi<|turn|>assistant: ho<|turn|>"]
    assert prompts == ["<|turn|>user: why<|turn|>", "<|turn|>user: how<|turn|>"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "has no text to train on"),
        ("a.txt", b" \n\n", "has no text to train on"),
        ("a.jsonl", b"\n", "has no text to train on"),
        ("a.txt", b"caf\xe9", "is not UTF-8 text (at byte 3)"),
        ("a.bin", b"abc\0\0", "holds a zero byte"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', "line 2 is not a JSON object"),
        ("a.jsonl", b"[1]", "line 1 is not a JSON object"),
        ("a.jsonl", b'{"words": "a"}', "line 1 has none of text, messages, prompt and turns"),
        ("a.jsonl", b'{"text": 7}', "line 1 has none of text"),
        ("a.ndjson", b'{"messages": [{"role": "user"}]}', "line 1 has none of text"),
        ("a.jsonl", b'{"text": "\\ud800"}', "line 1: the prompt is not valid Unicode text"),
    ],
)
def test_what_cannot_be_read_is_named_in_one_line(tokenizer, tmp_path, name, content, message):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(SpeqError) as error:
        read_documents([file], tokenizer)
    assert message in str(error.value)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_directory_are_named(tokenizer, tmp_path):
    for path, message in ((tmp_path / "no.txt", "no such file"), (tmp_path, "is a directory")):
        with pytest.raises(SpeqError, match=message):
            read_documents([path], tokenizer)
