"""Another model that drafts, on real kernels: no token depends on it, and only one with the same tokens is taken."""

from __future__ import annotations

import json

import pytest

import speq
from speq.runtime.sampling import Sampling
from speq.serving.draft_model import load_draft_model

SAMPLINGS = [Sampling(), Sampling(0.8, top_k=30, top_p=0.95, seed=3), Sampling(1.3, seed=5)]
DRAFTS = ["model", "model-direct", "auto"]
PROMPT = [10, 200, 33, 33, 7]


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPEQ_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def small(write_checkpoint, tmp_path_factory):
    """A checkpoint with other weights and the same tokens."""
    return write_checkpoint(tmp_path_factory.mktemp("models") / "small", seed=5)


@pytest.fixture(scope="module", params=["itself", "another"])
def model(request, tiny_checkpoint, small, _cache):
    return speq.load(tiny_checkpoint, threads=1, draft_model=tiny_checkpoint if request.param == "itself" else small)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["greedy", "sampled", "hot"])
@pytest.mark.parametrize("draft", DRAFTS)
def test_no_token_depends_on_a_draft_model(model, draft, sampling):
    options = {"sampling": sampling, "max_new_tokens": 40}
    prompts = [PROMPT, list(range(50)), [*range(50), 3], [5]]
    plain = [model.generate(prompt, draft="none", **options).token_ids for prompt in prompts]
    for length in (None, 1, 5, 16):
        together = model.generate_many(prompts, draft=draft, draft_length=length, **options)
        assert [found.token_ids for found in together] == plain
    model.reset()
    assert model.draft_model.kv.used_pages == 0
    assert model.generate(PROMPT, draft=draft, **options).token_ids == plain[0]


def test_a_model_that_drafts_for_itself_is_often_right(tiny_checkpoint, small):
    rates = []
    for drafting in (tiny_checkpoint, small):
        model = speq.load(tiny_checkpoint, threads=1, draft_model=drafting)
        found = model.generate(PROMPT, draft="model-direct", draft_length=5, max_new_tokens=60)
        rates.append(found.stats.acceptance_rate)
    assert rates[0] > max(0.1, 2 * rates[1])


def with_tokens(path, change):
    """Change the tokenizer of a checkpoint."""
    content = json.loads((path / "tokenizer.json").read_text())
    change(content)
    (path / "tokenizer.json").write_text(json.dumps(content))
    return path


def test_a_model_with_other_tokens_is_refused(tiny_checkpoint, write_checkpoint, tmp_path):
    def swap(content):
        vocabulary = content["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]

    other = with_tokens(write_checkpoint(tmp_path / "other"), swap)
    with pytest.raises(speq.SpeqError, match=r"other has another tokenizer \(token \d+ is '[ab]' there and"):
        speq.load(tiny_checkpoint, threads=1, draft_model=other)
    bare = write_checkpoint(tmp_path / "bare", tokenizer=False)
    with pytest.raises(speq.SpeqError, match="bare has the same tokens: it has no tokenizer"):
        speq.load(tiny_checkpoint, threads=1, draft_model=bare)
    with pytest.raises(speq.SpeqError, match="same tokens: this model has no tokenizer"):
        speq.load(bare, threads=1, draft_model=tiny_checkpoint)
    with pytest.raises(speq.SpeqError, match="nowhere does not exist"):
        speq.load(tiny_checkpoint, threads=1, draft_model=tmp_path / "nowhere")


def test_a_model_may_have_more_tokens_after_the_others(tiny_checkpoint, write_checkpoint, tmp_path):
    def add(content):
        template = content["added_tokens"][-1]
        content["added_tokens"].append({**template, "id": 259, "content": "<|more|>"})

    more = with_tokens(write_checkpoint(tmp_path / "more"), add)
    model = speq.load(tiny_checkpoint, threads=1, draft_model=more)
    options = {"max_new_tokens": 20, "raw": True}
    plain = model.generate("abc", draft="none", **options).token_ids
    assert model.generate("abc", draft="model", draft_length=4, **options).token_ids == plain


def test_models_without_tokenizers_are_compared_by_the_size_of_their_vocabularies(write_checkpoint, tmp_path):
    bare, other = (write_checkpoint(tmp_path / name, tokenizer=False) for name in ("bare", "other"))
    model = speq.load(bare, threads=1, draft_model=other)
    plain = model.generate(PROMPT, draft="none", max_new_tokens=10).token_ids
    assert model.generate(PROMPT, draft="model", max_new_tokens=10).token_ids == plain


def test_a_draft_model_has_room_for_as_many_texts_and_no_longer_ones(tiny_checkpoint, small):
    model = speq.load(tiny_checkpoint, threads=1, context=100, sequences=3, draft_model=small)
    limits = model.draft_model.limits
    assert (limits.context, limits.sequences) == (100, 3)
    short = load_draft_model(small, model.tokenizer, model.engine.engine, threads=1)
    assert short.limits.context == 100


def test_what_a_draft_needs_is_named_and_two_first_stages_are_refused(tiny_checkpoint, small, tmp_path):
    plain = speq.load(tiny_checkpoint, threads=1)
    for draft in ("model", "model-direct"):
        with pytest.raises(speq.SpeqError, match=f"the draft {draft} needs another model: name one with --draft-model"):
            plain.stream([1], draft=draft)
    with pytest.raises(speq.SpeqError, match="the draft head needs a trained head"):
        speq.load(tiny_checkpoint, threads=1, draft_model=small).stream([1], draft="head")
    with pytest.raises(speq.SpeqError, match="exclude each other"):
        speq.load(tiny_checkpoint, threads=1, draft_model=small, draft_head=tmp_path)
