"""`speq verify`: a byte comparison of every mode, with controls that must be caught."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from speq.cli.options import Helpers, helper_options, model_options
from speq.errors import SpeqError
from speq.terminal.output import ProgressBars

if TYPE_CHECKING:
    from speq.serving.exactness import Outcome


@click.command()
@model_options
@click.option(
    "--prompts",
    "path",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="JSON lines with id, category and turns; a few of them are used.  [default: prompts that come with speq]",
)
@click.option(
    "-n",
    "--max-tokens",
    metavar="N",
    type=click.IntRange(1),
    default=24,
    show_default=True,
    help="Tokens to generate from each prompt.",
)
@helper_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(
    model: str,
    path: Path | None,
    max_tokens: int,
    helpers: Helpers,
    as_json: bool,
    threads: int | None,
    context: int | None,
) -> int:
    """Compare bytes: one row with many, trees with chains, pages, threads, instruction sets, drafts, texts at once.

    Disturbances made on purpose must be caught, or the check itself fails.
    """
    from speq.bench.prompts import builtin_prompts, read_prompts
    from speq.checkpoint.store import load_converted
    from speq.conversion.locate import converted_model
    from speq.serving.exactness import Subject, outcomes
    from speq.serving.loading import load

    if context is not None:
        raise click.UsageError("verify chooses its own context: leave out --context")
    texts = [prompt.text for prompt in (read_prompts(path, 4) if path else builtin_prompts(4))]
    with ProgressBars() as progress:
        loaded = load(model, threads=threads, progress=progress, **helpers.to_load())
        if loaded.tokenizer is None:
            raise SpeqError(f"{model} has no tokenizer, and verify needs text: give a model that has one")
        prompts = [loaded.encode(text, raw=True)[:40] for text in texts]
        converted = load_converted(converted_model(model, progress=progress))
        subject = Subject(converted, prompts, loaded.threads, max_tokens, loaded.head, loaded.draft_model)
        done: list[Outcome] = []
        for outcome in outcomes(subject):
            progress.close()
            done.append(outcome)
            if not as_json:
                _show(outcome)
    failed = [outcome for outcome in done if not outcome.passed]
    if as_json:
        rows = [asdict(outcome) | {"passed": outcome.passed} for outcome in done]
        click.echo(json.dumps({"model": model, "passed": not failed, "checks": rows}, ensure_ascii=False))
    elif failed:
        click.echo(f"{len(failed)} of {len(done)} checks failed")
    else:
        rows_compared = sum(outcome.compared for outcome in done if not outcome.control)
        click.echo(f"all {len(done)} checks passed: {rows_compared:,} comparisons, nothing differs but the controls")
    return 1 if failed else 0


def _show(outcome: Outcome) -> None:
    verdict = "ok" if outcome.passed else "FAILED"
    kind = "control: " if outcome.control else ""
    differing = f"{outcome.differing:,} of {outcome.compared:,} differ"
    click.echo(f"{verdict:6} {kind}{outcome.name} | {outcome.compared_with} | {differing} | {outcome.seconds:.1f} s")
