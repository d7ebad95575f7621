"""`speq bench`: the measurements behind every figure, as tables, JSON and plots."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from speq.bench.peers import DEFAULT, ENGINES
from speq.bench.settings import Setting, parse_setting
from speq.cli.options import Command, Helpers, helper_options, threads_option
from speq.drafts import DRAFTS, FREE_DRAFTS, DraftName
from speq.errors import SpeqError
from speq.limits import LONGEST_DRAFT
from speq.terminal.output import ProgressBars, note

if TYPE_CHECKING:
    from speq.bench.report import Report


@click.group()
def bench() -> None:
    """Measure kernels, decoding and other engines on this machine."""


_model = click.argument("model")
_json = click.option(
    "--json", "json_path", metavar="FILE", type=click.Path(path_type=Path), help="Write all numbers to FILE."
)
_csv = click.option(
    "--csv", "csv_path", metavar="FILE", type=click.Path(path_type=Path), help="Keep the figures in FILE, one a line."
)
_prompts = click.option(
    "--prompts",
    "prompt_path",
    metavar="FILE|DIR",
    type=click.Path(path_type=Path),
    help="JSON lines with id, category and turns, or a directory of them.  [default: a few that come with speq]",
)
_prompt_files = click.option(
    "--prompts",
    "prompt_paths",
    metavar="FILE|DIR",
    multiple=True,
    type=click.Path(path_type=Path),
    help="JSON lines with id, category and turns, or a directory of them; may be given several times.  "
    "[default: a few that come with speq]",
)
_new_tokens = click.option(
    "--new-tokens", metavar="N", type=click.IntRange(2), default=128, show_default=True, help="Per answer."
)
_count = click.option("--count", metavar="N", type=click.IntRange(1), help="Prompts, spread evenly over each file.")
_rounds = click.option(
    "--rounds",
    metavar="N",
    type=click.IntRange(1),
    default=15,
    show_default=True,
    help="Repetitions, of which medians.",
)


def _settings(drafts: Sequence[DraftName]) -> Callable[[click.Context, click.Parameter, tuple[str, ...]], Any]:
    """Parses settings, each once, with these drafts."""

    def parse(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> list[Setting]:
        try:
            return [parse_setting(value, drafts) for value in dict.fromkeys(values)]
        except SpeqError as error:
            raise click.BadParameter(str(error), context, option) from None

    return parse


_SAMPLING = (
    click.option(
        "--temperature", metavar="T", type=click.FloatRange(0), default=0.0, help="0, the default, is greedy."
    ),
    click.option(
        "--top-p",
        metavar="P",
        type=click.FloatRange(0, 1, min_open=True),
        default=1.0,
        help="At temperatures above 0.",
    ),
    click.option("--seed", metavar="S", type=click.IntRange(0, 2**64 - 1), default=1, help="The same, 1 by default."),
)


def _sampled(command: Callable[..., int]) -> Callable[..., int]:
    """Add how tokens are drawn, which the command receives as ``sampling``."""

    @functools.wraps(command)
    def sampled(*arguments: Any, temperature: float, top_p: float, seed: int, **options: Any) -> int:
        from speq.runtime.sampling import Sampling

        sampling = Sampling(temperature, top_p=top_p, seed=seed if temperature else None)
        return command(*arguments, sampling=sampling, **options)

    for option in reversed(_SAMPLING):
        sampled = option(sampled)
    return sampled


def _drafts(
    name: str, help: str, default: tuple[str, ...] = (), drafts: Sequence[DraftName] = FREE_DRAFTS
) -> Callable[[Command], Command]:
    """An option that names drafts, as ``settings``."""
    return click.option(
        name, "settings", metavar="NAME[:K]", multiple=True, default=default, callback=_settings(drafts), help=help
    )


def _timing(command: Callable[..., None]) -> Callable[..., None]:
    """Add what a measurement without prompts takes."""
    for option in (_csv, _json, threads_option, _rounds, _model):
        command = option(command)
    return command


@bench.command(short_help="Time every operator.")
@_timing
def kernels(**options: Any) -> None:
    """Every operator: time, GB/s against the bandwidth of this machine, and the ratio to plain FP16."""
    from speq.bench.suites import kernels_report

    _time(kernels_report, **options)


@bench.command(short_help="Time whole passes by their tokens.")
@_timing
def passes(**options: Any) -> None:
    """Plain, draft and verify passes: what checking several tokens at once costs beside one."""
    from speq.bench.suites import passes_report

    _time(passes_report, **options)


@bench.command(short_help="Time passes, prompts, prefill and memory.")
@_model
@_prompts
@_count
@_new_tokens
@click.option("--draft", type=click.Choice(["auto", "self"]), default="auto", show_default=True)
@click.option(
    "--draft-length",
    metavar="K",
    type=click.IntRange(1, LONGEST_DRAFT),
    help="Tokens to draft each round.  [default: auto]",
)
@_rounds
@threads_option
@_json
@_csv
def decode(
    model: str,
    prompt_path: Path | None,
    count: int | None,
    json_path: Path | None,
    csv_path: Path | None,
    **options: Any,
) -> None:
    """Plain, draft and verify passes, prompts end to end, prefill, overhead, long contexts, memory."""
    from speq.bench.prompts import to_measure
    from speq.bench.suites import decode_report

    _check_writable(json_path, csv_path)
    prompts = to_measure(prompt_path, count)
    _finish(decode_report(model, _resolve(model), prompts, say=_say, **options), json_path, csv_path)


@bench.command(short_help="Compare with other engines.")
@_model
@click.option(
    "--engine",
    "engines",
    multiple=True,
    type=click.Choice(list(ENGINES)),
    default=DEFAULT,
    help="An engine to compare; may be given several times.  [default: all but llama.cpp-bf16]",
)
@_prompts
@_count
@click.option("--new-tokens", metavar="N", type=click.IntRange(2), default=64, show_default=True, help="Per answer.")
@click.option(
    "--workdir",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Keep the files for other engines here.  [default: a temporary directory]",
)
@threads_option
@_json
@_csv
def peers(
    model: str,
    prompt_path: Path | None,
    count: int | None,
    json_path: Path | None,
    csv_path: Path | None,
    **options: Any,
) -> None:
    """The same model and prompts in other engines, as far as they are installed."""
    from speq.bench.peers.suite import peers_report
    from speq.bench.prompts import to_measure

    _check_writable(json_path, csv_path)
    prompts = to_measure(prompt_path, count)
    path = _resolve(model)
    with ProgressBars() as progress:
        report = peers_report(model, path, prompts, progress=progress, say=_say, **options)
    _finish(report, json_path, csv_path)


@bench.command(short_help="Compare draft settings with plain decoding, prompt by prompt.")
@_model
@_prompt_files
@_count
@_drafts(
    "--draft",
    f"A draft ({', '.join(DRAFTS)}), with K tokens each round if given; may be given several times.  [default: auto]",
    ("auto",),
    DRAFTS,
)
@helper_options
@_new_tokens
@_sampled
@click.option(
    "--rounds",
    metavar="N",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Measure everything so many times, each time with nothing learnt; medians of them.",
)
@click.option("--html", "html_path", metavar="FILE", type=click.Path(path_type=Path), help="Write a page with plots.")
@threads_option
@_json
@_csv
def spec(
    model: str,
    prompt_paths: tuple[Path, ...],
    count: int | None,
    settings: list[Setting],
    helpers: Helpers,
    html_path: Path | None,
    json_path: Path | None,
    csv_path: Path | None,
    **options: Any,
) -> int:
    """How much faster drafts are, and why: acceptance by stage and position, where the time goes, and whether all token
    ids are those of plain decoding. Exit code 1 if any differs.

    Ctrl-C ends the measurement with the figures so far.
    """
    from speq.bench.spec_report import choose_prompts, spec_report

    helpers.check(*(setting.draft for setting in settings))
    _check_writable(json_path, csv_path, html_path)
    if html_path:
        from speq.bench.pages import spec_page
        from speq.bench.plots import require_matplotlib

        require_matplotlib()
    chosen = choose_prompts(prompt_paths, count)
    path = _resolve(model)
    with ProgressBars() as progress:
        outcome = spec_report(
            model, path, chosen, settings, helpers.to_load(), progress=progress, say=_say_beside(progress), **options
        )
    _finish(outcome.report, json_path, csv_path)
    if html_path:
        from speq.checkpoint.storage import replace_file, writing_to

        with writing_to(html_path):
            replace_file(html_path, spec_page(outcome.report.to_dict()).encode())
    return 1 if outcome.differing else 0 if outcome.complete else 130


@bench.command(short_help="Record prompts for replays.")
@_model
@click.argument("out", type=click.Path(path_type=Path))
@_prompt_files
@_count
@_drafts(
    "--draft",
    "Also generate with this draft, so that its replay has something to be compared with; may be given several "
    "times.  [default: auto]",
    ("auto",),
)
@_new_tokens
@_sampled
@_rounds
@threads_option
def record(
    model: str,
    out: Path,
    prompt_paths: tuple[Path, ...],
    count: int | None,
    **options: Any,
) -> int:
    """Write to the file OUT what every way of drafting the answers would meet, and what passes cost on this machine.

    It holds the token ids of prompts and answers. Ctrl-C keeps the prompts so far.
    """
    from speq.bench.replay_report import record as record_prompts
    from speq.bench.spec_report import choose_prompts

    _check_writable(out)
    chosen = choose_prompts(prompt_paths, count)
    path = _resolve(model)
    with ProgressBars() as progress:
        recorded = record_prompts(model, path, out, chosen, progress=progress, say=_say_beside(progress), **options)
    for line in chosen.notes:
        note(line)
    click.echo(f"{out}: {recorded.texts} of {recorded.wanted} prompts")
    if recorded.differing:
        click.echo(f"{recorded.differing} token ids differ from plain decoding: this is a bug, please report it")
        return 1
    return 0 if recorded.complete else 130


@bench.command(short_help="Try policies on recorded prompts.")
@click.argument("recordings", nargs=-1, required=True, type=click.Path(path_type=Path))
@_drafts(
    "--policy",
    f"A draft ({', '.join(FREE_DRAFTS)}), with K tokens each round if given; may be given several times.  "
    "[default: all, and fixed lengths of those that have one]",
)
@_json
@_csv
def replay(
    recordings: tuple[Path, ...], settings: list[Setting], json_path: Path | None, csv_path: Path | None
) -> None:
    """Draft recorded texts anew under other policies on a virtual clock, beside the clairvoyant optimum.

    RECORDINGS are files of `speq bench record`. No model is needed.
    """
    from speq.bench.replay_report import replay_report

    _check_writable(json_path, csv_path)
    with ProgressBars() as progress:
        report = replay_report(recordings, settings, progress=progress)
    _finish(report, json_path, csv_path)


@bench.command(short_help="Draw what was measured.")
@click.argument("reports", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--out", metavar="DIR", type=click.Path(path_type=Path), default=Path(), help="Where the plots go.")
def plot(reports: tuple[Path, ...], out: Path) -> None:
    """Draw plots (PNG and SVG) of REPORTS, which the other commands wrote with --csv or --json."""
    from speq.bench.plots import draw
    from speq.bench.report import read_json
    from speq.bench.results import figures, read_csv

    for path in reports:
        found = read_csv(path) if path.suffix == ".csv" else figures(read_json(path))
        for made in draw(found, out, path.stem):
            click.echo(made)


def _time(
    measure: Callable[..., Report], model: str, json_path: Path | None, csv_path: Path | None, **options: Any
) -> None:
    """Run a measurement without prompts, and show and keep its report."""
    _check_writable(json_path, csv_path)
    _finish(measure(model, _resolve(model), say=_say, **options), json_path, csv_path)


def _check_writable(*paths: Path | None) -> None:
    from speq.bench.report import check_writable

    for path in paths:
        check_writable(path)


def _resolve(model: str) -> Path:
    from speq.conversion.locate import converted_model

    with ProgressBars() as progress:
        return converted_model(model, progress=progress)


def _say(text: str) -> None:
    note(text)


def _say_beside(progress: ProgressBars) -> Callable[[str], None]:
    """Says a line where bars are drawn."""

    def say(line: str) -> None:
        progress.close()
        note(line)

    return say


def _finish(report: Report, json_path: Path | None, csv_path: Path | None) -> None:
    """Show a report, and write it where asked."""
    from rich.console import Console

    from speq.bench.report import write_json
    from speq.bench.results import figures, write_csv

    width = None if sys.stdout.isatty() else 160
    report.show(Console(highlight=False, width=width))
    if json_path:
        write_json(report, json_path)
    if csv_path:
        write_csv(figures(report.to_dict()), csv_path)
