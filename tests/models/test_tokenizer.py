"""The tokenizer against transformers, on small tokenizers made here; the streaming decoder against decoding at once."""

from __future__ import annotations

import json
from datetime import datetime

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from speq.errors import SpeqError
from speq.models.tokenizer import Tokenizer, end_ids

SPECIAL = ["<|begin|>", "<|end|>", "<|im_start|>", "<|im_end|>"]
CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "día señor über straße",
    "日本語 の テキスト",
    "🙂🙃 smile",
] * 4
CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INSTRUCT = (
    "{{ bos_token }}{% for message in messages %}\n"
    "    {% if message.role == 'system' %}{% continue %}{% endif %}\n"
    "    {% if (message.role == 'user') != (loop.index0 % 2 == 0) %}\n"
    "        {{ raise_exception('roles must alternate') }}\n"
    "    {% endif %}\n"
    "    {% if message.role == 'user' %}[INST] {{ message.content | trim }} [/INST]"
    "{% else %}{% generation %} {{ message.content }}{{ eos_token }}{% endgeneration %}{% endif %}\n"
    "{% endfor %}"
    "{{ {'tools': tools, 'text': 'é<>'} | tojson }}"
)
CHAT = [
    {"role": "user", "content": " the quick fox "},
    {"role": "assistant", "content": "día 🙂"},
    {"role": "user", "content": "<|im_end|> over?"},
]


def byte_level(directory, **settings):
    """A byte-level BPE like GPT-2's and Qwen's that opens every text with <|begin|>."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing("<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    return save(directory, tokenizer, **settings)


def sentence_piece(directory, **settings):
    """A BPE with byte fallback and spaces marked in the tokens, like Llama 2's."""
    characters = sorted({"▁", *"".join(CORPUS[:2]).replace(" ", "")})
    vocabulary = ["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *characters, "▁t", "▁th", "▁the"]
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e")]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(
            {token: index for index, token in enumerate(vocabulary)}, merges, unk_token="<unk>", byte_fallback=True
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(SPECIAL)
    return save(directory, tokenizer, **settings)


def save(directory, tokenizer, **settings):
    tokenizer.save(str(directory / "tokenizer.json"))
    write(
        directory, "tokenizer_config.json", {"bos_token": "<|begin|>", "eos_token": {"content": "<|end|>"}, **settings}
    )
    return directory


def write(directory, name, content):
    (directory / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")


def transformers_tokenizer(directory, **settings):
    return PreTrainedTokenizerFast(
        tokenizer_file=str(directory / "tokenizer.json"), bos_token="<|begin|>", eos_token="<|end|>", **settings
    )


MAKERS = {"byte level": byte_level, "sentence piece": sentence_piece}


@pytest.fixture(scope="module", params=MAKERS)
def directory(request, tmp_path_factory):
    return MAKERS[request.param](tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def tokenizer(directory):
    return Tokenizer(directory)


@pytest.mark.parametrize("text", ["", "the fox", " über 日本 🙂\n\n x", "a<|im_end|>b", "\x00\ufffd"])
@pytest.mark.parametrize("special", [True, False])
def test_encode_equals_transformers(directory, tokenizer, text, special):
    expected = transformers_tokenizer(directory)(text, add_special_tokens=special)["input_ids"]
    assert tokenizer.encode(text, special=special) == expected


def test_decode_skips_special_tokens_unless_asked(tokenizer):
    ids = tokenizer.encode("the fox<|im_end|>")
    assert tokenizer.decode(ids) == "the fox"
    assert tokenizer.decode(ids, skip_special=False).endswith("the fox<|im_end|>")


def test_half_characters_are_refused(tokenizer):
    with pytest.raises(SpeqError, match="not valid Unicode"):
        tokenizer.encode("a\ud800b")


@pytest.fixture(scope="module")
def byte_level_tokenizer(tmp_path_factory):
    return Tokenizer(byte_level(tmp_path_factory.mktemp("byte-level")))


def streamed(tokenizer, ids):
    stream = tokenizer.stream()
    return [*(stream.push(token) for token in ids), stream.flush()]


@given(text=st.text())
def test_streaming_gives_the_text_in_whole_characters(tokenizer, text):
    ids = tokenizer.encode(text)
    pieces = streamed(tokenizer, ids)
    assert "".join(pieces) == tokenizer.decode(ids)
    if "\N{REPLACEMENT CHARACTER}" not in text:
        assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)


@given(ids=st.lists(st.integers(0, 339), max_size=40))
def test_streaming_any_tokens_equals_decoding_them_at_once(byte_level_tokenizer, ids):
    assert "".join(streamed(byte_level_tokenizer, ids)) == byte_level_tokenizer.decode(ids)


def test_a_character_in_several_tokens_comes_out_once_complete(tokenizer):
    ids = tokenizer.encode("a" + "\N{SNOWMAN}" + "b", special=False)
    pieces = streamed(tokenizer, ids)
    assert [piece for piece in pieces if piece] == ["a", "\N{SNOWMAN}", "b"]
    assert len(ids) >= 5


def test_a_character_left_incomplete_comes_out_at_the_end(tokenizer):
    ids = tokenizer.encode("a" + "\N{SNOWMAN}", special=False)[:-1]
    *pieces, last = streamed(tokenizer, ids)
    assert "".join(pieces) == "a"
    assert set(last) == {"\N{REPLACEMENT CHARACTER}"}


@pytest.mark.parametrize("template", [CHATML, INSTRUCT])
@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_chat_equals_transformers(tmp_path, template, add_generation_prompt):
    tokenizer = Tokenizer(byte_level(tmp_path, chat_template=template))
    theirs = transformers_tokenizer(tmp_path, chat_template=template)
    options = {"add_generation_prompt": add_generation_prompt}
    assert tokenizer.render(CHAT, **options) == theirs.apply_chat_template(CHAT, tokenize=False, **options)
    assert tokenizer.chat(CHAT, **options) == theirs.apply_chat_template(CHAT, return_dict=False, **options)


def test_template_file_goes_before_the_entry_and_named_templates_are_found(tmp_path):
    byte_level(tmp_path, chat_template=[{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}])
    assert Tokenizer(tmp_path).render(CHAT) == "yes"
    write(tmp_path, "chat_template.jinja", "file {{ strftime_now('%Y') }}")
    assert Tokenizer(tmp_path).render(CHAT) == f"file {datetime.now().year}"


def test_no_template_and_bad_templates_are_one_clear_line(tmp_path):
    tokenizer = Tokenizer(byte_level(tmp_path))
    assert not tokenizer.has_chat_template
    with pytest.raises(SpeqError, match="no chat template; use --raw"):
        tokenizer.chat(CHAT)
    with pytest.raises(SpeqError, match="cannot be read"):
        Tokenizer(byte_level(tmp_path, chat_template="{% if %}")).render(CHAT)
    with pytest.raises(SpeqError, match="refuses this conversation: roles must alternate"):
        Tokenizer(byte_level(tmp_path, chat_template=INSTRUCT)).render(CHAT[:1] * 2)
    with pytest.raises(SpeqError, match="refuses this conversation"):
        Tokenizer(byte_level(tmp_path, chat_template="{{ messages.append(1) }}")).render(CHAT)


def test_end_ids(tmp_path):
    assert end_ids(tmp_path) == frozenset()
    byte_level(tmp_path)
    assert Tokenizer(tmp_path).eos_ids == {1}
    write(tmp_path, "config.json", {"eos_token_id": 7})
    write(tmp_path, "generation_config.json", {"eos_token_id": [8, 9]})
    assert end_ids(tmp_path) == {7, 8, 9}
    assert Tokenizer(tmp_path).eos_ids == {1, 7, 8, 9}


@pytest.mark.parametrize("entry", ["2", [2, [3]], 2.0, {"id": 2}, True])
def test_end_ids_that_are_none(tmp_path, entry):
    write(tmp_path, "generation_config.json", {"eos_token_id": entry})
    with pytest.raises(SpeqError, match=r"generation_config\.json: 'eos_token_id' is .*, must be a token id"):
        end_ids(tmp_path)


def test_end_ids_name_the_model(tmp_path):
    write(tmp_path, "config.json", {"eos_token_id": [2, None]})
    with pytest.raises(SpeqError, match=r"^the model/config\.json: 'eos_token_id' is"):
        end_ids(tmp_path, "the model")


def test_special_tokens_map(tmp_path):
    sentence_piece(tmp_path)
    write(tmp_path, "tokenizer_config.json", {})
    write(tmp_path, "special_tokens_map.json", {"eos_token": "<|im_end|>"})
    assert Tokenizer(tmp_path).eos_ids == {4}


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(SpeqError, match=r"no tokenizer\.json; give token ids with --ids"):
        Tokenizer(tmp_path)
    write(tmp_path, "tokenizer.json", "{")
    with pytest.raises(SpeqError, match=r"tokenizer\.json: not a readable tokenizer"):
        Tokenizer(tmp_path)
    byte_level(tmp_path)
    write(tmp_path, "tokenizer_config.json", "[]")
    with pytest.raises(SpeqError, match=r"tokenizer_config\.json: a JSON object"):
        Tokenizer(tmp_path)
    write(tmp_path, "tokenizer_config.json", "{]")
    with pytest.raises(SpeqError, match=r"tokenizer_config\.json: not readable JSON"):
        Tokenizer(tmp_path)
