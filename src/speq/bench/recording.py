"""Recordings: what the text of a prompt says about every way to draft it, so that other policies can be replayed on it.

Whether a drafted token is right, and how sure the draft was, hangs on the tokens before it and hardly on how the round
came there. So when the text is known, one pass at draft level over pieces of it, each on exact keys and values, tells
what the draft would have drawn after every true token; where it is wrong, the draft goes on by itself as far as any
policy could follow it. With the most probable tokens of both levels even what a table of successors would have learnt
is known. Costs are those of passes on the machine that recorded, by level, rows and context.

A recording is JSON lines. The first is the header; every other one is a text::

    {"speq_recording": 1, "date", "machine", "model", "settings", "sampling", "ends", "vocab_size", "limits",
     "new_tokens", "overhead": seconds, "costs": [[level, rows, context, seconds], ...]}
    {"id", "groups", "warm_up", "prompt": ids, "answer": ids, "draft": draws, "exact": draws,
     "strays": [[place, draws], ...], "measured": {setting: [tokens, seconds]}}

A draw is ``[id, confidence, [[id, probability], ...]]``. ``draft`` and ``exact`` have one for each token of the answer
and one more, of what would follow. A stray begins at a place of the answer where the draft is wrong, with its draw
there. Unlike a trace, a recording holds the tokens of prompts and answers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from speq.bench.passes import TOKENS, measure_passes
from speq.bench.prompts import Prompt
from speq.bench.settings import Setting
from speq.bench.spec import WARM_UP_TOKENS, Question, Run, measure
from speq.checkpoint.storage import replace_file, writing_to
from speq.errors import SpeqError
from speq.limits import LONGEST_DRAFT, MOST_LIKELY
from speq.runtime.batch import Batch, Engine, Level, Limits, Span
from speq.runtime.kv import KVHandle
from speq.runtime.sampling import Choice, Sampling
from speq.serving.api import Model

VERSION = 1

PIECE = 8
"""Tokens of a text that the draft level reads on exact keys and values, as in a round of about this length."""

_SHORT, _LONG = 64, 512  # tokens before the passes that are timed, the latter at least where there is room


@dataclass(frozen=True)
class Cost:
    """Seconds of one pass."""

    level: str
    rows: int
    context: int
    seconds: float


@dataclass(frozen=True)
class RecordedText:
    """One prompt, its answer, and what is known about drafting it.

    Attributes:
        groups: that it counts in; none for one that only warms up.
        draws: by level, what was drawn at each place of the answer and after it.
        strays: by place, what the draft draws there and after its own wrong tokens.
        measured: by setting, tokens after the first and their seconds of a real generation.
    """

    id: str
    groups: tuple[str, ...]
    prompt: list[int]
    answer: list[int]
    draws: Mapping[str, Sequence[Choice]]
    strays: Mapping[int, Sequence[Choice]] = field(default_factory=dict)
    measured: Mapping[str, tuple[int, float]] = field(default_factory=dict)

    @property
    def tokens(self) -> list[int]:
        return [*self.prompt, *self.answer]

    @property
    def warms_up(self) -> bool:
        return not self.groups


@dataclass(frozen=True)
class Recording:
    """Texts of one model, and what its passes cost.

    Attributes:
        machine, model, settings: as reports have them.
        ends: tokens that end a text.
        limits: of the engine.
        new_tokens: that were asked for.
        overhead: seconds beside the passes, for each of them.
    """

    date: str
    machine: dict[str, Any]
    model: dict[str, Any]
    settings: dict[str, Any]
    sampling: Sampling
    ends: frozenset[int]
    vocab_size: int
    limits: Limits
    new_tokens: int
    overhead: float
    costs: Sequence[Cost]
    texts: Sequence[RecordedText]


@dataclass
class Recorder:
    """Records texts while they are generated and measured; what it has so far is right at any time.

    Args:
        models: makes a model that has learnt nothing, on the engine that all of them share.
        new_tokens: at most, of each answer.
        sampling: the same for all texts, with a seed unless greedy.

    Attributes:
        texts: so far.
        differing: ids of real generations that differ from plain decoding.
    """

    models: Callable[[], Model]
    engine: Engine
    new_tokens: int
    sampling: Sampling
    texts: list[RecordedText] = field(default_factory=list)
    differing: int = 0
    _beside: float = 0.0  # seconds of decoding that are no pass
    _passes: int = 0

    def record(
        self, questions: Sequence[Question], warm_up: Sequence[Prompt], settings: Sequence[Setting]
    ) -> Iterator[RecordedText]:
        """Generate every prompt plainly, and under every setting to have something to compare a replay with."""
        plain = self.models()
        for prompt in warm_up:
            count = min(self.new_tokens, WARM_UP_TOKENS)
            result = plain.generate(prompt.text, max_new_tokens=count, sampling=self.sampling, draft="none")
            self.texts.append(self._text(prompt.id, (), plain.encode(prompt.text), result.token_ids, {}))
        for runs in measure(
            self.models,
            questions,
            warm_up,
            settings,
            new_tokens=self.new_tokens,
            sampling=self.sampling,
        ):
            self._count(runs)
            first = runs[0]
            measured = {"none": _measured(first, plain=True)} | {run.setting: _measured(run) for run in runs}
            text = self._text(
                first.question.prompt.id,
                first.question.groups,
                plain.encode(first.question.prompt.text),
                first.plain.result.token_ids,
                measured,
            )
            self.texts.append(text)
            yield text

    @property
    def overhead(self) -> float:
        """Seconds that a pass brings with it beside its own."""
        return self._beside / self._passes if self._passes else 0.0

    def _count(self, runs: Sequence[Run]) -> None:
        for course in (runs[0].plain, *(run.course for run in runs)):
            stats = course.result.stats
            self._beside += max(stats.decode_seconds - stats.draft_seconds - stats.verify_seconds, 0.0)
            self._passes += sum(len(happened.passes) + 1 for happened in course.rounds)
        self.differing += sum(run.differing for run in runs)

    def _text(
        self,
        id: str,
        groups: tuple[str, ...],
        prompt: list[int],
        answer: list[int],
        measured: Mapping[str, tuple[int, float]],
    ) -> RecordedText:
        draws, strays = look_back(self.engine, prompt, answer, self.sampling)
        return RecordedText(id, groups, prompt, answer, draws, strays, measured)


def _measured(run: Run, *, plain: bool = False) -> tuple[int, float]:
    stats = (run.plain if plain else run.course).result.stats
    return stats.new_tokens - 1, stats.decode_seconds


def look_back(
    engine: Engine, prompt: Sequence[int], answer: Sequence[int], sampling: Sampling
) -> tuple[dict[str, list[Choice]], dict[int, list[Choice]]]:
    """What each level draws at every place of an answer, and how the draft goes on where it is wrong."""
    tokens, known = [*prompt, *answer], len(prompt)
    draws: dict[str, list[Choice]] = {level: [] for level in engine.levels}
    strays: dict[int, list[Choice]] = {}
    kv = engine.kv.open(prompt)
    try:
        while kv.length < known - 1:
            part = tokens[kv.length : min(kv.length + engine.limits.rows, known - 1)]
            engine.run(Batch([Span(kv, part)]))
        for start in range(known - 1, len(tokens), PIECE):
            piece = tokens[start : start + PIECE]
            for level in engine.levels:
                drawn = _drawn(engine, kv, piece, level, sampling)
                draws[level] += drawn
                if level == engine.levels[-1]:
                    continue
                for row in reversed(range(len(piece))):
                    at = start + row + 1
                    if at < len(tokens) and drawn[row].token != tokens[at]:
                        engine.kv.truncate(kv, at)
                        strays[at - known] = _stray(engine, kv, drawn[row], level, sampling)
                engine.kv.truncate(kv, start)
    finally:
        engine.kv.close(kv, leave=False)
    return draws, strays


def _stray(engine: Engine, kv: KVHandle, wrong: Choice, level: Level, sampling: Sampling) -> list[Choice]:
    """A wrong draw and what the draft draws after it and its own further ones."""
    found = [wrong]
    while len(found) < LONGEST_DRAFT and kv.length < engine.limits.context:
        found += _drawn(engine, kv, [found[-1].token], level, sampling)
    return found


def _drawn(engine: Engine, kv: KVHandle, tokens: Sequence[int], level: Level, sampling: Sampling) -> list[Choice]:
    span = Span(kv, tokens, wanted=range(len(tokens)), sampling=sampling, confidences=True, likely=MOST_LIKELY)
    return engine.run(Batch([span], level)).drawn(0)


def measure_costs(engine: Engine, longest: int, rounds: int) -> list[Cost]:
    """Time passes at a short and at a long context: of ``longest`` tokens, or a little more."""
    room = engine.limits.context - max(TOKENS)
    contexts = sorted({max(min(each, room), 0) for each in (_SHORT, max(longest, _LONG))})
    return [
        Cost("draft" if row.kind == "draft" else "exact", row.tokens, context, row.seconds)
        for context in contexts
        for row in measure_passes(engine, tokens=[n for n in TOKENS if n < room] or [1], context=context, rounds=rounds)
    ]


def mean_costs(measured: Sequence[Sequence[Cost]]) -> list[Cost]:
    """Costs that were measured several times, the same passes in the same order, as their means."""
    return [
        replace(each[0], seconds=sum(cost.seconds for cost in each) / len(each)) for each in zip(*measured, strict=True)
    ]


def write_recording(recording: Recording, path: Path) -> None:
    """Write a recording, complete or not at all."""
    header = {
        "speq_recording": VERSION,
        **{key: getattr(recording, key) for key in ("date", "machine", "model", "settings")},
        "sampling": asdict(recording.sampling),
        "ends": sorted(recording.ends),
        "limits": recording.limits._asdict(),
        **{key: getattr(recording, key) for key in ("vocab_size", "new_tokens", "overhead")},
        "costs": [[cost.level, cost.rows, cost.context, cost.seconds] for cost in recording.costs],
    }
    lines = [header, *map(_text_line, recording.texts)]
    with writing_to(path):
        replace_file(path, "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode())


def _text_line(text: RecordedText) -> dict[str, Any]:
    return {
        "id": text.id,
        "groups": list(text.groups),
        "prompt": text.prompt,
        "answer": text.answer,
        **{level: list(map(_draw_list, draws)) for level, draws in text.draws.items()},
        "strays": [[at, list(map(_draw_list, draws))] for at, draws in text.strays.items()],
        "measured": {setting: list(each) for setting, each in text.measured.items()},
    }


def _draw_list(draw: Choice) -> list[Any]:
    return [draw.token, round(draw.confidence, 6), [[token, float(f"{p:.4g}")] for token, p in draw.likely]]


def read_recording(path: Path) -> Recording:
    """Read a recording.

    Raises:
        SpeqError: it cannot be read, is another kind of file, has another version, or is damaged.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise SpeqError(f"cannot read the recording {path}: {(reason or str(error)).lower()}") from None
    header = _parsed(path, 1, lines[0] if lines else "{}")
    if "speq_trace" in header:
        raise SpeqError(
            f"{path} is a trace of passes, which does not say what another policy would have met: record the prompts "
            "with `speq bench record`"
        )
    version = header.get("speq_recording")
    if version is None:
        raise SpeqError(f"{path} is not a recording: make one with `speq bench record`")
    if version != VERSION or isinstance(version, bool):
        raise SpeqError(f"{path} is a recording of version {version!r}; this speq reads {VERSION}: record it again")
    number = 1
    try:
        recording = Recording(
            str(header["date"]),
            dict(header["machine"]),
            dict(header["model"]),
            dict(header["settings"]),
            Sampling(**header["sampling"]),
            frozenset(map(int, header["ends"])),
            _count(header["vocab_size"], 1),
            Limits(**{str(key): _count(value, 1) for key, value in header["limits"].items()}),
            _count(header["new_tokens"], 1),
            _seconds(header["overhead"]),
            [Cost(str(level), _count(n, 1), _count(at), _seconds(s)) for level, n, at, s in header["costs"]],
            texts := [],
        )
        if {cost.level for cost in recording.costs} != {"draft", "exact"}:
            raise ValueError("costs of both levels are needed")
        for number, line in enumerate(lines[1:], 2):
            texts.append(_read_text(recording, _parsed(path, number, line)))
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
        what = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) else str(error)
        raise SpeqError(f"{path}, line {number}: no line of a recording ({what}): record it again") from None
    if not any(not text.warms_up for text in texts):
        raise SpeqError(f"{path} holds no texts: record it again")
    return recording


def _read_text(recording: Recording, line: Mapping[str, Any]) -> RecordedText:
    prompt, answer = ([_count(token) for token in line[key]] for key in ("prompt", "answer"))
    draws = {level: [_draw(each) for each in line[level]] for level in ("draft", "exact")}
    strays = {_count(at): [_draw(each) for each in stray] for at, stray in line["strays"]}
    measured = {str(key): (_count(tokens), _seconds(s)) for key, (tokens, s) in line["measured"].items()}
    if not prompt or not answer or len(prompt) + len(answer) > recording.limits.context:
        raise ValueError("there is no prompt, no answer, or more than the context")
    if any(token >= recording.vocab_size for token in (*prompt, *answer)):
        raise ValueError("a token lies outside the vocabulary")
    if any(len(each) != len(answer) + 1 for each in draws.values()):
        raise ValueError("there is not one draw for each token")
    if [draw.token for draw in draws["exact"][:-1]] != answer:
        raise ValueError("the exact draws are not the answer")
    wrong = {at for at, token in enumerate(answer) if draws["draft"][at].token != token}
    if set(strays) != wrong or any(stray[0].token != draws["draft"][at].token for at, stray in strays.items()):
        raise ValueError("the strays do not begin where the draft is wrong")
    groups = tuple(map(str, line["groups"]))
    return RecordedText(str(line["id"]), groups, prompt, answer, draws, strays, measured)


def _draw(value: Any) -> Choice:
    token, confidence, likely = value
    return Choice(_count(token), float(confidence), [(_count(each), float(p)) for each, p in likely])


def _count(value: Any, least: int = 0) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{value!r:.40} is no count")
    return value


def _seconds(value: Any) -> float:
    if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(f"{value!r:.40} are no seconds")
    return float(value)


def _parsed(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise SpeqError(f"{path}, line {number}: no line of a recording: make one with `speq bench record`")
    return value
