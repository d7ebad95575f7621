"""Token ids to text, piece by piece.

A ``tokenizer.json`` says how tokens become text by a chain of decoders: bytes are spelt as letters or as ``<0xE2>``,
spaces as ``▁``, the first space is dropped. Each is here a step that takes tokens one by one and gives text as soon as
it is certain, so the work grows with the number of tokens alone, and at most the three bytes of an incomplete character
are held back. The pieces put together are what the decoders of the ``tokenizers`` library make of all tokens at once,
with one exception, which streaming forces: of a run of byte tokens (``<0xE2>``) that does not come out even, the
library gives up every byte, also the characters that were complete before; here these stay, and U+FFFD stands for each
byte from the first one that forms no character.
"""

from __future__ import annotations

import codecs
import copy
import json
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from tokenizers.decoders import Decoder

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

Fragment: TypeAlias = tuple[str, bool]
"""Text of a token, and whether the token ends with it; between two steps a token may come in several fragments."""


class Step:
    """One decoder of a chain. This one passes tokens on as they are, in one fragment each."""

    def __init__(self) -> None:
        self._token = ""

    def push(self, text: str, ends: bool) -> list[Fragment]:
        """Take a fragment; the fragments that are certain now."""
        self._token += text
        if not ends:
            return []
        token, self._token = self._token, ""
        return self.take(token)

    def take(self, token: str) -> list[Fragment]:
        """Take a whole token."""
        return [(token, True)]

    def flush(self) -> list[Fragment]:
        """What was held back, now that no token follows."""
        return []


class Detokenizer:
    """An incremental decoder of one sequence of tokens.

    Args:
        token: the token of an id, None where there is none.
        special: the tokens that have no text.
        steps: from :func:`decoding_steps`.
        prompt: token ids before the sequence. Its text is then what they and the sequence decode to together, without
            the text of the prompt; a character that the prompt leaves incomplete belongs to the sequence.
    """

    def __init__(
        self,
        token: Callable[[int], str | None],
        special: frozenset[str],
        steps: Sequence[Step],
        prompt: Sequence[int] = (),
    ) -> None:
        self._token_of, self._special, self._steps = token, special, steps
        self._due = self._met = ""
        for known in prompt:
            self._decode(known)
        # What the prompt held back, such as an incomplete character, is no part of the sequence unless it changes.
        self._due = _end(copy.deepcopy(self._steps)) if prompt else ""

    def push(self, token: int) -> str:
        """Take one more token; the text that is now certain, often empty."""
        return self._after_prompt(self._decode(token))

    def flush(self) -> str:
        """The rest, with U+FFFD in place of a character that was never completed."""
        return self._after_prompt(_end(self._steps))

    def special(self, token: int) -> str:
        """How a special token, which has no text, is written in prompts; nothing for any other token."""
        content = self._token_of(token)
        return content if content is not None and content in self._special else ""

    def _decode(self, token: int) -> str:
        content = self._token_of(token)
        if content is None or content in self._special:
            return ""
        return _through(self._steps, [(content, True)])

    def _after_prompt(self, text: str) -> str:
        if not self._due:
            return text
        self._met += text
        if len(self._met) < len(self._due) and self._due.startswith(self._met):
            return ""
        text = self._met.removeprefix(self._due)
        self._due = self._met = ""
        return text


def _through(steps: Sequence[Step], fragments: list[Fragment]) -> str:
    """The text of fragments that go through all steps."""
    for step in steps:
        fragments = [passed for text, ends in fragments for passed in step.push(text, ends)]
    return "".join(text for text, _ in fragments)


def _end(steps: Sequence[Step]) -> str:
    """The text that all steps still hold back."""
    return "".join(_through(steps[at + 1 :], step.flush()) for at, step in enumerate(steps))


def decoding_steps(decoder: Decoder | None, *, clean_up: bool = False) -> list[Step]:
    """The steps of a decoder of the ``tokenizers`` library; without one, words are joined by spaces.

    A decoder of a kind that is not known here gives all its text at the end.

    Args:
        decoder: from a tokenizer.
        clean_up: remove the spaces before punctuation that ``clean_up_tokenization_spaces`` names, at the end.
    """
    steps: list[Step] = [_Joined()] if decoder is None else _steps_of(json.loads(decoder.__getstate__()))
    return [*steps, _CleanUp()] if clean_up else steps


def _steps_of(content: dict[str, Any]) -> list[Step]:
    kind = content["type"]
    if kind == "Sequence":
        return [step for part in content["decoders"] for step in _steps_of(part)]
    if kind == "ByteLevel":
        return [_ByteLevel()]
    if kind == "ByteFallback":
        return [_ByteFallback()]
    if kind == "Fuse":
        return [_Fuse()]
    if kind == "Strip":
        return [_Strip(content["content"], content["start"], content["stop"])]
    if kind == "Replace" and content["pattern"].get("String"):
        return [_Replace(content["pattern"]["String"], content["content"])]
    if kind == "BPEDecoder":
        return [_WordEnds(content["suffix"])]
    library = _library_decoder(content)
    if kind in ("Metaspace", "WordPiece", "Replace"):
        return [_TokenWise(library)]
    return [_AtOnce(library)]


def _library_decoder(content: dict[str, Any]) -> Decoder:
    """The library's decoder of a description, which only whole tokenizers can be made from."""
    from tokenizers import Tokenizer

    model = {"type": "BPE", "vocab": {}, "merges": []}
    described = {"version": "1.0", "added_tokens": [], "model": model, "decoder": content}
    decoder: Decoder | None = Tokenizer.from_str(json.dumps(described)).decoder
    assert decoder is not None
    return decoder


def _byte_letters() -> dict[str, int]:
    """The letters by which byte-level vocabularies spell bytes: printable ones of Latin-1 stand for themselves."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF_LETTER = _byte_letters()


class _ByteLevel(Step):
    """Letters that spell bytes, which together are UTF-8; a token with other letters is text."""

    def __init__(self) -> None:
        super().__init__()
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def take(self, token: str) -> list[Fragment]:
        try:
            spelt = bytes([_BYTE_OF_LETTER[letter] for letter in token])
        except KeyError:
            spelt = token.encode("utf-8", "surrogatepass")
        text = self._utf8.decode(spelt)
        return [(text, False)] if text else []

    def flush(self) -> list[Fragment]:
        return [(self._utf8.decode(b"", True), True)]


class _ByteFallback(Step):
    """Tokens that name bytes, among others that are text."""

    _NAME = re.compile(r"<0x([0-9A-Fa-f+][0-9A-Fa-f])>")

    def __init__(self) -> None:
        super().__init__()
        self._held = 0  # bytes of a character that is not complete yet
        self._broken = self._in_run = False
        self._utf8 = codecs.getincrementaldecoder("utf-8")("strict")

    def take(self, token: str) -> list[Fragment]:
        named = self._NAME.fullmatch(token)
        if named is None:
            return [*self.flush(), (token, True)]
        self._in_run = True
        try:
            text = "" if self._broken else self._utf8.decode(bytes([int(named[1], 16)]))
        except UnicodeDecodeError:
            self._broken, text = True, _REPLACEMENT * self._held
        self._held = 0 if text or self._broken else self._held + 1
        return [(text + _REPLACEMENT * self._broken, False)] if text or self._broken else []

    def flush(self) -> list[Fragment]:
        if not self._in_run:
            return []
        text, self._held = _REPLACEMENT * self._held, 0
        self._broken = self._in_run = False
        self._utf8.reset()
        return [(text, True)]


class _Fuse(Step):
    """All tokens become one, so that the steps after it see one beginning and one end."""

    def push(self, text: str, ends: bool) -> list[Fragment]:
        return [(text, False)] if text else []

    def flush(self) -> list[Fragment]:
        return [("", True)]


class _Strip(Step):
    """Up to so many of a letter are taken off the beginning and the end of each token."""

    def __init__(self, letter: str, start: int, stop: int) -> None:
        super().__init__()
        self._letter, self._start, self._stop = letter, start, stop
        self._left, self._held = start, 0

    def push(self, text: str, ends: bool) -> list[Fragment]:
        while self._left and text.startswith(self._letter):
            text, self._left = text[1:], self._left - 1
        if text:
            self._left = 0
        text = self._letter * self._held + text
        cut = max(len(text.rstrip(self._letter)), len(text) - self._stop)
        self._held = 0 if ends else len(text) - cut
        if ends:
            self._left = self._start
        return [(text[:cut], ends)]


class _Replace(Step):
    """A string is replaced by another wherever it stands within a token."""

    def __init__(self, pattern: str, content: str) -> None:
        super().__init__()
        self._pattern, self._content = pattern, content

    def push(self, text: str, ends: bool) -> list[Fragment]:
        *done, rest = (self._token + text).split(self._pattern)
        held = 0
        if not ends:
            longest = min(len(rest), len(self._pattern) - 1)
            held = next((n for n in range(longest, 0, -1) if self._pattern.startswith(rest[-n:])), 0)
        self._token = rest[len(rest) - held :]
        return [(self._content.join([*done, rest[: len(rest) - held]]), ends)]


class _WordEnds(Step):
    """A suffix ends a word; the last one of all has no space after it."""

    def __init__(self, suffix: str) -> None:
        super().__init__()
        self._suffix = suffix
        self._last: str | None = None

    def take(self, token: str) -> list[Fragment]:
        last, self._last = self._last, token
        return [] if last is None else [(last.replace(self._suffix, " "), True)]

    def flush(self) -> list[Fragment]:
        last, self._last = self._last, None
        return [] if last is None else [(last.replace(self._suffix, ""), True)]


class _TokenWise(Step):
    """A decoder of the library that looks at one token at a time, and whether it is the first."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self._decode, self._before = decoder.decode, list[str]()

    def take(self, token: str) -> list[Fragment]:
        text = self._decode([*self._before, token])
        self._before = [""]
        return [(text, True)]


class _AtOnce(Step):
    """A decoder of the library that has to see all tokens."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self._decode, self._tokens = decoder.decode, list[str]()

    def take(self, token: str) -> list[Fragment]:
        self._tokens.append(token)
        return []

    def flush(self) -> list[Fragment]:
        tokens, self._tokens = self._tokens, []
        return [(self._decode(tokens), True)]


class _Joined(Step):
    """Tokens are words, with a space between two."""

    _space = ""

    def take(self, token: str) -> list[Fragment]:
        text, self._space = self._space + token, " "
        return [(text, True)]


class _CleanUp(Step):
    """Spaces before punctuation and English contractions are removed, by these rules one after the other."""

    _RULES = (
        (" .", "."), (" ?", "?"), (" !", "!"), (" ,", ","), (" ' ", "'"),
        (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re"),
    )  # fmt: skip
    # Every rule, also after others were applied, changes letters that lie next to a space or an apostrophe or one
    # letter away from it. A text may be cut where neither is that near.
    _NEAR = frozenset(" '")

    def push(self, text: str, ends: bool) -> list[Fragment]:
        self._token += text
        cut = len(self._token) - 1
        while cut > 0 and not self._NEAR.isdisjoint(self._token[max(cut - 2, 0) : cut + 1]):
            cut -= 1
        if cut <= 0:
            return []
        certain, self._token = self._token[:cut], self._token[cut:]
        return [(self._clean(certain), False)]

    def flush(self) -> list[Fragment]:
        rest, self._token = self._token, ""
        return [(self._clean(rest), True)]

    def _clean(self, text: str) -> str:
        for written, meant in self._RULES:
            text = text.replace(written, meant)
        return text
