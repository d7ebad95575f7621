"""A Hugging Face ``tokenizer.json`` built from a GGUF file's metadata, so that text gives the ids of the original
tokenizer.

GGUF keeps a vocabulary, merges or scores, token kinds, the *name* of the pre-tokenizer and the chat template. What a
name stands for is public knowledge: the original models' ``tokenizer.json`` and llama.cpp's ``llama-vocab.cpp``. An
unknown name means no tokenizer and a note, not a guess: a wrong split gives other ids without any sign of it.
"""

from __future__ import annotations

import json
from typing import Any

from speq.checkpoint.gguf_pretokenizers import BYTE_LEVEL, pre_tokenizer_for

_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 2, 3, 4, 5

# Tokens that end a turn or a document in the supported families. Files name one as EOS; a model may emit any of them.
_END_TOKENS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "</s>")


def build_tokenizer_files(metadata: dict[str, Any]) -> tuple[dict[str, bytes], list[str]]:
    """Tokenizer files in Hugging Face layout, by name, and notes about what could not be built.

    Returns ``tokenizer.json``, ``tokenizer_config.json`` (special tokens, chat template) and
    ``generation_config.json``.
    """
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not tokens:
        return {}, ["no tokenizer in the file: text needs one, token ids (--ids) do not"]
    model = metadata.get("tokenizer.ggml.model")
    kinds = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    bos = _token_id(metadata, "bos") if _adds_bos(metadata) else None
    if model == "gpt2":
        tokenizer = _byte_level_bpe(metadata, tokens, kinds)
        if tokenizer is None:
            name = metadata.get("tokenizer.ggml.pre")
            return {}, [f"the tokenizer splits text by {name!r}, which is not known here: give token ids (--ids)"]
    elif model == "llama":
        tokenizer = _sentencepiece_bpe(metadata, tokens, kinds)
    else:
        return {}, [f"the tokenizer is of kind {model!r}, which is not known here: give token ids (--ids)"]
    tokenizer["post_processor"] = _post_processor(tokenizer["post_processor"], bos, tokens)
    files = {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": _tokenizer_config(metadata, tokens),
        "generation_config.json": _generation_config(metadata, tokens),
    }
    return {
        name: json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() for name, content in files.items()
    }, []


def _byte_level_bpe(metadata: dict[str, Any], tokens: list[str], kinds: list[int]) -> dict[str, Any] | None:
    known = pre_tokenizer_for(metadata.get("tokenizer.ggml.pre", "default"))
    if known is None:
        return None
    vocab = {token: i for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != _UNUSED}
    merges = [merge.split(" ", 1) for merge in metadata.get("tokenizer.ggml.merges", [])]
    bpe = {"type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": known.ignore_merges}
    return _tokenizer(tokens, kinds, bpe, known.normalizer, known.pre_tokenizer, BYTE_LEVEL, BYTE_LEVEL)


def _sentencepiece_bpe(metadata: dict[str, Any], tokens: list[str], kinds: list[int]) -> dict[str, Any]:
    """Llama 2's tokenizer: pieces with scores. Merging the best-scored pair first is BPE, merges ranked by score."""
    vocab = {token: i for i, token in enumerate(tokens)}
    scores = metadata.get("tokenizer.ggml.scores") or [0.0] * len(tokens)
    merges = []
    for token, kind, score in zip(tokens, kinds, scores, strict=True):
        splits = [(token[:i], token[i:]) for i in range(1, len(token))] if kind == 1 else []
        pairs = sorted((vocab[left], vocab[right]) for left, right in splits if left in vocab and right in vocab)
        merges += [(-score, tokens[left], tokens[right]) for left, right in pairs]
    merges.sort(key=lambda merge: merge[0])
    unknown = next((token for token, kind in zip(tokens, kinds, strict=True) if kind == _UNKNOWN), None)
    bpe = {
        "type": "BPE",
        "vocab": vocab,
        "merges": [merge[1:] for merge in merges],
        "unk_token": unknown,
        "fuse_unk": True,
        "byte_fallback": True,
    }
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", True)
    normalizers = [{"type": "Prepend", "prepend": "▁"}] * prefix + [spaces]
    decoders = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ] + [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] * prefix
    normalizer = {"type": "Sequence", "normalizers": normalizers}
    return _tokenizer(tokens, kinds, bpe, normalizer, None, None, {"type": "Sequence", "decoders": decoders})


def _tokenizer(
    tokens: list[str],
    kinds: list[int],
    model: Any,
    normalizer: Any,
    pre_tokenizer: Any,
    post_processor: Any,
    decoder: Any,
) -> dict[str, Any]:
    added = [
        {
            "id": i,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": kind != _USER_DEFINED,
        }
        for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor,
        "decoder": decoder,
        "model": model,
    }


def _post_processor(byte_level: Any, bos: int | None, tokens: list[str]) -> Any:
    """What follows the merges: byte-level offsets, and the start token where the model wants one."""
    if bos is None:
        return byte_level
    name = tokens[bos]
    template = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": name, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [
            {"SpecialToken": {"id": name, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": name, "type_id": 1}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {name: {"id": name, "ids": [bos], "tokens": [name]}},
    }
    return {"type": "Sequence", "processors": [byte_level, template]} if byte_level else template


def _adds_bos(metadata: dict[str, Any]) -> bool:
    """The file's word, or llama.cpp's default for files that do not say."""
    default = metadata.get("tokenizer.ggml.model") == "llama" or metadata.get("tokenizer.ggml.pre") == "llama-bpe"
    return bool(metadata.get("tokenizer.ggml.add_bos_token", default))


def _token_id(metadata: dict[str, Any], role: str) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{role}_token_id")
    return value if isinstance(value, int) and value < len(metadata["tokenizer.ggml.tokens"]) else None


def _tokenizer_config(metadata: dict[str, Any], tokens: list[str]) -> dict[str, Any]:
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": _adds_bos(metadata),
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata.get(f"{metadata.get('general.architecture')}.context_length"),
    }
    for role, name in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token = _token_id(metadata, name)
        if token is not None:
            config[f"{role}_token"] = tokens[token]
    template = metadata.get("tokenizer.chat_template")
    if template:
        config["chat_template"] = template
    return config


def _generation_config(metadata: dict[str, Any], tokens: list[str]) -> dict[str, Any]:
    ends = {_token_id(metadata, role) for role in ("eos", "eot", "eom")}
    kinds = metadata.get("tokenizer.ggml.token_type") or []
    ends |= {i for i, kind in enumerate(kinds) if kind == _CONTROL and tokens[i] in _END_TOKENS}
    bos = _token_id(metadata, "bos")
    eos = sorted(end for end in ends if end is not None)
    return ({} if bos is None else {"bos_token_id": bos}) | ({"eos_token_id": eos} if eos else {})
