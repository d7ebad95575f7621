"""`speq chat`: a conversation in the terminal. Each answer continues on the cache of the ones before."""

from __future__ import annotations

import sys
from typing import Any

import click

from speq.cli.generate import print_notes, show
from speq.cli.options import Helpers, decoding_options, helper_options, model_options, parse_decoding
from speq.cli.streams import stdin
from speq.errors import SpeqError
from speq.terminal.output import ProgressBars, dim, is_live, printable

_HELP = "/new starts over, /exit (or Ctrl-D) ends, Ctrl-C stops an answer."


@click.command()
@click.option("--system", metavar="TEXT", help="A system message to begin with.")
@click.option(
    "-n", "--max-tokens", metavar="N", type=click.IntRange(1), help="Most tokens per answer.  [default: as many as fit]"
)
@decoding_options
@helper_options
@model_options
def chat(
    model: str,
    system: str | None,
    max_tokens: int | None,
    threads: int | None,
    context: int | None,
    helpers: Helpers,
    **options: Any,
) -> int:
    """Talk with a model. Lines come from stdin, so a conversation can be piped in."""
    parsed = parse_decoding(options)
    helpers.check(parsed.draft)
    decoding = parsed.to_stream()
    from speq.serving.loading import load

    stdin()  # closed: say so at once
    opening = [{"role": "system", "content": system}] if system else []
    messages = list(opening)
    with ProgressBars() as progress:
        loaded = load(model, threads=threads, context=context, progress=progress, **helpers.to_load())
        progress.close()
        print_notes(loaded, progress)
        loaded.encode([*messages, {"role": "user", "content": "Hello"}])  # no tokenizer or template: say so at once
        if _is_interactive():
            print(dim(_HELP) if is_live() else _HELP, file=sys.stderr)
        while (line := _read_line()) is not None:
            if line in ("/exit", "/quit"):
                break
            if line == "/new":
                messages = list(opening)
            elif line:
                asked = [*messages, {"role": "user", "content": line}]
                try:
                    stream = loaded.stream(asked, max_new_tokens=max_tokens, progress=progress, **decoding)
                    show(stream, progress)
                except SpeqError as error:
                    if not _is_interactive():
                        raise
                    print(printable(f"speq: {error}; /new starts over"), file=sys.stderr)
                    continue
                messages = [*asked, {"role": "assistant", "content": stream.result.text}]
    return 0


def _is_interactive() -> bool:
    """Whether somebody types and reads; otherwise a conversation is piped in, and ends with its first error."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def _read_line() -> str | None:
    """The next line, without surrounding space; ``None`` at the end of the input."""
    prompt = ""
    if _is_interactive():
        import readline  # noqa: F401  # gives input() a line editor with a history

        prompt = "> "
    try:
        return input(prompt).strip()
    except (EOFError, KeyboardInterrupt) as end:
        if prompt:
            print()  # what follows must not stand behind the prompt
        if isinstance(end, KeyboardInterrupt):
            raise
        return None
    except UnicodeDecodeError:
        raise SpeqError("stdin is not valid UTF-8: send text as UTF-8") from None
