"""The command line: one verb per command, each in its own file and imported only when it is used.

Exit codes: 0 success, 1 a clear error in one line on stderr, 2 wrong usage, 130 interrupted, 143 terminated. Whoever
reads stdout may stop reading: that is success. A closed stdout or stdin is an error where it is needed; what cannot be
said on stderr is not said.
"""

from __future__ import annotations

import errno
import signal
import sys

import click

from speq.cli.streams import flush_stdout, open_streams
from speq.cli.verbs import Verbs
from speq.errors import SpeqError
from speq.processors import spare_blas

_COMMANDS = {
    "pull": ("files", "Fetch a model by its catalogue name or hub id."),
    "convert": ("files", "Split a checkpoint's weights into draft codes and residuals."),
    "restore": ("files", "Write the original 16-bit checkpoint back, bit for bit."),
    "inspect": ("inspect", "Show sizes, exponents, escapes and draft error of a model."),
    "generate": ("generate", "Generate text from a prompt."),
    "chat": ("chat", "Talk with a model in the terminal."),
    "verify": ("verify", "Show that drafts, batches, threads and instruction sets change no byte."),
    "train-head": ("train_head", "Train a head that proposes tokens for the draft to check."),
    "bench": ("bench", "Measure kernels, decoding and other engines."),
    "hw": ("hw", "Simulate, emit and synthesise the accelerator."),
}


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        import speq

        click.echo(f"speq {speq.__version__}")
        ctx.exit()


@click.group(
    cls=Verbs,
    verbs=_COMMANDS,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Show it.")
@click.pass_context
def cli(context: click.Context) -> None:
    """Run language models faster without changing one output token.

    MODEL is a directory (Hugging Face layout or converted), a .gguf file, a catalogue name or a hub id.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(2)


class _Terminated(SystemExit):
    """SIGTERM: whatever is open is closed, as when Ctrl-C ends a command, and no one goes on as after Ctrl-C."""


def main() -> None:
    """Run the command line and exit."""
    open_streams()
    signal.signal(signal.SIGTERM, _terminate)
    spare_blas()
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code; nothing that a user can cause escapes as a traceback."""
    if sys.stdout is None:
        return _fail("stdout is closed: open it, or send the output to a file or to /dev/null")
    code = _run(arguments)
    try:
        flush_stdout()
    except SpeqError as error:
        return code or _fail(str(error))
    return code


def _terminate(*_: object) -> None:
    raise _Terminated(143)


def _run(arguments: list[str]) -> int:
    try:
        with cli.make_context("speq", arguments) as context:
            return int(cli.invoke(context) or 0)
    except click.exceptions.Exit as end:  # --help, --version
        return end.exit_code
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "speq"
        _say(f"{path}: {error.format_message()} (see {path} --help)")
        return 2
    except click.ClickException as error:
        return _fail(error.format_message())
    except SpeqError as error:
        return _fail(str(error))
    except (KeyboardInterrupt, click.Abort):
        _say("speq: interrupted")
        return 130
    except _Terminated:
        click.echo("speq: terminated", err=True)
        return 143
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # what rich makes of it
            return 0
        raise
    except BrokenPipeError:  # the reader of our output went away, as `head` does: no error
        return 0
    except MemoryError:
        return _fail("not enough memory for this model: close other programs, or limit the context with --context")
    except OSError as error:
        return _fail(_describe(error))


def _fail(message: str) -> int:
    _say(f"speq: {' '.join(message.split())}")
    return 1


def _say(line: str) -> None:
    """Print a line on stderr; it may quote a file, whose control characters must not drive a terminal."""
    from speq.terminal.output import printable

    click.echo(printable(line), err=True)


def _describe(error: OSError) -> str:
    """One line for an operating system error that no part of speq turned into a better one."""
    where = f"{error.filename}: " if error.filename else ""
    advice = ": free some space, or set SPEQ_CACHE to another disk" if error.errno == errno.ENOSPC else ""
    return f"{where}{(error.strerror or str(error)).lower()}{advice}"
