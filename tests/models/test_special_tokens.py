"""Special tokens, wherever a checkpoint names them, against AutoTokenizer of transformers 5 on the same directory."""

from __future__ import annotations

import json
import re

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer

import speq.models.tokenizer
from speq.errors import SpeqError
from speq.models.chat_template import ChatTemplate

NAMES = ["<|a|>", "<|b|>", "<|im_end|>", "<tool>", "word", "<s>", "</s>", "<unk>", "<|endoftext|>"]
TEXTS = [
    "".join(f"x {name} y{name}{name.upper()}z" for name in NAMES),
    "12 é  \n",
    "<s> a</s>",
    " <tool> word wordy",
    "",
]


def byte_level(tokens, **flags):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*letters, "ab", "12", "<|endoftext|>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("a", "b"), ("1", "2")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(token, **flags) for token in tokens])
    return tokenizer


def sentence_piece(tokens, **flags):
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    letters = ["▁", "x", "y", "z", "▁x", "a", "w", "o", "r", "d", "▁y"]
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", *bytes_, *letters])}
    merges = [("▁", "x"), ("▁", "y")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.add_tokens([AddedToken(token, **flags) for token in tokens])
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


MAKERS = {"byte level": byte_level, "sentence piece": sentence_piece}


def write(directory, tokenizer, files, model_type="llama"):
    directory.mkdir(parents=True, exist_ok=True)
    for old in directory.iterdir():
        old.unlink()
    tokenizer.save(str(directory / "tokenizer.json"))
    for name, content in ({"config.json": {"model_type": model_type}} | files).items():
        (directory / name).write_text(json.dumps(content), encoding="utf-8")
    return directory


def check(directory, *, with_template=True):
    """Ids, decoded text, end token and template variables are those of transformers."""
    theirs, ours = AutoTokenizer.from_pretrained(directory), speq.models.tokenizer.Tokenizer(directory)
    for text in TEXTS:
        for special in (True, False):
            ids = theirs(text, add_special_tokens=special)["input_ids"]
            assert ours.encode(text, special=special) == ids
        for skip in (True, False):
            assert ours.decode(ids, skip_special=skip) == theirs.decode(ids, skip_special_tokens=skip)
    assert ours.special_tokens == theirs.special_tokens_map
    assert ours.eos_ids == {theirs.eos_token_id} - {None}
    if with_template:
        names = "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}|{{ tool_token }}|{{ image }}"
        template = names + "|<|a|> {{ messages[0].content }}"
        theirs.chat_template = template
        messages = [{"role": "user", "content": "<|b|>hi"}]
        rendered = theirs.apply_chat_template(messages, tokenize=False)
        assert ChatTemplate(template, ours.special_tokens).render(messages) == rendered


def test_the_transformers_that_is_compared_with_is_release_5():
    assert transformers.__version__.split(".")[0] == "5"


def described(content, **flags):
    return {"content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False} | flags


FILES = {
    "nothing": {},
    "an added_tokens_decoder": {
        "tokenizer_config.json": {
            "added_tokens_decoder": {
                "900": described("<|im_end|>", special=True),
                "80": described("<|a|>", special=False),
                "270": described("<tool>", special=False, lstrip=True, rstrip=True),
            },
            "eos_token": "<|im_end|>",
        }
    },
    "an end token that is new": {"tokenizer_config.json": {"eos_token": "<|im_end|>", "pad_token": "<|b|>"}},
    "an end token described": {
        "tokenizer_config.json": {"eos_token": {"__type": "AddedToken", **described("<|im_end|>", lstrip=True)}}
    },
    "additional special tokens": {"tokenizer_config.json": {"additional_special_tokens": ["<|b|>", "<|a|>", "<|b|>"]}},
    "additional special tokens described": {
        "tokenizer_config.json": {
            "additional_special_tokens": [{"__type": "AddedToken", **described("<|b|>", rstrip=True, special=True)}]
        }
    },
    "extra special tokens": {
        "tokenizer_config.json": {"extra_special_tokens": ["<|b|>", "<|a|>"], "bos_token": "<|a|>"}
    },
    "extra special tokens by name": {
        "tokenizer_config.json": {"extra_special_tokens": {"image": "<|b|>", "tool_token": "<tool>"}}
    },
    "both extra and additional": {
        "tokenizer_config.json": {"extra_special_tokens": ["<|b|>"], "additional_special_tokens": ["<|a|>"]}
    },
    "a role of this model alone": {"tokenizer_config.json": {"tool_token": "<tool>", "eos_token": None}},
    "added_tokens.json": {
        "added_tokens.json": {"<|b|>": 301, "<|a|>": 300, "word": 302},
        "tokenizer_config.json": {"eos_token": "<|a|>"},
    },
    "special_tokens_map.json": {
        "special_tokens_map.json": {
            "eos_token": described("<|im_end|>", rstrip=True),
            "bos_token": "<|a|>",
            "additional_special_tokens": ["<|b|>"],
        },
        "tokenizer_config.json": {"eos_token": "<|b|>", "pad_token": "<|b|>"},
    },
    "a map that counts for nothing": {
        "special_tokens_map.json": {"eos_token": "<|im_end|>"},
        "added_tokens.json": {"<|a|>": 300},
        "tokenizer_config.json": {"eos_token": "<|b|>", "added_tokens_decoder": {}},
    },
    "all of the old files": {
        "special_tokens_map.json": {
            "eos_token": "<|im_end|>",
            "extra_special_tokens": [described("<|b|>", lstrip=True), "<tool>"],
        },
        "added_tokens.json": {"<|im_end|>": 400, "<|b|>": 401, "word": 402},
        "tokenizer_config.json": {"extra_special_tokens": ["<|a|>"]},
    },
    "a map with extra tokens by name": {"special_tokens_map.json": {"extra_special_tokens": {"image": "<|a|>"}}},
    "split_special_tokens": {"tokenizer_config.json": {"eos_token": "<|im_end|>", "split_special_tokens": True}},
}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("known", [[], ["<tool>", "<|b|>"]], ids=["none known", "some known"])
@pytest.mark.parametrize("name", FILES)
def test_special_tokens_are_found_wherever_they_stand(tmp_path, kind, known, name):
    check(write(tmp_path, MAKERS[kind](known), FILES[name]))


TOKEN = st.sampled_from(NAMES[:6])
FLAGS = st.fixed_dictionaries(
    {flag: st.booleans() for flag in ("single_word", "lstrip", "rstrip", "normalized", "special")}
)
DESCRIBED = st.builds(lambda content, flags: {"content": content, **flags}, TOKEN, FLAGS)
ROLE = st.one_of(TOKEN, st.none(), DESCRIBED.map(lambda token: {"__type": "AddedToken", **token}))
LIST = st.lists(st.one_of(TOKEN, DESCRIBED.map(lambda token: {"__type": "AddedToken", **token})), max_size=3)


def some(entries):
    return st.fixed_dictionaries({}, optional=entries)


SETTINGS = some(
    {
        "bos_token": ROLE,
        "eos_token": ROLE,
        "tool_token": TOKEN,
        "extra_special_tokens": st.one_of(LIST, st.dictionaries(st.sampled_from(["image", "tool_token"]), TOKEN)),
        "additional_special_tokens": LIST,
        "added_tokens_decoder": st.dictionaries(st.integers(250, 330).map(str), DESCRIBED, max_size=4),
    }
)
MAP = some({"eos_token": st.one_of(TOKEN, DESCRIBED), "pad_token": TOKEN, "extra_special_tokens": st.lists(TOKEN)})


@settings(max_examples=100, deadline=None)
@given(
    kind=st.sampled_from(sorted(MAKERS)),
    known=st.lists(TOKEN, max_size=3, unique=True),
    flags=FLAGS,
    config=SETTINGS,
    special_map=MAP,
    added=st.dictionaries(TOKEN, st.integers(280, 300), max_size=3),
)
def test_any_mixture_of_files_gives_the_tokens_of_transformers(
    tmp_path_factory, kind, known, flags, config, special_map, added
):
    files = {"tokenizer_config.json": config, "special_tokens_map.json": special_map, "added_tokens.json": added}
    check(write(tmp_path_factory.mktemp("mixture"), MAKERS[kind](known, **flags), files), with_template=False)


CLASSES = [
    None,
    "PreTrainedTokenizerFast",
    "LlamaTokenizer",
    "LlamaTokenizerFast",
    "GPT2Tokenizer",
    "Qwen2TokenizerFast",
]


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen3", "qwen2"])
@pytest.mark.parametrize("named", CLASSES)
@pytest.mark.parametrize(
    "options",
    [{}, {"legacy": True}, {"legacy": False, "add_prefix_space": False}, {"add_prefix_space": True, "legacy": None}],
    ids=str,
)
def test_the_class_splits_text_as_in_transformers(tmp_path, kind, model_type, named, options):
    if named == "PreTrainedTokenizerFast" and model_type == "qwen2":
        pytest.skip("a class that says nothing leaves tokenizer.json as it is; transformers takes the one of Qwen2")
    config = options | ({} if named is None else {"tokenizer_class": named})
    check(write(tmp_path, MAKERS[kind](["<tool>"]), {"tokenizer_config.json": config}, model_type))


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("named", ["PreTrainedTokenizerFast", "LlamaTokenizer"])
def test_add_bos_token_says_nothing_beside_a_tokenizer_json(tmp_path, kind, named):
    config = {"add_bos_token": kind == "byte level", "add_eos_token": True, "bos_token": "<s>", "eos_token": "</s>"}
    check(write(tmp_path, MAKERS[kind]([]), {"tokenizer_config.json": config | {"tokenizer_class": named}}))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"added_tokens_decoder": {"1": "<s>"}}, "added_tokens_decoder holds '<s>', which describes no token"),
        ({"added_tokens_decoder": {"one": described("<s>")}}, "has the id 'one'"),
        ({"added_tokens_decoder": ["<s>"]}, "added_tokens_decoder is list"),
        ({"extra_special_tokens": "<s>"}, "extra_special_tokens is str"),
        ({"extra_special_tokens": [3]}, "extra_special_tokens holds 3"),
        ({"eos_token": 3}, "eos_token holds 3"),
    ],
)
def test_entries_that_are_no_tokens_are_one_line(tmp_path, config, message):
    with pytest.raises(SpeqError, match=re.escape(message)):
        speq.models.tokenizer.Tokenizer(write(tmp_path, byte_level([]), {"tokenizer_config.json": config}))
