"""`speq train-head` from end to end on a tiny model: what it learns, writes, continues and refuses."""

from __future__ import annotations

import io
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from speq.checkpoint.store import load_converted
from speq.cli import run
from speq.conversion.locate import converted_model
from speq.errors import SpeqError
from speq.models.head import parameter_shapes
from speq.models.head_files import read_head
from speq.models.tokenizer import Tokenizer
from speq.training import train, writing
from speq.training.chains import EVERY, STEPS, WRITTEN, _gained, bind_head, measure
from speq.training.conversation import read_turns
from speq.training.job import Options
from speq.training.target import Target
from speq.training.unroll import unroll

WORD = "abcd"
TEXTS = ("hello", WORD * 10, "abcabc", "dcba" * 5, "abxd" * 6, "bcda " * 4, "aabbccdd" * 3, "dab" * 7)
SMALL = ("--length", 48, "--batch", 384, "--device", "cpu", "--threads", 1)


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SPEQ_CACHE", str(tmp_path_factory.getbasetemp() / "speq-cache"))


@pytest.fixture
def command(capsys, monkeypatch):
    """Run `speq train-head`; returns (exit code, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
        code = run(["train-head", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def fails(command, tmp_path):
    """A command that must fail with exit code 1 and one line, and leave nothing behind; returns the line."""

    def call(*arguments):
        before = sorted(tmp_path.rglob("*"))
        code, out, err = command(*arguments)
        assert (code, out) == (1, "")
        assert err.startswith("speq: ")
        assert err.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before
        return err

    return call


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "word.txt"
    file.write_text(WORD * 1200)
    return file


@pytest.fixture(scope="module")
def trained(tiny_checkpoint, text, tmp_path_factory):
    """A head that has seen one word very often."""
    out = tmp_path_factory.mktemp("heads") / "word"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPEQ_CACHE", str(tmp_path_factory.getbasetemp() / "speq-cache"))
        torch.set_num_threads(1)
        # Nearly all of the tokens: what a random model chooses need not be in the text.
        options = Options(steps=120, length=48, batch=192, vocabulary=250, device="cpu")
        return train.train_head(converted_model(str(tiny_checkpoint)), "tiny", out, options, [text])


def test_a_head_learns_what_the_draft_level_chooses_on_held_out_rows(trained):
    history = trained.training["history"]
    assert history[0]["acceptance"][0] < 0.2
    assert trained.acceptance[0] > 0.6
    assert trained.training["acceptance_after_exact"][0] > 0.6
    assert [entry["step"] for entry in history] == sorted({entry["step"] for entry in history})
    assert len(history) == train.MEASUREMENTS + 1


def test_the_directory_has_the_public_layout(trained, tiny_checkpoint):
    """Names, shapes and types as the speculators library has them for EAGLE-3, read by the official library."""
    assert sorted(file.name for file in trained.path.iterdir()) == ["config.json", "model.safetensors", "training.json"]
    config = json.loads((trained.path / "config.json").read_text())
    layer, vocabulary = config["transformer_layer_config"], config["draft_vocab_size"]
    assert config["speculators_model_type"] == config["speculators_config"]["algorithm"] == "eagle3"
    assert config["speculators_config"]["verifier"] == {"name_or_path": "tiny", "architectures": ["LlamaForCausalLM"]}
    assert config["speculators_config"]["proposal_methods"] == [
        {"proposal_type": "greedy", "speculative_tokens": train.UNROLL}
    ]
    assert (config["norm_before_residual"], config["eagle_aux_hidden_state_layer_ids"]) == (False, [1, 1, 1])
    assert (layer["model_type"], layer["num_hidden_layers"], layer["vocab_size"]) == ("llama", 1, 259)
    tensors = load_file(trained.path / "model.safetensors")
    found = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}
    inner = layer["intermediate_size"]
    assert found == {
        "fc.weight": ((64, 192), torch.bfloat16),
        "layers.0.input_layernorm.weight": ((64,), torch.bfloat16),
        "layers.0.hidden_norm.weight": ((64,), torch.bfloat16),
        "layers.0.self_attn.q_proj.weight": ((64, 128), torch.bfloat16),
        "layers.0.self_attn.k_proj.weight": ((32, 128), torch.bfloat16),
        "layers.0.self_attn.v_proj.weight": ((32, 128), torch.bfloat16),
        "layers.0.self_attn.o_proj.weight": ((64, 64), torch.bfloat16),
        "layers.0.post_attention_layernorm.weight": ((64,), torch.bfloat16),
        "layers.0.mlp.gate_proj.weight": ((inner, 64), torch.bfloat16),
        "layers.0.mlp.up_proj.weight": ((inner, 64), torch.bfloat16),
        "layers.0.mlp.down_proj.weight": ((64, inner), torch.bfloat16),
        "norm.weight": ((64,), torch.bfloat16),
        "lm_head.weight": ((vocabulary, 64), torch.bfloat16),
        "d2t": ((vocabulary,), torch.int64),
        "t2d": ((259,), torch.bool),
    }
    known = torch.arange(vocabulary) + tensors["d2t"]
    assert torch.equal(known, torch.nonzero(tensors["t2d"])[:, 0])
    assert set(Tokenizer(tiny_checkpoint).encode(WORD)) <= set(known.tolist())
    assert 257 in known  # what ends a text


def test_a_head_that_is_read_again_is_the_one_that_was_written(trained):
    stored = read_head(trained.path)
    tensors = load_file(trained.path / "model.safetensors")
    assert set(stored.parameters) == set(parameter_shapes(stored.config))
    for name, value in stored.parameters.items():
        assert np.array_equal(value, tensors[name].float().numpy())
    assert np.array_equal(stored.known, np.flatnonzero(tensors["t2d"].numpy()))
    assert (stored.config.hidden_size, stored.config.taps, stored.name) == (64, (1, 1, 1), "tiny")


def test_training_json_states_the_split_and_the_job(trained):
    training = trained.training
    assert json.loads((trained.path / "training.json").read_text()) == training
    assert training["text"] == ["word.txt"]
    assert training["rows"] * training["length"] == training["tokens"]
    assert training["held_out"].startswith(f"every 37th row, {-(-training['rows'] // 37)} of {training['rows']}")
    assert (training["steps"], training["seed"], training["unrolled"]) == (120, 0, train.UNROLL)
    assert training["vocabulary_share"] == 1.0


def test_chains_on_prompts_are_those_that_drafting_would_meet(trained, tiny_checkpoint):
    """Each chain proposed again alone, over everything before it, in one row."""
    path = converted_model(str(tiny_checkpoint))
    model, tokenizer = load_converted(path), Tokenizer(path)
    target = Target(model.config, {**model.raw, **model.split}, "cpu")
    head, known = bind_head(read_head(trained.path), target)
    turns, prompts = read_turns(tokenizer), [tokenizer.encode(text) for text in TEXTS]
    found = measure(target, head, known, turns, prompts, 30)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("speq.training.chains._CACHE_BYTES", 1)
        assert measure(target, head, known, turns, prompts, 30) == found
    right, agreed = [], []
    for prompt in prompts:
        answer = list(prompt)
        while len(answer) < len(prompt) + 30:
            final = target.read(torch.tensor([answer]), (1,)).final["exact"][0, -1]
            answer.append(int(target.chosen("exact", final[None, None])[0, 0]))
            if answer[-1] in (turns.closing[1][0], *turns.ends):
                break
        for first in range(len(prompt), len(answer), EVERY):
            # A round of the draft that begins at ``first``, and is never over.
            drafted = answer[: first + 1]
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("speq.training.target.ROUND", 1000)
                for _ in range(WRITTEN):
                    reading = target.read(torch.tensor([drafted]), head.config.taps, 1000 - first)
                    drafted.append(int(target.chosen("draft", reading.final["draft"][:, -1:])[0, 0]))
                reading = target.read(torch.tensor([drafted]), head.config.taps, 1000 - first)
            agreed += [drafted[first + 1] == answer[first + 1]] if first + 1 < len(answer) else []
            features = torch.cat([reading.features["exact"][:, :first], reading.features["draft"][:, first:]], 1)
            with torch.no_grad():
                proposed = [
                    known[head.logits(hidden[0]).argmax(-1)].tolist()
                    for hidden in unroll(head, features, torch.tensor([drafted]), STEPS)
                ]
            for start in range(first - 1, first + WRITTEN - STEPS):
                hits = [proposed[step][start] == drafted[start + 2 + step] for step in range(STEPS)]
                right.append([all(hits[: step + 1]) for step in range(STEPS)])
    assert (found.chains, found.prompts) == (len(right), len(TEXTS))
    assert found.agreement == pytest.approx(np.mean(agreed))
    assert found.draft == pytest.approx(np.mean(right, axis=0).tolist(), abs=1e-6)
    assert found.by_rows[2] <= found.by_rows[4] <= found.by_rows[6]


def test_passes_follow_each_other_where_the_one_before_ends():
    """Of four places the first has two right proposals, the third none, the fourth one."""
    right = np.array([[[1, 1, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0]], [[0, 0, 0]] * 4], bool)
    assert _gained(right) == (3 + 2 + 4 * 1) / (2 + 4)
    assert _gained(right[:, :, :1]) == (2 + 1 + 2 + 4 * 1) / (3 + 4)


def test_a_head_of_another_model_is_refused(trained, random_model):
    with pytest.raises(SpeqError, match="trained for tiny, whose vocabulary is 259, not 97"):
        bind_head(read_head(trained.path), Target(*random_model(), "cpu"))


def test_an_interrupted_training_ends_as_it_would_have(command, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(train._AT_ONCE, "cpu", 8)
    monkeypatch.setattr(train, "SAVE_SECONDS", 0.0)
    arguments = ("--tokens", 1000, "--steps", 9, *SMALL)
    assert command(tiny_checkpoint, tmp_path / "whole", *arguments)[0] == 0

    def interrupted(module, name, after):
        """Let a function work so many times, then interrupt."""
        original, left = getattr(module, name), [after]

        def replaced(*given, **options):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return original(*given, **options)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, name, replaced)
            assert command(tiny_checkpoint, tmp_path / "parts", *arguments)[0] == 130
        assert not (tmp_path / "parts").exists()

    interrupted(train._Training, "_step", 4)
    interrupted(train._Training, "_step", 3)
    interrupted(train, "write_head", 0)
    code, out, _ = command(tiny_checkpoint, tmp_path / "parts", *arguments)
    assert code == 0
    assert "9 steps" in out
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts", "whole"]


def test_text_that_was_written_before_an_interruption_is_kept(command, tiny_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(train._AT_ONCE, "cpu", 8)
    written = []
    original = writing.write

    def counted(target, turns, starts, length, seed, **options):
        if len(written) == 2:
            written.append(None)
            raise KeyboardInterrupt
        written.append(seed)
        return original(target, turns, starts, length, seed, **options)

    monkeypatch.setattr("speq.training.corpus.write", counted)
    arguments = (tiny_checkpoint, tmp_path / "out", "--tokens", 1000, "--steps", 1, *SMALL)
    assert command(*arguments)[0] == 130
    assert command(*arguments)[0] == 0
    assert written == [0, 1, None, 2]


def test_a_gpu_writes_as_many_rows_as_its_memory_holds_and_goes_on_with_as_many(tiny_checkpoint, tmp_path, monkeypatch):
    path = converted_model(str(tiny_checkpoint))
    model = load_converted(path)
    task = train._Task(model, Tokenizer(path), Options(), "cuda", None, print)
    task.target = Target(model.config, {**model.raw, **model.split}, "cpu")
    row = 2 * 2 * 2 * 2 * 16 * 100 + 4 * train._LOGITS * 259  # keys and values of 100 tokens in BF16, and logits
    for place, free, rows in (("a", 40 * row, 20), ("a", 80 * row, 20), ("b", row, 1), ("c", 10**12, 1024)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda free=free: (free, 10**12))
        (tmp_path / place).mkdir(exist_ok=True)
        assert task._rows_at_once(tmp_path / place, 100) == rows


def test_other_options_do_not_continue_an_unfinished_training(command, fails, tiny_checkpoint, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "SAVE_SECONDS", 0.0)
        patch.setattr(train, "write_head", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        assert command(tiny_checkpoint, out, "--tokens", 400, "--steps", 3, *SMALL)[0] == 130
    line = fails(tiny_checkpoint, out, "--tokens", 400, "--steps", 4, *SMALL)
    assert ".out.partial holds an unfinished training with --steps 3 rather than 4" in line
    line = fails(tiny_checkpoint, out, "--tokens", 4000, "--steps", 3, *SMALL)
    assert "--tokens 400 rather than 4000" in line
    assert command(tiny_checkpoint, out, "--tokens", 400, "--steps", 3, *SMALL)[0] == 0


def test_text_serves_another_training_until_a_step_is_kept(command, tiny_checkpoint, tmp_path, monkeypatch):
    arguments = (tiny_checkpoint, tmp_path / "out", "--tokens", 400)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "choose_vocabulary", _out_of_memory)
        code, _, err = command(*arguments, "--steps", 3, *SMALL)
    assert (code, err.count("\n")) == (1, 1)
    assert "too little memory for this: use a smaller --batch" in err
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("speq.training.corpus.write", _out_of_memory)
        assert command(*arguments, "--steps", 2, *SMALL)[0] == 0


def _out_of_memory(*arguments, **options):
    raise torch.OutOfMemoryError


def test_questions_are_answered_by_the_model(command, tiny_checkpoint, tmp_path):
    questions = tmp_path / "questions.jsonl"
    questions.write_text("".join(json.dumps({"prompt": f"question {i}"}) + "\n" for i in range(6)))
    code, out, err = command(tiny_checkpoint, tmp_path / "out", "--text", questions, "--steps", 2, *SMALL)
    assert code == 0
    assert "288 tokens of text (every 37th row, 1 of 6; 1 of them measured)" in out
    assert "tokens per draft pass: " in out
    assert err.count("note: step") == 3


def test_the_vocabulary_can_be_chosen(command, tiny_checkpoint, text, tmp_path):
    arguments = ("--text", text, "--steps", 1, "--vocabulary", 7, *SMALL)
    code, out, _ = command(tiny_checkpoint, tmp_path / "out", *arguments)
    assert code == 0
    assert "7 tokens in the vocabulary" in out
    assert len(read_head(tmp_path / "out").known) == 7


def test_bad_input_is_one_clear_line(fails, command, tiny_checkpoint, write_checkpoint, tmp_path):
    empty, binary, short, taken = (tmp_path / name for name in ("empty.txt", "binary.txt", "short.txt", "taken"))
    empty.write_text("")
    binary.write_bytes(b"\x80\x81")
    short.write_text("too short")
    taken.mkdir()
    (taken / "file").write_text("mine")
    for arguments, message in [
        ((tmp_path / "missing", tmp_path / "out"), "missing does not exist"),
        ((tiny_checkpoint, taken), "taken exists; choose another name"),
        ((tiny_checkpoint, tmp_path / "out", "--text", empty), "empty.txt has no text to train on"),
        ((tiny_checkpoint, tmp_path / "out", "--text", binary), "binary.txt is not UTF-8 text (at byte 0)"),
        ((tiny_checkpoint, tmp_path / "out", "--text", tmp_path / "no.txt"), "no.txt: no such file or directory"),
        ((tiny_checkpoint, tmp_path / "out", "--text", short), "the text has"),
        ((tiny_checkpoint, tmp_path / "out", "--length", 16, "--tokens", 64), "use a larger --length"),
        ((tiny_checkpoint, tmp_path / "out", "--device", "cuda"), "torch finds no CUDA GPU here"),
    ]:
        assert message in fails(*arguments)
    silent = write_checkpoint(tmp_path / "silent", tokenizer=False)
    assert "silent has no tokenizer" in command(silent, tmp_path / "out")[2]

    def spoil(tensors):
        tensors["model.norm.weight"][5] = np.nan

    spoilt = write_checkpoint(tmp_path / "spoilt", change=spoil)
    words = tmp_path / "words.txt"
    words.write_text(WORD * 100)
    for arguments, message in [
        ((), "the model cannot write text: its activations are not finite"),
        (("--text", words), "step 0 gives no finite gradient"),
    ]:
        code, _, err = command(spoilt, tmp_path / "out", "--tokens", 400, *arguments, *SMALL)
        assert code == 1
        assert message in err.splitlines()[-1]
        assert not list(tmp_path.glob(".out*"))
    assert command(tiny_checkpoint, tmp_path / "out2", "--tokens", 3)[0] == 2
    assert command(tiny_checkpoint)[0] == 2


def test_without_torch_one_line_says_what_to_install(tiny_checkpoint, tmp_path):
    """In a process of its own, where torch cannot be found."""
    hide = "import sys, importlib.machinery as m; f = m.PathFinder.find_spec\n"
    hide += "m.PathFinder.find_spec = lambda name, *a: None if name == 'torch' else f(name, *a)\n"
    main = f"sys.argv = ['speq', 'train-head', {str(tiny_checkpoint)!r}, {str(tmp_path / 'out')!r}]\n"
    done = subprocess.run(
        [sys.executable, "-c", hide + main + "from speq.cli import main; main()"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr == "speq: training a head needs torch: pip install 'speq[train]'\n"
    assert not list(tmp_path.iterdir())
