"""`speq bench peers`: from a model and prompts to a report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path

from speq.bench.machine import describe_machine
from speq.bench.peers import DEFAULT, ENGINES, PLAIN
from speq.bench.peers.compare import Comparison, Question, compare_engines
from speq.bench.peers.files import peer_files
from speq.bench.prompts import Prompt
from speq.bench.report import Column, Report, Table, describe_model, row_of
from speq.checkpoint.storage import Progress
from speq.checkpoint.store import load_converted
from speq.errors import SpeqError
from speq.models.config import model_config
from speq.processors import default_threads
from speq.serving.loading import load


def peers_report(
    name: str,
    path: Path,
    prompts: Sequence[Prompt],
    *,
    engines: Sequence[str] = DEFAULT,
    threads: int | None,
    new_tokens: int,
    workdir: Path | None = None,
    progress: Progress | None = None,
    say: Callable[[str], None],
) -> Report:
    """Compare engines on the converted model at ``path``; the first prompt only warms up.

    Raises:
        SpeqError: the model has no tokenizer, or no prompt has an answer of at least two tokens.
    """
    converted = load_converted(path, verify=False)
    threads = threads or default_threads()
    settings = {
        "engines": list(engines),
        "prompts": len(prompts) - 1,
        "new_tokens": new_tokens,
        "threads": threads,
    }
    report = Report("peers", describe_model(name, converted), describe_machine(threads), settings)
    chosen = [ENGINES[engine] for engine in dict.fromkeys((PLAIN, *engines))]
    report.notes += [spec.missing for spec in chosen if spec.missing]
    present = [spec for spec in chosen if not spec.missing]
    if converted.spec.dtype == "bf16" and any(spec.files == "gguf-f16" for spec in present):
        report.notes.append("the weights are BF16; for engines that read F16 they are rounded to it")
    say("the answers to be given")
    questions = ask(path, prompts, new_tokens, threads)
    room = max(len(question.ids) for question in questions) + new_tokens + 32
    context = min(room, model_config(converted.config).context_length)
    sizes = [prod(record.shape) * 2 for record in converted.records]
    with peer_files(path, workdir, progress) as files:
        comparison = compare_engines(
            present,
            files,
            questions,
            threads=threads,
            context=context,
            checkpoint_bytes=sum(sizes),
            say=say,
        )
    report.notes += comparison.notes
    report.tables = _tables(comparison)
    return report


def ask(path: Path, prompts: Sequence[Prompt], new_tokens: int, threads: int) -> list[Question]:
    """The prompts' ids and the model's own answers of at most ``new_tokens`` tokens; too short ones are left out."""
    model = load(path, threads=threads)
    first, *others = (
        Question(prompt.id, model.encode(prompt.text), model.generate(prompt.text, max_new_tokens=new_tokens).token_ids)
        for prompt in prompts
    )
    timed = [question for question in others if len(question.answer) > 1]
    if not timed:
        raise SpeqError(f"{path}: no prompt has an answer of more than one token; give others with --prompts")
    return [first, *timed]


def _tables(comparison: Comparison) -> list[Table]:
    columns = (
        Column("engine", "engine"),
        Column("rate", "tokens/s", ".2f"),
        Column("low", "quartiles", ".2f"),
        Column("high", "", ".2f"),
        Column("plain_ratio", "to plain speq", ".2f"),
        Column("first_seconds", "first token, s", ".3f"),
        Column("same_answers", "same answers", "d"),
        Column("prompts", "of", "d"),
        Column("resident", "resident, MB", ",.0f", 1e-6),
    )
    runs = (
        Column("prompt", "prompt"),
        Column("engine", "engine"),
        Column("tokens", "tokens", "d"),
        Column("rate", "tokens/s", ".2f"),
        Column("agreement", "same up to", "d"),
    )
    return [
        Table("runs", "Runs", runs, [row_of(row) for row in comparison.runs]),
        Table("engines", "Engines", columns, [row_of(row) for row in comparison.engines]),
    ]
