"""The head's arithmetic and its chains, against the layer written out for one chain at a time in NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from speq.training.head import initial_parameters
from speq.training.unroll import Past, Truth, chain_loss, count_right, unroll

LENGTH, STEPS = 14, 4


@pytest.fixture
def text(random_head):
    target, _, _ = random_head
    tokens = torch.from_numpy(np.random.default_rng(5).integers(0, 97, (2, LENGTH)))
    return tokens, target.read(tokens, (2, 2, 2)).features["draft"]


def outputs(head, features, tokens, **options):
    with torch.no_grad():
        return [hidden.numpy() for hidden in unroll(head, features, tokens, STEPS, **options)]


class Written:
    """EAGLE-3's layer in float64, one vector at a time."""

    def __init__(self, head):
        self.config = head.config
        self.p = {name: value.detach().numpy().astype(np.float64) for name, value in head.parameters.items()}
        self.embedding = head.embedding.numpy().astype(np.float64)

    def norm(self, x, name):
        return x / np.sqrt((x * x).mean() + self.config.norm_eps) * self.p[name]

    def rotated(self, heads, position):
        angle = position * np.array(self.config.rotary.inv_freq)
        half = heads.shape[1] // 2
        turned = (heads[:, :half] + 1j * heads[:, half:]) * np.exp(1j * angle)
        return np.concatenate([turned.real, turned.imag], 1)

    def qkv(self, token, hidden, position):
        prefix = "layers.0."
        embedded = self.norm(self.embedding[token], prefix + "input_layernorm.weight")
        x = np.concatenate([embedded, self.norm(hidden, prefix + "hidden_norm.weight")])
        q, k, v = (
            (self.p[f"{prefix}self_attn.{part}_proj.weight"] @ x).reshape(-1, self.config.head_dim) for part in "qkv"
        )
        return self.rotated(q, position), self.rotated(k, position), v

    def layer(self, hidden, q, keys, values):
        attended = []
        for head in range(self.config.heads):
            kv = head * self.config.kv_heads // self.config.heads
            scores = np.array([key[kv] @ q[head] for key in keys]) / self.config.head_dim**0.5
            weights = np.exp(scores - scores.max())
            attended.append(sum(w * value[kv] for w, value in zip(weights / weights.sum(), values, strict=True)))
        prefix = "layers.0."
        x = hidden + self.p[prefix + "self_attn.o_proj.weight"] @ np.concatenate(attended)
        y = self.norm(x, prefix + "post_attention_layernorm.weight")
        gate, up = self.p[prefix + "mlp.gate_proj.weight"] @ y, self.p[prefix + "mlp.up_proj.weight"] @ y
        return x + self.p[prefix + "mlp.down_proj.weight"] @ (gate / (1 + np.exp(-gate)) * up)

    def chain(self, features, tokens, start, steps):
        """Outputs of the steps of one chain."""
        hidden = self.p["fc.weight"] @ features[start]
        earlier = [self.qkv(tokens[p + 1], self.p["fc.weight"] @ features[p], p) for p in range(start)]
        keys, values = [k for _, k, _ in earlier], [v for _, _, v in earlier]
        found = []
        for step in range(steps):
            q, k, v = self.qkv(tokens[start + 1 + step], hidden, start + step)
            keys.append(k)
            values.append(v)
            hidden = self.layer(hidden, q, keys, values)
            found.append(hidden)
        return found


def test_chains_from_all_places_at_once_are_chains_one_by_one(random_head, text):
    _, head, _ = random_head
    tokens, features = text
    found, written = outputs(head, features, tokens), Written(head)
    for row in range(2):
        for start in (0, 1, 5, LENGTH - 1 - STEPS):
            expected = written.chain(features[row].numpy(), tokens[row].tolist(), start, STEPS)
            for step in range(STEPS):
                scale = np.abs(expected[step]).max()
                np.testing.assert_allclose(found[step][row, start], expected[step], rtol=0, atol=1e-5 * scale)


def test_logits_are_the_normed_output_times_the_small_output_head(random_head):
    _, head, _ = random_head
    hidden = torch.randn(3, 64, generator=torch.Generator().manual_seed(2))
    written = Written(head)
    for row in range(3):
        expected = written.p["lm_head.weight"] @ written.norm(hidden[row].numpy().astype(np.float64), "norm.weight")
        np.testing.assert_allclose(head.logits(hidden)[row].numpy(), expected, rtol=1e-4, atol=1e-4)


def test_a_proposal_knows_hidden_states_up_to_its_start_and_tokens_up_to_its_step(random_head, text):
    _, head, _ = random_head
    tokens, features = text
    before = outputs(head, features, tokens)
    place = 6
    other_features = features.clone()
    other_features[:, place] += 1
    other_tokens = tokens.clone()
    other_tokens[:, place] = (other_tokens[:, place] + 1) % 97
    by_features, by_tokens = outputs(head, other_features, tokens), outputs(head, features, other_tokens)
    for step in range(STEPS):
        for start in range(LENGTH - 1 - STEPS):
            same = np.array_equal(before[step][:, start], by_features[step][:, start])
            assert same == (start < place), (step, start)
            same = np.array_equal(before[step][:, start], by_tokens[step][:, start])
            assert same == (start + 1 + step < place), (step, start)


def test_text_behind_a_cache_of_first_steps_gives_the_same_chains(random_head, text):
    _, head, _ = random_head
    tokens, features = text
    whole = outputs(head, features, tokens)
    cuts = torch.tensor([4, 6])
    with torch.no_grad():
        _, keys, values = head.project(tokens[:, 1:], head.fuse(features[:, :-1]), torch.arange(LENGTH - 1))
    rest = torch.stack([tokens[row, cut : cut + 8] for row, cut in enumerate(cuts)])
    rest_features = torch.stack([features[row, cut : cut + 8] for row, cut in enumerate(cuts)])
    found = outputs(head, rest_features, rest, past=Past(keys, values, cuts))
    for step in range(STEPS):
        for row, cut in enumerate(cuts.tolist()):
            expected = whole[step][row, cut : cut + 7 - step]
            np.testing.assert_allclose(found[step][row, : 7 - step], expected, rtol=1e-4, atol=1e-4)


def test_loss_and_counts_are_those_of_single_chains(random_head, text):
    _, head, known = random_head
    tokens, features = text
    rng = np.random.default_rng(3)
    chosen = torch.where(torch.from_numpy(rng.random((2, LENGTH)) < 0.6), tokens.roll(-1, 1), tokens)
    wanted = torch.from_numpy(rng.random((2, LENGTH)) < 0.7)
    likely = torch.softmax(torch.from_numpy(rng.standard_normal((2, LENGTH, 40))).float(), -1)
    is_known = torch.zeros(97, dtype=torch.bool)
    is_known[known] = True
    truth = Truth(tokens, chosen, wanted)
    with torch.no_grad():
        loss = float(chain_loss(head, features, truth, likely, is_known, STEPS))
        logits = [head.logits(hidden) for hidden in unroll(head, features, tokens, STEPS)]
    expected, right, of = 0.0, [0] * STEPS, [0] * STEPS
    for step in range(STEPS):
        entropies = []
        for row in range(2):
            for start in range(LENGTH - 1 - step):
                at = start + 1 + step
                if wanted[row, at] and is_known[chosen[row, at]]:
                    entropies.append(-float((likely[row, at] * logits[step][row, start].log_softmax(-1)).sum()))
                followed = all(tokens[row, start + 1 + j] == chosen[row, start + j] for j in range(1, step + 1))
                if followed and all(wanted[row, start + 1 + j] for j in range(step + 1)):
                    of[step] += 1
                    right[step] += all(
                        known[logits[j][row, start].argmax()] == chosen[row, start + 1 + j] for j in range(step + 1)
                    )
        expected += 0.8**step * float(np.mean(entropies))
    assert loss == pytest.approx(expected, rel=1e-4)
    counts = count_right(head, features, truth, known, STEPS)
    assert (list(counts.right), list(counts.of)) == (right, of)
    assert of[0] > of[1] > 0


def test_an_untrained_head_says_what_the_models_output_head_says_of_the_highest_tap(random_head):
    """With spread 0.02 on the other weights, nearly."""
    target, head, known = random_head
    parameters = initial_parameters(head.config, target, known, 0)
    for name, value in head.parameters.items():
        assert parameters[name].shape == value.shape
    assert torch.equal(parameters["lm_head.weight"], target.head("exact")[known])
    features = torch.randn(5, 192, generator=torch.Generator().manual_seed(4))
    fused = torch.nn.functional.linear(features, parameters["fc.weight"])
    assert torch.nn.functional.cosine_similarity(fused, features[:, 128:]).min() > 0.8
