"""The promise on real kernels: speculation changes no token id, in any format, dtype, draft length or sampling mode."""

from __future__ import annotations

import pytest

import speq
from speq.backends.cpu import available_isas
from speq.checkpoint.store import load_converted
from speq.conversion.convert import convert
from speq.runtime.engine import Engine
from speq.serving.api import Model

TOKENS = 60
PROMPT = [10, 200, 33, 33, 7]
SAMPLINGS = {
    "greedy": speq.Sampling(),
    "sampled": speq.Sampling(temperature=0.8, top_k=50, top_p=0.95, min_p=0.01, seed=11),
    "hot": speq.Sampling(temperature=1.5, seed=3),
}


@pytest.fixture(scope="module", params=[("nested", "bf16"), ("nested", "fp16"), ("e3m0", "bf16"), ("e3m0", "fp16")])
def converted(request, tiny_checkpoint, tmp_path_factory):
    format, dtype = request.param
    path = tmp_path_factory.mktemp("converted") / "model"
    convert(tiny_checkpoint, path, format=format, dtype=dtype, threads=1)
    return load_converted(path)


def generate(model, sampling, **options):
    model.reset()
    return model.generate(PROMPT, sampling=sampling, max_new_tokens=TOKENS, **options)


@pytest.mark.parametrize("isa", available_isas())
@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
def test_no_draft_length_changes_a_token(converted, sampling, isa, monkeypatch):
    monkeypatch.setenv("SPEQ_ISA", isa)
    model = Model(Engine(converted, threads=1), None)
    plain = generate(model, sampling, draft="none")
    assert len(plain.token_ids) == TOKENS
    accepted = 0
    for length in [*range(1, 17), None]:
        result = generate(model, sampling, draft="self", draft_length=length)
        assert result.token_ids == plain.token_ids, f"draft length {length}"
        accepted += result.stats.accepted
    assert generate(model, sampling, draft="auto").token_ids == plain.token_ids
    for draft in ("ngram", "cascade"):
        for length in (1, 5, 16, None):
            result = generate(model, sampling, draft=draft, draft_length=length)
            assert result.token_ids == plain.token_ids, f"{draft}, draft length {length}"
    assert accepted > 100  # otherwise the test would say little


def test_threads_change_no_token(converted):
    one, two = (Model(Engine(converted, threads=threads), None) for threads in (1, 2))
    for sampling in SAMPLINGS.values():
        options = {"sampling": sampling, "draft": "self", "draft_length": 4}
        assert generate(one, **options).token_ids == generate(two, **options).token_ids


def test_a_continued_cache_changes_no_token(converted):
    """A second prompt that begins with the first text and its answer is computed on the first one's cache."""
    model = Model(Engine(converted, threads=1), None)
    first = generate(model, SAMPLINGS["greedy"], draft="self", draft_length=5)
    prompt = PROMPT + first.token_ids[:40] + [1, 2, 3]
    continued = model.generate(prompt, max_new_tokens=40)
    model.reset()
    assert model.generate(prompt, max_new_tokens=40, draft="none").token_ids == continued.token_ids


def test_the_reference_draws_the_same_greedy_text(converted):
    """Native and reference logits differ in rounding only, so the text agrees unless two logits nearly tie."""
    native = generate(Model(Engine(converted, threads=1), None), SAMPLINGS["greedy"]).token_ids
    reference = generate(Model(Engine(converted, backend="reference"), None), SAMPLINGS["greedy"]).token_ids
    same = next((i for i, pair in enumerate(zip(native, reference, strict=True)) if pair[0] != pair[1]), TOKENS)
    assert same >= 20
