"""A calibrated conversion keeps every bit and drafts better; what cannot be calibrated says so."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

import speq
from speq.checkpoint.store import load_converted
from speq.conversion import calibrate as recode_module
from speq.conversion.calibrate import Calibration
from speq.conversion.convert import convert
from speq.conversion.restore import restore
from speq.errors import SpeqError
from speq.formats import decode
from speq.models.tokenizer import Tokenizer
from speq.runtime.single import SingleSequence


@pytest.fixture(scope="module")
def paths(tiny_checkpoint, tmp_path_factory) -> tuple[Path, Path]:
    """The tiny checkpoint converted plainly and with calibration."""
    base = tmp_path_factory.mktemp("calibrated")
    convert(tiny_checkpoint, base / "plain", threads=1)
    convert(tiny_checkpoint, base / "calibrated", calibration=Calibration(), threads=1)
    assert not list(base.glob(".*"))
    return base / "plain", base / "calibrated"


def test_every_bit_is_kept(paths, tiny_checkpoint, tmp_path):
    plain, calibrated = (load_converted(path) for path in paths)
    assert plain.split.keys() == calibrated.split.keys()
    for name, tensor in plain.split.items():
        assert np.array_equal(decode(tensor), decode(calibrated.split[name])), name
    restore(paths[0], tmp_path / "from plain")
    restore(paths[1], tmp_path / "from calibrated")
    for file in (tmp_path / "from plain").iterdir():
        assert file.read_bytes() == (tmp_path / "from calibrated" / file.name).read_bytes()
    products = [name for name, tensor in plain.split.items() if "embed" not in name]
    assert all((plain.split[name].codes != calibrated.split[name].codes).any() for name in products)


def test_logits_are_nearer(paths):
    ids = Tokenizer(paths[0]).encode((Path(__file__).parent / "test_samples.py").read_text())[:250]
    errors = []
    for path in paths:
        engine = SingleSequence.of(load_converted(path), threads=1)
        exact = engine.forward(ids, logits="all").copy()
        engine.truncate(0)
        errors.append(np.square(engine.forward(ids, draft=True, logits="all") - exact).mean())
    assert errors[1] < 0.9 * errors[0]


def test_text_is_the_same(paths):
    texts = [speq.load(path, threads=1).generate("Rivers", max_new_tokens=40, ignore_ends=True) for path in paths]
    assert texts[0].token_ids == texts[1].token_ids


def test_an_interrupted_calibration_goes_on(paths, tiny_checkpoint, tmp_path, monkeypatch):
    done = 0

    def encode(*args, **kwargs):
        nonlocal done
        if done == 5:
            raise KeyboardInterrupt
        done += 1
        return original(*args, **kwargs)

    original = recode_module.encode
    with monkeypatch.context() as patch:
        patch.setattr(recode_module, "encode", encode)
        with pytest.raises(KeyboardInterrupt):
            convert(tiny_checkpoint, tmp_path / "out", calibration=Calibration(), threads=1)
    assert not (tmp_path / "out").exists()
    convert(tiny_checkpoint, tmp_path / "out", calibration=Calibration(), threads=1)
    for file in paths[1].iterdir():
        assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_another_conversion_is_not_taken_for_it(paths, tiny_checkpoint, tmp_path):
    assert convert(tiny_checkpoint, paths[1], calibration=Calibration()).seconds == 0
    shutil.copytree(paths[0], tmp_path / "out")
    for calibration, path in ((Calibration(), paths[1]), (None, paths[0])):
        report = convert(tiny_checkpoint, tmp_path / "out", calibration=calibration, threads=1)
        assert report.notes[0] == "out was converted with other options or by another release: it is converted anew"
        for file in path.iterdir():
            assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes()


def test_without_a_tokenizer_it_says_so(write_checkpoint, tmp_path):
    source = write_checkpoint(tmp_path / "source")
    (source / "tokenizer.json").unlink()
    report = convert(source, tmp_path / "out", calibration=Calibration())
    assert any("not calibrated: the checkpoint has no tokenizer" in note for note in report.notes)
    convert(source, tmp_path / "plain")
    plain, same = (load_converted(tmp_path / name).split for name in ("plain", "out"))
    assert all(np.array_equal(plain[name].codes, same[name].codes) for name in plain)


def test_a_tokenizer_that_cannot_be_read_is_named_by_what_the_user_gave(write_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("SPEQ_CACHE", str(tmp_path / "cache"))
    path = write_checkpoint(tmp_path / "tiny")
    (path / "tokenizer.json").write_text("{")
    report = convert(path, tmp_path / "converted", calibration=Calibration(), threads=1)
    assert any("tiny/tokenizer.json: not a readable tokenizer" in note for note in report.notes)
    with pytest.raises(SpeqError, match=f"^{path}/tokenizer.json: not a readable tokenizer"):
        speq.load(path, threads=1)


def test_activations_that_are_not_finite_are_left_out(write_checkpoint, tmp_path):
    from safetensors.numpy import load_file, save_file

    source = write_checkpoint(tmp_path / "source")
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.gate_proj.weight"][0, 0] = np.nan
    save_file(tensors, source / "model.safetensors")
    report = convert(source, tmp_path / "out", calibration=Calibration())
    assert any("matrices are not calibrated: their activations are not finite" in note for note in report.notes)
    converted = load_converted(tmp_path / "out")
    for name, tensor in converted.split.items():
        assert np.array_equal(decode(tensor), tensors[name].view(np.uint16)), name


def test_e3m0_is_left_alone(tiny_checkpoint, tmp_path):
    convert(tiny_checkpoint, tmp_path / "plain", format="e3m0")
    assert convert(tiny_checkpoint, tmp_path / "plain", format="e3m0", calibration=Calibration()).seconds == 0


def test_a_tokenizer_with_more_tokens_than_the_model_is_no_calibration(write_checkpoint, tmp_path):
    def cut(tensors):
        tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:200].copy()

    source = write_checkpoint(tmp_path / "source", change=cut, vocab_size=200)
    report = convert(source, tmp_path / "out", calibration=Calibration())
    assert "the draft is not calibrated: its tokenizer makes the token id 258, its vocabulary has 200" in report.notes
    assert len(SingleSequence.of(load_converted(tmp_path / "out"), threads=1).forward([1, 199])) == 1


def test_a_refusal_while_calibrating_leaves_nothing(tiny_checkpoint, tmp_path, monkeypatch):
    def refuse(self, model, threads, kept):
        raise SpeqError("no moments")

    monkeypatch.setattr(Calibration, "moments", refuse)
    with pytest.raises(SpeqError, match="no moments"):
        convert(tiny_checkpoint, tmp_path / "out", calibration=Calibration())
    assert not list(tmp_path.iterdir())
