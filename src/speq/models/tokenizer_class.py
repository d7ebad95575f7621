"""What ``tokenizer_class`` says about a tokenizer beyond ``tokenizer.json``, as in transformers 5.

A few classes take vocabulary and merges from ``tokenizer.json`` but split and spell text in their own way, by settings
of ``tokenizer_config.json`` (``legacy``, ``add_prefix_space``); for every other class the file alone decides.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from speq.checkpoint.gguf.pretokenizers import pre_tokenizer_for, without_offsets

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_SPELT = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
_GENERIC = ("PreTrainedTokenizer", "PreTrainedTokenizerFast", "TokenizersBackend", "PythonBackend")


def class_of(settings: Mapping[str, Any], config: Mapping[str, Any], *, byte_level: bool) -> str | None:
    """The class that decides how text is split, None where ``tokenizer.json`` does.

    Checkpoints of Qwen2 often name a wrong class, so for them it is always their own, unless the class says nothing; a
    Llama class with a byte-level vocabulary is wrong, too.

    Args:
        settings: content of ``tokenizer_config.json``.
        config: content of ``config.json``.
        byte_level: whether ``tokenizer.json`` spells bytes as letters.
    """
    model, named = config.get("model_type"), settings.get("tokenizer_class") or config.get("tokenizer_class")
    if not isinstance(named, str):
        named = "Qwen2Tokenizer" if model in ("qwen2", "qwen3") else None
    elif named not in _GENERIC:
        named = "Qwen2Tokenizer" if model == "qwen2" else named.removesuffix("Fast")
    if model == "mistral" or (named == "LlamaTokenizer" and byte_level):
        return None
    return named if named in _REBUILD else None


def rebuilt(name: str, content: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A ``tokenizer.json`` as a class of :func:`class_of` has it, without its added tokens.

    Args:
        name: the class.
        content: of the checkpoint's ``tokenizer.json``.
        settings: of its ``tokenizer_config.json``.
    """
    model = {"type": "BPE", "vocab": content["model"]["vocab"], "merges": content["model"]["merges"]}
    return {**content, "added_tokens": [], "model": model} | _REBUILD[name](model, settings)


def agrees(name: str, tokenizer: Tokenizer, settings: Mapping[str, Any]) -> bool:
    """Whether a tokenizer splits and spells text as a class of :func:`class_of` does, or is of a kind that has none."""
    from tokenizers import models

    model = tokenizer.model
    if not isinstance(model, models.BPE):
        return True
    wanted = rebuilt(name, {"model": {"vocab": {}, "merges": []}}, settings)
    found = {
        part: None if step is None else json.loads(step.__getstate__())
        for part, step in (
            ("normalizer", tokenizer.normalizer),
            ("pre_tokenizer", tokenizer.pre_tokenizer),
            ("decoder", tokenizer.decoder),
        )
    }
    if (found["decoder"] or {}).get("type") == "ByteLevel":  # whose settings matter to a pre-tokenizer only
        found["decoder"] = _SPELT
    flags = {flag: wanted["model"].get(flag, False) for flag in ("fuse_unk", "byte_fallback", "ignore_merges")}
    return (
        all(without_offsets(found[part]) == without_offsets(wanted[part]) for part in found)
        and all(getattr(model, flag) == value for flag, value in flags.items())
        and model.unk_token is None
        and not model.dropout
    )


def default_tokens(name: str | None) -> dict[str, str]:
    """The special tokens that a class has where ``tokenizer_config.json`` does not name them."""
    return dict(_DEFAULT_TOKENS.get(name or "", {}))


def _llama(model: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """SentencePiece: spaces are marked, and one is put before the text, or, with ``legacy``, before each part."""
    prefix = settings.get("add_prefix_space")
    prefix = True if prefix is None else bool(prefix)
    scheme = "never" if not prefix else "always" if settings.get("legacy", False) else "first"
    model |= {"fuse_unk": True, "byte_fallback": True}
    decoders = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ] + [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] * prefix
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False},
        "decoder": {"type": "Sequence", "decoders": decoders},
    }


def _byte_level(words: str) -> Callable[[dict[str, Any], Mapping[str, Any]], dict[str, Any]]:
    """Bytes spelt as letters; text is cut into words as the models of that name do."""

    def build(model: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
        known = pre_tokenizer_for(words)
        assert known is not None
        prefix = {"add_prefix_space": bool(settings.get("add_prefix_space"))}
        cut = known.pre_tokenizer
        if cut["type"] == "Sequence":
            *splits, spelling = cut["pretokenizers"]
            cut = cut | {"pretokenizers": [*splits, spelling | prefix]}
        else:
            cut = cut | prefix
        return {"normalizer": known.normalizer, "pre_tokenizer": cut, "decoder": _SPELT}

    return build


_REBUILD = {"LlamaTokenizer": _llama, "GPT2Tokenizer": _byte_level("gpt-2"), "Qwen2Tokenizer": _byte_level("qwen2")}
_END = "<|endoftext|>"
_DEFAULT_TOKENS = {
    "LlamaTokenizer": {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
    "GPT2Tokenizer": {"unk_token": _END, "bos_token": _END, "eos_token": _END},
    "Qwen2Tokenizer": {"unk_token": _END, "eos_token": _END, "pad_token": _END},
}
