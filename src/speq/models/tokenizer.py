"""Text to token ids and back, by the files a checkpoint carries along.

``tokenizer.json`` does the work through the ``tokenizers`` library. What else the files say is used as transformers 5
uses it: special tokens (:mod:`speq.models.special_tokens`), the class (:mod:`speq.models.tokenizer_class`), the chat
template (:mod:`speq.models.chat_template`), ``split_special_tokens``, ``clean_up_tokenization_spaces`` (except for BPE,
which it would corrupt), and the ids that end a text. ``add_bos_token`` and ``add_eos_token`` say nothing there any
more: which tokens open and close every text stands in ``tokenizer.json``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from speq.errors import SpeqError
from speq.models.chat_template import ChatTemplate, Message, read_templates
from speq.models.detokenizer import Detokenizer, decoding_steps
from speq.models.special_tokens import SpecialTokens, gather
from speq.models.tokenizer_class import agrees, class_of, default_tokens, rebuilt


def end_ids(directory: Path, name: str | None = None) -> frozenset[int]:
    """Ids that end a text according to ``generation_config.json`` and ``config.json``; no tokenizer is needed.

    Args:
        directory: of the checkpoint.
        name: of the model, for messages; the directory if None.

    Raises:
        SpeqError: an ``eos_token_id`` that is no whole number, nor a list of them.
    """
    name, ids = name or str(directory), set[int]()
    for file in ("generation_config.json", "config.json"):
        entry = _read_json(directory, file, name).get("eos_token_id")
        listed = entry if isinstance(entry, list) else [] if entry is None else [entry]
        if any(isinstance(token, bool) or not isinstance(token, int) for token in listed):
            raise SpeqError(f"{name}/{file}: 'eos_token_id' is {entry!r}, must be a token id or a list of them")
        ids.update(listed)
    return frozenset(ids)


class Tokenizer:
    """The tokenizer of the checkpoint in a directory."""

    def __init__(self, directory: Path | str, *, name: str | None = None) -> None:
        """Load it.

        Args:
            directory: with ``tokenizer.json`` and the files that go with it.
            name: of the model, for messages; the directory if None.

        Raises:
            SpeqError: there is none, or a file is damaged.
        """
        self._directory, self._name = Path(directory), name or str(directory)
        file = self._directory / "tokenizer.json"
        if not file.is_file():
            raise SpeqError(f"{self._name}: no tokenizer.json; give token ids with --ids instead of text")
        self._settings = self._content("tokenizer_config.json")
        config = self._content("config.json")
        self._load(file, config)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = bool(self._settings.get("split_special_tokens"))

    def _load(self, file: Path, config: Mapping[str, Any]) -> None:
        """The library's tokenizer, of the class that the files name, with all special tokens."""
        from tokenizers import AddedToken, Tokenizer

        try:
            text = file.read_text(encoding="utf-8")
            self._tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the library raises plain Exception for every kind of damage
            reason = " ".join(str(error).split())
            raise SpeqError(f"{self._name}/tokenizer.json: not a readable tokenizer ({reason})") from None
        known = self._tokenizer.get_added_tokens_decoder()
        name = class_of(self._settings, config, byte_level='"ByteLevel"' in text)
        self._special: SpecialTokens = gather(
            default_tokens(name) | dict(self._settings),
            self._content("special_tokens_map.json"),
            self._content("added_tokens.json"),
            known,
            self._name,
        )
        # A class makes its tokenizer of vocabulary and merges alone; most files say the same, and need no other one.
        listed = {repr(token) for token in self._special.added}
        as_listed = all(repr(token) in listed for token in known.values())
        if name and not (as_listed and agrees(name, self._tokenizer, self._settings)):
            self._tokenizer = Tokenizer.from_str(json.dumps(rebuilt(name, json.loads(text), self._settings)))
        self._special.add_to(self._tokenizer)
        if name == "Qwen2Tokenizer":  # which knows its special tokens as such, whatever other files say of them
            tokens = [*self._special.named.values(), *self._special.extra]
            self._tokenizer.add_tokens([AddedToken(str(token), special=True) for token in tokens])

    @property
    def tokens(self) -> dict[int, str]:
        """Every token by its id, as the vocabulary spells it, special ones too."""
        return {number: token for token, number in self._tokenizer.get_vocab(with_added_tokens=True).items()}

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids of ``text``; with the tokens that open (or close) every text of this model if ``special``.

        Raises:
            SpeqError: the text holds half characters (lone surrogates).
        """
        try:
            return list(self._tokenizer.encode(text, add_special_tokens=special).ids)
        except (UnicodeError, TypeError):
            raise SpeqError("the prompt is not valid Unicode text") from None

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of token ids: what :meth:`stream` makes of them, bytes that form no character as U+FFFD."""
        detokenizer = self._detokenizer(self._skipped if skip_special else frozenset())
        return "".join([*map(detokenizer.push, ids), detokenizer.flush()])

    def stream(self, prompt: Sequence[int] = ()) -> Detokenizer:
        """A new incremental decoder, of a text of its own, or of one that goes on after the tokens of ``prompt``.

        Of a text of its own, many tokenizers drop the first space.
        """
        return self._detokenizer(self._skipped, prompt)

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """A conversation as the text the model was trained on.

        Args:
            messages: mappings with ``role`` ("system", "user", "assistant") and ``content``.
            add_generation_prompt: end where the assistant is to speak.

        Raises:
            SpeqError: the checkpoint has no chat template, or the template refuses these messages.
        """
        if self._chat_template is None:
            names = ", ".join(sorted(self._templates))
            missing = f"has chat templates named {names}, but no default" if names else "has no chat template"
            raise SpeqError(f"{self._name}: the model {missing}; use --raw")
        return self._chat_template.render(messages, add_generation_prompt)

    def chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
        """Token ids of a conversation; see :meth:`render`."""
        return self.encode(self.render(messages, add_generation_prompt=add_generation_prompt), special=False)

    @property
    def has_chat_template(self) -> bool:
        """Whether there is a template for :meth:`chat`."""
        return self._chat_template is not None

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """Ids that end a text: those of the configuration files, and the tokenizer's own end token."""
        last = self.special_tokens.get("eos_token")
        own = None if last is None else self._tokenizer.token_to_id(last)
        return end_ids(self._directory, self._name) | (frozenset() if own is None else {own})

    @property
    def special_tokens(self) -> dict[str, str]:
        """``bos_token``, ``eos_token`` and the like, as far as the files name them."""
        return self._special.names

    @cached_property
    def _skipped(self) -> frozenset[str]:
        """Tokens without text. One that was once added as special stays so, although a later description denies it."""
        added = self._tokenizer.get_added_tokens_decoder()
        decode = self._tokenizer.decode
        return frozenset(
            token.content
            for index, token in added.items()
            if token.special or (decode([index], skip_special_tokens=False) and not decode([index]))
        )

    @cached_property
    def _templates(self) -> dict[str, str]:
        return read_templates(self._directory, self._settings, self._name)

    @cached_property
    def _chat_template(self) -> ChatTemplate | None:
        source = self._templates.get("default")
        return None if source is None else ChatTemplate(source, self.special_tokens)

    def _content(self, file: str) -> Mapping[str, Any]:
        return _read_json(self._directory, file, self._name)

    def _detokenizer(self, skipped: frozenset[str], prompt: Sequence[int] = ()) -> Detokenizer:
        corrupting = self._settings.get("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output")
        clean_up = self._settings.get("clean_up_tokenization_spaces") and (
            type(self._tokenizer.model).__name__ != "BPE" or corrupting
        )
        steps = decoding_steps(self._tokenizer.decoder, clean_up=bool(clean_up))
        return Detokenizer(self._tokenizer.id_to_token, skipped, steps, prompt)


def _read_json(directory: Path, file: str, name: str) -> Mapping[str, Any]:
    """The object in a file, empty if there is none; ``name`` is what messages call the directory."""
    if not (directory / file).is_file():
        return {}
    try:
        content = json.loads((directory / file).read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise SpeqError(f"{name}/{file}: not readable JSON ({error})") from None
    if not isinstance(content, dict):
        raise SpeqError(f"{name}/{file}: a JSON object is expected")
    return content
