"""Tokenizers from GGUF metadata: the ids of the tokenizer they were made from, and known ids of the real models."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from gguf_models import random_weights, write_gguf
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from speq.checkpoint.fetching.pull import pulled
from speq.checkpoint.gguf.tokenizer import build_tokenizer_files
from speq.checkpoint.sources.opening import open_source
from speq.errors import SpeqError

TEXTS = [
    "Hello world, it's John's 2nd try: we'll see. I'M SURE you'd DON'T",
    "  leading spaces,\ttabs\n\nand  double   spaces \n \n end ",
    "x = 12345 + 6.789e-10; y[0] += 1_000_000 # comment\r\n\tif (a<=b) { return !c; }",
    "naïve café, ﬁne, Å and A\u030a; 你好 世界。 Привет мир! こんにちは 안녕하세요 مرحبا 🙂👩‍👩‍👧 ½ ² Ⅷ ४२",
    "<|im_start|>user\nHi<|im_end|>\n<tool_call>{}</tool_call>",
    "",
]
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"\p{N}| ?", r"\p{N}{1,3}| ?")


def byte_level(name: str) -> Tokenizer:
    """A small byte-level BPE tokenizer, trained here, set up as the named model's is."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=name == "llama-bpe"))
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    raw = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if name == "smollm":
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    elif name == "gpt-2":
        tokenizer.pre_tokenizer = words
    else:
        from tokenizers import Regex

        pattern = Regex(QWEN2 if name == "qwen2" else LLAMA3)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(pattern, "isolated"), raw])
    if name == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False), AddedToken("</tool_call>", normalized=False)])
    return tokenizer


def metadata_of(tokenizer: Tokenizer, name: str, **more: Any) -> dict[str, Any]:
    """What llama.cpp's converter stores of a tokenizer, with two unused slots at the end."""
    content = json.loads(tokenizer.to_str())
    ids = {i: token for token, i in tokenizer.get_vocab(with_added_tokens=True).items()}
    added = {item["id"]: item["special"] for item in content["added_tokens"]}
    size = len(ids)
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": name,
        "tokenizer.ggml.tokens": [ids[i] for i in range(size)] + [f"[PAD{size}]", f"[PAD{size + 1}]"],
        "tokenizer.ggml.token_type": [3 if added.get(i) else 4 if i in added else 1 for i in range(size)] + [5, 5],
        "tokenizer.ggml.merges": [m if isinstance(m, str) else " ".join(m) for m in content["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        **more,
    }


def rebuilt(metadata: dict[str, Any]) -> Tokenizer:
    files, notes = build_tokenizer_files(metadata)
    assert notes == []
    return Tokenizer.from_str(files["tokenizer.json"].decode())


@pytest.mark.parametrize("name", ["smollm", "qwen2", "llama-bpe", "gpt-2"])
def test_same_ids_as_the_original(name: str) -> None:
    original = byte_level(name)
    tokenizer = rebuilt(metadata_of(original, name, **{"tokenizer.ggml.add_bos_token": False}))
    for text in TEXTS:
        encoded = tokenizer.encode(text)
        assert encoded.ids == original.encode(text).ids
        assert encoded.offsets == original.encode(text).offsets
        assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == (
            text if name != "qwen2" else normalizers.NFC().normalize_str(text)
        )
        assert tokenizer.decode(encoded.ids) == original.decode(encoded.ids)


def test_pre_tokenizers_cut_as_the_models_do() -> None:
    text = "It'll cost 1234567 $$ (ÉTÉ)\n\n  x"
    pieces = {}
    for name in ("smollm", "qwen2", "llama-bpe", "gpt-2", "tekken", "default"):
        content = build_tokenizer_files(metadata_of(byte_level("gpt-2"), name))[0]["tokenizer.json"]
        cut = Tokenizer.from_str(content.decode()).pre_tokenizer
        assert cut is not None
        pieces[name] = [text[begin:end] for _, (begin, end) in cut.pre_tokenize_str(text)]
    digits = list("1234567")
    tail = [" $$", " (", "ÉTÉ", ")"]
    assert pieces["gpt-2"] == ["It", "'ll", " cost", " 1234567", *tail, "\n\n ", " x"]
    assert pieces["smollm"] == ["It", "'ll", " cost", " ", *digits, *tail, "\n\n ", " x"]
    assert pieces["qwen2"] == ["It", "'ll", " cost", " ", *digits, " $$", " (", "ÉTÉ", ")\n\n", " ", " x"]
    assert pieces["llama-bpe"] == ["It", "'ll", " cost", " ", "123", "456", "7", " $$", " (", "ÉTÉ", ")\n\n", " ", " x"]
    assert pieces["tekken"] == ["It", "'ll", " cost", " ", *digits, " $$", " (", "ÉTÉ", ")\n\n", " ", " x"]
    spread = [" ", "$$", " ", "(", "ÉTÉ", ")", "\n\n ", " x"]
    assert pieces["default"] == ["It", "'", "ll", " cost", " ", "123", "456", "7", *spread]


def test_special_tokens_template_and_ends() -> None:
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    metadata = metadata_of(
        byte_level("smollm"),
        "smollm",
        **{"tokenizer.chat_template": template, "llama.context_length": 512, "tokenizer.ggml.padding_token_id": 0},
    )
    files, _ = build_tokenizer_files(metadata)
    config = json.loads(files["tokenizer_config.json"])
    assert config["chat_template"] == template
    assert (config["bos_token"], config["eos_token"], config["pad_token"]) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
    )
    assert config["model_max_length"] == 512
    assert json.loads(files["generation_config.json"]) == {"bos_token_id": 1, "eos_token_id": [0, 2]}


def test_start_token_where_the_model_wants_one() -> None:
    original = byte_level("llama-bpe")
    tokenizer = rebuilt(metadata_of(original, "llama-bpe"))  # llama.cpp's default for it
    assert tokenizer.encode("Hi there").ids == [1, *original.encode("Hi there").ids]
    assert tokenizer.encode("Hi there", add_special_tokens=False).ids == original.encode("Hi there").ids
    assert rebuilt(metadata_of(original, "gpt-2")).encode("Hi").ids[0] != 1


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "no tokenizer"),
        ({"tokenizer.ggml.model": "bert", "tokenizer.ggml.tokens": ["a"]}, "of kind 'bert'"),
        (
            {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "klingon", "tokenizer.ggml.tokens": ["a"]},
            "splits text by 'klingon'",
        ),
        ({"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": 7, "tokenizer.ggml.tokens": ["a"]}, "by 7, which"),
        ({"tokenizer.ggml.model": ["gpt2"], "tokenizer.ggml.tokens": ["a"]}, "of kind ['gpt2']"),
    ],
)
def test_unknown_tokenizers_are_a_note(metadata: dict[str, Any], message: str) -> None:
    files, notes = build_tokenizer_files(metadata)
    assert files == {}
    assert message in notes[0]
    assert "--ids" in notes[0]


def spm_encode(text: str, scores: dict[str, float]) -> list[str]:
    """SentencePiece's BPE, plainly: again and again merge the neighbours whose union has the best score."""
    pieces = list("▁" + text.replace(" ", "▁"))
    while True:
        unions = [left + right for left, right in itertools.pairwise(pieces)]
        known = [(-scores[union], i) for i, union in enumerate(unions) if union in scores]
        if not known:
            return pieces
        at = min(known)[1]
        pieces[at : at + 2] = [unions[at]]


def test_sentencepiece_vocabulary() -> None:
    words = ["▁the", "▁th", "he", "▁t", "in", "ing", "▁thing", "er", "▁a", "▁▁", "th", "re", "▁he", "here", "▁there"]
    letters = list("▁abcdefghijklmnopqrstuvwxyz")
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    tokens = ["<unk>", "<s>", "</s>", *bytes_, *words, *letters]
    scores = [0.0] * 259 + [-float(i) for i in range(len(words) + len(letters))]
    kinds = [2, 3, 3] + [6] * 256 + [1] * (len(words) + len(letters))
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    tokenizer = rebuilt(metadata)
    score_of = {token: score for token, score, kind in zip(tokens, scores, kinds, strict=True) if kind == 1}
    for text in ("the thing there", "  two spaces here", "a", "tthheerreeiinngg", "other in the heather"):
        encoded = tokenizer.encode(text)
        assert encoded.tokens == ["<s>", *spm_encode(text, score_of)]
        assert tokenizer.decode(encoded.ids) == text
    assert tokenizer.encode("é").tokens == ["<s>", "▁", "<0xC3>", "<0xA9>"]
    assert tokenizer.decode(tokenizer.encode("é").ids) == "é"


# Ids that the original tokenizers give, as published with the models and their documentation.
KNOWN = {
    "smollm2-135m-instruct": {
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\n": [
            *(1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182),
            *(2, 198, 1, 4093, 198),
        ],
    },
    "qwen2.5-coder-1.5b-instruct": {
        "Hello world": [9707, 1879],
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n": [
            *(151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198)
        ],
    },
}


@pytest.mark.parametrize("name", KNOWN)
def test_known_ids_of_real_models(name: str) -> None:
    path = pulled(name)
    if path is None or path.is_dir():
        pytest.skip(f"needs the GGUF of {name} in the cache: speq pull {name}")
    tokenizer = Tokenizer.from_str(open_source(path).files["tokenizer.json"].decode())
    for text, ids in KNOWN[name].items():
        assert tokenizer.encode(text).ids == ids
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == (
            text if name.startswith("smollm") else normalizers.NFC().normalize_str(text)
        )


def small(**more: Any) -> dict[str, Any]:
    """A vocabulary for byte-pair merging, with entries changed, or left out where they are None."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "abc", "<|im_end|>", "<|endoftext|>"]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * 258 + [3, 3],
        "tokenizer.ggml.merges": ["a b", "ab c"],
        "tokenizer.ggml.eos_token_id": 259,
    } | {f"tokenizer.ggml.{key}": value for key, value in more.items()}
    return {key: value for key, value in metadata.items() if value is not None}


def pieces(**more: Any) -> dict[str, Any]:
    """A SentencePiece vocabulary, with entries changed, or left out where they are None."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", "a", "▁a", "<tool>"]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [2, 3, 3] + [6] * 256 + [1, 1, 1, 4],
        "tokenizer.ggml.scores": [0.0] * 263,
    } | {f"tokenizer.ggml.{key}": value for key, value in more.items()}
    return {key: value for key, value in metadata.items() if value is not None}


TOKENS = small()["tokenizer.ggml.tokens"]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (small(merges=None), "has no tokenizer.ggml.merges"),
        (small(merges=[1, 2]), "tokenizer.ggml.merges is no list of str values"),
        (small(merges="a b"), "tokenizer.ggml.merges is no list of str values"),
        (small(token_type=[1] * 7), "tokenizer.ggml.token_type has 7 entries for 260 tokens"),
        (small(token_type=["x"] * 260), "tokenizer.ggml.token_type is no list of int values"),
        (small(tokens=[*TOKENS[:-1], "ab"]), "the token 'ab' is in the vocabulary twice, as 256 and 259"),
        (small(tokens=[*TOKENS[:-1], 5]), "tokenizer.ggml.tokens is no list of str values"),
        (pieces(scores=[0.0] * 5), "tokenizer.ggml.scores has 5 entries for 263 tokens"),
        (pieces(scores=["x"] * 263), "tokenizer.ggml.scores is no list of"),
    ],
)
def test_what_llama_cpp_refuses_is_refused_in_one_line(metadata: dict[str, Any], message: str) -> None:
    with pytest.raises(SpeqError) as caught:
        build_tokenizer_files(metadata)
    assert message in str(caught.value)
    assert "download or convert it again" in str(caught.value)


def test_the_file_is_named_where_its_tokenizer_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", random_weights(), metadata=small(merges=None))
    with pytest.raises(SpeqError, match=r"^\S+/m\.gguf: .*has no tokenizer\.ggml\.merges"):
        open_source(path)


def test_longer_lists_than_the_vocabulary_are_cut() -> None:
    plain = build_tokenizer_files(small())
    assert build_tokenizer_files(small(token_type=[1] * 258 + [3, 3, 3, 3, 6])) == plain
    assert build_tokenizer_files(pieces(scores=[0.0] * 300)) == build_tokenizer_files(pieces())


def test_merges_that_make_no_token_are_left_out() -> None:
    # Neither what they make, nor what they make it of, need be tokens; llama.cpp loads the file and splits the text.
    merges = ["x y", "a b", "no token", "nospace", "", "a  b", "ab c", "xy z"]
    tokenizer = rebuilt(small(merges=merges))
    assert tokenizer.encode("abcxyz").tokens == ["abc", "x", "y", "z"]
    unused = small(token_type=[1] * 256 + [5, 1, 3, 3])
    assert rebuilt(unused).encode("abc").tokens == ["a", "b", "c"]


def test_an_empty_token_has_the_name_that_llama_cpp_gives_it() -> None:
    tokenizer = rebuilt(small(tokens=[*TOKENS[:256], "", *TOKENS[257:]], merges=[]))
    assert tokenizer.id_to_token(256) == "[EMPTY_256]"


@pytest.mark.parametrize("token", [263, 4000, -1, "</s>"])
def test_special_ids_beyond_the_vocabulary_are_left_out_and_told(token: Any) -> None:
    files, notes = build_tokenizer_files(small(eos_token_id=token, bos_token_id=token, add_bos_token=True))
    assert json.loads(files["generation_config.json"]) == {"eos_token_id": [258, 259]}  # by their names
    assert "eos_token" not in json.loads(files["tokenizer_config.json"])
    assert [note.split(":")[0] for note in notes] == [
        f"tokenizer.ggml.{role}_token_id is {token}, but there are 260 tokens" for role in ("bos", "eos")
    ]
    files, notes = build_tokenizer_files(pieces(eos_token_id=token))
    assert "2 (</s>) is used" in notes[0]
    assert json.loads(files["generation_config.json"]) == {"bos_token_id": 1, "eos_token_id": [2]}


@pytest.mark.parametrize("name", ["llama3", "llama-v3", "llama-bpe", "tekken"])
def test_these_begin_every_text_with_the_start_token_unless_told_not_to(name: str) -> None:
    assert rebuilt(small(pre=name, bos_token_id=258)).encode("a").ids[0] == 258
    assert rebuilt(small(pre=name, bos_token_id=258, add_bos_token=False)).encode("a").ids[0] != 258


def test_start_and_end_tokens_stand_where_the_file_says() -> None:
    both = {"bos_token_id": 258, "eos_token_id": 259, "add_bos_token": True, "add_eos_token": True}
    assert rebuilt(small(**both)).encode("ab").tokens == ["<|im_end|>", "ab", "<|endoftext|>"]
    assert rebuilt(small(add_eos_token=True)).encode("ab", "c").tokens == ["ab", "<|endoftext|>", "c", "<|endoftext|>"]
    assert rebuilt(pieces()).encode("a").tokens == ["<s>", "▁a"]
    assert rebuilt(pieces(add_bos_token=False, add_eos_token=True)).encode("a").tokens == ["▁a", "</s>"]


def test_the_space_before_a_text_is_the_files_choice() -> None:
    # llama.cpp puts one before every part of a text that follows a special token, too.
    assert rebuilt(pieces()).encode("a</s>a").tokens == ["<s>", "▁a", "</s>", "▁a"]
    without = rebuilt(pieces(add_space_prefix=False))
    assert without.encode("a</s> a").tokens == ["<s>", "a", "</s>", "▁a"]
    assert without.decode(without.encode(" a").ids) == " a"
    assert rebuilt(pieces(remove_extra_whitespaces=True)).encode("  a").tokens == ["<s>", "▁", "▁", "▁a"]


def test_tokens_are_special_by_their_kind_and_ends_by_their_name_too() -> None:
    kinds = [1] * 256 + [4, 3, 4, 3]
    tokenizer = rebuilt(small(token_type=kinds, merges=[]))
    special = {token.content: token.special for token in tokenizer.get_added_tokens_decoder().values()}
    assert special == {"ab": False, "abc": True, "<|im_end|>": True, "<|endoftext|>": True}
    assert tokenizer.encode("xabyabcz").tokens == ["x", "ab", "y", "abc", "z"]
    files, _ = build_tokenizer_files(small(token_type=kinds, eot_token_id=97))
    assert json.loads(files["generation_config.json"]) == {"eos_token_id": [97, 258, 259]}


def test_templates_by_name_are_kept_where_there_is_no_default() -> None:
    named = {"chat_template.tool_use": "tools", "chat_template.rag": "documents"}
    metadata = small() | {f"tokenizer.{key}": value for key, value in named.items()}
    config = json.loads(build_tokenizer_files(metadata)[0]["tokenizer_config.json"])
    assert config["chat_template"] == [
        {"name": "tool_use", "template": "tools"},
        {"name": "rag", "template": "documents"},
    ]
    metadata["tokenizer.chat_template"] = "plain"
    assert json.loads(build_tokenizer_files(metadata)[0]["tokenizer_config.json"])["chat_template"] == "plain"
