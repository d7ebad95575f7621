"""Pre-tokenizers by the name that GGUF files give them: how text is cut into words before byte-pair merging.

Each entry states what the named model's own ``tokenizer.json`` says, or for ``default`` what llama.cpp does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
_GPT2_WORDS = BYTE_LEVEL | {"use_regex": True}  # ByteLevel's built-in expression is GPT-2's
_SINGLE_DIGITS = {"type": "Digits", "individual_digits": True}

# The expression that cl100k-like vocabularies share; digits of a number come one, or up to three, to a piece.
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _WORDS.format(digits="")
_LLAMA3 = _WORDS.format(digits="{1,3}")
_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEFAULT = (
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    r"[0-9][0-9][0-9]",
)


@dataclass(frozen=True)
class PreTokenizer:
    """Parts of a ``tokenizer.json``.

    Attributes:
        ignore_merges: a whole word that is in the vocabulary is taken as it is.
        adds_bos: texts begin with the start token where the file does not say whether they do.
    """

    pre_tokenizer: dict[str, Any]
    normalizer: dict[str, Any] | None = None
    ignore_merges: bool = False
    adds_bos: bool = False


def _split(*expressions: str) -> dict[str, Any]:
    splits: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}
        for expression in expressions
    ]
    return {"type": "Sequence", "pretokenizers": [*splits, BYTE_LEVEL]}


_BY_DIGITS_AND_WORDS = {"type": "Sequence", "pretokenizers": [_SINGLE_DIGITS, _GPT2_WORDS]}
_KNOWN = {
    "smollm": PreTokenizer(_BY_DIGITS_AND_WORDS),
    "qwen2": PreTokenizer(_split(_QWEN2), normalizer={"type": "NFC"}),
    "llama-bpe": PreTokenizer(_split(_LLAMA3), ignore_merges=True, adds_bos=True),
    "gpt-2": PreTokenizer(_GPT2_WORDS),
    "tekken": PreTokenizer(_split(_TEKKEN), ignore_merges=True, adds_bos=True),
    "default": PreTokenizer(_split(*_DEFAULT)),
}
_ALIASES = {"llama3": "llama-bpe", "llama-v3": "llama-bpe", "gpt2": "gpt-2", "deepseek-r1-qwen": "qwen2"}


def pre_tokenizer_for(name: object) -> PreTokenizer | None:
    """The pre-tokenizer that a GGUF file names, or None for one that is not known here."""
    return _KNOWN.get(_ALIASES.get(name, name)) if isinstance(name, str) else None


def pre_tokenizer_name(pre_tokenizer: Any) -> str | None:
    """The name under which GGUF files know what a ``tokenizer.json`` states, or None if they know none."""
    wanted = without_offsets(pre_tokenizer)
    return next((name for name, known in _KNOWN.items() if without_offsets(known.pre_tokenizer) == wanted), None)


def without_offsets(content: Any) -> Any:
    """``content`` without ``trim_offsets``, which changes where tokens are said to lie but not the tokens."""
    if isinstance(content, dict):
        return {key: without_offsets(value) for key, value in content.items() if key != "trim_offsets"}
    return [without_offsets(item) for item in content] if isinstance(content, list) else content
