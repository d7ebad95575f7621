"""Heads and draft models on the command line: the same text, and one clear line where something does not fit."""

from __future__ import annotations

import json

import pytest
from heads import write_random_head


@pytest.fixture(scope="module")
def head(tiny_checkpoint, tmp_path_factory):
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    return write_random_head(tmp_path_factory.mktemp("heads") / "head", config)


@pytest.fixture(scope="module")
def small(write_checkpoint, tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("models") / "small", seed=5)


def text(speq_run, model, *options):
    code, out, err = speq_run("generate", model, "-p", "abc", "-n", 20, "--json", *options)
    assert (code, err) == (0, "")
    return json.loads(out)


def test_a_head_and_a_draft_model_draft_and_change_no_token(speq_run, tiny_checkpoint, head, small):
    plain = text(speq_run, tiny_checkpoint, "--draft", "none")
    for options in (
        ["--draft-head", head],
        ["--draft-head", head, "--draft", "head", "--draft-length", "4"],
        ["--draft-head", head, "--draft", "head-direct", "--draft-length", "4"],
        ["--draft-model", small],
        ["--draft-model", small, "--draft", "model", "--draft-length", "4"],
        ["--draft-model", small, "--draft", "model-direct", "--draft-length", "4"],
    ):
        found = text(speq_run, tiny_checkpoint, *options)
        assert found["token_ids"] == plain["token_ids"]
    code, out, _ = speq_run("chat", tiny_checkpoint, "--draft-model", small, "-n", 5, stdin=b"abc\n")
    assert (code, len(out) > 0) == (0, True)


def test_verify_has_them_among_its_drafters(speq_run, tiny_checkpoint, head, small):
    def compared(*options):
        code, out, _ = speq_run("verify", tiny_checkpoint, "-n", 4, "--threads", 1, "--json", *options)
        assert code == 0
        checks = json.loads(out)["checks"]
        return sum(check["compared"] for check in checks if check["name"].startswith("drafts of all lengths"))

    plain = compared()
    assert plain > 0
    assert compared("--draft-head", head) > plain
    assert compared("--draft-model", small) > plain


@pytest.mark.parametrize("verb", ["generate", "chat"])
def test_contradictions_are_wrong_usage(speq_run, tiny_checkpoint, head, verb):
    prompt = ["-p", "a"] if verb == "generate" else []
    for options, message in [
        (["--draft-head", head, "--draft-model", tiny_checkpoint], "exclude each other: give one of them"),
        (
            ["--draft-head", head, "--draft", "none"],
            "the draft none has no use for a draft head",
        ),
        (["--draft-model", tiny_checkpoint, "--draft", "cascade"], "the draft cascade has no use for a draft model"),
        (["--draft", "model"], "the draft model needs another model: name one with --draft-model"),
        (["--draft", "head-direct"], "the draft head-direct needs a trained head"),
        (["--draft-model", tiny_checkpoint, "--draft", "head"], "the draft head needs a trained head"),
    ]:
        code, out, err = speq_run(verb, tiny_checkpoint, *prompt, *options)
        assert (code, out) == (2, "")
        assert message in err
    assert speq_run("verify", tiny_checkpoint, "--draft-head", head, "--draft-model", tiny_checkpoint)[0] == 2


def test_what_does_not_fit_is_one_clear_line(fails, tiny_checkpoint, write_checkpoint, tmp_path):
    bare = write_checkpoint(tmp_path / "bare", tokenizer=False)
    for options, message in [
        (["--draft-head", tmp_path / "nowhere"], "nowhere is no trained head"),
        (["--draft-model", tmp_path / "nowhere"], "nowhere does not exist"),
        (["--draft-model", bare], "has no tokenizer"),
    ]:
        assert message in fails("generate", tiny_checkpoint, "-p", "a", *options)
