"""Streamed text against the ``tokenizers`` library, which decodes all tokens at once, for every kind of decoder."""

from __future__ import annotations

import json
import re
from itertools import groupby

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import speq.models.tokenizer
from speq.decoding import StopStrings

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
PIECES = [
    "▁",
    "▁a",
    "a",
    "b",
    "▁▁",
    "▁b▁",
    "é",
    "x▁",
    " c",
    ".",
    "'",
    "n",
    "t",
    "s",
    "▁'",
    "▁n",
    "▁.",
    "m",
    "ve",
    "▁ve",
]
WORDS = ["the", "##n", "##'", "n't", "do", "not", ".", ",", "'", "##", "#", "s", "re"]
SPECIAL = ["<s>", "</s>"]


def byte_level():
    # A token with letters that spell no byte is text; the last two are cut in the middle of a character.
    vocabulary = [*LETTERS, "Ġa", "日本", "Ãl", "âĺĥ", "âĺ", "ðŁĻ"]
    return models.BPE({token: i for i, token in enumerate(vocabulary)}, []), decoders.ByteLevel()


def pieces(*extra):
    vocabulary = [*BYTES, *PIECES, *extra]
    return models.BPE({token: i for i, token in enumerate(vocabulary)}, [], byte_fallback=True)


def sentence_piece(*more):
    spaces = decoders.Replace("▁", " ")
    return pieces(), decoders.Sequence([spaces, decoders.ByteFallback(), decoders.Fuse(), *more])


def unigram(decoder):
    return models.Unigram([(token, -1.0) for token in [*PIECES, *WORDS]], 0, False), decoder


def words(decoder):
    return models.WordPiece({token: i for i, token in enumerate([*WORDS, *PIECES])}, unk_token="."), decoder


MAKERS = {
    "byte level": byte_level,
    "byte level in a sequence": lambda: (byte_level()[0], decoders.Sequence([decoders.ByteLevel()])),
    "Llama": lambda: sentence_piece(decoders.Strip(" ", 1, 0)),
    "Gemma": sentence_piece,
    "strips two letters": lambda: sentence_piece(decoders.Strip("a", 2, 0)),
    "strips each token": lambda: unigram(decoders.Strip("▁", 1, 0)),
    "byte fallback and Metaspace": lambda: (
        pieces(),
        decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()]),
    ),
    "Metaspace, prefix always": lambda: unigram(decoders.Metaspace(prepend_scheme="always")),
    "Metaspace, prefix first": lambda: unigram(decoders.Metaspace(prepend_scheme="first")),
    "Metaspace, prefix never": lambda: unigram(decoders.Metaspace(prepend_scheme="never")),
    "Metaspace of all tokens at once": lambda: unigram(decoders.Sequence([decoders.Fuse(), decoders.Metaspace()])),
    "replaced across tokens": lambda: unigram(decoders.Sequence([decoders.Fuse(), decoders.Replace("▁▁a", "-")])),
    "replaced by an expression": lambda: unigram(decoders.Replace(Regex("[ab]+"), "<>")),
    "replaced by an expression across tokens": lambda: unigram(
        decoders.Sequence([decoders.Fuse(), decoders.Replace(Regex("[ab]+"), "<>")])
    ),
    "WordPiece": lambda: words(decoders.WordPiece()),
    "WordPiece that is not cleaned": lambda: words(decoders.WordPiece("#", cleanup=False)),
    "word ends": lambda: unigram(decoders.BPEDecoder("n")),
    "CTC": lambda: unigram(decoders.CTC("a", "▁", cleanup=True)),
    "no decoder": lambda: words(None),
}


@pytest.fixture(scope="module", params=MAKERS)
def tokenizer(request, tmp_path_factory):
    return made(tmp_path_factory.mktemp("tokenizer"), *MAKERS[request.param]())


def made(directory, model, decoder, **settings):
    """speq's tokenizer and the library's."""
    library = Tokenizer(model)
    if decoder is not None:
        library.decoder = decoder
    library.add_special_tokens(SPECIAL)
    library.add_tokens([AddedToken("<tool>", normalized=False)])
    library.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return speq.models.tokenizer.Tokenizer(directory), library


def decoded(library, ids):
    """The library's text, but of byte tokens that do not come out even, the characters before stay."""
    tokens = [library.id_to_token(i) for i in ids]
    tokens = [token for token in tokens if token is not None and token not in SPECIAL]
    if "ByteFallback" not in repr(library.decoder):
        return library.decode(list(ids))
    whole = []
    for named, run in groupby(tokens, lambda token: re.fullmatch("<0x..>", token) is not None):
        words = list(run)
        whole += [repaired(bytes(int(word[3:5], 16) for word in words))] if named else words
    return library.decoder.decode(whole)


def repaired(run):
    try:
        return run.decode()
    except UnicodeDecodeError as error:
        return run[: error.start].decode() + "\N{REPLACEMENT CHARACTER}" * (len(run) - error.start)


def streamed(detokenizer, ids):
    return "".join([*map(detokenizer.push, ids), detokenizer.flush()])


IDS = st.lists(st.integers(0, 285), max_size=30)


@settings(max_examples=50)
@given(ids=IDS)
@example(ids=[256, 257, 258])
def test_streamed_text_is_that_of_all_tokens_at_once(tokenizer, ids):
    ours, library = tokenizer
    assert streamed(ours.stream(), ids) == decoded(library, ids)
    assert ours.decode(ids) == decoded(library, ids)


@settings(max_examples=50)
@given(ids=IDS, cut=st.integers(0, 30))
def test_a_continuation_is_what_the_prompt_lacks_of_the_whole(tokenizer, ids, cut):
    ours, library = tokenizer
    prompt, new = ids[:cut], ids[cut:]
    whole, before = decoded(library, ids), decoded(library, prompt)
    text = streamed(ours.stream(prompt), new)
    if whole.startswith(before):
        assert text == whole[len(before) :]
    else:  # the prompt ends within a character, or where what follows decides
        assert whole.endswith(text)


@given(ids=IDS)
def test_the_end_is_stripped_once_it_is_known(end_stripper, ids):
    ours, library = end_stripper
    begin = [
        library.token_to_id("n"),
        library.token_to_id("t"),
    ]  # the library fails on tokens shorter than what it takes
    assert streamed(ours.stream(), begin + ids) == decoded(library, begin + ids)


@pytest.fixture(scope="module")
def end_stripper(tmp_path_factory):
    return made(tmp_path_factory.mktemp("tokenizer"), *sentence_piece(decoders.Strip(" ", 0, 2)))


@pytest.mark.parametrize("name", ["byte level", "Llama"])
@pytest.mark.parametrize("length", [1, 4000])
def test_bytes_that_form_no_character_come_out_as_they_come(tmp_path, name, length):
    ours, library = made(tmp_path, *MAKERS[name]())
    bad = library.token_to_id("ÿ" if name == "byte level" else "<0xFF>")
    detokenizer, shown = ours.stream(), 0
    for count in range(1, length + 1):
        shown += len(detokenizer.push(bad))
        assert count - shown <= 3
    assert shown + len(detokenizer.flush()) == len(decoded(library, [bad] * length))


class Counted:
    """How many tokens are looked up."""

    def __init__(self, token):
        self.token, self.calls = token, 0

    def __call__(self, index):
        self.calls += 1
        return self.token(index)


def test_work_grows_with_the_number_of_tokens_alone(tokenizer, monkeypatch):
    ours, _ = tokenizer
    detokenizer = ours.stream()
    counted = Counted(detokenizer._token_of)
    monkeypatch.setattr(detokenizer, "_token_of", counted)
    streamed(detokenizer, [7] * 500)
    assert counted.calls == 500


def test_a_prompt_that_ends_within_a_character_is_completed(tmp_path):
    ours, library = made(tmp_path, *MAKERS["Llama"]())
    ids = [library.token_to_id(token) for token in ("a", "<0xE2>", "<0x98>", "<0x83>", "▁b▁")]
    assert streamed(ours.stream(ids[:2]), ids[2:]) == "☃ b "
    assert streamed(ours.stream(ids[:1]), ids[1:]) == "☃ b "
    assert streamed(ours.stream(ids[:4]), ids[4:]) == " b "
    assert streamed(ours.stream(), ids[4:]) == "b "


@settings(max_examples=80)
@given(ids=IDS, stop=st.text("ab '.▁n☃\N{REPLACEMENT CHARACTER}", min_size=1, max_size=3))
def test_stop_strings_cut_the_streamed_text_where_they_stand_in_it(tokenizer, ids, stop):
    ours, library = tokenizer
    filtered, detokenizer, text = StopStrings([stop]), ours.stream(), ""
    for token in ids:
        text += filtered.push(detokenizer.push(token))
    text += filtered.push(detokenizer.flush()) + filtered.flush()
    assert text == decoded(library, ids).split(stop)[0]


# transformers 5 cleans up what WordPiece and Unigram decode, and leaves BPE alone unless it is told to corrupt it.
CLEANED = st.lists(st.sampled_from([*PIECES, *WORDS]), max_size=20)


@settings(max_examples=80)
@given(tokens=CLEANED)
@example(tokens=["x▁", "n", "▁'", "▁", "t"])
@pytest.mark.parametrize("kind", ["Unigram", "WordLevel", "BPE", "BPE, corrupted"])
def test_clean_up_of_spaces_is_that_of_transformers(cleaners, kind, tokens):
    ours, theirs = cleaners[kind]
    ids = [theirs.convert_tokens_to_ids(token) for token in tokens]
    assert streamed(ours.stream(), ids) == theirs.decode(ids)


@pytest.fixture(scope="module")
def cleaners(tmp_path_factory):
    found = {}
    vocabulary = {token: i for i, token in enumerate([*dict.fromkeys([*PIECES, *WORDS])])}
    for kind in ("Unigram", "WordLevel", "BPE", "BPE, corrupted"):
        model = {
            "Unigram": models.Unigram([(token, -1.0) for token in vocabulary], 0, False),
            "WordLevel": models.WordLevel(vocabulary, unk_token="."),
        }.get(kind, models.BPE(vocabulary, []))
        options = {"clean_up_tokenization_spaces": True}
        if kind == "BPE, corrupted":
            options["clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output"] = True
        directory = tmp_path_factory.mktemp("clean")
        ours, _ = made(directory, model, decoders.Metaspace(prepend_scheme="never"), **options)
        theirs = PreTrainedTokenizerFast(tokenizer_file=str(directory / "tokenizer.json"), **options)
        found[kind] = ours, theirs
    return found
