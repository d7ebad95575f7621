"""The policy on a virtual clock: near the best fixed length, never much slower than plain decoding, adaptive."""

from __future__ import annotations

import numpy as np
import pytest

from speq.decoding import (
    Cascade,
    NgramDrafter,
    NoDrafter,
    Policy,
    Request,
    SelfDrafter,
    SuccessorTable,
    generate_tokens,
)
from speq.decoding.acceptance import Acceptance
from speq.decoding.costs import PassCosts
from speq.decoding.drafters import Aside, Drafter
from speq.decoding.policy import Situation
from speq.decoding.verify import Proposal, verify
from speq.runtime.sampling import Sampling

STEPPED = (1.0, 1.02, 1.04, 1.06, 1.08, 1.1, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0, 2.1, 2.2, 2.3, 2.4)
FLAT = (1.0,)
STEEP = tuple(1.0 + 0.6 * n for n in range(16))


GREEDY = Sampling()


def seconds(engine, policy, count=600, sampling=GREEDY, draft=True):
    """Virtual decoding time of ``count`` tokens."""
    drafter = SelfDrafter() if draft else NoDrafter()
    request = Request([1, 2, 3], sampling, drafter, policy, max_new_tokens=count)
    for _ in generate_tokens(engine, request, clock=engine.clock):
        pass
    return request.stats.decode_seconds


@pytest.mark.parametrize("verify_cost", [FLAT, STEPPED, STEEP], ids=["flat", "stepped", "steep"])
@pytest.mark.parametrize("noise", [0.05, 0.6])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(1.0, seed=1)], ids=["greedy", "sampled"])
def test_automatic_length_is_near_the_best_fixed_choice(mock_engine, verify_cost, noise, sampling):
    def time_of(policy, **options):
        engine = mock_engine(context_length=2000, noise=noise, verify_cost=verify_cost, draft_cost=0.27)
        return seconds(engine, policy, 1500, sampling, **options)

    best = min(time_of(Policy(length)) for length in (1, 2, 5, 15))
    plain = time_of(Policy(), draft=False)
    assert time_of(Policy(may_pause=True)) < 1.03 * min(best, plain)


def test_confidence_beats_every_fixed_length(mock_engine):
    """Some positions are certain and some are open, so stopping by confidence must gain."""

    def time_of(policy):
        return seconds(mock_engine(context_length=2000, noise=0.6, draft_cost=0.27), policy, 1500)

    assert time_of(Policy()) < 0.97 * min(time_of(Policy(length)) for length in range(1, 8))


@pytest.mark.parametrize("length", [None, 1, 7])
@pytest.mark.parametrize("noise", [3.0, 100.0])
def test_a_useless_draft_costs_next_to_nothing(mock_engine, length, noise):
    def engine():
        return mock_engine(noise=noise, draft_cost=0.5, verify_cost=STEPPED)

    plain = seconds(engine(), Policy(), draft=False)
    assert seconds(engine(), Policy(length, may_pause=True)) < 1.04 * plain


def test_drafting_resumes_when_it_pays_again(mock_engine):
    policy = Policy(may_pause=True)
    seconds(mock_engine(noise=100.0), policy, 300)
    good = mock_engine(context_length=2000, noise=0.05, draft_cost=0.27)
    assert seconds(good, policy, 1500) < 0.6 * 1500


def test_a_slow_first_step_does_not_mislead(mock_engine):
    """Cold caches make the first plain step ten times as slow; a steep verify cost must still stop the drafting."""

    class Cold(mock_engine):
        def run(self, batch):
            if len(self.passes) == 1:
                self.now += 10
            return super().run(batch)

    plain = seconds(mock_engine(), Policy(), draft=False)
    assert seconds(Cold(noise=100.0, draft_cost=0.5), Policy(may_pause=True)) < 10 + 1.05 * plain


@pytest.mark.parametrize("noise", [0.3, 100.0])
def test_a_busy_machine_does_not_mislead_for_long(mock_engine, noise):
    """Passes take 20 % longer on average, one in twenty three times as long."""

    def time_of(policy, **options):
        engines = [mock_engine(context_length=2000, noise=noise, jitter=0.2, salt=salt) for salt in range(3)]
        return sum(seconds(engine, policy(), 1000, **options) for engine in engines)

    best = min(time_of(lambda length=length: Policy(length)) for length in (1, 3, 5, 8))
    plain = time_of(Policy, draft=False)
    assert time_of(lambda: Policy(may_pause=True)) < 1.06 * min(best, plain)


def test_fixed_length_is_kept():
    policy = Policy(5)
    assert policy.plan(100, Situation()) == 5
    assert policy.plan(3, Situation()) == 3
    assert policy.more([0.0001])


def test_a_draft_that_was_slow_once_is_tried_again_soon(mock_engine):
    """Something else had the machine while the policy was young, and all passes took the same time."""

    class Contended(mock_engine):
        def run(self, batch):
            before = self.now
            output = super().run(batch)
            if before < 60:
                self.now = before + 1.5
            return output

    policy = Policy(may_pause=True)
    engine = Contended(context_length=2000, noise=0.05, draft_cost=0.27)
    assert seconds(engine, policy, 600) < 60 + 0.75 * 560


def test_costs_follow_measurements():
    costs = PassCosts()
    before = costs.of("draft", 1) / costs.of("exact", 1)
    assert before == pytest.approx(0.3)
    for _ in range(40):
        costs.observe("exact", 1, 2.0)
        costs.observe("draft", 1, 0.5)
        costs.observe("draft", 4, 0.8)
    assert costs.of("draft", 1) / costs.of("exact", 1) == pytest.approx(0.25, rel=0.03)
    assert costs.of("draft", 4) / costs.of("draft", 1) == pytest.approx(1.6, rel=0.05)
    assert costs.of("draft", 1) < costs.of("draft", 2) < costs.of("draft", 4) < costs.of("draft", 6)
    for _ in range(150):
        costs.observe("exact", 1, 2.0)
        costs.observe("draft", 1, 1.0)
    assert costs.of("draft", 1) / costs.of("exact", 1) == pytest.approx(0.5, rel=0.03)


def test_a_first_pass_is_not_believed():
    """It brings the weights into memory."""
    costs = PassCosts()
    costs.observe("exact", 1, 50.0)
    costs.observe("draft", 1, 50.0)
    assert costs.of("draft", 1) / costs.of("exact", 1) == pytest.approx(0.3)


@pytest.mark.parametrize(
    "steps", [(1.0, 1.04, 1.08, 1.12, 1.16, 1.2, 1.24, 1.28), (1.0, 1.3, 1.6, 1.9, 2.2, 2.5, 2.8, 3.1)]
)
def test_the_cost_of_one_more_row_is_found_on_a_machine_whose_speed_changes(steps):
    """Its speed wanders by a factor of two over some dozen rounds, and single passes are noisy."""
    rng = np.random.default_rng(2)
    costs, speed = PassCosts(), 1.0
    for _ in range(400):
        speed = min(max(speed * rng.normal(1, 0.1), 0.7), 1.5)
        drafted = int(rng.integers(1, 8))
        for _ in range(drafted):
            costs.observe("draft", 1, 0.3 * speed * rng.normal(1, 0.03))
        costs.observe("exact", drafted + 1, steps[drafted] * speed * rng.normal(1, 0.03))
    found = np.array([costs.of("exact", n) for n in range(2, 9)])
    assert found / costs.of("draft", 1) * 0.3 == pytest.approx(steps[1:], rel=0.08)
    assert np.diff(found).mean() / costs.of("draft", 1) * 0.3 == pytest.approx(steps[1] - steps[0], abs=0.02)


def test_time_that_a_first_stage_takes_itself_counts_like_a_pass():
    """Where its proposals cost more than the pass that checks them, a second draft pass does not pay any more."""

    def after(own):
        policy = Policy()
        for _ in range(20):
            policy.plan(8, Situation())
            policy.learn(Proposal([1], [0.7]), verify([1, 2], Proposal([1], [0.7])))
            policy.observe([0.9, 0.9], 2, passes=1, rows=2, cost=1.4 + own, own=own)
        policy.plan(8, Situation())
        return policy

    cheap, dear = after(0.0), after(3.0)
    assert cheap.more([0.9, 0.9])
    assert not dear.more([0.9, 0.9])


def test_what_was_not_checked_is_learnt_from_as_far_as_draws_tell():
    """The draw after the last checked token says which of the tokens that follow it is right, but no more."""
    acceptance, tree = Acceptance(), Proposal([7, 8, 9, 9], [0.1, 0.3, 0.6, 0.6], [-1, -1, 0, 1])
    before = [acceptance.probability(each) for each in (0.1, 0.3, 0.6)]
    assert acceptance.observe_tree(tree, [7]) == 1
    after = [acceptance.probability(each) for each in (0.1, 0.3, 0.6)]
    assert after[0] > before[0]
    assert after[1] < before[1]
    assert after[2] == before[2]
    assert acceptance.observe_tree(tree, [7, 9]) == 2
    assert acceptance.probability(0.6) > before[2]


def test_a_first_stage_whose_proposals_were_cut_away_is_believed_again():
    """After many wrong ones none of its tokens is worth a row, and still it is seen that they are right."""
    policy = Policy()
    policy.plan(15, Situation(costs_of(CHEAP, DRAFT)))
    proposal = chain(*[0.9] * 3)
    for _ in range(40):
        policy.learn(proposal, verify([99], Proposal()))
    assert policy.worth(proposal, []) == 0
    for _ in range(40):
        policy.learn(proposal, verify([proposal.tokens[0]], Proposal()))
    assert policy.worth(proposal, []) > 0


class Costly(Drafter):
    """Takes a share of a plain step for each proposal, which is right at certain positions."""

    def __init__(self, engine, cost, right=()):
        self.engine, self.cost, self.right, self.asked = engine, cost, right, 0

    def propose(self, context):
        self.asked += 1
        yield Aside(self, self._run, None, 1, 16)
        good = context.position in self.right
        tokens, history = [], [*context.tokens, *context.tentative]
        for _ in range(min(context.limit, 3)):
            token = int(self.engine.row([*history, *tokens]).argmax())
            tokens.append(token if good else (token + 1) % self.engine.vocab_size)
        return Proposal(tokens, [0.9] * len(tokens))

    def _run(self, works):
        self.engine.now += self.cost
        return [None] * len(works)


def seconds_with(engine, drafter, policy, count=1200):
    """Virtual decoding time of a text, and the text."""
    request = Request([1, 2, 3], GREEDY, drafter, policy, max_new_tokens=count)
    text = [token for chunk in generate_tokens(engine, request, clock=engine.clock) for token in chunk]
    return request.stats.decode_seconds, text


@pytest.mark.parametrize("cost", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("noise", [0.05, 100.0], ids=["good draft", "useless draft"])
def test_a_first_stage_that_is_never_right_costs_next_to_nothing(mock_engine, cost, noise):
    """Beside plain decoding where the draft is useless, and beside the draft alone where that is good."""

    def engine():
        return mock_engine(context_length=2000, noise=noise, draft_cost=0.27, verify_cost=STEPPED)

    alone, expected = seconds_with(engine(), SelfDrafter(), Policy(may_pause=True))
    burdened = engine()
    first = Costly(burdened, cost)
    taken, text = seconds_with(burdened, Cascade(first, may_skip=True), Policy(may_pause=True))
    assert taken < 1.05 * alone
    assert text == expected
    assert 4 <= first.asked < 250


def test_a_first_stage_that_becomes_right_is_asked_again(mock_engine):
    engine = mock_engine(context_length=2000, noise=0.6, draft_cost=0.27, verify_cost=STEPPED)
    first = Costly(engine, 0.1, range(600, 1203))
    seconds_with(engine, Cascade(first, may_skip=True), Policy(may_pause=True))
    before = first.asked
    always = mock_engine(context_length=2000, noise=0.6, draft_cost=0.27, verify_cost=STEPPED)
    first = Costly(always, 0.1, range(0, 1203))
    seconds_with(always, Cascade(first, may_skip=True), Policy(may_pause=True))
    assert before > 0.3 * first.asked


def test_a_first_stage_that_is_asked_for_by_name_is_always_asked(mock_engine):
    engine = mock_engine(context_length=2000, noise=0.6, draft_cost=0.27, verify_cost=STEPPED)
    first, rounds = Costly(engine, 1.0), []
    request = Request([1, 2, 3], GREEDY, Cascade(first), Policy(), 200, on_round=rounds.append)
    for _ in generate_tokens(engine, request, clock=engine.clock):
        pass
    assert first.asked == sum(len(happened.passes) for happened in rounds)


def test_shares_of_a_pass_follow_its_line():
    costs = PassCosts()
    for rows in (2, 6, 12) * 40:
        costs.observe("exact", rows, 1.0 + 0.1 * rows)
    assert costs.fixed_part("exact", 10) == pytest.approx(0.5, abs=0.1)


def test_acceptance_is_learnt_per_confidence():
    acceptance = Acceptance()
    assert acceptance.probability(0.1) < acceptance.probability(0.6) < acceptance.probability(0.999)
    for _ in range(300):
        acceptance.observe([0.999, 0.6, 0.1], 1)
    assert acceptance.probability(0.999) > 0.97
    assert acceptance.probability(0.6) < 0.05
    assert acceptance.probability(0.1) == Acceptance().probability(0.1)  # never reached, so nothing learnt


def costs_of(exact, draft):
    """Costs as they are known after some dozens of passes of each size."""
    costs = PassCosts()
    for _ in range(60):
        for rows, cost in enumerate(exact, 1):
            costs.observe("exact", rows, cost)
        for rows, cost in enumerate(draft, 1):
            costs.observe("draft", rows, cost)
    return costs


CHEAP = [1.0 + 0.03 * n for n in range(16)]
DRAFT = [0.3 + 0.12 * n for n in range(8)]
DEAR = [0.3 + 0.3 * n for n in range(8)]


def chain(*confidences):
    return Proposal(list(range(len(confidences))), list(confidences))


def test_rows_are_fed_while_they_are_worth_what_they_cost():
    policy = Policy()
    policy.plan(15, Situation(costs_of(CHEAP, DRAFT)))
    assert policy.worth(chain(0.99, 0.99, 0.99, 0.02, 0.02), []) == 3
    assert policy.worth(Proposal(), []) == 0
    assert policy.worth(chain(0.99, 0.99), [0.1, 0.1, 0.1]) == 0, "nothing that follows will be reached"
    policy.plan(15, Situation(costs_of(CHEAP, DEAR)))
    assert policy.worth(chain(0.3, 0.3, 0.3), []) == 0, "a row costs as much as a pass"


def test_a_proposal_that_is_sure_goes_straight_to_the_exact_level():
    policy = Policy()
    policy.plan(15, Situation(costs_of(CHEAP, DRAFT)))
    assert policy.straight(chain(*[0.999] * 10), or_draft=True) == 10
    assert policy.straight(chain(0.3, 0.3), or_draft=True) is None
    assert policy.straight(Proposal(), or_draft=True) is None
    assert policy.straight(chain(0.6, 0.3), or_draft=False) in (1, 2), "nothing else is possible"
    assert policy.straight(Proposal(), or_draft=False) == 0
    assert Policy(5).straight(chain(*[0.999] * 10), or_draft=True) is None, "so many are to be drafted"


def test_a_first_stage_that_is_too_sure_of_itself_is_found_out():
    policy, sure = Policy(), chain(*[0.999] * 6)
    policy.plan(15, Situation(costs_of(CHEAP, DRAFT)))
    for _ in range(20):
        policy.learn(sure, verify([99] * 7, sure))
    assert policy.straight(sure, or_draft=True) is None
    assert policy.worth(sure, []) == 0


def test_what_others_share_costs_less_and_what_they_have_ended_more():
    """Of two that drafted, one has ended: the other pays for the next draft alone."""
    flat = costs_of([1.0 + 0.02 * n for n in range(32)], [0.4 + 0.005 * n for n in range(8)])
    policy, situation = Policy(), Situation(flat, load=2)
    policy.plan(15, situation)
    unsure = [0.55]
    assert policy.more(unsure)
    situation.drafting = 1
    assert not policy.more(unsure)


def test_a_cascade_skips_the_draft_in_a_text_that_copies(mock_engine):
    """Of 400 tokens in a cycle of nine, nearly all come without a draft pass; where nothing repeats, none do."""

    class Copying(mock_engine):
        def row(self, history, draft=False):
            return super().row([0] * 6 + [len(history) % 9], draft)

    def drafts(kind):
        engine = kind(noise=0.05, draft_cost=0.27, verify_cost=tuple(CHEAP))
        drafter = Cascade(NgramDrafter(SuccessorTable()), may_skip=True)
        request = Request([1, 2, 3], GREEDY, drafter, Policy(may_pause=True), max_new_tokens=400)
        for _ in generate_tokens(engine, request, clock=engine.clock):
            pass
        return sum(draft for _, draft in engine.passes), engine.now

    copied, seconds_copied = drafts(Copying)
    drafted, seconds_drafted = drafts(mock_engine)
    assert copied < 30 < drafted
    assert seconds_copied < 0.5 * seconds_drafted
