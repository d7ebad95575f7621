"""Options that several commands share, and what they mean to the Python interface."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from speq.drafts import DRAFTS, ONE_HELPER, DraftName, Helper, missing_helper, unused_helper
from speq.limits import LONGEST_DRAFT
from speq.processors import MAX_THREADS

Command = TypeVar("Command", bound=Callable[..., Any])


def _draft(context: click.Context, option: click.Parameter, value: str) -> str:
    if value not in DRAFTS:
        raise click.BadParameter(f"{value!r} is not one of {', '.join(DRAFTS)}", context, option)
    return value


def _draft_length(context: click.Context, option: click.Parameter, value: str) -> int | None:
    """A number of tokens, or ``None`` for ``auto``."""
    if value == "auto":
        return None
    if not (value.isascii() and value.isdigit() and 1 <= int(value) <= LONGEST_DRAFT):
        raise click.BadParameter(f"{value!r} is neither a number from 1 to {LONGEST_DRAFT} nor auto", context, option)
    return int(value)


_DECODING = (
    click.option(
        "--draft",
        metavar="|".join(DRAFTS),
        callback=_draft,
        default="auto",
        show_default=True,
        help="Choose what is fastest each round (auto), draft with the model's own 4-bit codes (self), propose what "
        "stood in the text before (ngram), let the codes check such proposals (cascade), those of a trained head "
        "(head) or of another model (model), verify these without the codes between (-direct), or do not draft (none).",
    ),
    click.option(
        "--draft-length",
        metavar="K|auto",
        callback=_draft_length,
        default="auto",
        show_default=True,
        help=f"Tokens to draft each round, 1 to {LONGEST_DRAFT}; auto decides by confidence and cost.",
    ),
    click.option(
        "--temperature",
        metavar="T",
        type=click.FloatRange(0),
        default=0.0,
        show_default=True,
        help="0 takes the likeliest token.",
    ),
    click.option(
        "--top-k", metavar="K", type=click.IntRange(0), default=0, help="Keep the K likeliest tokens; 0 keeps all."
    ),
    click.option(
        "--top-p",
        metavar="P",
        type=click.FloatRange(0, 1, min_open=True),
        default=1.0,
        help="Keep the fewest tokens that hold this share of the probability.",
    ),
    click.option(
        "--min-p",
        metavar="P",
        type=click.FloatRange(0, 1),
        default=0.0,
        help="Keep tokens with at least this fraction of the largest probability.",
    ),
    click.option("--seed", metavar="S", type=click.IntRange(0, 2**64 - 1), help="Makes sampling repeatable."),
    click.option("--stop", metavar="STR", multiple=True, help="End the text before STR; may be given several times."),
)


@dataclass(frozen=True)
class Decoding:
    """The decoding options of a command line."""

    draft: DraftName
    draft_length: int | None
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int | None
    stop: tuple[str, ...]

    def to_stream(self) -> dict[str, Any]:
        """Keyword arguments for :meth:`speq.serving.api.Model.stream`."""
        from speq.runtime.sampling import Sampling

        return {
            "sampling": Sampling(self.temperature, self.top_k, self.top_p, self.min_p, self.seed),
            "draft": self.draft,
            "draft_length": self.draft_length,
            "stop": self.stop,
        }


def decoding_options(command: Command) -> Command:
    """Add the decoding options; the command receives the fields of :class:`Decoding` as keyword arguments."""
    for option in reversed(_DECODING):
        command = option(command)
    return command


_HELPERS = (
    click.option(
        "--draft-head",
        metavar="DIR",
        type=click.Path(path_type=Path),
        help="A head from `speq train-head`, or a public EAGLE head, that proposes tokens for the draft to check.",
    ),
    click.option(
        "--draft-model",
        metavar="MODEL",
        help="A smaller model with the same tokenizer that proposes tokens for the draft to check.",
    ),
)


@dataclass(frozen=True)
class Helpers:
    """What proposes beside the model."""

    draft_head: Path | None
    draft_model: str | None

    @property
    def given(self) -> Helper | None:
        return "head" if self.draft_head is not None else "model" if self.draft_model is not None else None

    def check(self, *drafts: str) -> None:
        """Whether they fit the drafts that are asked for: everyone has what it needs, and someone needs what is given.

        Raises:
            click.UsageError: they do not.
        """
        wrong = next((missing for draft in drafts if (missing := missing_helper(draft, self.given))), None)
        unused = [unused_helper(draft, self.given) for draft in drafts]
        if wrong is None and unused and all(unused):
            wrong = unused[0]
        if wrong:
            raise click.UsageError(wrong)

    def to_load(self) -> dict[str, Any]:
        """Keyword arguments for :func:`speq.serving.loading.load`."""
        return {"draft_head": self.draft_head, "draft_model": self.draft_model}


def helper_options(command: Command) -> Command:
    """Add what may propose beside the model; the command receives it as ``helpers``."""

    @functools.wraps(command)
    def helped(*arguments: Any, draft_head: Path | None, draft_model: str | None, **options: Any) -> Any:
        if draft_head is not None and draft_model is not None:
            raise click.UsageError(ONE_HELPER)
        return command(*arguments, helpers=Helpers(draft_head, draft_model), **options)

    for option in reversed(_HELPERS):
        helped = option(helped)
    return cast(Command, helped)


threads_option = click.option(
    "--threads",
    metavar="N",
    type=click.IntRange(1, MAX_THREADS),
    help="Processor cores to use; all by default.",
)


def model_options(command: Command) -> Command:
    """Add the MODEL argument and the options of loading."""
    for option in (
        click.option("--context", metavar="N", type=click.IntRange(1), help="Limit the context to so many tokens."),
        threads_option,
        click.argument("model"),
    ):
        command = option(command)
    return command


def parse_decoding(options: dict[str, Any]) -> Decoding:
    """Take the fields of :class:`Decoding` out of a command's keyword arguments."""
    return Decoding(**{name: cast(Any, options.pop(name)) for name in Decoding.__dataclass_fields__})
