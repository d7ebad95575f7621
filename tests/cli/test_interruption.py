"""How commands end when they are interrupted, or when nobody reads on."""

from __future__ import annotations

import json
import subprocess

import pytest


@pytest.mark.parametrize("as_json", [False, True])
def test_an_interruption_keeps_text_and_statistics(speq_run, tiny_checkpoint, truth, monkeypatch, as_json):
    from speq.runtime.engine import Engine

    run, calls = Engine.run, []

    def interrupted(self, batch):
        calls.append(batch)
        if len(calls) == 11:
            raise KeyboardInterrupt
        return run(self, batch)

    monkeypatch.setattr(Engine, "run", interrupted)
    options = ["-p", "hi", "-n", 30, "--draft", "none", *(["--json"] if as_json else [])]
    code, out, err = speq_run("generate", tiny_checkpoint, *options)
    assert (code, err) == (130, "")
    if as_json:
        result = json.loads(out)
        assert (result["finish_reason"], result["new_tokens"]) == ("interrupted", 10)
        assert result["token_ids"] == truth.token_ids[:10]
        out = result["text"]
    assert truth.text.startswith(out.removesuffix("\n"))


def test_an_interruption_elsewhere_is_exit_code_130(speq_run, tiny_checkpoint, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("speq.conversion.locate.converted_model", interrupted)
    code, out, err = speq_run("generate", tiny_checkpoint, "-p", "hi")
    assert (code, out, err.strip()) == (130, "", "speq: interrupted")


def test_a_closed_pipe_is_no_error(command, tiny_checkpoint, truth):
    arguments = ("generate", tiny_checkpoint, "-p", "hi", "-n", 100, "--threads", 1)
    process = subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 0
