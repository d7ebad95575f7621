"""Other engines: adapters, worker processes and how they fail, and the comparison."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

import speq
from speq.bench.peers import ENGINES, PLAIN, Generation, load_peer
from speq.bench.peers.compare import Question, compare_engines
from speq.bench.peers.files import PeerFiles, peer_files
from speq.bench.peers.process import Worker
from speq.bench.peers.suite import peers_report
from speq.bench.prompts import builtin_prompts
from speq.errors import SpeqError

IDS = [72, 101, 108, 108, 111]


@pytest.fixture(scope="module")
def truth(tiny_converted):
    return (
        speq.load(tiny_converted, threads=1).generate(IDS, max_new_tokens=12, draft="none", ignore_ends=True).token_ids
    )


def test_a_worker_generates_what_speq_does(tiny_converted, truth):
    worker = Worker(ENGINES["speq"], tiny_converted, 1, 64)
    try:
        for tokens in (12, 2):
            reply = worker.generate(IDS, tokens)
            assert reply.token_ids == truth[:tokens]
            assert reply.decode_seconds > 0
            assert reply.first_seconds > 0
        assert worker.cpu_seconds > 0 or not Path("/proc").exists()
        with pytest.raises(SpeqError, match=r"speq failed: SpeqError: the prompt has 99 tokens"):
            worker.generate([1] * 99, 2)
    finally:
        worker.close()


def test_a_worker_that_cannot_load_or_dies_is_one_line(tiny_converted, tmp_path):
    with pytest.raises(SpeqError, match=r"speq failed: SpeqError: .*nothing") as failure:
        Worker(ENGINES["speq"], tmp_path / "nothing", 1, 64)
    assert "\n" not in str(failure.value)
    worker = Worker(ENGINES["speq"], tiny_converted, 1, 64)
    os.kill(worker._process.pid, signal.SIGKILL)
    with pytest.raises(SpeqError, match="speq ended with code -9"):
        worker.generate(IDS, 2)
    worker.close()
    with pytest.raises(SpeqError, match="unknown failed: KeyError: 'unknown'"):
        Worker(replace(ENGINES["speq"], name="unknown"), tiny_converted, 1, 64)


def test_transformers_continues_greedily_by_its_own_logits(tiny_checkpoint):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    ids = list(IDS)
    with torch.inference_mode():
        for _ in range(8):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    generation = load_peer(ENGINES["transformers-fp32"], tiny_checkpoint, 1, 64).generate(IDS, 8)
    assert generation.token_ids == ids[len(IDS) :]
    assert generation.decode_seconds > 0


def test_the_comparison_counts_and_goes_on_without_what_fails(tiny_converted, tmp_path, truth, monkeypatch):
    monkeypatch.setattr("speq.bench.peers.compare._PAUSE", 0.0)
    absent = replace(ENGINES["speq"], name="broken")  # which no worker knows
    large = replace(ENGINES["speq"], name="large", memory=1e12)
    questions = [Question(name, IDS, truth) for name in ("warm-up", "one")] + [Question("two", IDS, [0, *truth[1:]])]
    result = compare_engines(
        [ENGINES[PLAIN], absent, large, ENGINES["speq"]],
        PeerFiles(tiny_converted, tmp_path),
        questions,
        threads=1,
        context=64,
        checkpoint_bytes=10**6,
    )
    assert [(row.prompt, row.engine, row.tokens, row.agreement) for row in result.runs] == [
        ("one", PLAIN, 12, 12),
        ("one", "speq", 12, 12),
        ("two", "speq", 12, 0),  # whose turn to be first it is
        ("two", PLAIN, 12, 0),
    ]
    assert [(row.engine, row.prompts, row.same_answers) for row in result.engines] == [(PLAIN, 2, 1), ("speq", 2, 1)]
    rates = {(row.engine, row.prompt): row.rate for row in result.runs}
    plain, fast = result.engines
    assert plain.plain_ratio == pytest.approx(1.0)
    expected = (rates["speq", "one"] / rates[PLAIN, "one"] * rates["speq", "two"] / rates[PLAIN, "two"]) ** 0.5
    assert fast.plain_ratio == pytest.approx(expected)
    assert fast.low <= fast.rate <= fast.high
    broken, memory = (line for line in result.notes if "left out" in line or "broken" in line)
    assert broken == "broken failed: KeyError: 'broken'"
    assert memory.startswith("large is left out: it needs about")


def test_absent_engines_are_noted(tiny_converted, slow_memory, monkeypatch):
    monkeypatch.setattr("speq.bench.peers.compare._PAUSE", 0.0)
    monkeypatch.setattr("speq.bench.peers.find_spec", lambda package: None)
    report = peers_report(
        "tiny",
        tiny_converted,
        builtin_prompts(2),
        engines=("speq", "llama.cpp-f16"),
        threads=1,
        new_tokens=6,
        say=lambda _: None,
    )
    assert report.notes == ["llama.cpp-f16 is left out: install it with `pip install llama-cpp-python`"]
    assert [row["engine"] for row in report.to_dict()["results"]["engines"]] == [PLAIN, "speq"]


def test_files_are_made_once_and_found_again(tiny_converted, tiny_checkpoint, tmp_path):
    with peer_files(tiny_converted, tmp_path) as files:
        assert files.path("converted") == tiny_converted
        original, gguf = files.path("huggingface"), files.path("gguf-f16")
    made = gguf.stat().st_mtime_ns
    assert (original / "config.json").is_file()
    with peer_files(tiny_converted, tmp_path) as files:
        assert files.path("gguf-f16") == gguf
    assert gguf.stat().st_mtime_ns == made
    with peer_files(tiny_converted, None) as files:
        temporary = files.path("huggingface")
        assert temporary.is_dir()
    assert not temporary.exists()


def test_a_wrong_number_of_tokens_is_an_error(tiny_converted, monkeypatch):
    worker = Worker(ENGINES["speq"], tiny_converted, 1, 64)
    monkeypatch.setattr(worker, "_reply", lambda timeout: vars(Generation([1], 0.1, 0.0)))
    with pytest.raises(SpeqError, match="gave 1 tokens instead of 5"):
        worker.generate(IDS, 5)
    worker.close()
