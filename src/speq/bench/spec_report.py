"""`speq bench spec`: prompts of files under draft settings, beside plain decoding, as a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from speq.bench.machine import describe_machine
from speq.bench.prompts import Prompt, builtin_prompts, read_prompts
from speq.bench.report import Column, Report, Table, describe_model, row_of
from speq.bench.settings import Setting
from speq.bench.spec import (
    ALL,
    PositionRow,
    Question,
    Run,
    TimeRow,
    group_rows,
    groups_of,
    measure,
    position_rows,
    prompt_rows,
    stage_rows,
    time_rows,
)
from speq.checkpoint.storage import Progress
from speq.checkpoint.store import load_converted
from speq.errors import SpeqError
from speq.runtime.sampling import Sampling
from speq.serving.api import Model
from speq.serving.loading import load

_WARM_UPS = 2  # prompts


@dataclass(frozen=True)
class Outcome:
    """A report, whether it is of all prompts, and how many token ids differ from plain decoding."""

    report: Report
    complete: bool
    differing: int


@dataclass(frozen=True)
class Chosen:
    """What is measured: questions, other prompts to warm up on, and what there is to say about the choice."""

    questions: list[Question]
    warm_up: list[Prompt]
    notes: list[str]


def choose_prompts(paths: Sequence[Path], count: int | None) -> Chosen:
    """The prompts of files, each text once; those that come with speq warm up, or are measured without files.

    Args:
        paths: files of prompts, or directories of them.
        count: of each file, spread evenly over it; ``None`` for all.

    Raises:
        SpeqError: a file is missing, is no file of prompts, or has fewer than ``count``; or there are none at all.
    """
    if not paths:
        warm_up, measured = builtin_prompts()[:1], builtin_prompts()[1:]
        if count is not None and count > len(measured):
            raise SpeqError(f"{len(measured)} prompts come with speq to measure, not {count}: give --prompts")
        return Chosen(groups_of([("builtin", measured[:count])]), warm_up, [])
    files = list(
        dict.fromkeys(f for path in paths for f in (sorted(path.glob("*.jsonl")) if path.is_dir() else [path]))
    )
    stems = [file.stem for file in files]
    seen = {prompt.text for prompt in builtin_prompts()[:_WARM_UPS]}
    named: list[tuple[str, list[Prompt]]] = []
    twice = 0
    for file in files:
        kept = []
        for prompt in read_prompts(file, count):
            if prompt.text in seen:
                twice += 1
                continue
            seen.add(prompt.text)
            kept.append(prompt)
        named.append((file.stem if stems.count(file.stem) == 1 else str(file), kept))
    questions = groups_of(named)
    if not questions:
        raise SpeqError(f"{', '.join(map(str, paths))}: there are no prompts: give a file that has some")
    notes = [f"left out {twice} prompts whose text came before: none is measured twice"] if twice else []
    return Chosen(questions, builtin_prompts()[:_WARM_UPS], notes)


def spec_report(
    name: str,
    path: Path,
    chosen: Chosen,
    settings: Sequence[Setting],
    helpers: Mapping[str, Any],
    *,
    new_tokens: int,
    sampling: Sampling,
    rounds: int,
    threads: int | None,
    progress: Progress,
    say: Callable[[str], None],
) -> Outcome:
    """Measure the converted model at ``path``; an interruption ends it early, with what was measured until then.

    Args:
        helpers: what is to propose beside the model, as keyword arguments of :func:`speq.load`.

    Raises:
        SpeqError: the model has no tokenizer, a prompt does not fit its context, or a helper is none of this model.
        KeyboardInterrupt: before there is anything to report.
    """
    converted = load_converted(path, verify=False)
    loaded = load(path, threads=threads, progress=progress, **helpers)
    check_prompts(loaded, chosen)
    report = Report(
        "spec",
        describe_model(name, converted),
        describe_machine(threads),
        {
            "drafts": [str(setting) for setting in settings],
            **{key: Path(place).name for key, place in helpers.items() if place is not None},
            "prompts": len(chosen.questions),
            "warm_up_prompts": len(chosen.warm_up),
            "new_tokens": new_tokens,
            "rounds": rounds,
            **{key: value for key, value in asdict(sampling).items() if sampling.temperature or key == "temperature"},
        },
    )
    runs: list[Run] = []
    total, done = len(chosen.questions) * rounds, 0
    complete = False
    try:
        progress("warming up", 0, total)
        for several in measure(
            fresh_models(loaded),
            chosen.questions,
            chosen.warm_up,
            settings,
            new_tokens=new_tokens,
            sampling=sampling,
            rounds=rounds,
        ):
            runs += several
            done += 1
            say(_line(several))
            progress("prompts", done, total)
        complete = True
    except KeyboardInterrupt:
        if not runs:
            raise
        report.notes.append(f"interrupted: {done} of {total} prompts were measured")
    report.settings["complete"] = complete
    report.notes += chosen.notes
    report.tables = _tables(runs)
    untimed = len({run.question for run in runs if not run.is_timed})
    if untimed:
        report.notes.append(f"{untimed} prompts have answers of one token, which comes from the prefill: no speed")
    differing = sum(run.differing for run in runs)
    compared = sum(len(run.plain.result.token_ids) for run in runs)
    if differing:
        report.notes.append(f"{differing} of {compared} token ids differ: this is a bug, please report it")
    else:
        report.notes.append(f"all {compared} token ids are those of plain decoding")
    return Outcome(report, complete, differing)


def fresh_models(loaded: Model) -> Callable[[], Model]:
    """Makes models on the engine of another one that have learnt nothing; one of them at a time may generate."""

    def make() -> Model:
        return Model(
            loaded.engine.engine,
            loaded.tokenizer,
            name=loaded.name,
            format=loaded.format,
            threads=loaded.threads,
            ends=loaded.ends,
            head=loaded.head,
            draft_model=loaded.draft_model,
        )

    return make


def check_prompts(loaded: Model, chosen: Chosen) -> int:
    """The tokens of the longest prompt of all.

    Raises:
        SpeqError: the model has no tokenizer or chat template, or a prompt leaves no room in its context.
    """
    if loaded.tokenizer is None:
        raise SpeqError(f"{loaded.name} has no tokenizer, and prompts are text: give a model that has one")
    context, longest = loaded.engine.context_length, 0
    for prompt in [*chosen.warm_up, *(question.prompt for question in chosen.questions)]:
        tokens = len(loaded.encode(prompt.text))
        if tokens >= context:
            raise SpeqError(
                f"the prompt {prompt.id} has {tokens} tokens and the model's context {context}: leave it out"
            )
        longest = max(longest, tokens)
    return longest


def _line(runs: Sequence[Run]) -> str:
    """What there is to say about a prompt as soon as it is measured."""
    first = runs[0]
    if not all(run.is_timed for run in runs):
        return f"{first.question.prompt.id}: an answer of one token"
    ratios = ", ".join(f"{run.setting} {run.speed_up:.2f}x" for run in runs)
    return f"{first.question.prompt.id}: plain {first.plain.rate:.1f} tokens/s, {ratios}" + (
        " DIFFERS" if any(run.differing for run in runs) else ""
    )


def _tables(runs: Sequence[Run]) -> list[Table]:
    named = (Column("draft", "draft"), Column("category", "category"))
    groups = [asdict(row) for row in group_rows(runs)]
    shown = [{**row, "interval": interval_text(row["interval_low"], row["interval_high"])} for row in groups]
    columns = (
        *named,
        Column("prompts", "prompts", "d"),
        Column("plain_rate", "plain, tokens/s", ".2f"),
        Column("rate", "with draft", ".2f"),
        Column("speed_up", "speed-up", ".2f"),
        Column("interval", "95 %"),
        Column("least", "least", ".2f"),
        Column("acceptance_rate", "accepted", ".3f"),
        Column("tokens_per_round", "tokens per round", ".2f"),
        Column("differing", "ids that differ", "d"),
    )
    stages = [asdict(row) for row in stage_rows(runs)]
    stage_columns = (
        Column("draft", "draft"),
        Column("level", "checked by"),
        Column("passes", "passes", ",d"),
        Column("proposed", "proposed", ",d"),
        Column("acceptance_rate", "accepted", ".3f"),
        Column("tokens_per_pass", "tokens per pass", ".2f"),
    )
    positions, times = position_rows(runs), time_rows(runs)
    prompts = [row_of(row) for row in prompt_rows(runs)]
    return [
        Table("spec", "Speed-up, geometric means", columns, groups, shown),
        Table(
            "spec_stages",
            "Proposed tokens, by the level that checks them",
            stage_columns,
            stages,
            [row for row in stages if row["category"] == ALL and row["proposed"]],
        ),
        Table(
            "spec_positions",
            "Right ones of those at a position that follow right ones",
            (Column("draft", "draft"), Column("level", "checked by"), Column("shares", "position 1, 2, ...")),
            [asdict(row) for row in positions],
            _position_lines(positions),
        ),
        Table(
            "spec_time",
            "Seconds of decoding",
            (Column("draft", "draft"), Column("shares", "shares")),
            [asdict(row) for row in times],
            _time_lines(times),
        ),
        Table("spec_prompts", "Prompts", (), prompts, ()),
    ]


def interval_text(low: float | None, high: float | None) -> str:
    """An interval as tables show it."""
    return "" if low is None or high is None else f"{low:.2f} to {high:.2f}"


def _position_lines(rows: Sequence[PositionRow]) -> list[dict[str, str]]:
    found: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.category == ALL:
            found.setdefault((row.draft, row.level), []).append(f"{row.acceptance_rate:.2f}")
    return [{"draft": draft, "level": level, "shares": " ".join(each)} for (draft, level), each in found.items()]


def _time_lines(rows: Sequence[TimeRow]) -> list[dict[str, str]]:
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.category == ALL:
            found.setdefault(row.draft, []).append(f"{row.part} {row.share:.1%}")
    return [{"draft": draft, "shares": ", ".join(each)} for draft, each in found.items()]
