"""Text to token ids and back, by the files a checkpoint carries along.

``tokenizer.json`` does the work through the ``tokenizers`` library; ``tokenizer_config.json``,
``chat_template.jinja``, ``generation_config.json`` and ``config.json`` add the special tokens, the chat template and
the ids that end a text. The conventions are Hugging Face's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from speq.errors import SpeqError
from speq.models.chat_template import ChatTemplate, Message
from speq.models.detokenizer import Detokenizer


def end_ids(directory: Path) -> frozenset[int]:
    """Ids that end a text according to ``generation_config.json`` and ``config.json``; no tokenizer is needed.

    Raises:
        SpeqError: an ``eos_token_id`` that is no whole number, nor a list of them.
    """
    ids: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        entry = _read_json(directory / name).get("eos_token_id")
        listed = entry if isinstance(entry, list) else [] if entry is None else [entry]
        if any(isinstance(token, bool) or not isinstance(token, int) for token in listed):
            raise SpeqError(f"{directory / name}: 'eos_token_id' is {entry!r}, must be a token id or a list of them")
        ids.update(listed)
    return frozenset(ids)


class Tokenizer:
    """The tokenizer of the checkpoint in a directory."""

    def __init__(self, directory: Path | str) -> None:
        """Load it.

        Raises:
            SpeqError: there is none, or a file is damaged.
        """
        import tokenizers

        self._directory = Path(directory)
        file = self._directory / "tokenizer.json"
        if not file.is_file():
            raise SpeqError(f"{self._directory}: no tokenizer.json; give token ids with --ids instead of text")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises plain Exception for every kind of damage
            raise SpeqError(f"{file}: not a readable tokenizer ({' '.join(str(error).split())})") from None
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._settings = _read_json(self._directory / "tokenizer_config.json")

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of ``text``; with the tokens that open (or close) every text of this model if ``special``.

        Raises:
            SpeqError: the text holds half characters (lone surrogates).
        """
        try:
            ids = list(self._tokenizer.encode(text, add_special_tokens=special).ids)
        except (UnicodeError, TypeError):
            raise SpeqError("the prompt is not valid Unicode text") from None
        first = self.special_tokens.get("bos_token")
        if special and self._settings.get("add_bos_token") and first is not None:
            bos = self._tokenizer.token_to_id(first)
            if bos is not None and ids[:1] != [bos]:
                ids.insert(0, bos)
        return ids

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of token ids; bytes that form no character come out as U+FFFD."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=skip_special))

    def stream(self) -> Detokenizer:
        """A new incremental decoder."""
        return Detokenizer(self.decode)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """A conversation as the text the model was trained on.

        Args:
            messages: mappings with ``role`` ("system", "user", "assistant") and ``content``.
            add_generation_prompt: end where the assistant is to speak.

        Raises:
            SpeqError: the checkpoint has no chat template, or the template refuses these messages.
        """
        if self._chat_template is None:
            raise SpeqError(f"{self._directory}: the model has no chat template; use --raw")
        return self._chat_template.render(messages, add_generation_prompt)

    def chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
        """Token ids of a conversation; see :meth:`render`."""
        return self.encode(self.render(messages, add_generation_prompt=add_generation_prompt), special=False)

    @property
    def has_chat_template(self) -> bool:
        """Whether :meth:`chat` works."""
        return self._chat_template is not None

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """Ids that end a text: those of the configuration files, and the tokenizer's own end token."""
        last = self.special_tokens.get("eos_token")
        own = None if last is None else self._tokenizer.token_to_id(last)
        return end_ids(self._directory) | (frozenset() if own is None else {own})

    @cached_property
    def special_tokens(self) -> dict[str, str]:
        """``bos_token``, ``eos_token`` and the like, as far as the files name them."""
        found = {}
        for entries in (_read_json(self._directory / "special_tokens_map.json"), self._settings):
            for key, value in entries.items():
                text = value.get("content") if isinstance(value, dict) else value
                if key.endswith("_token") and isinstance(text, str):
                    found[key] = text
        return found

    @cached_property
    def _chat_template(self) -> ChatTemplate | None:
        file = self._directory / "chat_template.jinja"
        source = file.read_text(encoding="utf-8") if file.is_file() else self._settings.get("chat_template")
        if isinstance(source, list):  # several named templates
            named = {entry.get("name"): entry.get("template") for entry in source if isinstance(entry, dict)}
            source = named.get("default")
        return ChatTemplate(source, self.special_tokens) if isinstance(source, str) else None


def _read_json(file: Path) -> Mapping[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SpeqError(f"{file}: not readable JSON ({error})") from None
    if not isinstance(content, dict):
        raise SpeqError(f"{file}: a JSON object is expected")
    return content
