"""The checks behind `speq verify`: every check passes on a sound engine, and every control is caught."""

from __future__ import annotations

import pytest

from speq.checkpoint.store import load_converted
from speq.conversion.convert import convert
from speq.serving import exactness
from speq.serving.exactness import Outcome, Subject, outcomes

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


def test_a_control_without_a_difference_is_a_failure():
    assert not Outcome("sum", "rows", 10, 0, True, 0.1).passed
    assert not Outcome("rows", "one", 10, 1, False, 0.1).passed
    assert not Outcome("rows", "one", 0, 0, False, 0.1).passed
