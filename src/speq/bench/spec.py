"""Plain decoding against every chosen draft setting, prompt by prompt: how much faster, why, and whether ids differ.

What makes it fair: every setting has a model of its own on one engine, so that none learns from what another has just
written (a table of successors, a policy's estimates); each continues each prompt once, with the same seed; who goes
first moves on from prompt to prompt; all of them warm up on prompts that are not measured. A further round begins
anew, with nothing learnt, so no setting ever meets a text that it has written before. Speed is that of decoding: tokens
after the first one over the seconds after the first one.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from speq.bench.prompts import Prompt
from speq.bench.settings import Setting
from speq.decoding.sequence import Pass, Round
from speq.runtime.sampling import Sampling
from speq.serving.api import Model
from speq.serving.exactness import differing_ids
from speq.serving.result import Result

ALL = "all"
"""The group that every prompt belongs to."""

PLAIN = Setting("none")
WARM_UP_TOKENS = 48

_RESAMPLES = 10_000
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Question:
    """A prompt and the groups that it counts in, of which the last is the finest."""

    prompt: Prompt
    groups: tuple[str, ...]


@dataclass(frozen=True)
class Course:
    """One generation and its rounds."""

    result: Result
    rounds: Sequence[Round]

    @property
    def rate(self) -> float:
        """Tokens per second of decoding; 0 if all tokens came from the prefill."""
        return self.result.stats.tokens_per_second


@dataclass(frozen=True)
class Run:
    """A prompt under one setting, beside plain decoding in the same round of measurements."""

    setting: str
    question: Question
    plain: Course
    course: Course

    @property
    def differing(self) -> int:
        """Places at which the token ids differ."""
        return differing_ids(self.plain.result.token_ids, self.course.result.token_ids)

    @property
    def is_timed(self) -> bool:
        """Whether there is a speed: an answer of one token comes from the prefill."""
        return self.plain.rate > 0 and self.course.rate > 0

    @property
    def speed_up(self) -> float:
        return self.course.rate / self.plain.rate


@dataclass
class Checks:
    """What the passes of one level did that checked proposed tokens.

    Attributes:
        passes, rows: how many, and their rows.
        seconds: of all of them.
        proposed, accepted: tokens, and how many of them were right.
        tested_at, accepted_at: passes in which the token at a place of the proposal, from 1, followed nothing but right
            ones, and in which it was right itself.
    """

    passes: int = 0
    rows: int = 0
    seconds: float = 0.0
    proposed: int = 0
    accepted: int = 0
    tested_at: Counter[int] = field(default_factory=Counter)
    accepted_at: Counter[int] = field(default_factory=Counter)

    def add(self, passed: Pass) -> None:
        self.passes += 1
        self.rows += passed.rows
        self.seconds += passed.seconds
        self.proposed += passed.rows - 1
        self.accepted += passed.accepted
        self.tested_at.update(range(1, passed.tested + 1))
        self.accepted_at.update(range(1, passed.accepted + 1))


def checks_by_level(runs: Iterable[Run]) -> dict[str, Checks]:
    """What the passes of each level did, the exact ones last."""
    found: dict[str, Checks] = {}
    for run in runs:
        for happened in run.course.rounds:
            for passed in happened.passes:
                found.setdefault(passed.level, Checks()).add(passed)
    exact = Checks()
    for run in runs:
        for happened in run.course.rounds:
            exact.add(happened.verify)
    return {**found, "exact": exact}


def groups_of(files: Sequence[tuple[str, Sequence[Prompt]]]) -> list[Question]:
    """The prompts of all files in turn, each with its groups: all, its file, and its category if the file has several.

    Args:
        files: names, which differ, with their prompts.
    """
    lines: list[list[Question]] = []
    for name, prompts in files:
        several = len({prompt.category for prompt in prompts}) > 1
        lines.append(
            [
                Question(prompt, (ALL, name, f"{name}/{prompt.category}") if several else (ALL, name))
                for prompt in prompts
            ]
        )
    longest = max(map(len, lines), default=0)
    return [line[number] for number in range(longest) for line in lines if number < len(line)]


def measure(
    models: Callable[[], Model],
    questions: Sequence[Question],
    warm_up: Sequence[Prompt],
    settings: Sequence[Setting],
    *,
    new_tokens: int,
    sampling: Sampling,
    rounds: int = 1,
) -> Iterator[list[Run]]:
    """Continue every prompt plainly and under every setting; gives the runs of one prompt at a time.

    Args:
        models: makes a model that has learnt nothing, on an engine that all of them share.
        questions: what is measured, each once in a round.
        warm_up: other prompts.
        new_tokens: at most, of each answer.
        sampling: with a seed unless greedy.
    """
    everybody = {"": PLAIN, **{str(setting): setting for setting in settings}}
    for number in range(rounds):
        own = {name: models() for name in everybody}
        for prompt in warm_up:
            for name, setting in everybody.items():
                _course(own[name], prompt, setting, min(new_tokens, WARM_UP_TOKENS), sampling)
        for at, question in enumerate(questions):
            courses: dict[str, Course] = {}
            names = list(everybody)
            first = (at + number) % len(names)
            for name in names[first:] + names[:first]:
                courses[name] = _course(own[name], question.prompt, everybody[name], new_tokens, sampling)
            yield [Run(name, question, courses[""], courses[name]) for name in everybody if name]


def _course(model: Model, prompt: Prompt, setting: Setting, new_tokens: int, sampling: Sampling) -> Course:
    rounds: list[Round] = []
    result = model.generate(
        prompt.text,
        max_new_tokens=new_tokens,
        sampling=sampling,
        draft=setting.draft,
        draft_length=setting.length,
        on_round=rounds.append,
    )
    return Course(result, rounds)


@dataclass(frozen=True)
class PromptRow:
    """One prompt under one setting: medians over the rounds of measurements; counts are those of one of them.

    Attributes:
        plain_rate, rate: tokens per second.
        acceptance_rate: right ones of the tokens that the exact level checked.
        differing: ids that differ from plain decoding, in all rounds.
    """

    draft: str
    prompt: str
    category: str
    new_tokens: int
    plain_rate: float
    rate: float
    speed_up: float
    acceptance_rate: float
    tokens_per_round: float
    differing: int


def prompt_rows(runs: Sequence[Run]) -> list[PromptRow]:
    """A row for each setting and prompt."""
    rows = []
    by_question: dict[tuple[str, Question], list[Run]] = {}
    for run in runs:
        by_question.setdefault((run.setting, run.question), []).append(run)
    for (setting, question), own in by_question.items():
        timed = [run for run in own if run.is_timed]
        stats = own[0].course.result.stats
        if timed:
            rows.append(
                PromptRow(
                    setting,
                    question.prompt.id,
                    question.groups[-1],
                    stats.new_tokens,
                    statistics.median(run.plain.rate for run in timed),
                    statistics.median(run.course.rate for run in timed),
                    statistics.median(run.speed_up for run in timed),
                    stats.acceptance_rate,
                    stats.tokens_per_round,
                    sum(run.differing for run in own),
                )
            )
    return rows


@dataclass(frozen=True)
class GroupRow:
    """A setting over the prompts of a group.

    Attributes:
        plain_rate, rate: median tokens per second.
        speed_up: geometric mean of the prompts' own.
        interval_low, interval_high: bounds of it in which 95 of 100 samples of as many prompts lie; ``None`` for one.
        least: speed-up of the slowest prompt.
        tokens: compared with plain decoding.
        differing: how many of these differ.
    """

    draft: str
    category: str
    prompts: int
    plain_rate: float
    rate: float
    speed_up: float
    interval_low: float | None
    interval_high: float | None
    least: float
    acceptance_rate: float
    tokens_per_round: float
    tokens: int
    differing: int


def group_rows(runs: Sequence[Run]) -> list[GroupRow]:
    """A row for each setting and group that has a prompt with a speed."""
    rows = []
    for (setting, group), own in _by_group(runs).items():
        prompts = prompt_rows(own)
        if not prompts:
            continue
        speed_ups = [row.speed_up for row in prompts]
        low, high = interval(speed_ups)
        stats = [run.course.result.stats for run in own]
        rounds, drafted = sum(each.rounds for each in stats), sum(each.drafted for each in stats)
        rows.append(
            GroupRow(
                setting,
                group,
                len(prompts),
                statistics.median(row.plain_rate for row in prompts),
                statistics.median(row.rate for row in prompts),
                statistics.geometric_mean(speed_ups),
                low,
                high,
                min(speed_ups),
                sum(each.accepted for each in stats) / drafted if drafted else 0.0,
                sum(each.new_tokens - 1 for each in stats) / rounds if rounds else 0.0,
                sum(each.new_tokens for each in stats),
                sum(run.differing for run in own),
            )
        )
    return rows


@dataclass(frozen=True)
class StageRow:
    """What the passes of one level did under a setting; its proposals come from the stage before it."""

    draft: str
    category: str
    level: str
    passes: int
    proposed: int
    accepted: int
    acceptance_rate: float
    tokens_per_pass: float


@dataclass(frozen=True)
class PositionRow:
    """A place of the proposals that a level checks: how often all before it was right, and how often it, too."""

    draft: str
    category: str
    level: str
    position: int
    tested: int
    accepted: int
    acceptance_rate: float


@dataclass(frozen=True)
class TimeRow:
    """A part of the seconds of decoding."""

    draft: str
    category: str
    part: str
    seconds: float
    share: float


def stage_rows(runs: Sequence[Run]) -> list[StageRow]:
    """A row for each setting, group and level that has run a pass."""
    return [
        StageRow(
            setting,
            group,
            level,
            checks.passes,
            checks.proposed,
            checks.accepted,
            checks.accepted / checks.proposed if checks.proposed else 0.0,
            1 + checks.accepted / checks.passes,
        )
        for (setting, group), own in _by_group(runs).items()
        for level, checks in checks_by_level(own).items()
        if checks.passes
    ]


def position_rows(runs: Sequence[Run]) -> list[PositionRow]:
    """A row for each setting, group, level and place that a proposal has reached."""
    return [
        PositionRow(setting, group, level, at, tested, checks.accepted_at[at], checks.accepted_at[at] / tested)
        for (setting, group), own in _by_group(runs).items()
        for level, checks in checks_by_level(own).items()
        for at, tested in sorted(checks.tested_at.items())
    ]


def time_rows(runs: Sequence[Run]) -> list[TimeRow]:
    """The parts of the seconds of decoding: what drafters take themselves, the passes of each level, and the rest."""
    rows = []
    for (setting, group), own in _by_group(runs).items():
        whole = sum(run.course.result.stats.decode_seconds for run in own)
        if not whole:
            continue
        checks = checks_by_level(own)
        exact = checks.pop("exact")
        parts = {"drafters": sum(happened.own_seconds for run in own for happened in run.course.rounds)}
        parts |= {f"{level} passes": each.seconds for level, each in checks.items()}
        parts["verify passes"] = exact.seconds
        # What a drafter does before its first pass falls into the prefill, so the parts may be more than the whole.
        whole = max(whole, sum(parts.values()))
        parts["rest"] = whole - sum(parts.values())
        rows += [TimeRow(setting, group, part, seconds, seconds / whole) for part, seconds in parts.items()]
    return rows


def interval(speed_ups: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
    """Bootstrap interval of the geometric mean: prompts drawn anew with replacement, 95 of 100 means lie inside."""
    if len(speed_ups) < 2:
        return None, None
    logs = np.log(speed_ups)
    drawn = np.random.default_rng(0).integers(0, len(logs), (_RESAMPLES, len(logs)))
    beside = 50 * (1 - _CONFIDENCE)
    low, high = np.exp(np.percentile(logs[drawn].mean(axis=1), (beside, 100 - beside)))
    return float(low), float(high)


def _by_group(runs: Sequence[Run]) -> dict[tuple[str, str], list[Run]]:
    """Runs by setting and group: all prompts first, then the files, then their categories."""
    found: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        for group in run.question.groups:
            found.setdefault((run.setting, group), []).append(run)
    settings = list(dict.fromkeys(setting for setting, _ in found))
    return dict(sorted(found.items(), key=lambda item: (settings.index(item[0][0]), item[0][1] != ALL, item[0][1])))
