"""`speq generate`: one prompt, one text, with statistics."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from speq.cli.options import Helpers, decoding_options, helper_options, model_options, parse_decoding
from speq.cli.streams import stdin
from speq.errors import SpeqError
from speq.terminal.live import LiveText
from speq.terminal.output import ProgressBars, dim, is_live, json_line, note

if TYPE_CHECKING:
    from speq.decoding.stats import Statistics
    from speq.decoding.stream import Piece
    from speq.serving.api import Model, Stream


@click.command()
@click.option("-p", "--prompt", metavar="TEXT", help="The prompt.")
@click.option("-f", "--file", metavar="FILE", help="A UTF-8 file with the prompt; - reads stdin.")
@click.option("--ids", metavar='"1 2 3"', help="The prompt as token ids.")
@click.option("--raw", is_flag=True, help="Give the prompt to the model as it is, without its chat template.")
@click.option(
    "-n",
    "--max-tokens",
    type=click.IntRange(1),
    metavar="N",
    default=256,
    show_default=True,
    help="Most tokens to generate.",
)
@click.option(
    "--trace",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write the kinds and sizes of all passes to FILE, for `speq hw`.",
)
@decoding_options
@helper_options
@model_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with the text and all statistics.")
def generate(
    model: str,
    prompt: str | None,
    file: str | None,
    ids: str | None,
    raw: bool,
    max_tokens: int,
    trace: Path | None,
    as_json: bool,
    threads: int | None,
    context: int | None,
    helpers: Helpers,
    **options: Any,
) -> int:
    """Generate text from a prompt, which goes through the model's chat template unless --raw."""
    if sum(source is not None for source in (prompt, file, ids)) != 1:
        raise click.UsageError("give exactly one of -p TEXT, -f FILE and --ids")
    decoding = parse_decoding(options)
    helpers.check(decoding.draft)
    given = _read_prompt(prompt, file, ids)
    from speq.decoding.trace import check_writable
    from speq.serving.loading import load

    if trace:
        check_writable(trace)

    with ProgressBars() as progress:
        loaded = load(model, threads=threads, context=context, progress=progress, **helpers.to_load())
        progress.close()
        print_notes(loaded, progress)
        stream = loaded.stream(
            given,
            max_new_tokens=max_tokens,
            raw=raw,
            record=trace is not None,
            progress=progress,
            **decoding.to_stream(),
        )
        if as_json:
            finished = _run(stream, progress, lambda piece: None)
            print(json_line(stream.result.to_dict()))
        else:
            finished = show(stream, progress, has_text=loaded.tokenizer is not None)
    if trace:
        _write_trace(stream, trace)
    return 0 if finished else 130


def _write_trace(stream: Stream, path: Path) -> None:
    """Write what ran, be it all of the generation or the part before an interruption."""
    from speq.decoding.trace import write_trace

    result = stream.result.to_dict()
    names = ("model", "format", "draft", "prompt_tokens", "new_tokens", "finish_reason")
    write_trace(path, {name: result[name] for name in names}, stream.steps)


def print_notes(model: Model, progress: ProgressBars) -> None:
    """Say what the conversion changed or kept, if this run was the one that converted the model."""
    if "converting" in progress.labels:
        for line in model.notes:
            note(line)


def show(stream: Stream, progress: ProgressBars, *, has_text: bool = True) -> bool:
    """Print a generation while it runs, as ids if it has no text; ``False`` if it was interrupted.

    On a terminal a status line runs along and a summary follows.
    """
    with LiveText() as shown:

        def show_piece(piece: Piece) -> None:
            text = piece.text if has_text else "".join(f"{token} " for token in piece.token_ids)
            shown.write(text, summary(stream.result.stats))

        try:
            finished = _run(stream, progress, show_piece)
        finally:
            if stream.result.token_ids and not stream.result.text.endswith("\n"):
                shown.write("\n")
    if is_live():
        print(dim(summary(stream.result.stats) + ("" if finished else ", interrupted")), file=sys.stderr)
    return finished


def _run(stream: Stream, progress: ProgressBars, use: Callable[[Piece], None]) -> bool:
    """Go through a generation; ``False`` if the user interrupted it."""
    try:
        for piece in stream:
            progress.close()
            use(piece)
    except KeyboardInterrupt:
        return False
    finally:
        progress.close()  # also when it failed: what is said about that must not stand among the bars
    return True


def _read_prompt(prompt: str | None, file: str | None, ids: str | None) -> str | list[int]:
    """The prompt that was given; the line break at the end of a file does not belong to it."""
    if prompt is not None:
        return prompt
    if ids is not None:
        try:
            return [int(word) for word in ids.replace(",", " ").split()]
        except ValueError:
            raise click.UsageError(f"--ids takes whole numbers with spaces between them, not {ids!r}") from None
    assert file is not None
    content = stdin().buffer.read() if file == "-" else Path(file).read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        name = "stdin" if file == "-" else file
        raise SpeqError(f"{name} is not valid UTF-8 (at byte {error.start}): save the prompt as UTF-8") from None
    return text.removesuffix("\n").removesuffix("\r")


def summary(stats: Statistics) -> str:
    """Speed and acceptance in one line."""
    parts = [f"{stats.new_tokens} tokens", f"first after {stats.prefill_seconds:.2f} s"]
    if stats.rounds:
        parts += [f"{stats.tokens_per_second:.1f} tokens/s", f"{stats.tokens_per_round:.2f} per pass"]
    if stats.drafted:
        parts.append(f"{100 * stats.acceptance_rate:.0f} % of the draft accepted")
    return ", ".join(parts)
