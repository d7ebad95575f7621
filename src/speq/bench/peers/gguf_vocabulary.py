"""The vocabulary of a ``tokenizer.json`` as GGUF files keep it: tokens, their kinds, merges, the pre-tokenizer's name.

Benchmarks give every engine token ids, so this only has to be complete enough for engines to load the file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from speq.checkpoint.gguf.pretokenizers import pre_tokenizer_name

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5


@dataclass(frozen=True)
class Vocabulary:
    """A byte-level BPE vocabulary: a token and its kind for every row of the embedding, merges as ``left right``."""

    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    pre_tokenizer: str


def read_vocabulary(model_dir: Path, size: int) -> Vocabulary | None:
    """The vocabulary, with unused tokens up to ``size``; None if there is none, or it is not byte-level BPE
    with merges, without which no engine takes one.
    """
    path = model_dir / "tokenizer.json"
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    model = content["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback") or not model.get("merges"):
        return None
    tokens = [f"[PAD{i}]" for i in range(size)]
    kinds = [_UNUSED] * size
    for token, i in model["vocab"].items():
        if i < size:
            tokens[i], kinds[i] = token, _NORMAL
    for added in content.get("added_tokens", []):
        if added["id"] < size:
            tokens[added["id"]] = added["content"]
            kinds[added["id"]] = _CONTROL if added.get("special") else _USER_DEFINED
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return Vocabulary(tokens, kinds, merges, pre_tokenizer_name(content.get("pre_tokenizer")) or "default")
