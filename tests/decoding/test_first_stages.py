"""First stages that cost nothing: look-ups against a search of the whole text, the table, their trees, and cascades."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speq.decoding import Cascade, NgramDrafter, NoDrafter, Policy, Request, SuccessorTable, generate_tokens, verify
from speq.decoding.drafters import Context, Drafter
from speq.decoding.lookup import GRAMS, LONGEST_MATCH, Lookup
from speq.decoding.verify import Proposal
from speq.runtime.sampling import Choice, Sampling

SAMPLINGS = [Sampling(), Sampling(temperature=0.9, top_k=20, top_p=0.95, min_p=0.01, seed=5), Sampling(1.3, seed=2)]


def longest_match(text, tentative):
    """(end, length) by looking at every place of the text, the latest first."""
    whole, best = [*text, *tentative], None
    for end in range(len(text) - 1, 0, -1):
        length = 0
        while length < min(end, len(whole), LONGEST_MATCH) and text[end - 1 - length] == whole[-1 - length]:
            length += 1
        if length >= GRAMS[-1] and (best is None or length > best[1]):
            best = (end, length)
    return best


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_look_up_finds_the_longest_match(data):
    """Texts with so many repetitions that all lengths occur, but few enough of each that every one is looked at."""
    phrases = data.draw(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=40), min_size=1, max_size=4))
    parts = data.draw(st.lists(st.integers(0, len(phrases) - 1), max_size=8))
    text = [token for part in parts for token in phrases[part]]
    tentative = data.draw(st.lists(st.integers(0, 9), max_size=5) | st.sampled_from(phrases))
    lookup = Lookup()
    cut = data.draw(st.integers(0, len(text)))
    lookup.extend(text[:cut])
    lookup.match(tentative)
    lookup.extend(text)
    found, expected = lookup.match(tentative), longest_match(text, tentative)
    if expected is None:
        assert found is None
        return
    assert found is not None
    # Occurrences of short n-grams beyond the latest ones are passed over.
    grams = [tuple(text[i : i + GRAMS[-1]]) for i in range(len(text))]
    if grams.count(tuple([*text, *tentative][-GRAMS[-1] :])) <= 16:
        assert (found.end, found.length) == expected
    assert found.length <= expected[1]
    assert lookup.following(found, 0) == text[found.end]


def test_tentative_tokens_are_not_remembered():
    lookup = Lookup()
    lookup.extend([1, 2, 3])
    assert lookup.match([7, 8, 9, 7, 8]) is None
    lookup.extend([1, 2, 3, 1, 2])
    match = lookup.match()
    assert match is not None
    assert lookup.following(match, 0) == 3
    assert lookup.following(match, 3) is None


def test_a_long_text_is_forgotten_by_halves():
    lookup = Lookup(capacity=100)
    text = [i % 1000 for i in range(1090)]
    lookup.extend(text)
    assert len(lookup._tokens) <= 100
    assert len(lookup._latest[0]) <= 100
    assert lookup.match([1070, 1071]) is None
    assert lookup.match([60, 61]).end == lookup._tokens.index(62)
    assert lookup.match([200, 201]) is None


def test_a_table_is_bounded_and_forgets_what_was_not_renewed():
    table = SuccessorTable(capacity=4)
    for token in range(3):
        table.learn(None, token, [(token + 1, 0.9)])
    table.learn(None, 0, [(5, 0.95)])
    table.learn(None, 9, [(1, 1.0)])
    table.learn(None, 8, [(1, 1.0)])
    assert len(table) == 4
    assert not table.successors(None, 1)
    assert [token for token, _ in table.successors(None, 0)] == [5, 1]
    assert table.successors(3, 9) == [(1, 1.0)]  # what followed it after any token


def grow(drafter, tokens, limit=15, tentative=(), sampling=SAMPLINGS[0], ends=()):
    context = Context(
        tokens,
        limit,
        99,
        lambda _: True,
        lambda _: None,
        lambda _: None,
        frozenset(ends),
        sampling,
        tentative=tentative,
    )
    with pytest.raises(StopIteration) as stop:
        next(drafter.propose(context))
    return stop.value.value, context


@settings(max_examples=100, deadline=None)
@given(
    text=st.lists(st.integers(0, 6), min_size=1, max_size=60),
    rows=st.lists(st.tuples(st.integers(0, 6), st.lists(st.floats(0.01, 0.3), min_size=1, max_size=3)), max_size=12),
    limit=st.integers(0, 15),
    sampling=st.sampled_from(SAMPLINGS),
)
def test_every_beginning_of_a_tree_is_the_best_of_its_size(text, rows, limit, sampling):
    table = SuccessorTable()
    for token, weights in rows:
        table.learn(None, token, [((token + i + 1) % 7, w) for i, w in enumerate(sorted(weights, reverse=True))])
    proposal, _ = grow(NgramDrafter(table), text, limit, sampling=sampling)
    assert len(proposal.tokens) == len(proposal.confidences) <= limit
    reached = proposal.cumulative()
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(reached))
    parents = proposal.parents or range(-1, len(proposal.tokens) - 1)
    assert all(parent < index for index, parent in enumerate(parents))
    places = list(zip(parents, proposal.tokens, strict=True))
    assert len(places) == len(set(places)), "a sibling proposed twice"
    smaller, _ = grow(NgramDrafter(table), text, limit // 2, sampling=sampling)
    assert proposal.tokens[: limit // 2] == smaller.tokens
    chain, _ = grow(NgramDrafter(table, tree=False), text, limit, sampling=sampling)
    assert chain.parents is None


def test_nothing_is_proposed_after_an_end():
    drafter = NgramDrafter(SuccessorTable())
    proposal, _ = grow(drafter, [1, 2, 3, 4, 5, 1, 2], ends=[4])
    assert proposal.tokens == [3, 4]


def test_the_record_of_look_ups_makes_them_more_and_less_sure():
    text = [1, 2, 3, 4, 1, 2]
    for right in (True, False):
        drafter = NgramDrafter(SuccessorTable())
        before, _ = grow(drafter, text, 1)
        for _ in range(30):
            proposal, context = grow(drafter, text, 1)
            drawn = [Choice(3 if right else 9, 1.0), Choice(9, 1.0)]
            drafter.learn(context, proposal, verify([choice.token for choice in drawn], proposal), drawn)
        after, _ = grow(drafter, text, 1)
        assert (after.confidences[0] > before.confidences[0]) == right


def generate(engine, drafter, sampling, length=None, new=60, prompt=(3, 1, 4, 1, 5), policy=None):
    request = Request(list(prompt), sampling, drafter, policy or Policy(length), max_new_tokens=new)
    return [token for chunk in generate_tokens(engine, request, clock=engine.clock) for token in chunk]


class Guesses(Drafter):
    """A stage that proposes random trees."""

    def __init__(self, seed):
        import random

        self._random = random.Random(seed)

    def propose(self, context):
        yield from ()
        count = self._random.randint(0, max(context.limit, 0))
        tokens = [self._random.randrange(12) for _ in range(count)]
        return Proposal(tokens, [0.5] * count, [self._random.randint(-1, i - 1) for i in range(count)])


@settings(max_examples=60, deadline=None)
@given(
    nodes=st.integers(0, 12),
    length=st.one_of(st.none(), st.integers(1, 16)),
    sampling=st.sampled_from(SAMPLINGS),
    noise=st.sampled_from([0.0, 0.5, 9.0]),
    stage=st.sampled_from(["chain", "tree", "guesses", "direct", "direct chain", "twice"]),
    shared=st.booleans(),
    salt=st.integers(0, 5),
    context=st.sampled_from([20, 66, 300]),
)
def test_no_first_stage_changes_a_token(mock_engine, nodes, length, sampling, noise, stage, shared, salt, context):
    """A vocabulary of 12 gives look-ups and trees something to hit; a shared table has seen another text."""
    options = {"vocab_size": 12, "salt": salt, "context_length": context}
    plain = generate(mock_engine(**options), NoDrafter(), sampling)
    table = SuccessorTable()
    if shared:
        other = mock_engine(**{**options, "salt": salt + 1})
        generate(other, Cascade(NgramDrafter(table), 3), sampling)
    drafter = {
        "chain": lambda: Cascade(NgramDrafter(table, tree=False), nodes),
        "tree": lambda: Cascade(NgramDrafter(table), nodes),
        "guesses": lambda: Cascade(Guesses(salt), nodes),
        "direct": lambda: NgramDrafter(table, nodes),
        "direct chain": lambda: NgramDrafter(table, nodes, tree=False),
        "twice": lambda: Cascade(Cascade(Guesses(salt), 2), nodes),
    }[stage]()
    assert generate(mock_engine(noise=noise, **options), drafter, sampling, length) == plain


def test_a_cascade_that_keeps_the_wrong_branch_is_noticed(mock_engine, monkeypatch):
    """The control: of a tree, rows beside the path stay in the cache."""
    from speq.runtime.kv import KVPool

    keep, options = KVPool.keep, {"vocab_size": 12, "noise": 0.0}
    plain = generate(mock_engine(**options), NoDrafter(), SAMPLINGS[0], new=200)
    drafter = NgramDrafter(SuccessorTable(), 8)
    assert generate(mock_engine(**options), drafter, SAMPLINGS[0], 8, new=200) == plain
    monkeypatch.setattr(KVPool, "keep", lambda self, kv, start, path: keep(self, kv, start, range(len(path))))
    drafter = NgramDrafter(SuccessorTable(), 8)
    assert generate(mock_engine(**options), drafter, SAMPLINGS[0], 8, new=200) != plain


def test_a_cascade_begins_where_its_first_stage_has_drafted(mock_engine):
    """What a first stage that runs passes itself leaves in the cache is cut away: a perfect draft stays perfect."""
    from speq.decoding import SelfDrafter, Statistics

    engine, stats = mock_engine(noise=0.0), Statistics()
    request = Request([1, 2], SAMPLINGS[0], Cascade(SelfDrafter(), 3), Policy(8), max_new_tokens=80, stats=stats)
    assert sum(len(chunk) for chunk in generate_tokens(engine, request, clock=engine.clock)) == 80
    assert stats.accepted == stats.drafted > 0


def test_a_shared_table_knows_what_another_text_has_shown(mock_engine):
    """The next token depends on the last one alone, but nothing of the first text stands in the second one's."""

    class Markov(mock_engine):
        def row(self, history, draft=False):
            return super().row([0] * 6 + [history[-1]], draft)

    table, counts = SuccessorTable(), []
    for _ in range(2):
        engine = Markov(noise=0.0, spread=40.0)
        generate(engine, Cascade(NgramDrafter(table), 3), SAMPLINGS[0], 8, new=12)
        counts.append(sum(draft for _, draft in engine.passes))
    assert counts[1] < counts[0]


def test_text_that_repeats_takes_fewer_passes(mock_engine):
    class Copying(mock_engine):
        def row(self, history, draft=False):
            return super().row([0] * 6 + [len(history) % 9], draft)

    drafters = {"self": None, "cascade": Cascade(NgramDrafter(SuccessorTable()), 3)}
    counts = {}
    for name, drafter in drafters.items():
        from speq.decoding import SelfDrafter

        engine = Copying(noise=0.0)
        generate(engine, drafter or SelfDrafter(), SAMPLINGS[0], 8, new=200)
        counts[name] = sum(draft for _, draft in engine.passes)
    assert counts["cascade"] < 0.5 * counts["self"]
