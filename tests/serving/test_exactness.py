"""The checks behind `speq verify`: every check passes on a sound engine, and every control is caught."""

from __future__ import annotations

import json

import pytest
from heads import write_random_head

import speq
from speq.checkpoint.store import load_converted
from speq.conversion.convert import convert
from speq.conversion.locate import converted_model
from speq.models.tensors import load_fitting
from speq.runtime.sampling import Sampling
from speq.serving import exactness
from speq.serving.exactness import Outcome, Subject, outcomes

SAMPLINGS = [Sampling(), Sampling(0.8, top_k=30, top_p=0.95, seed=3), Sampling(1.3, seed=5)]
PROMPTS = [[10, 200, 33, 33, 7], [65, 66, 67, 10, 65, 66, 67, 10, 65, 66]]


@pytest.fixture(scope="module")
def subject(tiny_checkpoint, tmp_path_factory):
    path = tmp_path_factory.mktemp("converted") / "model"
    convert(tiny_checkpoint, path, threads=1)
    return Subject(load_converted(path), PROMPTS, 2, 12)


def test_a_sound_engine_passes_and_disturbances_are_caught(subject):
    done = list(outcomes(subject))
    assert [outcome for outcome in done if not outcome.passed] == []
    assert sum(outcome.control for outcome in done) == 3
    assert all(outcome.compared > 8 for outcome in done)


@pytest.mark.parametrize(
    ("check", "disturbed"),
    [
        (lambda s, e: exactness.check_rows(s, e), exactness.DisturbedSum),
        (lambda s, e: exactness.check_neighbours(s, e), exactness.DisturbedSum),
        (lambda s, e: exactness.check_pages(s, e), exactness.DisturbedSum),
        (lambda s, e: exactness.check_trees(s, s.base, e), exactness.DisturbedMask),
        (lambda s, e: exactness.check_drafts(s, e, exactness._SAMPLINGS["hot"]), exactness.DisturbedDraw),
        (lambda s, e: exactness.check_texts_at_once(s, e), exactness.DisturbedDraw),
    ],
)
def test_a_disturbed_engine_fails_a_check(subject, check, disturbed):
    _, differing = check(subject, disturbed(subject.base))
    assert differing > 0


@pytest.mark.parametrize("helper", ["head", "itself", "another model"])
def test_drafts_of_what_helps_are_tried(helper, tiny_checkpoint, write_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("SPEQ_CACHE", str(tmp_path / "cache"))
    if helper == "head":
        config = json.loads((tiny_checkpoint / "config.json").read_text())
        model = speq.load(tiny_checkpoint, threads=1, draft_head=write_random_head(tmp_path / "head", config))
    else:
        other = tiny_checkpoint if helper == "itself" else write_checkpoint(tmp_path / "small", seed=5)
        model = speq.load(tiny_checkpoint, threads=1, draft_model=other)
    converted = load_fitting(converted_model(str(tiny_checkpoint)))
    prompts = [PROMPTS[0], PROMPTS[1][:6]]
    helped = Subject(converted, prompts, 1, 12, head=model.head, draft_model=model.draft_model)
    without = Subject(converted, prompts, 1, 12)
    for sampling in SAMPLINGS:
        compared, differing = exactness.check_drafts(helped, helped.base, sampling)
        assert differing == 0
        assert compared > exactness.check_drafts(without, without.base, sampling)[0]
    assert exactness.check_drafts(helped, exactness.DisturbedDraw(helped.base), SAMPLINGS[2])[1] > 0


def test_a_control_without_a_difference_is_a_failure():
    assert not Outcome("sum", "rows", 10, 0, True, 0.1).passed
    assert not Outcome("rows", "one", 10, 1, False, 0.1).passed
    assert not Outcome("rows", "one", 0, 0, False, 0.1).passed
