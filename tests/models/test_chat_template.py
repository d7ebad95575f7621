"""Chat templates against ``apply_chat_template`` of transformers 5, and their errors, each of them one line."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from speq.errors import SpeqError
from speq.models.chat_template import ChatTemplate
from speq.models.tokenizer import Tokenizer as Ours

CHAT = [
    {"role": "user", "content": "día <b> & 'q'", "name": None, "n": 1.5},
    {
        "role": "assistant",
        "content": [{"type": "text", "text": "yes"}],
        "thinking": "hm",
        "tool_calls": [{"b": 1, "a": None}],
    },
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tokenizer")
    Tokenizer(models.BPE({"a": 0}, [])).save(str(directory / "tokenizer.json"))
    return directory


def rendered(template, messages=CHAT):
    return ChatTemplate(template, {"bos_token": "<s>"}).render(messages)


def theirs(template, messages=CHAT):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE({"a": 0}, [])), bos_token="<s>")
    return tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=True)


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages | tojson }}",
        "{{ messages | tojson(ensure_ascii=True) }}",
        "{{ messages | tojson(indent=2) }} {{ messages | tojson(indent='\t') }}",
        "{{ messages | tojson(separators=(',', ':'), sort_keys=true) }}",
        "{{ messages | tojson(true, 1, (';', '='), true) }}",
        "{{ 'day' if strftime_now('%Y') | int > 2000 }} {{ strftime_now(format='') }}",
        "{{ tools is none }}{{ documents is none }}{{ tools is defined }}{{ x is defined }}{{ add_generation_prompt }}",
        "{{ bos_token }}{{ eos_token }}|{{ eos_token is defined }}",
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% break %}{% endfor %}",
        "{% set x = 1 %}{% generation %}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
        "{% for m in messages %}{% generation %}{{ loop.index }}{{ m.role }}{% endgeneration %}{% endfor %}",
        "  {% if true %}\n  a\n  {% endif %}\n b \n",
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "{{ messages[1].reasoning_content }}{{ messages[1].thinking }}{{ messages[1].reasoning is defined }}",
        "{{ 'name' in messages[0] }}{{ messages[0].n }}{{ messages[1].tool_calls }}{{ messages[1].content }}",
        "{{ dict(a=1) }}{{ range(3) | list }}{{ messages[0].items() | list }}",
    ],
)
def test_templates_give_what_transformers_gives(template):
    assert rendered(template) == theirs(template)


class Name(str):
    """Text with more methods than text has."""

    def __str__(self):
        return "other"


@pytest.mark.parametrize(
    "content",
    [None, "", 7, 1.5, True, [], {}, [{"type": "text", "text": "a"}], ("a", 1), Name("x"), {1: {2}}, b"x", object],
    ids=repr,
)
def test_content_of_any_kind_is_what_transformers_makes_of_it(content):
    template = "{{ messages[0].role }}: {{ messages[0].content }} {{ messages[0].content is string }}"
    messages = [{"role": "user", "content": content}]
    assert rendered(template, messages) == theirs(template, messages)


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0].content.index('zzz') }}",
        "{% for i in range(200000) %}{% endfor %}",
        "{{ 1 / 0 }}",
        "{{ 10.0 ** 400 }}",
        "{{ [1][5].x }}",
        "{{ {}['a'].b }}",
        "{{ messages[0].content + 1 }}",
        "{{ 'x' | int + 'y' }}",
        "{{ messages[0].content.encode().decode('utf-16-be', 'strict')[0].encode('ascii') }}",
        "{{ 'ä'.encode('latin-1').decode('utf-8') }}",
        "{{ ('9' * 5000) | int }}{{ 10 ** 5000 }}",
        "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        "{{ raise_exception('no') }}",
        "{{ raise_exception(none) }}",
        "{{ messages.append(1) }}",
        "{{ messages.__class__.__mro__ }}",
        "{{ undefined_thing.attribute }}",
        "{{ undefined_thing() }}",
        "{{ undefined_thing | tojson }}",
        "{{ messages | tojson(nonsense=1) }}",
        "{{ 'x' * 10 ** 15 }}",
        "{{ '%d' % 'x' }}",
        "{{ strftime_now(1) }}",
        "{% include 'other' %}",
        "{{ [1, 2] | random(1) }}",
        "{% if %}",
        "{{ messages | nonsense }}",
        "{% generation %}",
        "{% for a in [1] %}" * 30 + "{% endfor %}" * 30,
        "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
        "{% break %}",
    ],
    ids=lambda template: template[:40],
)
def test_every_error_of_a_template_is_one_line_that_names_the_way_out(template):
    with pytest.raises(SpeqError) as caught:
        rendered(template)
    message = str(caught.value)
    assert message.startswith("the model's chat template ")
    assert message.endswith("use --raw")
    assert "\n" not in message
    assert len(message) > len("the model's chat template cannot be read (); use --raw")


@pytest.mark.parametrize(("messages", "reason"), [([], "empty"), (["hi"], "a message is 'hi'"), ([None], "is None")])
def test_what_is_no_conversation_is_refused(messages, reason):
    with pytest.raises(SpeqError, match=reason):
        rendered("x", messages)


def write(directory, files):
    for name, content in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return directory


NAMED = [{"name": "rag", "template": "list rag"}, {"name": "default", "template": "list default"}]
ENTRY = {"tokenizer_config.json": {"chat_template": "entry"}}
FILE = {"chat_template.jinja": "file"}
MORE = {"additional_chat_templates/rag.jinja": "more rag", "additional_chat_templates/notes.txt": "x"}
MULTIMODAL = {"chat_template.json": {"chat_template": "multimodal"}}
PLACES = {
    "entry": (ENTRY, "entry"),
    "list": ({"tokenizer_config.json": {"chat_template": NAMED}}, "list default"),
    "object": ({"tokenizer_config.json": {"chat_template": {"a": "1", "default": "2"}}}, "2"),
    "file before entry": (ENTRY | FILE, "file"),
    "file with others": (ENTRY | FILE | MORE, "file"),
    "a file named default": ({"additional_chat_templates/default.jinja": "own"} | ENTRY, "own"),
    "an empty file": (ENTRY | {"chat_template.jinja": ""}, ""),
}


@pytest.mark.parametrize("place", PLACES)
def test_the_template_is_found_where_transformers_finds_it(tmp_path, directory, place):
    files, expected = PLACES[place]
    shutil.copy(directory / "tokenizer.json", tmp_path)
    write(tmp_path, files)
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert Ours(tmp_path).render(CHAT) == loaded.apply_chat_template(CHAT, tokenize=False) == expected
    assert Ours(tmp_path).has_chat_template


def test_the_file_of_multimodal_checkpoints_comes_last(tmp_path, directory):
    shutil.copy(directory / "tokenizer.json", tmp_path)
    assert Ours(write(tmp_path, MULTIMODAL)).render(CHAT) == "multimodal"
    assert Ours(write(tmp_path, ENTRY)).render(CHAT) == "entry"


@pytest.mark.parametrize(
    "files", [ENTRY | MORE, {"tokenizer_config.json": {"chat_template": {"rag": "x"}}}], ids=["files", "object"]
)
def test_names_without_a_default_are_told(tmp_path, directory, files):
    shutil.copy(directory / "tokenizer.json", tmp_path)
    write(tmp_path, files)
    with pytest.raises(ValueError, match="no default"):
        PreTrainedTokenizerFast.from_pretrained(tmp_path).apply_chat_template(CHAT)
    assert not Ours(tmp_path).has_chat_template
    with pytest.raises(SpeqError, match=r"has chat templates named rag, but no default; use --raw"):
        Ours(tmp_path).render(CHAT)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tokenizer_config.json": {"chat_template": 3}}, "tokenizer_config.json: chat_template is neither"),
        ({"tokenizer_config.json": {"chat_template": ["x"]}}, "is neither a template nor templates by name; use --raw"),
        ({"tokenizer_config.json": {"chat_template": [{"name": "default"}]}}, "is neither"),
        ({"chat_template.json": "{"}, "chat_template.json: not readable JSON"),
        ({"chat_template.json": {"chat_template": [1]}}, "is neither"),
    ],
)
def test_templates_of_other_shapes_are_one_line(tmp_path, directory, files, message):
    shutil.copy(directory / "tokenizer.json", tmp_path)
    with pytest.raises(SpeqError, match=re.escape(message)):
        Ours(write(tmp_path, files)).render(CHAT)


def test_a_template_that_is_no_text_is_one_line_and_raw_prompts_work(tmp_path, directory):
    shutil.copy(directory / "tokenizer.json", tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    tokenizer = Ours(tmp_path)
    assert tokenizer.encode("a") == [0]
    with pytest.raises(SpeqError, match=r"chat_template\.jinja: not a readable chat template .*; use --raw"):
        tokenizer.render(CHAT)
