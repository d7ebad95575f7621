"""Heads in the layouts in which they are published, against their arithmetic written out in torch, a row at a time."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from speq.errors import SpeqError
from speq.formats import Spec, encode, from_float32, to_float32
from speq.models.config import model_config
from speq.models.head_files import read_head
from speq.runtime.batch import HeadSpan
from speq.runtime.engine import Ends
from speq.runtime.head import ExecutedHead

MODEL = {
    "model_type": "llama",
    "vocab_size": 50,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
}
LAYER = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "vocab_size": 50,
    "rope_theta": 20000.0,
}
WIDTH, KEYS, INNER, KNOWN = 64, 32, 128, 20


def bf16(*shape, seed):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    values = values * 1.5 / shape[-1] ** 0.5 if len(shape) == 2 else 1 + 0.2 * values
    return values.to(torch.bfloat16)


def layer_tensors(read):
    shapes = {
        "self_attn.q_proj": (WIDTH, read),
        "self_attn.k_proj": (KEYS, read),
        "self_attn.v_proj": (KEYS, read),
        "self_attn.o_proj": (WIDTH, WIDTH),
        "mlp.gate_proj": (INNER, WIDTH),
        "mlp.up_proj": (INNER, WIDTH),
        "mlp.down_proj": (WIDTH, INNER),
        "post_attention_layernorm": (WIDTH,),
    }
    return {f"layers.0.{name}.weight": bf16(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}


def eagle3_tensors(**more):
    known = torch.arange(KNOWN) * 2 + 3
    return {
        "fc.weight": bf16(WIDTH, 3 * WIDTH, seed=20),
        **layer_tensors(2 * WIDTH),
        "layers.0.input_layernorm.weight": bf16(WIDTH, seed=21),
        "layers.0.hidden_norm.weight": bf16(WIDTH, seed=22),
        "norm.weight": bf16(WIDTH, seed=23),
        "lm_head.weight": bf16(KNOWN, WIDTH, seed=24),
        "d2t": known - torch.arange(KNOWN),
        "t2d": torch.isin(torch.arange(50), known),
        **more,
    }


def eagle1_tensors(*, bias=False):
    tensors = {"fc.weight": bf16(WIDTH, 2 * WIDTH, seed=30), **layer_tensors(WIDTH)}
    return tensors | ({"fc.bias": bf16(WIDTH, seed=31)} if bias else {})


def renamed(tensors, spellings):
    """Tensors whose names begin otherwise."""
    found = {}
    for name, value in tensors.items():
        beginning = next((each for each in spellings if name.startswith(each)), "")
        found[spellings.get(beginning, "") + name.removeprefix(beginning)] = value
    return found


def speculators(kind, **entries):
    return {
        "speculators_model_type": kind,
        "speculators_config": {"algorithm": kind, "verifier": {"name_or_path": "m", "architectures": []}},
        "transformer_layer_config": LAYER,
        **entries,
    }


AUXILIARY = {"eagle_aux_hidden_state_layer_ids": [1, 3, 6]}
PAPER3 = {**LAYER, "architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": KNOWN}
OWN = bf16(50, WIDTH, seed=40)
NORMS = {
    "embedding_layernorm.weight": bf16(WIDTH, seed=41),
    "pre_lm_head_layernorm.weight": bf16(WIDTH, seed=42),
    "layers.0.input_layernorm.weight": bf16(WIDTH, seed=43),
}
LAYOUTS = {
    "EAGLE-1": ({**LAYER, "bias": True}, eagle1_tensors(bias=True)),
    "EAGLE-1 with a copy of the embedding": (
        LAYER,
        {name: value.float() for name, value in eagle1_tensors().items()} | {"embed_tokens.weight": OWN.half()},
    ),
    "HASS": (
        LAYER,
        renamed(
            eagle1_tensors() | NORMS,
            {
                "embedding_layernorm": "embed_layernorm",
                "layers.0.input_layernorm": "hidden_layernorm",
                "pre_lm_head_layernorm": "lm_head_layernorm",
            },
        ),
    ),
    "EAGLE-1 of speculators": (
        speculators("eagle", layernorms=True, fusion_bias=True),
        renamed(eagle1_tensors(bias=True) | NORMS, {"layers.0.": "transformer.", "fc.": "fusion_fc."})
        | {"lm_head.weight": bf16(50, WIDTH, seed=44)},
    ),
    "EAGLE-3": (PAPER3, renamed(eagle3_tensors(), {"layers.0.": "midlayer."})),
    "EAGLE-3 for all tokens": (
        LAYER,
        {name: value for name, value in eagle3_tensors().items() if name not in ("d2t", "t2d")}
        | {"lm_head.weight": bf16(50, WIDTH, seed=45)},
    ),
    "EAGLE-3 of speculators": (speculators("eagle3", **AUXILIARY), eagle3_tensors()),
    "EAGLE-3 with an embedding of its own": (PAPER3, eagle3_tensors(**{"embed_tokens.weight": OWN})),
    "EAGLE-3 with biases and norms of heads": (
        {**PAPER3, "attention_bias": True},
        eagle3_tensors(
            **{f"layers.0.self_attn.{part}_proj.bias": bf16(WIDTH, seed=70) for part in "qo"},
            **{f"layers.0.self_attn.{part}_proj.bias": bf16(KEYS, seed=71) for part in "kv"},
            **{f"layers.0.self_attn.{part}_norm.weight": bf16(16, seed=72) for part in "qk"},
            **{"fc.bias": bf16(WIDTH, seed=73)},
        ),
    ),
    "EAGLE-3 that adds to the normed state": (
        speculators("eagle3", norm_before_residual=True, **AUXILIARY),
        eagle3_tensors(),
    ),
    "EAGLE-3 with norms before and behind": (
        speculators("eagle3", norm_output=True, fc_norm=True, **AUXILIARY),
        eagle3_tensors(**{f"fc_norm.{i}.weight": bf16(WIDTH, seed=50 + i) for i in range(3)}),
    ),
    "EAGLE-3 with one norm before": (
        speculators("eagle3", norm_before_fc=True, norm_output=True, norm_before_residual=True, **AUXILIARY),
        eagle3_tensors(**{"input_norm.weight": bf16(3 * WIDTH, seed=60)}),
    ),
    "EAGLE-3 with more heads": (
        {**PAPER3, "num_key_value_heads": 4},
        eagle3_tensors(
            **{f"layers.0.self_attn.{part}_proj.weight": bf16(WIDTH, 2 * WIDTH, seed=80) for part in "kv"},
        ),
    ),
    "EAGLE-3 that sees a window": (
        {**PAPER3, "layer_types": ["sliding_attention"], "sliding_window": 3},
        eagle3_tensors(),
    ),
}


@pytest.fixture(scope="module")
def model():
    """What a model begins and ends with, and the same in float64."""
    rng = np.random.default_rng(0)
    ends, values = {}, {}
    for name in ("embedding", "head"):
        bits = from_float32(rng.standard_normal((50, WIDTH)).astype(np.float32) / 8, "bf16")
        ends[name] = encode(bits, Spec.default("nested", "bf16", 32), threads=1)
        values[name] = torch.from_numpy(to_float32(bits, "bf16")).double()
    norm = (1 + 0.2 * rng.standard_normal(WIDTH)).astype(np.float32)
    config = model_config(MODEL)
    return config, Ends(ends["embedding"], norm, config.norm_eps, ends["head"]), values | {"norm": torch.tensor(norm)}


def write(path, config, tensors):
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "model.safetensors")
    return path


class Written:
    """A head's arithmetic in float64; a row reads the rows on its path."""

    def __init__(self, config, tensors, model):
        spellings = {
            "midlayer.": "layers.0.",
            "transformer.": "layers.0.",
            "fusion_fc": "fc",
            "embed_layernorm": "embedding_layernorm",
            "hidden_layernorm": "layers.0.input_layernorm",
            "lm_head_layernorm": "pre_lm_head_layernorm",
        }
        self.p = {name: value.double() for name, value in renamed(tensors, spellings).items()}
        self.config, self.layer = config, config.get("transformer_layer_config", config)
        self.kv_heads = self.layer["num_key_value_heads"]
        self.is_eagle3 = "layers.0.hidden_norm.weight" in self.p
        self.embedding = self.p.get("embed_tokens.weight", model["embedding"])
        self.lm_head = self.p.get("lm_head.weight", model["head"])
        self.final_norm = model["norm"].double()

    def norm(self, x, weight):
        weight = self.p.get(weight) if isinstance(weight, str) else weight
        return x if weight is None else x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight

    def product(self, x, name):
        return self.p[name + ".weight"] @ x + self.p.get(name + ".bias", 0)

    def fused(self, features):
        if not self.is_eagle3:
            return self.norm(features, self.final_norm)
        parts = [self.norm(part, f"fc_norm.{i}.weight") for i, part in enumerate(features.split(WIDTH, -1))]
        x = self.norm(torch.cat(parts, -1), "input_norm.weight")
        return x @ self.p["fc.weight"].T + self.p.get("fc.bias", 0)

    def row(self, state, token, position, path):
        """The row's keys and values, its output and its logits; ``path``: keys and values of the rows before it."""
        embedded = self.embedding[token]
        if self.is_eagle3:
            normed = self.norm(state, "layers.0.hidden_norm.weight")
            x = torch.cat([self.norm(embedded, "layers.0.input_layernorm.weight"), normed])
            hidden = normed if self.config.get("norm_before_residual") else state
        else:
            embedded = self.norm(embedded, "embedding_layernorm.weight")
            hidden = self.product(torch.cat([embedded, state]), "fc")
            x = self.norm(hidden, "layers.0.input_layernorm.weight")
        q, k, v = (self.product(x, f"layers.0.self_attn.{part}_proj").unflatten(0, (-1, 16)) for part in "qkv")
        q, k = (self.norm(each, f"layers.0.self_attn.{part}_norm.weight") for part, each in (("q", q), ("k", k)))
        q, k = self.turned(q, position), self.turned(k, position)
        seen = [*path, (k, v)][-self.layer.get("sliding_window", 100) :]
        heads = []
        for head in range(4):
            shared = head * self.kv_heads // 4
            scores = torch.stack([key[shared] @ q[head] for key, _ in seen]) / 4
            heads.append(scores.softmax(0) @ torch.stack([value[shared] for _, value in seen]))
        hidden = hidden + self.product(torch.cat(heads), "layers.0.self_attn.o_proj")
        y = self.norm(hidden, "layers.0.post_attention_layernorm.weight")
        gate = torch.nn.functional.silu(self.product(y, "layers.0.mlp.gate_proj"))
        hidden = hidden + self.product(gate * self.product(y, "layers.0.mlp.up_proj"), "layers.0.mlp.down_proj")
        normed = self.norm(hidden, "norm.weight" if self.is_eagle3 else "pre_lm_head_layernorm.weight")
        return (k, v), normed if self.config.get("norm_output") else hidden, self.lm_head @ normed

    @staticmethod
    def turned(heads, position):
        angles = position / 20000.0 ** (torch.arange(8).double() / 8)
        a, b = heads[:, :8], heads[:, 8:]
        return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], 1)


def apart(found, expected):
    expected = expected.numpy()
    return np.abs(found - expected).max() / np.abs(expected).max()


def check_likely(likely, logits, known):
    """Probable tokens and their probabilities against logits."""
    weights = logits.softmax(-1).numpy()
    assert len(likely) == 8
    for token, probability in likely:
        assert probability == pytest.approx(weights[known.index(token)], abs=0.03)
    best = np.argsort(-weights)
    if weights[best[0]] > weights[best[1]] + 0.05:
        assert likely[0][0] == known[best[0]]


@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_head_of_every_layout_computes_what_its_layout_says(layout, backend, model, tmp_path):
    config, tensors = LAYOUTS[layout]
    described, ends, values = model
    stored = read_head(write(tmp_path / "head", config, tensors)).of_model(described)
    head = ExecutedHead(stored, ends, context=128, sequences=2, backend=backend, threads=1)
    expected = Written(config, tensors, values)
    known = [2 * i + 3 for i in range(KNOWN)] if "d2t" in tensors else list(range(50))
    assert stored.known.tolist() == known
    count, width = 7, WIDTH * (3 if expected.is_eagle3 else 1)
    rng = np.random.default_rng(1)
    tokens, features = rng.integers(0, 50, count + 1).tolist(), rng.standard_normal((count, width)).astype(np.float32)
    kv = head.kv.open()

    def run(tokens, states, parents=None, of_model=False):
        span = HeadSpan(kv, tokens, states, of_model=of_model, parents=parents, wanted=range(len(tokens)))
        return head.run([span], draft=False)[0]

    outputs, likely = [], []
    for part in (slice(0, 3), slice(3, 7)):
        out, found = run(tokens[1:][part], features[part], of_model=True)
        head.kv.extend(kv, tokens[part], exact=True)
        outputs, likely = [*outputs, *out], [*likely, *found]
    path, states = [], expected.fused(torch.from_numpy(features).double())
    for i in range(count):
        cached, output, logits = expected.row(states[i], tokens[i + 1], i, path)
        path.append(cached)
        assert apart(outputs[i], output) < 0.03
        check_likely(likely[i], logits, known)
    # It goes on by itself, with two tokens that could come next and one after the second of them.
    first = torch.from_numpy(outputs[-1]).double()
    out, likely = run([5, 9, 11], np.stack([outputs[-1], outputs[-1], outputs[0]]), [-1, -1, 1])
    for i, token in enumerate((5, 9)):
        cached, output, logits = expected.row(first, token, count, path)
        assert apart(out[i], output) < 0.03
        check_likely(likely[i], logits, known)
    _, output, logits = expected.row(torch.from_numpy(outputs[0]).double(), 11, count + 1, [*path, cached])
    assert apart(out[2], output) < 0.03
    check_likely(likely[2], logits, known)


def test_a_head_that_does_not_name_its_layers_reads_the_usual_ones(model, tmp_path):
    described, _, _ = model
    taps = {}
    for name in ("EAGLE-1", "EAGLE-3", "EAGLE-3 of speculators"):
        taps[name] = read_head(write(tmp_path / name, *LAYOUTS[name])).of_model(described).config.tap_names
    assert taps["EAGLE-1"] == ("layer.5",)
    assert taps["EAGLE-3"] == ("layer.1", "layer.2", "layer.2")  # after 2, n / 2 and n - 3 layers
    assert taps["EAGLE-3 of speculators"] == ("layer.0", "layer.2", "layer.5")
    listed = {**PAPER3, "eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 2, 5]}}
    head = read_head(write(tmp_path / "listed", listed, eagle3_tensors())).of_model(described)
    assert head.config.taps == (1, 2, 5)


def without(*names):
    return {name: tensor for name, tensor in eagle3_tensors().items() if name not in names}


@pytest.mark.parametrize(
    ("config", "tensors", "culprit"),
    [
        (PAPER3, without("norm.weight"), "norm.weight"),
        (PAPER3, without("d2t"), "d2t"),
        (PAPER3, without("fc.weight"), "does not describe a head"),
        (PAPER3, eagle3_tensors(**{"layers.0.mlp.experts.weight": OWN}), "experts"),
        (PAPER3, eagle3_tensors(**{"layers.1.mlp.up_proj.weight": OWN}), "layers.1"),
        (PAPER3, eagle3_tensors(**{"norm.weight": bf16(65, seed=1)}), "norm.weight"),
        (PAPER3, eagle3_tensors(**{"norm.weight": torch.full((64,), torch.nan)}), "NaN"),
        (PAPER3, eagle3_tensors(**{"norm.weight": torch.ones(64, dtype=torch.int32)}), "norm.weight"),
        (PAPER3, eagle3_tensors(d2t=torch.full((KNOWN,), 49)), "d2t"),
        (PAPER3, eagle3_tensors(d2t=torch.full((KNOWN,), 0.5)), "d2t"),
        (PAPER3, eagle3_tensors(**{"fc.weight": bf16(WIDTH, 3 * 96, seed=1)}), "fc.weight"),
        ({**PAPER3, "num_hidden_layers": 2}, eagle3_tensors(), "has 2 layers"),
        ({**PAPER3, "hidden_act": "gelu"}, eagle3_tensors(), "gelu"),
        ({**PAPER3, "hidden_size": None}, eagle3_tensors(), "damaged"),
        ({**PAPER3, "num_attention_heads": 0}, eagle3_tensors(), "damaged"),
        ({**PAPER3, "num_key_value_heads": 3}, eagle3_tensors(), "heads do not fit"),
        ({**PAPER3, "eagle_config": {"eagle_aux_hidden_state_layer_ids": "all"}}, eagle3_tensors(), "damaged"),
        (speculators("eagle3", eagle_aux_hidden_state_layer_ids=[0, 1, 2]), eagle3_tensors(), "1 of its layers"),
        (speculators("eagle3", norm_before_fc=True), eagle3_tensors(), r"input_norm\.weight is missing"),
        (speculators("mlp_speculator"), eagle3_tensors(), "mlp_speculator"),
        ({**PAPER3, "transformer_layer_config": [1]}, eagle3_tensors(), "damaged"),
        ({**PAPER3, "rope_scaling": {"rope_type": "unheard"}}, eagle3_tensors(), "unheard"),
    ],
)
def test_what_is_wrong_with_a_head_is_said_in_one_line(config, tensors, culprit, tmp_path):
    path = write(tmp_path / "wrong", config, tensors)
    with pytest.raises(SpeqError, match=culprit) as error:
        read_head(path)
    assert "\n" not in str(error.value)
    assert "wrong" in str(error.value)


@pytest.mark.parametrize(
    ("layout", "changed", "message"),
    [
        ("EAGLE-1", {"vocab_size": 51}, "another model, whose vocabulary is 50, not 51"),
        ("EAGLE-3", {"hidden_size": 96, "layers": 8}, "whose hidden size is 64, not 96"),
        ("EAGLE-3", {"layers": 3}, "whose number of layers is at least 4, not 3"),
        ("EAGLE-3 of speculators", {"layers": 5}, "trained for m, whose number of layers is at least 6, not 5"),
    ],
)
def test_a_head_of_another_model_is_refused(layout, changed, message, model, tmp_path):
    head = read_head(write(tmp_path / "head", *LAYOUTS[layout]))
    with pytest.raises(SpeqError, match=message):
        head.of_model(replace(model[0], **changed))


def test_pickled_weights_are_refused_with_the_way_out(tmp_path):
    path = write(tmp_path / "head", *LAYOUTS["EAGLE-1"])
    (path / "model.safetensors").unlink()
    torch.save(dict(LAYOUTS["EAGLE-1"][1]), path / "pytorch_model.bin")
    with pytest.raises(SpeqError, match=r"pytorch_model\.bin is a pickled PyTorch checkpoint.*as safetensors"):
        read_head(path)
