"""The programs in examples/ run as they stand, as programs of their own, and print what they are for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import speq
from speq.conversion.convert import convert

EXAMPLES = Path(__file__).parents[1] / "examples"
SAID = {
    "stream": ["tokens,", "a second", "drafted tokens were right"],
    "chat": ["> What is a river?", "> Name one."],
    "many": ["All to the end:", "in turns:", "Name a river in Asia."],
    "drafter": ["proposed tokens were right", "the same text as plain decoding: True"],
    "exact": ["sampled, draft cascade, 2 texts at once: 2 of 2 the same", "exact"],
}


@pytest.fixture(scope="module")
def model_path(tiny_checkpoint, tmp_path_factory):
    return convert(tiny_checkpoint, tmp_path_factory.mktemp("examples") / "tiny").path


def run(name, model_path):
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), str(model_path)],
        input="What is a river?\nName one.\n\nnever asked\n",
        capture_output=True,
        encoding="utf-8",
        env=environment,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_every_example_is_tested_and_listed():
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == set(SAID)
    listed = (EXAMPLES / "README.md").read_text()
    assert all(f"[{name}.py]({name}.py)" in listed for name in names)


@pytest.mark.parametrize("name", sorted(SAID))
def test_examples_run_and_say_what_they_show(name, model_path):
    printed = run(name, model_path)
    for text in SAID[name]:
        assert text in printed
    assert "never asked" not in printed


def test_the_check_of_exactness_notices_a_difference(model_path, monkeypatch, capsys):
    scope: dict[str, object] = {"__name__": "example"}
    exec((EXAMPLES / "exact.py").read_text(), scope)
    whole = speq.Model.generate_many

    def disturbed(self, prompts, **options):
        results = whole(self, prompts, **options)
        results[0].token_ids[-1] += 1
        return results

    monkeypatch.setattr(speq.Model, "generate_many", disturbed)
    assert scope["main"](str(model_path)) == 1
    assert "NOT exact" in capsys.readouterr().out
