"""`speq verify` on the command line."""

from __future__ import annotations

import json

from speq.serving import exactness


def test_the_command_says_what_was_compared(speq_run, tiny_checkpoint):
    code, out, err = speq_run("verify", tiny_checkpoint, "-n", 6, "--threads", 1)
    assert (code, err) == (0, "")
    assert "FAILED" not in out
    assert "ok     control: disturbed mask | chains" in out
    assert out.splitlines()[-1].startswith("all ")
    code, out, _ = speq_run("verify", tiny_checkpoint, "-n", 6, "--threads", 1, "--json")
    report = json.loads(out)
    assert (code, report["passed"]) == (0, True)
    assert {"name", "compared", "differing", "control", "passed"} <= set(report["checks"][0])


def test_the_command_fails_if_a_check_does(speq_run, tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(exactness, "check_neighbours", lambda subject, engine: (5, 1))
    code, out, _ = speq_run("verify", tiny_checkpoint, "-n", 6, "--threads", 1)
    assert code == 1
    assert "FAILED neighbours in a pass | a sequence alone | 1 of 5 differ" in out
    assert out.splitlines()[-1].startswith("1 of ")
