"""The demo on a tiny checkpoint: what it prints, and that it would notice a differing token."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import speq
from speq.bench import demo
from speq.conversion.locate import converted_model
from speq.errors import SpeqError


@pytest.fixture
def tiny_demo(tiny_checkpoint, tmp_path, monkeypatch):
    """The demo with a tiny model and short answers."""
    monkeypatch.setenv("SPEQ_CACHE", str(tmp_path))
    monkeypatch.setattr(
        demo, "converted_model", lambda name, progress: converted_model(str(tiny_checkpoint), progress=progress)
    )
    monkeypatch.setattr(demo, "NEW_TOKENS", 12)


def test_the_demo_compares_and_succeeds(tiny_demo, capsys):
    assert demo.main() == 0
    out = capsys.readouterr().out
    assert demo.FIRST_PROMPT in out
    for row in ("tokens/s", "tokens per round", "drafted tokens accepted", "weights on disk"):
        assert row in out
    assert f"all {2 * 12 * len(demo.PROMPTS)} token ids are identical" in out


def test_a_differing_token_fails_the_demo(tiny_demo, capsys, monkeypatch):
    generate = speq.Model.generate

    def wrong_once(model, prompt, **options):
        result = generate(model, prompt, **options)
        if options["draft"] == "self" and prompt == demo.PROMPTS[0]:
            result.token_ids[3] += 1
        return result

    monkeypatch.setattr(speq.Model, "generate", wrong_once)
    assert demo.main() == 1
    assert "2 of " in capsys.readouterr().out


def test_errors_and_interruptions_are_one_line(capsys, monkeypatch):
    for error, code, line in ((SpeqError("no network"), 1, "speq: no network"), (KeyboardInterrupt(), 130, "speq: ")):

        def fail(name, progress, error=error):
            raise error

        monkeypatch.setattr(demo, "converted_model", fail)
        assert demo.main() == code
        assert capsys.readouterr().err.strip().startswith(line)


@pytest.mark.parametrize(
    ("plain", "fast", "differing"),
    [([[1, 2]], [[1, 2]], 0), ([[1, 2]], [[1, 3]], 1), ([[1, 2], [5]], [[1], [5, 6]], 2)],
)
def test_differing_counts_wrong_and_missing_tokens(plain, fast, differing):
    results = [[SimpleNamespace(token_ids=ids) for ids in side] for side in (plain, fast)]
    assert demo.Comparison(*results).differing == differing
