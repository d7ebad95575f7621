"""`speq bench record` and `replay`: texts kept with all that drafting them would meet, and policies tried on them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

from speq.bench.clairvoyant import optimum
from speq.bench.machine import describe_machine
from speq.bench.recording import (
    Recorder,
    Recording,
    mean_costs,
    measure_costs,
    read_recording,
    write_recording,
)
from speq.bench.replay import Contradiction, Costs, Replayed, replay
from speq.bench.report import Column, Report, Table, describe_model
from speq.bench.settings import Setting
from speq.bench.spec import ALL
from speq.bench.spec_report import Chosen, check_prompts, fresh_models
from speq.checkpoint.storage import Progress
from speq.checkpoint.store import load_converted
from speq.drafts import FREE_DRAFTS
from speq.errors import SpeqError
from speq.runtime.sampling import Sampling
from speq.serving.loading import load

CLAIRVOYANT = "clairvoyant"
CHAINS = "clairvoyant, no first stage"
FIXED = (2, 4, 7, 11, 15)
"""Lengths that are replayed of every draft unless settings are given."""


@dataclass(frozen=True)
class Recorded:
    """How many texts are in the file, of how many, whether nothing was interrupted, and how many ids of real
    generations differ from plain decoding.
    """

    texts: int
    wanted: int
    complete: bool
    differing: int


def record(
    name: str,
    path: Path,
    out: Path,
    chosen: Chosen,
    settings: Sequence[Setting],
    *,
    new_tokens: int,
    sampling: Sampling,
    rounds: int,
    threads: int | None,
    progress: Progress,
    say: Callable[[str], None],
) -> Recorded:
    """Record prompts with the converted model at ``path``; an interruption keeps the texts so far.

    Raises:
        SpeqError: the model has no tokenizer, or the file cannot be written.
        KeyboardInterrupt: before there is a text.
    """
    converted = load_converted(path, verify=False)
    loaded = load(path, threads=threads, progress=progress)
    longest = check_prompts(loaded, chosen)
    machine = describe_machine(threads)
    engine = loaded.engine.engine
    recorder = Recorder(fresh_models(loaded), engine, new_tokens, sampling)
    longest = min(longest + new_tokens, engine.limits.context)
    say("passes")
    costs = [measure_costs(engine, longest, -(-rounds // 2))]
    wanted, done = len(chosen.questions), 0
    try:
        progress("prompts", 0, wanted)
        for text in recorder.record(chosen.questions, chosen.warm_up, settings):
            done += 1
            right = sum(draw.token == token for draw, token in zip(text.draws["draft"], text.answer, strict=False))
            say(f"{text.id}: {len(text.answer)} tokens, of which the draft level has {right} right")
            progress("prompts", done, wanted)
        # A machine changes its speed, so passes are timed before and after the generations they are to explain.
        say("passes once more")
        costs.append(measure_costs(engine, longest, -(-rounds // 2)))
    except KeyboardInterrupt:
        if not done:
            raise
    recording = Recording(
        datetime.now(timezone.utc).isoformat(timespec="seconds"),
        machine,
        describe_model(name, converted),
        {"prompts": done, "new_tokens": new_tokens, "cost_rounds": rounds},
        sampling,
        loaded.ends,
        engine.vocab_size,
        engine.limits,
        new_tokens,
        recorder.overhead,
        mean_costs(costs),
        recorder.texts,
    )
    write_recording(recording, out)
    return Recorded(done, wanted, len(costs) > 1, recorder.differing)


def usual_policies() -> list[Setting]:
    """Every draft, by its own policy and with fixed lengths."""
    free = [Setting(name) for name in FREE_DRAFTS]
    return free + [Setting(name, length) for name in FREE_DRAFTS if name not in ("none", "auto") for length in FIXED]


@dataclass(frozen=True)
class ReplayRow:
    """A policy over the texts of a category.

    Attributes:
        tokens: after the first of each text.
        rate, measured_rate: tokens per second, replayed and in the real generations of the recording, if there are any.
        speed_up: geometric mean over the texts of their seconds without a draft over those under the policy.
        clairvoyant_ratio: of the rate to that of the clairvoyant optimum.
        fixed_ratio: of the rate to that of the best setting with a fixed length in this category, plain decoding among
            them.
    """

    policy: str
    category: str
    texts: int
    tokens: int
    rate: float
    measured_rate: float | None
    speed_up: float | None
    tokens_per_round: float | None
    clairvoyant_ratio: float
    fixed_ratio: float | None


def replay_report(paths: Sequence[Path], settings: Sequence[Setting], *, progress: Progress) -> Report:
    """Replay recordings under settings, with the clairvoyant optimum.

    Args:
        settings: none for the usual ones, of which those are left out that need more than is recorded.

    Raises:
        SpeqError: a recording cannot be read, or they are of different models, machines or samplings.
    """
    recordings = [read_recording(path) for path in paths]
    first = recordings[0]
    for path, other in zip(paths, recordings, strict=True):
        if (other.model, other.sampling, other.ends) != (first.model, first.sampling, first.ends):
            raise SpeqError(f"{path} and {paths[0]} are of different models or samplings: replay them one at a time")
    wanted, notes = list(settings or usual_policies()), []
    found: dict[str, list[Replayed]] = {str(setting): [] for setting in wanted}
    best: dict[str, list[Replayed]] = {CHAINS: [], CLAIRVOYANT: []}
    for number, recording in enumerate(recordings):
        for at, setting in enumerate(list(wanted)):
            progress("policies", number * len(wanted) + at, len(wanted) * len(recordings))
            try:
                found[str(setting)] += replay(recording, setting)
            except Contradiction:
                raise
            except SpeqError as error:
                if settings:
                    raise
                wanted.remove(setting)
                del found[str(setting)]
                notes.append(f"left out {setting}: {error}")
        own = [text for text in recording.texts if not text.warms_up]
        replays = [each[-len(own) :] for each in found.values()]
        optima = optimum(recording.texts, replays, recording.sampling, Costs(recording))
        for text, each in zip(own, optima, strict=True):
            best[CHAINS].append(Replayed(text, len(text.answer) - 1, each.chains, ()))
            best[CLAIRVOYANT].append(Replayed(text, len(text.answer) - 1, each.whole, ()))
    rows = _rows({**found, **best}, wanted)
    report = Report(
        "replay",
        first.model,
        first.machine,
        {
            "recordings": [path.name for path in paths],
            "policies": [str(setting) for setting in wanted],
            **{f"recorded_{key}": value for key, value in first.settings.items()},
            **{key: value for key, value in asdict(first.sampling).items() if first.sampling.temperature},
        },
    )
    columns = (
        Column("policy", "policy"),
        Column("category", "category"),
        Column("texts", "texts", "d"),
        Column("rate", "tokens/s", ".2f"),
        Column("measured_rate", "measured", ".2f"),
        Column("speed_up", "speed-up", ".2f"),
        Column("tokens_per_round", "tokens per round", ".2f"),
        Column("clairvoyant_ratio", "of the clairvoyant", ".3f"),
        Column("fixed_ratio", "of the best fixed", ".3f"),
    )
    kept = [asdict(row) for row in rows]
    shown = [row for row in kept if row["category"] == ALL or row["policy"] in ("auto", CLAIRVOYANT)]
    report.tables = [Table("replay", "Replayed on a virtual clock", columns, kept, shown)]
    report.notes += notes + _verdicts(rows)
    report.notes.append("costs are those of the machine that recorded; drafters' own seconds are not among them")
    return report


def _rows(found: dict[str, list[Replayed]], settings: Sequence[Setting]) -> list[ReplayRow]:
    """A row for each policy and category, the clairvoyant last."""
    categories: list[str] = []
    for each in found[CLAIRVOYANT]:
        categories += [group for group in each.text.groups if group not in categories]
    categories.sort(key=lambda group: (group != ALL, group))
    fixed = [str(setting) for setting in settings if setting.length is not None or setting.draft == "none"]
    by_category = {
        category: {
            policy: [each for each in replayed if category in each.text.groups and each.tokens]
            for policy, replayed in found.items()
        }
        for category in categories
    }
    rows = []
    for policy in found:
        for category, others in by_category.items():
            own = others[policy]
            if not own:
                continue
            rate = _rate(own)
            rounds = sum(len(each.rounds) for each in own)
            measured = [each.text.measured[policy] for each in own if policy in each.text.measured]
            speed_up = None
            if "none" in others:
                plain = [each.seconds for each in others["none"]]
                speed_up = statistics.geometric_mean(a / b.seconds for a, b in zip(plain, own, strict=True))
            rows.append(
                ReplayRow(
                    policy,
                    category,
                    len(own),
                    sum(each.tokens for each in own),
                    rate,
                    sum(n for n, _ in measured) / sum(s for _, s in measured) if len(measured) == len(own) else None,
                    speed_up,
                    sum(each.tokens for each in own) / rounds if rounds else None,
                    rate / _rate(others[CLAIRVOYANT]),
                    rate / max(_rate(others[name]) for name in fixed) if fixed else None,
                )
            )
    return rows


def _rate(replayed: Sequence[Replayed]) -> float:
    return sum(each.tokens for each in replayed) / sum(each.seconds for each in replayed)


def _verdicts(rows: Sequence[ReplayRow]) -> list[str]:
    """How far auto is from the best there is."""
    own = [row for row in rows if row.policy == "auto"]
    rates = {row.policy: row.rate for row in rows if row.category == ALL}
    lines = []
    if "auto" in rates:
        whole, chains = (rates["auto"] / rates[name] for name in (CLAIRVOYANT, CHAINS))
        lines.append(
            f"auto reaches {whole:.1%} of the clairvoyant's tokens per second, {chains:.1%} of those of one without "
            "first stages"
        )
    fixed = [row for row in own if row.fixed_ratio is not None and row.category != ALL]
    if fixed:
        worst = min(fixed, key=lambda row: row.fixed_ratio or 0.0)
        lines.append(
            f"auto reaches {worst.fixed_ratio:.1%} of the best fixed setting in {worst.category}, where it is farthest "
            "from it"
        )
    return lines
