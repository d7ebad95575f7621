"""The text that calibration runs, in a model's own tokens."""

from __future__ import annotations

import itertools
import shutil

import pytest

from speq.conversion.samples import read_samples
from speq.models.tokenizer import Tokenizer


def test_samples_are_conversations_and_repeat_nothing(tiny_checkpoint):
    tokenizer = Tokenizer(tiny_checkpoint)
    samples = read_samples(tokenizer, 200)
    assert len(samples) > 4
    assert max(len(sample.tokens) for sample in samples) == 200
    for before, sample in itertools.pairwise(samples):
        assert sample.tokens[: sample.known].tolist() == before.tokens[: sample.known].tolist()
        assert sample.known < len(sample.tokens)
        if len(before.tokens) > sample.known:
            assert sample.tokens[sample.known] != before.tokens[sample.known]


@pytest.mark.parametrize(
    "template", ["{{ messages[0].content.index('zzz') }}", "{% if %}", "{{ raise_exception('no') }}"]
)
def test_samples_are_plain_text_where_the_template_takes_no_conversation(tiny_checkpoint, tmp_path, template):
    shutil.copytree(tiny_checkpoint, tmp_path / "model")
    (tmp_path / "model" / "chat_template.jinja").write_text(template)
    tokenizer = Tokenizer(tmp_path / "model")
    first = tokenizer.decode(read_samples(tokenizer, 200)[0].tokens.tolist())
    assert "\n" in first
    assert tokenizer.encode(first, special=False) == read_samples(tokenizer, 200)[0].tokens.tolist()
