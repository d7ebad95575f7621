"""The command line on a tiny real model: output, exit codes, errors, terminals, and how it ends when interrupted."""

from __future__ import annotations

import errno
import io
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import speq
from speq.cli import run

MAIN = "from speq.cli import main; main()"
# Every pass takes a while; and SIGINT interrupts, which a test run in the background inherits as ignored.
SLOW = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)
from speq.models.model import Engine
forward = Engine.forward
Engine.forward = lambda *a, **k: time.sleep(0.05) or forward(*a, **k)
"""


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    """One cache for all tests, so that the tiny model is converted once."""
    monkeypatch.setenv("SPEQ_CACHE", str(tmp_path_factory.getbasetemp() / "speq-cache"))


@pytest.fixture
def speq_run(capsys, monkeypatch):
    """Run a command; returns (exit code, stdout, stderr)."""

    def call(*arguments, stdin=b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def fails(speq_run):
    """Run a command that must fail with exit code 1 and one line; returns the line."""

    def call(*arguments, **options):
        code, _, err = speq_run(*arguments, **options)
        assert code == 1
        assert err.startswith("speq: ")
        assert err.count("\n") == 1
        return err

    return call


@pytest.fixture(scope="module")
def truth(tiny_checkpoint, tmp_path_factory):
    """What the Python interface generates for "hi"."""
    os.environ["SPEQ_CACHE"] = str(tmp_path_factory.getbasetemp() / "speq-cache")
    return speq.load(tiny_checkpoint, threads=1).generate("hi", max_new_tokens=30, draft="none")


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

    from speq.checkpoint.converted import load_converted

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


def test_wrong_usage_is_exit_code_2(speq_run, tiny_checkpoint):
    for arguments, message in [
        ([], "Usage: speq"),
        (["nothing"], "No such command 'nothing'"),
        (["generate"], "Missing argument 'MODEL'"),
        (["generate", tiny_checkpoint], "give exactly one of -p TEXT, -f FILE and --ids"),
        (["generate", tiny_checkpoint, "-p", "a", "--ids", "1"], "give exactly one of"),
        (["generate", tiny_checkpoint, "--ids", "1 two"], "--ids takes whole numbers"),
        (["generate", tiny_checkpoint, "-p", "a", "-n", "0"], "'-n'"),
        (["generate", tiny_checkpoint, "-p", "a", "--draft", "other"], "not one of auto, self, none"),
        (["generate", tiny_checkpoint, "-p", "a", "--draft-length", "17"], "neither a number from 1 to 16 nor auto"),
        (["generate", tiny_checkpoint, "-p", "a", "--temperature", "-1"], "'--temperature'"),
        (["convert", tiny_checkpoint], "Missing argument 'DST'"),
        (["convert", tiny_checkpoint, "x", "--format", "other"], "'--format'"),
    ]:
        code, out, err = speq_run(*arguments)
        assert (code, out) == (2, "")
        assert message in err


def test_help_and_version(speq_run):
    assert speq_run("--version")[:2] == (0, f"speq {speq.__version__}\n")
    code, out, _ = speq_run("--help")
    assert code == 0
    for verb in ("pull", "convert", "restore", "inspect", "generate", "chat"):
        assert verb in out
        assert speq_run(verb, "--help")[0] == 0


def test_bad_input_is_one_clear_line(fails, tiny_checkpoint, tmp_path):
    broken = tmp_path / "broken.txt"
    broken.write_bytes(b"caf\xe9")
    for arguments, message in [
        (["generate", tmp_path / "missing", "-p", "a"], "missing does not exist"),
        (["generate", tiny_checkpoint, "-f", broken], "broken.txt is not valid UTF-8 (at byte 3)"),
        (["generate", tiny_checkpoint, "-f", tmp_path / "no.txt"], "no.txt: no such file or directory"),
        (["generate", tiny_checkpoint, "-f", tmp_path], "is a directory"),
        (["generate", tiny_checkpoint, "-p", "", "--raw"], "the prompt is empty"),
        (["generate", tiny_checkpoint, "-p", "\udce9"], "not valid Unicode"),
        (["generate", tiny_checkpoint, "--ids", "999"], "token id 999 is outside the model's vocabulary"),
        (["generate", tiny_checkpoint, "-p", "a" * 300], "and the model's context 256: shorten the prompt"),
        (["generate", tiny_checkpoint, "-p", "a", "--context", "9999"], "context of 9999 tokens"),
        (["generate", tiny_checkpoint, "-p", "a", "--draft", "ngram"], "use auto, self or none"),
        (["generate", tiny_checkpoint, "-p", "a", "--temperature", "nan"], "temperature nan is out of range"),
        (["restore", tiny_checkpoint, tiny_checkpoint], "exists"),
    ]:
        assert message in fails(*arguments)


def test_damaged_models_are_one_clear_line(fails, speq_run, tiny_checkpoint, write_checkpoint, tmp_path):
    converted = tmp_path / "converted"
    assert speq_run("convert", tiny_checkpoint, converted)[0] == 0
    weights = next(converted.glob("*.safetensors"))
    corrupted = shutil.copytree(converted, tmp_path / "corrupted") / weights.name
    content = bytearray(corrupted.read_bytes())
    content[len(content) // 2] ^= 1
    corrupted.write_bytes(content)
    assert "is corrupted" in fails("generate", corrupted.parent, "-p", "a")
    truncated = shutil.copytree(converted, tmp_path / "truncated") / weights.name
    truncated.write_bytes(content[:-1000])
    assert "truncated" in fails("generate", truncated.parent, "-p", "a")
    unknown = write_checkpoint(tmp_path / "unknown", model_type="mamba")
    assert "mamba" in fails("generate", unknown, "-p", "a")

    def spoil(tensors):
        tensors["model.norm.weight"][5] = np.nan

    spoilt = write_checkpoint(tmp_path / "spoilt", change=spoil)
    code, out, err = speq_run("generate", spoilt, "-p", "a")
    assert out == ""
    kept, uncalibrated, error = err.splitlines()  # the run that converts says what it met
    assert code == 1
    assert kept.startswith("note: model.norm.weight has 1 weights that are NaN or infinite")
    assert "activations are not finite" in uncalibrated
    assert "not finite" in error
    assert "not finite" in fails("generate", spoilt, "-p", "a")


def test_no_space_is_one_clear_line(fails, tiny_checkpoint, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device", "/disk/file")

    monkeypatch.setattr("speq.locate.resolve", full)
    assert "/disk/file: no space left on device: free some space" in fails("generate", tiny_checkpoint, "-p", "a")


@pytest.mark.parametrize("as_json", [False, True])
def test_an_interruption_keeps_text_and_statistics(speq_run, tiny_checkpoint, truth, monkeypatch, as_json):
    from speq.models.model import Engine

    forward, calls = Engine.forward, []

    def interrupted(self, tokens, **options):
        calls.append(len(tokens))
        if len(calls) == 11:
            raise KeyboardInterrupt
        return forward(self, tokens, **options)

    monkeypatch.setattr(Engine, "forward", interrupted)
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

    monkeypatch.setattr("speq.locate.resolve", interrupted)
    code, out, err = speq_run("generate", tiny_checkpoint, "-p", "hi")
    assert (code, out, err.strip()) == (130, "", "speq: interrupted")


def test_a_closed_pipe_is_no_error(tiny_checkpoint, truth):
    command = [sys.executable, "-c", MAIN, "generate", tiny_checkpoint, "-p", "hi", "-n", "100", "--threads", "1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 0


def read_terminal(fd: int, until: bytes, seconds: float = 60) -> bytes:
    """Output of a terminal up to the first occurrence of ``until``, or its end."""
    seen, deadline = b"", time.monotonic() + seconds
    while until not in seen and time.monotonic() < deadline:
        if select.select([fd], [], [], 0.1)[0]:
            try:
                seen += os.read(fd, 4096)
            except OSError:  # the other side is closed
                break
    return seen


@pytest.fixture
def terminal(tiny_checkpoint, truth):
    """Start a command on a terminal of its own; returns the process and the terminal's file descriptor."""
    pty = pytest.importorskip("pty")
    opened = []

    def start(*arguments, code=MAIN):
        ours, theirs = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "LINES": "24", "COLUMNS": "80"}
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, arguments)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
        )
        os.close(theirs)
        opened.append((process, ours))
        return process, ours

    yield start
    for process, ours in opened:
        process.kill()
        process.wait()
        os.close(ours)


def test_a_terminal_gets_a_status_line_and_a_summary(terminal, tiny_checkpoint):
    process, fd = terminal("generate", tiny_checkpoint, "-p", "hi", "-n", 40, "--threads", 1)
    shown = read_terminal(fd, b"never shown")
    assert process.wait(60) == 0
    assert b"\x1b[1;23r" in shown  # the last line is kept free,
    assert shown.index(b"\x1b[1;23r") < shown.rindex(b"\x1b[r")  # and given back
    assert b"40 tokens, first after" in shown
    assert b"tokens/s" in shown


def test_a_terminal_gets_progress_bars(terminal, tiny_checkpoint, tmp_path):
    process, fd = terminal("convert", tiny_checkpoint, tmp_path / "converted")
    shown = read_terminal(fd, b"never shown")
    assert process.wait(60) == 0
    assert b"converting" in shown
    assert b"bits each" in shown


def test_ctrl_c_on_a_terminal_ends_with_a_summary(terminal, tiny_checkpoint):
    process, fd = terminal("generate", tiny_checkpoint, "-p", "hi", "--threads", 1, code=SLOW + MAIN)
    shown = read_terminal(fd, b"tokens/s")
    process.send_signal(signal.SIGINT)
    shown += read_terminal(fd, b"never shown")
    assert process.wait(60) == 130
    assert b"interrupted" in shown
    assert b"Traceback" not in shown


def test_chat_on_a_terminal_survives_an_error(terminal, tiny_checkpoint):
    process, fd = terminal("chat", tiny_checkpoint, "-n", 8, "--threads", 1)
    assert b"/exit" in read_terminal(fd, b"> ")
    os.write(fd, b"a" * 300 + b"\n")
    assert b"shorten the prompt; /new starts over" in read_terminal(fd, b"starts over")
    os.write(fd, b"hi\n")
    assert b"8 tokens" in read_terminal(fd, b"8 tokens")
    os.write(fd, b"/exit\n")
    read_terminal(fd, b"never shown")
    assert process.wait(60) == 0


def test_pull_prints_the_path(speq_run, fails, monkeypatch):
    from speq.errors import SpeqError

    def fetch(name, progress=None):
        if name != "known":
            raise SpeqError(f"no model named {name}")
        progress("fetching", 1, 2)
        return Path("/cache/known")

    monkeypatch.setattr("speq.checkpoint.pull.pull", fetch)
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
    assert header["speq_trace"] == 1
    assert (header["prompt_tokens"], header["new_tokens"]) == (result["prompt_tokens"], 20)
    assert sum(step.get("drafted", 0) for step in steps) == result["drafted"] > 0
    assert sum(step.get("accepted", 0) for step in steps) == result["accepted"]
    assert "no writable directory" in fails(*arguments, "--trace", tmp_path / "missing" / "run.trace")
