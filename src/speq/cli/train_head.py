"""`speq train-head`: a trained first stage for drafting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from speq.cli.options import threads_option
from speq.terminal.output import ProgressBars, note


@click.command(name="train-head")
@click.argument("model")
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--text",
    "files",
    multiple=True,
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Train on this UTF-8 text, or on JSON lines with text, messages or prompt; may be given several times. "
    "Without it the model writes its own text.",
)
@click.option(
    "--tokens",
    type=click.IntRange(64),
    metavar="N",
    help="Tokens of text.  [default: 1,000,000 of the model's own, or all of the files]",
)
@click.option(
    "--steps", type=click.IntRange(1), metavar="N", help="Steps of the optimiser.  [default: 2000, or all in --minutes]"
)
@click.option(
    "--minutes",
    type=click.FloatRange(0, min_open=True),
    metavar="M",
    help="Train no longer than this; writing text is not counted.",
)
@click.option("--batch", type=click.IntRange(1), metavar="N", default=4096, show_default=True, help="Tokens of a step.")
@click.option(
    "--length", type=click.IntRange(16), metavar="N", default=768, show_default=True, help="Tokens of a row of text."
)
@click.option(
    "--vocabulary",
    type=click.IntRange(1),
    metavar="N",
    help="Tokens that the head can propose.  [default: those that are worth reading their weights]",
)
@click.option(
    "--seed", type=click.IntRange(0, 2**32 - 1), metavar="S", default=0, show_default=True, help="Of all draws."
)
@click.option(
    "--device",
    type=click.Choice(["auto", "cpu", "cuda"]),
    default="auto",
    show_default=True,
    help="Where to train; auto takes a GPU if there is one.",
)
@threads_option
def train_head(model: str, out: Path, files: tuple[Path, ...], threads: int | None, **options: Any) -> None:
    """Train a head for MODEL, a small layer that proposes tokens for the draft level to check, and write it to the
    directory OUT.

    An interrupted training continues when the same command is given again. Needs torch: pip install 'speq[train]'.
    """
    from speq.training import require_torch

    require_torch()
    import torch

    from speq.checkpoint.fetching.catalogue import find_entry
    from speq.conversion.locate import converted_model
    from speq.processors import default_threads
    from speq.training.job import Options, check_free
    from speq.training.train import train_head as train

    check_free(out)
    torch.set_num_threads(threads or default_threads())
    with ProgressBars() as progress:

        def report(line: str) -> None:
            progress.close()
            note(line)

        path = converted_model(model, progress=progress, threads=threads)
        entry = find_entry(model)
        trained = train(
            path,
            entry.hub if entry else Path(model).expanduser().absolute().name,
            out,
            Options(**options),
            files,
            progress=progress,
            report=report,
        )
    training = trained.training
    click.echo(
        f"{trained.path}: {training['tokens']:,} tokens of text ({training['held_out']}), "
        f"{training['vocabulary']:,} tokens in the vocabulary ({training['vocabulary_share']:.1%} of the text), "
        f"{training['steps']:,} steps in {training['seconds'] / 60:.1f} minutes"
    )
    rows = ", ".join(f"{tokens:.2f} with {count}" for count, tokens in enumerate(trained.tokens_per_pass, 2))
    click.echo(
        "held-out acceptance of the first 1, 2, ... proposals by the draft level: "
        f"{', '.join(f'{value:.3f}' for value in trained.acceptance)}; tokens per draft pass: {rows} rows"
    )
