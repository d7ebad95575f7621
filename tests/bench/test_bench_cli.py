"""`speq bench` on a tiny model: tables, JSON, and one clear line for what is wrong."""

from __future__ import annotations

import json

import pytest

from speq.cli import run

PROMPT = {"id": "p", "category": "c", "turns": ["hi"]}


@pytest.fixture
def speq_run(capsys):
    def call(*arguments):
        code = run(["bench", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def prompt_file(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({**PROMPT, "id": f"p/{i}", "turns": [f"hi {i}"]}) + "\n" for i in range(3)))
    return path


def test_kernels(speq_run, tiny_converted, slow_memory, tmp_path):
    code, out, _ = speq_run("kernels", tiny_converted, "--threads", 1, "--rounds", 1, "--json", tmp_path / "k.json")
    assert code == 0
    assert "Matrix products" in out
    assert "gate, up" in out
    content = json.loads((tmp_path / "k.json").read_text())
    assert (content["kind"], content["machine"]["threads"], content["model"]["format"]) == ("kernels", 1, "nested")
    assert set(content["results"]) == {"kernels", "attention", "others"}


def test_decode(speq_run, tiny_converted, slow_memory, tmp_path, prompt_file):
    options = ("--prompts", prompt_file, "--count", 2, "--new-tokens", 6, "--threads", 1, "--rounds", 1)
    code, out, err = speq_run("decode", tiny_converted, *options, "--json", tmp_path / "d.json")
    assert code == 0
    assert "speed-up" in out
    assert "note: p/1: " in err
    results = json.loads((tmp_path / "d.json").read_text())["results"]
    names = {"passes", "prompts", "end_to_end", "prefill", "overhead", "attention", "memory"}
    assert set(results) == names
    assert [row["prompt"] for row in results["prompts"]] == ["p/1", "p/2"]
    assert all(row["same"] for row in results["prompts"])


def test_peers(speq_run, tiny_converted, slow_memory, tmp_path, prompt_file, monkeypatch):
    monkeypatch.setattr("speq.bench.peers.compare._PAUSE", 0.0)
    options = ("--engine", "speq", "--prompts", prompt_file, "--new-tokens", 6, "--threads", 1)
    code, out, _ = speq_run("peers", tiny_converted, *options, "--json", tmp_path / "p.json")
    assert code == 0
    assert "speq-plain" in out
    results = json.loads((tmp_path / "p.json").read_text())["results"]
    assert [row["same_answers"] for row in results["engines"]] == [2, 2]


def test_plot_writes_files(speq_run, tmp_path):
    pytest.importorskip("matplotlib")
    report = {
        "schema": 1,
        "kind": "decode",
        "date": "d",
        "model": {"name": "m"},
        "machine": {"processor": "P", "threads": 1},
    }
    rows = [{"kind": "plain", "tokens": 1, "plain_ratio": 1.0}]
    (tmp_path / "run.json").write_text(json.dumps({**report, "results": {"passes": rows}}))
    code, out, _ = speq_run("plot", tmp_path / "run.json", "--out", tmp_path)
    assert (code, out.split()) == (0, [str(tmp_path / f"run-cost.{kind}") for kind in ("png", "svg")])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("decode", "MODEL", "--prompts", "no-such-file"), "cannot read prompts from no-such-file"),
        (("decode", "MODEL", "--count", 6), "6 prompts come with speq, not 7"),
        (("kernels", "MODEL", "--json", "no/such/place.json"), "cannot write no/such/place.json"),
        (("kernels", "no-such-directory/model.gguf"), "does not exist"),
        (("peers", "MODEL", "--json", "/"), "cannot write /: it is a directory"),
        (("plot", "no-such.json"), "cannot read no-such.json"),
    ],
)
def test_errors_are_one_line(speq_run, tiny_converted, arguments, said):
    code, out, err = speq_run(*(tiny_converted if argument == "MODEL" else argument for argument in arguments))
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert said in err


def test_unknown_engines_are_wrong_usage(speq_run, tiny_converted):
    code, _, err = speq_run("peers", tiny_converted, "--engine", "vllm")
    assert code == 2
    assert "'vllm' is not one of 'speq-plain', 'speq', 'transformers-bf16'" in err
