"""What is kept of the model's view of some rows, the choice of a vocabulary, and heads written and read again."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from speq.errors import SpeqError
from speq.models.config import model_config
from speq.models.head import HeadConfig, parameter_shapes
from speq.models.head_files import read_head
from speq.training.layout import write_head
from speq.training.pool import Pool
from speq.training.target import ROUND, Target
from speq.training.vocabulary import choose_vocabulary

LENGTH = 5 * ROUND + 3


@pytest.fixture(scope="module")
def target(random_model):
    return Target(*random_model(), "cpu")


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(2)
    return rng.integers(0, 97, (6, LENGTH)).astype(np.int32), rng.random((6, LENGTH)) < 0.5


def test_a_pool_holds_what_the_model_says_of_its_rows(target, rows):
    tokens, answers = rows
    offsets = iter([0, 3, 5])
    pool = Pool(target, (1, 2, 2), tokens, answers, 2, lambda: next(offsets))
    for first, offset in ((0, 0), (2, 3), (4, 5)):
        chosen = torch.tensor([first + 1, first])
        given = torch.from_numpy(tokens[[first + 1, first]].astype(np.int64))
        reading = target.read(given, (1, 2, 2), offset)
        for level in ("draft", "exact"):
            torch.testing.assert_close(pool.features(chosen, level), reading.features[level], rtol=1e-2, atol=1e-2)
        truth = pool.truth(chosen)
        assert torch.equal(truth.tokens, given)
        assert torch.equal(truth.chosen, target.chosen("draft", reading.final["draft"]))
        assert torch.equal(truth.wanted[:, :-1], torch.from_numpy(answers[[first + 1, first], 1:]))
        assert not truth.wanted[:, -1].any()
        known = torch.tensor([3, 50, 96])
        logits = torch.nn.functional.linear(reading.final["draft"], target.head("draft"))[..., known]
        likely = pool.likely(chosen, target.head("draft")[known])
        torch.testing.assert_close(likely, logits.softmax(-1), rtol=0.1, atol=0.02)


def test_mixtures_are_of_both_levels_in_stretches_of_a_round(target, rows):
    tokens, answers = rows
    pool, chosen = Pool(target, (1, 2, 2), tokens, answers, 6, lambda: 0), torch.arange(6)
    draft, exact = pool.features(chosen, "draft"), pool.features(chosen, "exact")
    mixed = [pool.mixed(chosen, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(mixed[0], mixed[1])
    assert not torch.equal(mixed[0], mixed[2])
    is_exact = (mixed[0] == exact).all(-1)
    assert ((mixed[0] == draft).all(-1) | is_exact).all()
    for row in is_exact:
        for begin in range(0, LENGTH, ROUND):
            assert len(set(row[begin : begin + ROUND].tolist())) == 1
    assert 0.2 < is_exact.float().mean() < 0.8


def test_a_vocabulary_is_the_tokens_that_pay_in_multiples_of_64_with_those_that_end_a_text():
    config = model_config({"model_type": "llama", **_SIZES})
    counts = np.zeros(1000, np.int64)
    counts[10:110] = 1000
    counts[500:600] = 2
    counts[999] = 1
    row = config.hidden_size * 4.25 / 8
    # The rarer ones have a share of 1.996e-5. If 2.1e-5 pays: the hundred frequent ones, filled up to 128 with the
    # first of the others, and id 7.
    known = choose_vocabulary(counts, None, frozenset({7}), config, int(3 * row / 2.1e-5))
    assert len(known) == 128
    assert known.tolist() == [7, *range(10, 110), *range(500, 527)]
    assert len(choose_vocabulary(counts, None, frozenset({7}), config, int(3 * row / 1.9e-5))) == 256
    assert choose_vocabulary(counts, 3, frozenset({7, 12345}), config, 1).tolist() == [7, 10, 11]
    assert len(choose_vocabulary(counts, 5000, frozenset(), config, 1)) == 1000
    with pytest.raises(SpeqError, match="before the model says anything"):
        choose_vocabulary(np.zeros(10, np.int64), None, frozenset(), config, 1)


_SIZES = {
    "vocab_size": 1000,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
ROPES = {
    "default": {},
    "theta": {"rope_theta": 1e6},
    "new entries": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "linear": {"rope_scaling": {"type": "linear", "factor": 2.5}, "rope_theta": 5000.0},
    "yarn": {"rope_scaling": {"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64}},
}


@pytest.mark.parametrize("rope", ROPES)
def test_a_head_keeps_its_sizes_and_the_models_rotary_angles(rope, tmp_path):
    model = {"model_type": "qwen2", **_SIZES, **ROPES[rope]}
    config = HeadConfig.of(model_config(model), 72, 11, (1, 2, 2))
    rng = np.random.default_rng(0)
    parameters = {n: rng.standard_normal(s).astype(np.float32) for n, s in parameter_shapes(config).items()}
    known = np.sort(rng.permutation(1000)[:11])
    write_head(tmp_path, config, parameters, known, model, "model", 4, {})
    stored = read_head(tmp_path)
    assert stored.config == config
    assert np.array_equal(stored.known, known)
    for name, value in parameters.items():
        np.testing.assert_allclose(stored.parameters[name], value, rtol=2**-8)


def test_what_is_no_head_is_named(tmp_path):
    with pytest.raises(SpeqError, match="is no trained head"):
        read_head(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(SpeqError, match=r"model\.safetensors is missing"):
        read_head(tmp_path)
