"""A trained head as first stage: what it computes against the torch code that trains it, and that no token depends on
it.
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from heads import write_random_head
from hypothesis import given, settings
from hypothesis import strategies as st

import speq
from speq.conversion.locate import converted_model
from speq.decoding.drafters import Cascade, Straight
from speq.decoding.head import HeadDrafter
from speq.decoding.verify import Proposal
from speq.models.head_files import read_head
from speq.models.tensors import load_fitting
from speq.runtime.batch import HeadSpan
from speq.runtime.engine import Engine
from speq.runtime.head import ExecutedHead
from speq.runtime.sampling import Sampling
from speq.training.layout import write_head

SAMPLINGS = [Sampling(), Sampling(0.8, top_k=30, top_p=0.95, seed=3), Sampling(1.3, seed=5)]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPEQ_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def checkpoint(tiny_checkpoint, cache):
    return tiny_checkpoint


@pytest.fixture(scope="module")
def config(checkpoint):
    return json.loads((checkpoint / "config.json").read_text())


@pytest.fixture(scope="module")
def directory(config, tmp_path_factory):
    return write_random_head(tmp_path_factory.mktemp("heads") / "head", config)


@pytest.fixture(scope="module")
def model(checkpoint, directory):
    return speq.load(checkpoint, threads=1, draft_head=directory)


@pytest.fixture(scope="module")
def torch_head(checkpoint, directory):
    from speq.training.chains import bind_head
    from speq.training.target import Target

    converted = load_fitting(converted_model(str(checkpoint)))
    target = Target(converted.config, {**converted.raw, **converted.split}, "cpu")
    return target, *bind_head(read_head(directory), target)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_chains_of_the_executed_head_are_those_of_the_torch_code(checkpoint, directory, torch_head, backend):
    """Fed the text's own tokens: outputs agree, and so do the tokens that are found most probable."""
    import torch

    from speq.training.unroll import unroll

    target, reference, known = torch_head
    tokens = np.random.default_rng(1).integers(0, 259, 20)
    features = target.read(torch.from_numpy(tokens[None]), (1, 1, 2)).features["exact"]
    with torch.no_grad():
        outputs = [o[0].numpy() for o in unroll(reference, features, torch.from_numpy(tokens[None]), 3)]
        logits = [reference.logits(torch.from_numpy(o)).numpy() for o in outputs]
    converted = load_fitting(converted_model(str(checkpoint)))
    head = ExecutedHead(
        read_head(directory), Engine(converted, threads=1).ends, context=64, sequences=2, threads=1, backend=backend
    )
    kv, compared = head.kv.open(), 0
    for start in range(len(tokens) - 4):
        hidden = head.fuse(features[0, start : start + 1].numpy())
        for step in range(3):
            # A tree in which every row but the last one leads to it, as drafting feeds it.
            read = [int(token) for token in tokens[start + 1 : start + 2 + step]]
            fed = np.concatenate([hidden, *[outputs[s][start : start + 1] for s in range(step)]])
            ((out, (likely,)),) = head.run([HeadSpan(kv, read, fed, wanted=[step])], draft=False)
            expected = outputs[step][start]
            np.testing.assert_allclose(out[-1], expected, rtol=0, atol=0.02 * np.abs(expected).max())
            row = logits[step][start]
            best = np.argsort(-row)
            if row[best[0]] - row[best[1]] > 0.1:
                assert likely[0][0] == known[best[0]]
                compared += 1
            probability = np.exp(row - row.max()).max() / np.exp(row - row.max()).sum()
            assert likely[0][1] == pytest.approx(probability, abs=0.03)
        head.kv.extend(kv, [0], exact=True)
    assert compared > 30


def test_draft_codes_of_a_head_find_mostly_the_same_tokens(checkpoint, directory):
    converted = load_fitting(converted_model(str(checkpoint)))
    head = ExecutedHead(read_head(directory), Engine(converted, threads=1).ends, context=64, threads=1)
    rng = np.random.default_rng(2)
    tokens, states = rng.integers(0, 259, 40).tolist(), rng.standard_normal((40, 192)).astype(np.float32)
    kv, hidden = head.kv.open(), head.fuse(states)
    exact, draft = (
        head.run([HeadSpan(kv, tokens, hidden, wanted=range(40))], draft=draft)[0][1] for draft in (False, True)
    )
    assert np.mean([a[0][0] in [token for token, _ in b[:3]] for a, b in zip(exact, draft, strict=True)]) > 0.8


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_no_token_depends_on_a_head(model, data):
    prompt = data.draw(st.lists(st.integers(0, 255), min_size=1, max_size=40))
    options = {
        "sampling": data.draw(st.sampled_from(SAMPLINGS)),
        "max_new_tokens": data.draw(st.integers(1, 40)),
        "ignore_ends": data.draw(st.booleans()),
    }
    plain = model.generate(prompt, draft="none", **options)
    length = data.draw(st.sampled_from([None, 1, 3, 8]))
    nodes, tree = data.draw(st.integers(1, 15)), data.draw(st.booleans())

    def first():
        return HeadDrafter(model.head, nodes, tree=tree)

    def nested():
        return Cascade(Cascade(first(), 3), 2, "draft")

    for draft in (
        "auto",
        "head",
        "head-direct",
        lambda: Straight(first()),
        lambda: Cascade(first(), nodes),
        first,
        nested,
    ):
        found = model.generate(prompt, draft=draft, draft_length=length, **options)
        assert found.token_ids == plain.token_ids
    if data.draw(st.booleans()):
        model.reset()


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_no_token_depends_on_a_head_among_several_texts(model, data):
    prompts = data.draw(st.lists(st.lists(st.integers(0, 255), min_size=1, max_size=30), min_size=2, max_size=5))
    options = {"sampling": data.draw(st.sampled_from(SAMPLINGS)), "max_new_tokens": 24}
    alone = [model.generate(prompt, draft="none", **options).token_ids for prompt in prompts]
    draft = data.draw(st.sampled_from(["auto", "head", "head-direct"]))
    assert [found.token_ids for found in model.generate_many(prompts, draft=draft, **options)] == alone


def test_heads_of_several_texts_run_in_one_pass(checkpoint, directory, monkeypatch):
    """And give each what they give it alone, to the bit, with kernels that draft one row as they draft several."""
    monkeypatch.setenv("SPEQ_ISA", "portable")
    model = speq.load(checkpoint, threads=1, draft_head=directory)
    original, passes = model.head.run, []

    def run(spans):
        found = original(spans)
        for span, (outputs, likely) in zip(spans, found, strict=True):
            ((alone, likely_alone),) = original([span])
            assert np.array_equal(outputs, alone)
            assert likely == likely_alone
        passes.append(len(spans))
        return found

    prompts = [list(range(at, at + 5 + 7 * at)) for at in range(5)]
    options = {"max_new_tokens": 20, "ignore_ends": True, "sampling": SAMPLINGS[1]}
    alone = [model.generate(prompt, draft="none", **options).token_ids for prompt in prompts]
    model.reset()
    with monkeypatch.context() as patch:
        patch.setattr(model.head, "run", run)
        for draft in ("head", "head-direct"):
            together = model.generate_many(prompts, draft=draft, draft_length=6, **options)
            assert [found.token_ids for found in together] == alone
    assert max(passes) == 5
    assert np.mean(passes) > 2


class Watched(HeadDrafter):
    """Keeps what it proposed and what it was told of hidden states."""

    def __init__(self, head, **options):
        super().__init__(head, **options)
        self.proposals, self.reads = [], []

    def propose(self, context):
        proposal = yield from super().propose(context)
        self.proposals.append((list(context.tokens) + list(context.tentative), proposal))
        return proposal

    def read(self, tokens, states, start, level):
        self.reads.append((list(tokens), states.copy(), start, level))
        super().read(tokens, states, start, level)


def test_states_are_those_of_the_positions_they_are_said_to_stand_at(model, torch_head):
    """Of a long prompt in pieces and of every round: the exact states are what torch computes over the whole text."""
    import torch

    made = []
    prompt = np.random.default_rng(3).integers(0, 255, 70).tolist()
    model.reset()
    result = model.generate(
        prompt, draft=lambda: made.append(Watched(model.head)) or Cascade(made[0], 4), max_new_tokens=30
    )
    text = torch.tensor([[*prompt, *result.token_ids]])
    expected = torch_head[0].read(text, (1, 1, 2)).features["exact"][0].numpy()
    seen = set()
    for tokens, states, start, level in made[0].reads:
        if level == "exact":
            assert tokens == text[0, start : start + len(tokens)].tolist()
            np.testing.assert_allclose(states, expected[start : start + len(tokens)], rtol=0, atol=0.05)
            seen |= set(range(start, start + len(tokens)))
    assert seen == set(range(len(text[0]) - 1))
    assert any(level == "draft" for _, _, _, level in made[0].reads)


def test_proposals_in_use_are_the_chains_of_the_torch_code(model, torch_head):
    """Straight to the exact level the head reads exact states only, so torch over the text says what it proposes."""
    import torch

    from speq.training.unroll import unroll

    target, head, known = torch_head
    made, model_prompt = [], np.random.default_rng(4).integers(0, 255, 30).tolist()
    model.reset()
    result = model.generate(
        model_prompt, draft=lambda: made.append(Watched(model.head, tree=False)) or made[0], max_new_tokens=40
    )
    text = torch.tensor([[*model_prompt, *result.token_ids]])
    features = target.read(text, (1, 1, 2)).features["exact"]
    with torch.no_grad():
        (outputs,) = unroll(head, features, text, 1)
        probabilities = torch.softmax(head.logits(outputs)[0], -1).numpy()
    right = compared = 0
    for tokens, proposal in made[0].proposals:
        if not proposal.tokens:
            continue
        row = probabilities[len(tokens) - 2]
        right += proposal.tokens[0] in known.numpy()[np.argsort(-row)[:2]]
        compared += 1
    assert compared > 20
    assert right > 0.8 * compared


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_every_beginning_of_a_proposal_is_its_most_probable_part(model, sampling):
    made = []
    model.generate(
        [1, 2, 3],
        draft=lambda: made.append(Watched(model.head)) or Cascade(made[0], 7),
        max_new_tokens=30,
        sampling=sampling,
    )
    proposals = [proposal for _, proposal in made[0].proposals if proposal.tokens]
    assert any(proposal.parents for proposal in proposals)
    for proposal in proposals:
        assert all(0 < confidence <= 1 for confidence in proposal.confidences)
        reached = proposal.cumulative()
        assert reached == sorted(reached, reverse=True)
        children = list(zip(proposal.parents or range(-1, len(proposal.tokens) - 1), proposal.tokens, strict=True))
        assert len(set(children)) == len(children)


def write_echo(path, config):
    """An EAGLE-1 head whose layer adds nothing to the model's last hidden state, so that it proposes, with the model's
    output head, what the model has just drawn.
    """
    from safetensors.numpy import save_file

    hidden, rng = config["hidden_size"], np.random.default_rng(0)
    shapes = {"q": (hidden, hidden), "k": (hidden // 2, hidden), "v": (hidden // 2, hidden)}
    tensors = {f"self_attn.{part}_proj": rng.standard_normal(shape) for part, shape in shapes.items()}
    tensors |= {f"mlp.{part}_proj": rng.standard_normal((80, hidden)) for part in ("gate", "up")}
    tensors |= {"self_attn.o_proj": np.zeros((hidden, hidden)), "mlp.down_proj": np.zeros((hidden, 80))}
    tensors["post_attention_layernorm"] = np.ones(hidden)
    path.mkdir()
    save_file(
        {f"layers.0.{name}.weight": value.astype(np.float32) for name, value in tensors.items()}
        | {"fc.weight": np.eye(hidden, 2 * hidden, hidden, dtype=np.float32)},
        path / "model.safetensors",
    )
    names = ("hidden_size", "vocab_size", "num_attention_heads", "num_key_value_heads", "rms_norm_eps")
    (path / "config.json").write_text(json.dumps({name: config[name] for name in names} | {"intermediate_size": 80}))
    return path


def test_an_eagle_1_head_reads_the_last_state_behind_the_models_norm(checkpoint, config, tmp_path):
    model = speq.load(checkpoint, threads=1, draft_head=write_echo(tmp_path / "head", config))
    plain = model.generate([7, 8, 9], draft="none", max_new_tokens=60).token_ids
    made = []
    found = model.generate([7, 8, 9], draft=lambda: made.append(Watched(model.head)) or made[0], max_new_tokens=60)
    assert found.token_ids == plain
    echoed = [
        tokens[-1] in [token for token, parent in zip(p.tokens, p.parents or [-1], strict=False) if parent == -1]
        for tokens, p in made[0].proposals
        if p.tokens
    ]
    assert len(echoed) > 10  # the others are too improbable to be proposed
    assert np.mean(echoed) > 0.9
    for draft in ("auto", "head", "head-direct"):
        assert model.generate([7, 8, 9], draft=draft, max_new_tokens=60).token_ids == plain


def test_a_head_of_another_structure_is_not_measured(checkpoint, config, torch_head, tmp_path):
    from speq.training.chains import bind_head

    with pytest.raises(speq.SpeqError, match="has a structure that is not measured here"):
        bind_head(read_head(write_echo(tmp_path / "head", config)), torch_head[0])


def test_a_head_straight_to_the_exact_level_takes_no_draft_pass_and_proposes_trees(model):
    for sampling in SAMPLINGS:
        rounds = {draft: [] for draft in ("head", "head-direct")}
        for draft, kept in rounds.items():
            model.reset()
            model.generate([5, 6, 7], draft=draft, sampling=sampling, max_new_tokens=40, on_round=kept.append)
        assert any(happened.passes for happened in rounds["head"])
        assert not any(happened.passes for happened in rounds["head-direct"])
        assert any(happened.proposed for happened in rounds["head-direct"])


def test_a_second_text_takes_what_the_head_has_of_the_first(model):
    prompt = list(range(60))
    model.reset()
    made = []

    def draft():
        made.append(Watched(model.head))
        return Cascade(made[-1])

    first = model.generate(prompt, draft=draft, max_new_tokens=20)
    again = model.generate([*prompt, *first.token_ids[:10]], draft=draft, max_new_tokens=10)
    assert again.token_ids == first.token_ids[10:20]
    assert sum(len(tokens) for tokens, _, start, _ in made[1].reads if start < 60) < 5
    other = model.generate([*prompt[:30], 7, 7], draft="none", max_new_tokens=3).token_ids
    assert model.generate([*prompt[:30], 7, 7], draft=draft, max_new_tokens=3).token_ids == other


def test_a_head_that_is_seldom_asked_keeps_up_with_the_text(model, monkeypatch):
    from speq.decoding.policy import Policy

    prompt, asked, made = list(range(30)), [], []
    plain = model.generate(prompt, draft="none", max_new_tokens=200, ignore_ends=True).token_ids
    with monkeypatch.context() as patch:
        patch.setattr(Policy, "asks", lambda self: asked.append(1) or len(asked) % 40 == 0)
        found = model.generate(
            prompt,
            draft=lambda: made.append(Watched(model.head)) or Cascade(made[0], may_skip=True),
            max_new_tokens=200,
            ignore_ends=True,
        )
    assert found.token_ids == plain
    assert 0 < len(made[0].proposals) < len(asked) / 30


def test_pages_are_given_back_when_a_text_ends(model):
    model.reset()
    stream = model.stream(list(range(50)), draft="head", max_new_tokens=30)
    next(stream)
    stream.close()
    model.generate([5], draft="head", max_new_tokens=2)
    model.reset()
    assert model.head.kv.used_pages == 0


def test_the_draft_head_needs_a_head(checkpoint):
    plain = speq.load(checkpoint, threads=1)
    with pytest.raises(speq.SpeqError, match="give its directory with --draft-head"):
        plain.stream([1], draft="head")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"vocab_size": 300}, "trained for tiny, whose vocabulary is 300, not 259"),
        ({"hidden_size": 128, "head_dim": 16}, "whose hidden size is 128, not 64"),
    ],
)
def test_a_head_of_another_model_is_refused(checkpoint, config, tmp_path, entries, message):
    path = write_random_head(tmp_path / "head", config, **entries)
    with pytest.raises(speq.SpeqError, match=message):
        speq.load(checkpoint, threads=1, draft_head=path)


def test_a_head_that_reads_deeper_layers_is_refused(checkpoint, directory, tmp_path):
    path = shutil.copytree(directory, tmp_path / "head")
    content = json.loads((path / "config.json").read_text())
    content["eagle_aux_hidden_state_layer_ids"] = [1, 2, 3]
    (path / "config.json").write_text(json.dumps(content))
    with pytest.raises(speq.SpeqError, match="whose number of layers is at least 3, not 2"):
        speq.load(checkpoint, threads=1, draft_head=path)


def test_what_is_no_head_or_damaged_is_named(checkpoint, directory, tmp_path):
    with pytest.raises(speq.SpeqError, match=r"is no trained head: it has no config\.json"):
        speq.load(checkpoint, threads=1, draft_head=tmp_path)
    with pytest.raises(speq.SpeqError, match="does not describe a head"):
        speq.load(checkpoint, threads=1, draft_head=checkpoint)
    path = shutil.copytree(directory, tmp_path / "head")
    weights = path / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(speq.SpeqError, match=r"model\.safetensors"):
        speq.load(checkpoint, threads=1, draft_head=path)
    weights.unlink()
    with pytest.raises(speq.SpeqError, match=r"model\.safetensors"):
        speq.load(checkpoint, threads=1, draft_head=path)
    stored = read_head(directory)
    shutil.rmtree(path)
    path.mkdir()
    ids = stored.known.copy()
    ids[-1] = 500
    model = json.loads((checkpoint / "config.json").read_text())
    write_head(path, stored.config, stored.parameters, ids, model, "", 4, {})
    with pytest.raises(speq.SpeqError, match="d2t names no ascending ids"):
        speq.load(checkpoint, threads=1, draft_head=path)
    nan = {**stored.parameters, "norm.weight": np.full(64, np.nan, np.float32)}
    write_head(path, stored.config, nan, stored.known, model, "", 4, {})
    with pytest.raises(speq.SpeqError, match=r"tensor norm\.weight holds NaN"):
        read_head(path)


@pytest.mark.parametrize("name", ["run", "fuse"])
def test_an_interruption_within_the_head_loses_no_token(model, monkeypatch, name):
    prompts = [list(range(30)), list(range(40, 60))]
    alone = [model.generate(prompt, draft="none", max_new_tokens=30).token_ids for prompt in prompts]
    model.reset()
    interrupted, other = (model.stream(prompt, draft="head", max_new_tokens=30) for prompt in prompts)
    found = [token for _ in range(3) for token in next(other).token_ids]
    original, calls = getattr(model.head, name), []

    def once(*arguments, **options):
        calls.append(1)
        result = original(*arguments, **options)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patch:
        patch.setattr(model.head, name, once)
        with pytest.raises(KeyboardInterrupt):
            for _ in interrupted:
                pass
    found += [token for piece in other for token in piece.token_ids]
    assert found == alone[1]
    assert model.generate(prompts[0], draft="head", max_new_tokens=30).token_ids == alone[0]


def test_a_drafter_of_the_callers_own_may_read_hidden_states(model):
    class Reading(speq.Drafter):
        taps = ("layer.0",)

        def __init__(self):
            self.positions, self.widths = set(), set()

        def propose(self, context):
            yield from ()
            return Proposal([1, 2][: context.limit], [0.5, 0.5][: context.limit])

        def begin(self, tokens):
            return 0

        def read(self, tokens, states, start, level):
            self.positions |= set(range(start, start + len(tokens)))
            self.widths.add(states.shape[1])

    made = []
    prompt = list(range(20))
    plain = model.generate(prompt, draft="none", max_new_tokens=9).token_ids
    found = model.generate(prompt, draft=lambda: made.append(Reading()) or made[0], max_new_tokens=9)
    assert found.token_ids == plain
    assert made[0].positions == set(range(28))
    assert made[0].widths == {64}
    Reading.taps = ("layer.9",)
    with pytest.raises(speq.SpeqError, match=r"reads the tap 'layer\.9', which the model does not have: use some of"):
        model.generate(prompt, draft=Reading, max_new_tokens=3)
