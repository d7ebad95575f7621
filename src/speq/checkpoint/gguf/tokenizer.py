"""A Hugging Face ``tokenizer.json`` built from a GGUF file's metadata, so that text gives the ids of the original
tokenizer.

GGUF keeps a vocabulary, merges or scores, token kinds, the *name* of the pre-tokenizer and the chat template. What a
name stands for is public knowledge: the original models' ``tokenizer.json`` and llama.cpp's ``llama-vocab.cpp``. An
unknown name means no tokenizer and a note, not a guess: a wrong split gives other ids without any sign of it.

A tokenizer that llama.cpp refuses is refused: lists of other lengths or types than the vocabulary asks for, a token
that is there twice, and byte-pair merging without merges. Where it reads something else into a file (merges that make
no token, special ids beyond the vocabulary), so does this. ``tokenizer.ggml.remove_extra_whitespaces`` changes nothing
for these vocabularies.
"""

from __future__ import annotations

import json
from numbers import Real
from typing import Any

from speq.checkpoint.gguf.pretokenizers import BYTE_LEVEL, PreTokenizer, pre_tokenizer_for
from speq.errors import SpeqError

_UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 2, 3, 4, 5

# Tokens that end a turn or a document. Files name one as EOS; a model may emit any of them.
_END_TOKENS = (
    "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "</s>", "<|end|>", "<end_of_turn>",
    "<end_of_utterance>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<\uff5cend▁of▁sentence\uff5c>",
)  # fmt: skip
_DEFAULT_IDS = {"bos": 1, "eos": 2}  # of SentencePiece vocabularies that name none
_DAMAGED = "the file is damaged or was made by a faulty converter; download or convert it again"


def build_tokenizer_files(metadata: dict[str, Any]) -> tuple[dict[str, bytes], list[str]]:
    """Tokenizer files in Hugging Face layout, by name, and notes about what could not be built.

    Returns ``tokenizer.json``, ``tokenizer_config.json`` (special tokens, chat template) and
    ``generation_config.json``.

    Raises:
        SpeqError: the metadata contradict themselves, or lack what their kind of tokenizer needs.
    """
    if not metadata.get("tokenizer.ggml.tokens"):
        return {}, ["no tokenizer in the file: text needs one, token ids (--ids) do not"]
    model = metadata.get("tokenizer.ggml.model")
    if model not in ("gpt2", "llama"):
        return {}, [f"the tokenizer is of kind {model!r}, which is not known here: give token ids (--ids)"]
    known = _pre_tokenizer(metadata)
    if known is None:
        name = metadata.get("tokenizer.ggml.pre")
        return {}, [f"the tokenizer splits text by {name!r}, which is not known here: give token ids (--ids)"]
    tokens, kinds = _vocabulary(metadata)
    if model == "gpt2":
        tokenizer = _byte_level_bpe(metadata, tokens, kinds, known)
    else:
        tokenizer = _sentencepiece_bpe(metadata, tokens, kinds)
    bos = _token_id(metadata, "bos") if _adds(metadata, "bos") else None
    eos = _token_id(metadata, "eos") if _adds(metadata, "eos") else None
    tokenizer["post_processor"] = _post_processor(tokenizer["post_processor"], bos, eos, tokens)
    files = {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": _tokenizer_config(metadata, tokens),
        "generation_config.json": _generation_config(metadata, tokens, kinds),
    }
    return {
        name: json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode() for name, content in files.items()
    }, _id_notes(metadata, tokens)


def _vocabulary(metadata: dict[str, Any]) -> tuple[list[str], list[int]]:
    """All tokens and their kinds; a token that ends a turn is one of control, whatever else is added by hand.

    Raises:
        SpeqError: lists of the wrong length or type, or a token that is there twice.
    """
    tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(_list(metadata, "tokens", str))]
    kinds = _list(metadata, "token_type", int, len(tokens)) or [1] * len(tokens)
    ids = {token: i for i, token in reversed(list(enumerate(tokens)))}
    twice = next((i for i, token in enumerate(tokens) if ids[token] != i), None)
    if twice is not None:
        token = tokens[twice]
        raise SpeqError(f"the token {token!r} is in the vocabulary twice, as {ids[token]} and {twice}: {_DAMAGED}")
    for i, token in enumerate(tokens):
        if kinds[i] == _USER_DEFINED and token in _END_TOKENS:
            kinds[i] = _CONTROL
    return tokens, kinds


def _list(metadata: dict[str, Any], key: str, kind: type, length: int = 0) -> list[Any]:
    """A list of the metadata, cut to ``length`` if that is given; empty where there is none.

    Raises:
        SpeqError: it is shorter, or holds something else.
    """
    name = f"tokenizer.ggml.{key}"
    values = metadata.get(name)
    if values is None:
        return []
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise SpeqError(f"{name} is no list of {kind.__name__} values: {_DAMAGED}")
    if len(values) < length:
        raise SpeqError(f"{name} has {len(values)} entries for {length} tokens: {_DAMAGED}")
    return values[: length or None]


def _pre_tokenizer(metadata: dict[str, Any]) -> PreTokenizer | None:
    name = metadata.get("tokenizer.ggml.pre") or "default"
    return pre_tokenizer_for(name if metadata.get("tokenizer.ggml.model") == "gpt2" else "default")


def _byte_level_bpe(
    metadata: dict[str, Any], tokens: list[str], kinds: list[int], known: PreTokenizer
) -> dict[str, Any]:
    vocab = {token: i for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True)) if kind != _UNUSED}
    if "tokenizer.ggml.merges" not in metadata:
        raise SpeqError(f"the tokenizer merges byte pairs, but has no tokenizer.ggml.merges: {_DAMAGED}")
    merges = []
    for merge in _list(metadata, "merges", str):
        space = merge.find(" ", 1)
        left, right = merge[:space], merge[space + 1 :]
        # Others make no token, so llama.cpp takes what they make apart again.
        if space > 0 and left in vocab and right in vocab and left + right in vocab:
            merges.append([left, right])
    bpe = {"type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": known.ignore_merges}
    return _tokenizer(tokens, kinds, bpe, known.normalizer, known.pre_tokenizer, BYTE_LEVEL, BYTE_LEVEL)


def _sentencepiece_bpe(metadata: dict[str, Any], tokens: list[str], kinds: list[int]) -> dict[str, Any]:
    """Llama 2's tokenizer: pieces with scores. Merging the best-scored pair first is BPE, merges ranked by score."""
    vocab = {token: i for i, token in enumerate(tokens)}
    scores = _list(metadata, "scores", Real, len(tokens)) or [0.0] * len(tokens)
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


def _post_processor(byte_level: Any, bos: int | None, eos: int | None, tokens: list[str]) -> Any:
    """What follows the merges: byte-level offsets, and the start and end tokens where the model wants them."""
    if bos is None and eos is None:
        return byte_level
    names = {tokens[token]: token for token in (bos, eos) if token is not None}

    def text(part: str, type_id: int) -> list[dict[str, Any]]:
        first, last = (
            [{"SpecialToken": {"id": tokens[token], "type_id": type_id}}] if token is not None else []
            for token in (bos, eos)
        )
        return [*first, {"Sequence": {"id": part, "type_id": type_id}}, *last]

    template = {
        "type": "TemplateProcessing",
        "single": text("A", 0),
        "pair": text("A", 0) + text("B", 1),
        "special_tokens": {name: {"id": name, "ids": [token], "tokens": [name]} for name, token in names.items()},
    }
    return {"type": "Sequence", "processors": [byte_level, template]} if byte_level else template


def _adds(metadata: dict[str, Any], role: str) -> bool:
    """Whether every text begins, or ends, with that token: the file's word, or llama.cpp's default."""
    known = _pre_tokenizer(metadata)
    opens = metadata.get("tokenizer.ggml.model") == "llama" or (known is not None and known.adds_bos)
    return bool(metadata.get(f"tokenizer.ggml.add_{role}_token", opens and role == "bos"))


def _token_id(metadata: dict[str, Any], role: str) -> int | None:
    """The token of a role; where the file names none of the vocabulary, the one that SentencePiece gives it."""
    size = len(metadata["tokenizer.ggml.tokens"])
    default = _DEFAULT_IDS.get(role) if metadata.get("tokenizer.ggml.model") == "llama" else None
    for token in (metadata.get(f"tokenizer.ggml.{role}_token_id"), default):
        if isinstance(token, int) and 0 <= token < size:
            return token
    return None


def _id_notes(metadata: dict[str, Any], tokens: list[str]) -> list[str]:
    notes = []
    for role in ("bos", "eos", "eot", "eom", "unknown", "padding"):
        token, used = metadata.get(f"tokenizer.ggml.{role}_token_id"), _token_id(metadata, role)
        if token is not None and token != used:
            instead = "it is left out" if used is None else f"{used} ({tokens[used]}) is used"
            notes.append(f"tokenizer.ggml.{role}_token_id is {token}, but there are {len(tokens)} tokens: {instead}")
    return notes


def _tokenizer_config(metadata: dict[str, Any], tokens: list[str]) -> dict[str, Any]:
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": _adds(metadata, "bos"),
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata.get(f"{metadata.get('general.architecture')}.context_length"),
    }
    for role, name in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token = _token_id(metadata, name)
        if token is not None:
            config[f"{role}_token"] = tokens[token]
    template = metadata.get("tokenizer.chat_template") or _named_templates(metadata)
    if template:
        config["chat_template"] = template
    return config


def _named_templates(metadata: dict[str, Any]) -> list[dict[str, Any]]:
    """The templates of a file that has no default one."""
    prefix = "tokenizer.chat_template."
    return [{"name": key.removeprefix(prefix), "template": metadata[key]} for key in metadata if key.startswith(prefix)]


def _generation_config(metadata: dict[str, Any], tokens: list[str], kinds: list[int]) -> dict[str, Any]:
    ends = {_token_id(metadata, role) for role in ("eos", "eot", "eom")}
    ends |= {i for i, kind in enumerate(kinds) if kind == _CONTROL and tokens[i] in _END_TOKENS}
    bos = _token_id(metadata, "bos")
    eos = sorted(end for end in ends if end is not None)
    return ({} if bos is None else {"bos_token_id": bos}) | ({"eos_token_id": eos} if eos else {})
