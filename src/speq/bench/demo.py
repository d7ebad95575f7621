"""The main job on a small real model: fetch it, convert it, let it draft for itself, and compare with plain decoding.

    python -m speq.bench.demo        (or `make demo`)

Exit code 1 if speculation changed a single token id.
"""

from __future__ import annotations

import statistics
import sys
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Literal

import speq
from speq.bench.machine import this_machine
from speq.bench.prompts import builtin_prompts
from speq.checkpoint.fetching.catalogue import catalogue
from speq.checkpoint.store import Converted, load_converted
from speq.conversion.locate import converted_model
from speq.errors import SpeqError
from speq.terminal.live import LiveText
from speq.terminal.output import ProgressBars

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

NAME = "smollm2-135m-instruct"
FIRST_PROMPT, *PROMPTS = (prompt.text for prompt in builtin_prompts())
NEW_TOKENS = 128
SAMPLED = speq.Sampling(temperature=0.8, top_p=0.95, seed=7)


@dataclass
class Comparison:
    """Generations of the same prompts, plain and speculative, in one sampling mode."""

    plain: list[speq.Result] = field(default_factory=list)
    speculative: list[speq.Result] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(len(result.token_ids) for result in self.plain)

    @property
    def differing(self) -> int:
        """Positions whose token ids differ, missing ones included."""
        pairs = [(a.token_ids, b.token_ids) for a, b in zip(self.plain, self.speculative, strict=True)]
        return sum(abs(len(a) - len(b)) + sum(x != y for x, y in zip(a, b, strict=False)) for a, b in pairs)


def main() -> int:
    """Run the demo on the terminal and return the exit code."""
    from rich.console import Console

    console = Console(highlight=False)
    try:
        return _run(console)
    except SpeqError as error:
        print(f"speq: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nspeq: interrupted; what was fetched is kept", file=sys.stderr)
        return 130


def _run(console: Console) -> int:
    console.print(f"Fetching and converting [bold]{catalogue()[NAME].title}[/] (both happen once) ...")
    with ProgressBars() as progress:
        path = converted_model(NAME, progress=progress)
    converted = load_converted(path)
    for line in converted.notes:
        console.print(f"note: {line}", style="dim", soft_wrap=True)
    model = speq.load(path)

    console.print(f"\n[bold]{FIRST_PROMPT}[/]  [dim](drafting for itself)[/]")
    with LiveText() as shown:
        for piece in model.stream(FIRST_PROMPT, max_new_tokens=NEW_TOKENS, draft="self"):
            shown.write(piece.text)
    model.generate(FIRST_PROMPT, max_new_tokens=16, draft="none")

    console.print(
        f"\n\nComparing with plain decoding: {len(PROMPTS)} other prompts, up to {NEW_TOKENS} tokens each ...\n"
    )
    greedy, sampled = compare(model, speq.Sampling()), compare(model, SAMPLED)
    console.print(_table(converted, greedy, sampled))
    console.print(
        f"{this_machine()}; medians over the prompts, greedy unless it says sampled", style="dim", soft_wrap=True
    )

    tokens, differing = greedy.tokens + sampled.tokens, greedy.differing + sampled.differing
    if differing:
        console.print(f"[bold red]{differing} of {tokens} token ids differ: this is a bug, please report it[/]")
        return 1
    console.print(f"[bold green]all {tokens} token ids are identical with and without speculation[/]")
    return 0


def compare(model: speq.Model, sampling: speq.Sampling) -> Comparison:
    """Generate every prompt both ways, alternating which one goes first."""
    comparison = Comparison()
    for i, prompt in enumerate(PROMPTS):
        modes: list[Literal["none", "self"]] = ["none", "self"]
        for draft in modes if i % 2 else reversed(modes):
            result = model.generate(prompt, max_new_tokens=NEW_TOKENS, sampling=sampling, draft=draft)
            (comparison.plain if draft == "none" else comparison.speculative).append(result)
    return comparison


def _table(converted: Converted, greedy: Comparison, sampled: Comparison) -> Table:
    from rich.table import Table

    table = Table("", "plain", "speculative", "")
    for column in table.columns[1:]:
        column.justify = "right"
    for label, comparison in (("tokens/s", greedy), ("tokens/s, sampled", sampled)):
        plain, fast = _speed(comparison.plain), _speed(comparison.speculative)
        table.add_row(label, f"{plain:.1f}", f"{fast:.1f}", f"{fast / plain:.2f}x")
    stats = [result.stats for result in greedy.speculative]
    rounds = sum(item.rounds for item in stats)
    drafted, accepted = (sum(getattr(item, name) for item in stats) for name in ("drafted", "accepted"))
    table.add_row("tokens per round", "1.00", f"{(accepted + rounds) / max(rounds, 1):.2f}")
    table.add_row(
        "drafted tokens accepted", "", f"{100 * accepted / max(drafted, 1):.0f} %", f"{accepted} of {drafted}"
    )
    before, after = _sixteen_bit_bytes(converted), converted.bytes
    table.add_row("weights on disk", _megabytes(before), _megabytes(after), f"{after / before - 1:+.1%}")
    table.add_row("of which a draft reads", "", _megabytes(_draft_bytes(converted)))
    return table


def _speed(results: list[speq.Result]) -> float:
    return statistics.median(result.stats.tokens_per_second for result in results)


def _sixteen_bit_bytes(converted: Converted) -> int:
    """Size of the checkpoint that `speq restore` gives back."""
    bytes_of = {"F64": 8, "F32": 4}
    return sum(prod(record.shape) * bytes_of.get(record.dtype, 2) for record in converted.records)


def _draft_bytes(converted: Converted) -> int:
    return sum(tensor.codes.nbytes + tensor.scales.nbytes for tensor in converted.split.values())


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB"


if __name__ == "__main__":
    sys.exit(main())
