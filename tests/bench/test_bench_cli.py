"""`speq bench` on a tiny model: tables, JSON, and one clear line for what is wrong."""

from __future__ import annotations

import json

import pytest

from speq.bench.results import figures, read_csv, rows_of
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


def test_passes_are_kept_and_drawn(speq_run, tiny_converted, slow_memory, tmp_path):
    pytest.importorskip("matplotlib")
    options = ("--threads", 1, "--rounds", 1, "--csv", tmp_path / "p.csv", "--json", tmp_path / "p.json")
    code, out, _ = speq_run("passes", tiny_converted, *options)
    assert code == 0
    assert "of a plain pass" in out
    kept = figures(json.loads((tmp_path / "p.json").read_text()))
    assert read_csv(tmp_path / "p.csv") == kept
    assert {each.table for each in kept} == {"passes"}
    assert {("draft", 1), ("plain", 1), ("verify", 16)} <= {(each.kind, each.tokens) for each in kept}
    for source in ("p.csv", "p.json"):
        code, out, _ = speq_run("plot", tmp_path / source, "--out", tmp_path / source[2:])
        assert (code, out.split()) == (0, [str(tmp_path / source[2:] / f"p-cost.{kind}") for kind in ("png", "svg")])


def test_decode(speq_run, tiny_converted, slow_memory, tmp_path, prompt_file):
    options = ("--prompts", prompt_file, "--count", 2, "--new-tokens", 6, "--threads", 1, "--rounds", 1)
    files = ("--json", tmp_path / "d.json", "--csv", tmp_path / "d.csv")
    code, out, err = speq_run("decode", tiny_converted, *options, *files)
    assert code == 0
    assert "speed-up" in out
    assert "note: p/1: " in err
    results = json.loads((tmp_path / "d.json").read_text())["results"]
    names = {"passes", "prompts", "end_to_end", "prefill", "overhead", "attention", "memory"}
    assert set(results) == names
    assert [row["prompt"] for row in results["prompts"]] == ["p/1", "p/2"]
    assert all(row["same"] for row in results["prompts"])
    kept = read_csv(tmp_path / "d.csv")
    assert {each.table for each in kept} == names
    assert rows_of(kept, "prompts") == results["prompts"]


def test_prompts_may_be_a_directory(speq_run, tiny_converted, slow_memory, tmp_path, prompt_file, monkeypatch):
    monkeypatch.setattr("speq.bench.peers.compare._PAUSE", 0.0)
    (tmp_path / "all").mkdir()
    for name in "ab":
        text = prompt_file.read_text().replace("p/", f"{name}/")
        (tmp_path / "all" / f"{name}.jsonl").write_text(text)
    options = ("--engine", "speq", "--prompts", tmp_path / "all", "--count", 1, "--new-tokens", 4, "--threads", 1)
    code, _, _ = speq_run("peers", tiny_converted, *options, "--json", tmp_path / "p.json")
    assert code == 0
    rows = json.loads((tmp_path / "p.json").read_text())["results"]["runs"]
    assert {row["prompt"] for row in rows} == {"a/1", "b/0", "b/1"}  # a/0 warms up


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
    rows = [{"kind": "plain", "tokens": 1, "plain_ratio": 1.0, "remark": "not kept"}]
    (tmp_path / "run.json").write_text(json.dumps({**report, "results": {"passes": rows}}))
    code, out, _ = speq_run("plot", tmp_path / "run.json", "--out", tmp_path)
    assert (code, out.split()) == (0, [str(tmp_path / f"run-cost.{kind}") for kind in ("png", "svg")])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("decode", "MODEL", "--prompts", "no-such-file"), "cannot read prompts from no-such-file"),
        (("decode", "MODEL", "--count", 6), "6 prompts come with speq, not 7"),
        (("passes", "MODEL", "--csv", "no/such/place.csv"), "cannot write no/such/place.csv"),
        (("decode", "MODEL", "--prompts", "EMPTY"), "has 0 prompts: give at least two"),
        (("plot", "no-such.csv"), "cannot read no-such.csv"),
        (("kernels", "MODEL", "--json", "no/such/place.json"), "cannot write no/such/place.json"),
        (("kernels", "no-such-directory/model.gguf"), "does not exist"),
        (("peers", "MODEL", "--json", "/"), "cannot write /: it is a directory"),
        (("plot", "no-such.json"), "cannot read no-such.json"),
    ],
)
def test_errors_are_one_line(speq_run, tiny_converted, tmp_path, arguments, said):
    places = {"MODEL": tiny_converted, "EMPTY": tmp_path}
    code, out, err = speq_run(*(places.get(argument, argument) for argument in arguments))
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert said in err


def test_unknown_engines_are_wrong_usage(speq_run, tiny_converted):
    code, _, err = speq_run("peers", tiny_converted, "--engine", "vllm")
    assert code == 2
    assert "'vllm' is not one of 'speq-plain', 'speq', 'transformers-bf16'" in err
