"""What the commands print and write."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import speq


def test_generate_prints_the_text_and_nothing_else(speq_run, tiny_checkpoint, truth):
    for draft in ("none", "self", "auto"):
        code, out, err = speq_run("generate", tiny_checkpoint, "-p", "hi", "-n", 30, "--draft", draft, "--threads", 1)
        assert (code, out.removesuffix("\n"), err) == (0, truth.text.removesuffix("\n"), "")


def test_generate_json_has_the_fields_of_the_contract(speq_run, tiny_checkpoint, truth):
    code, out, err = speq_run("generate", tiny_checkpoint, "-p", "hi", "-n", 30, "--json", "--draft-length", 3)
    result = json.loads(out)
    assert (code, err, out.count("\n")) == (0, "", 1)
    assert list(result) == list(truth.to_dict())
    assert (result["text"], result["token_ids"]) == (truth.text, truth.token_ids)
    assert (result["model"], result["format"], result["draft"]) == (str(tiny_checkpoint), "nested", "auto")
    assert result["threads"] >= 1


def test_a_prompt_comes_as_text_file_stdin_or_ids(speq_run, tiny_checkpoint, tmp_path):
    def ids(*arguments, **options):
        code, out, _ = speq_run("generate", tiny_checkpoint, "-n", 9, "--json", *arguments, **options)
        assert code == 0
        return json.loads(out)["token_ids"]

    file = tmp_path / "prompt.txt"
    file.write_bytes("hé\n".encode())
    assert ids("-f", file) == ids("-p", "hé") == ids("-f", "-", stdin="hé\n".encode())
    encoded = " ".join(map(str, speq.load(tiny_checkpoint).encode("hé", raw=True)))
    assert ids("--ids", encoded) == ids("-p", "hé", "--raw") == ids("--ids", encoded.replace(" ", ","))


def test_sampling_is_repeatable_and_stops(speq_run, tiny_checkpoint):
    options = ["--temperature", 0.9, "--top-k", 40, "--top-p", 0.95, "--min-p", 0.01, "--seed", 4, "-n", 20, "--json"]

    def sample(*more):
        return json.loads(speq_run("generate", tiny_checkpoint, "-p", "hi", *options, *more)[1])

    plain, drafted = sample("--draft", "none"), sample("--draft", "self", "--draft-length", "auto")
    assert plain["token_ids"] == drafted["token_ids"]
    assert plain["seed"] == 4
    stop = next(character for character in plain["text"][3:] if character.isprintable())
    stopped = sample("--stop", stop)
    assert stopped["text"] == plain["text"][: plain["text"].index(stop)]
    assert stopped["finish_reason"] == "stop"


def test_a_model_without_a_tokenizer_takes_and_prints_ids(speq_run, fails, write_checkpoint, tmp_path):
    path = write_checkpoint(tmp_path / "bare", tokenizer=False)
    code, out, _ = speq_run("generate", path, "--ids", "1 2 3", "-n", 5)
    assert code == 0
    assert len([int(word) for word in out.split()]) == 5
    assert "has no tokenizer: give token ids (--ids)" in fails("generate", path, "-p", "hi")


def test_convert_inspect_and_restore(speq_run, tiny_checkpoint, tmp_path):
    from safetensors.numpy import load_file

    from speq.checkpoint.store import load_converted

    code, out, _ = speq_run("convert", tiny_checkpoint, tmp_path / "converted", "--group-size", 32)
    assert code == 0
    assert "weights" in out
    code, out, _ = speq_run("restore", tmp_path / "converted", tmp_path / "restored")
    assert code == 0
    before = load_file(tiny_checkpoint / "model.safetensors")
    after = load_file(tmp_path / "restored" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all((before[name].view(np.uint16) == after[name].view(np.uint16)).all() for name in before)

    code, out, _ = speq_run("inspect", tmp_path / "converted")
    assert code == 0
    assert "layer 1" in out
    report = json.loads(speq_run("inspect", tmp_path / "converted", "--json")[1])
    matrices = {name: tensor for name, tensor in before.items() if tensor.ndim == 2}
    assert report["weights"] == sum(tensor.size for tensor in matrices.values())
    assert [entry["layer"] for entry in report["layers"]] == ["model.embed_tokens.weight", "layer 0", "layer 1"]
    assert sum(entry["weights"] for entry in report["layers"]) == report["weights"]
    assert (report["format"], report["dtype"], report["group_size"]) == ("nested", "fp16", 32)
    assert report["bits_per_weight"] == pytest.approx(load_converted(tmp_path / "converted").bits_per_weight)
    assert 0.05 < report["draft_error"] < 0.25
    exponents = np.concatenate([np.frexp(tensor[np.abs(tensor) >= 2.0**-14])[1] - 1 for tensor in matrices.values()])
    counted = {entry["exponent"]: entry["count"] for entry in report["exponents"]}
    for exponent, count in zip(*np.unique(exponents, return_counts=True), strict=True):
        assert counted[int(exponent)] == count
    assert sum(counted.values()) == report["weights"]


def test_inspect_counts_weights_that_are_not_finite(speq_run, write_checkpoint, tmp_path):
    def spoil(tensors):
        tensors["model.layers.1.mlp.down_proj.weight"][3, :5] = [np.nan, np.inf, -np.inf, np.nan, 0]

    path = write_checkpoint(tmp_path / "spoilt", change=spoil)
    report = json.loads(speq_run("inspect", path, "--json")[1])
    assert report["not_finite"] == 4
    assert [entry["not_finite"] for entry in report["layers"]] == [0, 0, 4]
    assert {"exponent": "infinite or NaN", "count": 4} in report["exponents"]
    assert 0.05 < report["draft_error"] < 0.25
    assert "infinite or NaN" in speq_run("inspect", path)[1]


def test_chat_is_a_conversation(speq_run, tiny_checkpoint):
    arguments = ["chat", tiny_checkpoint, "--system", "be kind", "-n", 12, "--threads", 1]
    code, out, err = speq_run(*arguments, stdin=b"hi\n\nand?\n/new\nhi\n/exit\nnever\n")
    assert (code, err) == (0, "")
    model = speq.load(tiny_checkpoint, threads=1)
    messages, expected = [{"role": "system", "content": "be kind"}], []
    for question in ("hi", "and?"):
        messages.append({"role": "user", "content": question})
        expected.append(model.generate(messages, max_new_tokens=12, draft="none").text)
        messages.append({"role": "assistant", "content": expected[-1]})
    assert out == "".join(text if text.endswith("\n") else text + "\n" for text in [*expected, expected[0]])


def test_pull_prints_the_path(speq_run, fails, monkeypatch):
    from speq.errors import SpeqError

    def fetch(name, progress=None):
        if name != "known":
            raise SpeqError(f"no model named {name}")
        progress("fetching", 1, 2)
        return Path("/cache/known")

    monkeypatch.setattr("speq.checkpoint.fetching.pull.pull", fetch)
    assert speq_run("pull", "known") == (0, "/cache/known\n", "")
    assert "no model named other" in fails("pull", "other")


def test_a_trace_tells_the_passes_and_changes_no_token(speq_run, fails, tiny_checkpoint, tmp_path):
    trace = tmp_path / "run.trace"
    arguments = ("generate", tiny_checkpoint, "--raw", "-p", "hello", "-n", 20, "--draft", "self", "--json")
    code, out, _ = speq_run(*arguments, "--trace", trace)
    assert code == 0
    result = json.loads(out)
    assert result["token_ids"] == json.loads(speq_run(*arguments)[1])["token_ids"]
    header, *steps = [json.loads(line) for line in trace.read_text().splitlines()]
    assert header["speq_trace"] == 2
    assert (header["prompt_tokens"], header["new_tokens"]) == (result["prompt_tokens"], 20)
    assert sum(step.get("drafted", 0) for step in steps) == result["drafted"] > 0
    assert sum(step.get("accepted", 0) for step in steps) == result["accepted"]
    assert "no writable directory" in fails(*arguments, "--trace", tmp_path / "missing" / "run.trace")
