"""Wrong usage, bad input and damaged models: exit codes and one clear line."""

from __future__ import annotations

import errno
import json
import shutil

import numpy as np

import speq


def test_wrong_usage_is_exit_code_2(speq_run, tiny_checkpoint):
    for arguments, message in [
        ([], "Usage: speq"),
        (["nothing"], "No such command 'nothing'"),
        (["generate"], "Missing argument 'MODEL'"),
        (["generate", tiny_checkpoint], "give exactly one of -p TEXT, -f FILE and --ids"),
        (["generate", tiny_checkpoint, "-p", "a", "--ids", "1"], "give exactly one of"),
        (["generate", tiny_checkpoint, "--ids", "1 two"], "--ids takes whole numbers"),
        (["generate", tiny_checkpoint, "-p", "a", "-n", "0"], "'-n'"),
        (
            ["generate", tiny_checkpoint, "-p", "a", "--draft", "other"],
            "not one of auto, self, ngram, cascade, head, head-direct, model, model-direct, none",
        ),
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
        (["generate", tiny_checkpoint, "-p", "a", "--temperature", "nan"], "temperature nan is out of range"),
        (["restore", tiny_checkpoint, tiny_checkpoint], "exists"),
    ]:
        assert message in fails(*arguments)


def test_damaged_models_are_one_clear_line(fails, speq_run, tiny_checkpoint, write_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("SPEQ_CACHE", str(tmp_path / "cache"))  # where nobody has converted the same weights before
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


def test_a_config_that_its_tensors_contradict_is_refused_by_every_command(
    fails, write_checkpoint, tmp_path, monkeypatch
):
    monkeypatch.setenv("SPEQ_CACHE", str(tmp_path / "cache"))
    wider = write_checkpoint(tmp_path / "wider", intermediate_size=64)
    headless = write_checkpoint(tmp_path / "headless", tie_word_embeddings=False)
    for model, message in [
        (wider, "tensor 'model.layers.0.mlp.gate_proj.weight' has shape (96, 64), config.json implies (64, 64)"),
        (headless, "no tensor 'lm_head.weight'"),
    ]:
        for arguments in (
            ["generate", model, "-p", "hi"],
            ["inspect", model],
            ["restore", model, tmp_path / "out"],
            ["convert", model, tmp_path / "out"],
            ["convert", "--no-calibrate", model, tmp_path / "out"],
        ):
            assert message in fails(*arguments)
            assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["headless", "wider"]
            assert not list((tmp_path / "cache").rglob("*.*"))


def test_a_converted_model_whose_config_was_edited_is_refused(fails, speq_run, tiny_checkpoint, tmp_path):
    converted = tmp_path / "converted"
    assert speq_run("convert", "--no-calibrate", tiny_checkpoint, converted)[0] == 0
    config = json.loads((converted / "config.json").read_text())
    (converted / "config.json").write_text(json.dumps(config | {"num_key_value_heads": 4}))
    for verb in (["generate", converted, "-p", "hi"], ["inspect", converted]):
        assert "k_proj.weight' has shape (32, 64), config.json implies (64, 64)" in fails(*verb)
    assert speq_run("restore", converted, tmp_path / "back")[0] == 0


def test_no_space_is_one_clear_line(fails, tiny_checkpoint, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device", "/disk/file")

    monkeypatch.setattr("speq.conversion.locate.converted_model", full)
    assert "/disk/file: no space left on device: free some space" in fails("generate", tiny_checkpoint, "-p", "a")
