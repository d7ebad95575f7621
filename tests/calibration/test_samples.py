"""The text that calibration runs, in a model's own tokens."""

from __future__ import annotations

import itertools

from speq.calibration.samples import read_samples
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
