"""How many tokens a draft pass yields when a free first stage proposes to it: counted, not timed.

The model writes each answer plainly, and every draw tells its most probable tokens. The cascade is then replayed over
this record for each number of rows: a row on the text draws what the model drew, one beside it nothing. That takes the
draft level for as good as the exact one, of which it agrees in 95 of 100 tokens. The
table lives on from text to text, as a model's does, unless --cold empties it for each.

    python benchmarks/stages.py MODEL [--prompts 9] [--new-tokens 128] [--rows 2 --rows 3] [--chain] [--cold]
                                [--round 8] [--temperature 0] [--record FILE]
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click

import speq
from speq.bench.prompts import read_prompts
from speq.decoding import NgramDrafter, NoDrafter, Policy, Proposal, Request, SuccessorTable, Verification, verify
from speq.decoding.drafters import Context, Drawn
from speq.decoding.generate import generate_tokens
from speq.runtime.sampling import Choice, Sampling

PROMPTS = Path(__file__).parent / "prompts"
FILES = ("gsm8k_train_200", "humaneval", "mt_bench")


class Recording(NoDrafter):
    """Notes what every exact pass of plain decoding tells."""

    likely = 8

    def __init__(self) -> None:
        self.drawn: list[Choice] = []

    def learn(self, context: Context, proposal: Proposal, checked: Verification, drawn: Drawn) -> None:
        self.drawn += drawn


@dataclass
class Count:
    """Of the texts of one prompt file.

    Attributes:
        tokens, passes: drafted, and the passes that it took.
        tried, right: proposed tokens whose path was right, and those that were right, by source and depth.
    """

    tokens: int = 0
    passes: int = 0
    tried: Counter[tuple[str, int]] = field(default_factory=Counter)
    right: Counter[tuple[str, int]] = field(default_factory=Counter)


def replay(
    text: list[int],
    prompt: int,
    drawn: list[Choice],
    drafter: NgramDrafter,
    sampling: Sampling,
    nodes: int,
    length: int,
) -> Iterator[tuple[Proposal, Verification, list[str]]]:
    """The draft passes over a text, in rounds of so many tokens, after which these are certain."""
    at = prompt + 1  # tokens that are known when the pass begins
    while at < len(text):
        certain, end = at, min(at + length, len(text))
        while at < end:
            limit = nodes if end - at > 1 else 0
            context = Context(
                text[:certain],
                limit,
                nodes + 1,
                lambda _: True,
                lambda _: None,
                lambda _: None,
                sampling=sampling,
                tentative=text[certain:at],
            )
            try:
                next(drafter.propose(context))
                raise AssertionError("the first stage asks for a pass")
            except StopIteration as stop:
                proposal: Proposal = stop.value
            rows = [Choice(-1, 0.0)] * (len(proposal.tokens) + 1)
            row, here = 0, at
            rows[0] = drawn[here - prompt - 1]
            parents = proposal.rows() or range(-1, len(proposal.tokens))
            for index, token in enumerate(proposal.tokens, 1):
                if parents[index] == row and token == rows[row].token and here + 1 < len(text):
                    row, here = index, here + 1
                    rows[row] = drawn[here - prompt - 1]
            done = verify([choice.token for choice in rows], proposal)
            yield proposal, done, list(drafter.sources)
            drafter.learn(context, proposal, done, rows)
            at = min(at + len(done.tokens), end)


def record(model: speq.Model, prompt: list[int], new_tokens: int, sampling: Sampling) -> tuple[list[int], list[Choice]]:
    """The text of a prompt and what was drawn after each of its tokens but the last."""
    recording = Recording()
    request = Request(prompt, sampling, recording, Policy(), new_tokens, model.ends)
    text = [*prompt, *(token for chunk in generate_tokens(model.engine.engine, request) for token in chunk)]
    return text, recording.drawn


@click.command()
@click.argument("name")
@click.option("--prompts", "count", default=9, help="From each of the three prompt files.")
@click.option("--new-tokens", default=128)
@click.option("--rows", "all_rows", multiple=True, type=int, default=(2, 3, 4, 6))
@click.option("--chain", is_flag=True, help="Chains instead of trees.")
@click.option("--cold", is_flag=True, help="An empty table for every text.")
@click.option("--round", "length", default=8, help="Tokens of a draft.")
@click.option("--temperature", default=0.0)
@click.option("--record", "kept", type=click.Path(path_type=Path), help="Keep the texts here, and read them from here.")
def main(
    name: str,
    count: int,
    new_tokens: int,
    all_rows: tuple[int, ...],
    chain: bool,
    cold: bool,
    length: int,
    temperature: float,
    kept: Path | None,
) -> None:
    sampling = Sampling(temperature, seed=7 if temperature else None)
    texts = read_record(kept) if kept and kept.exists() else {}
    if not texts:
        model = speq.load(name)
        for file in FILES:
            for prompt in read_prompts(PROMPTS / f"{file}.jsonl", count):
                ids = model.encode(prompt.text)
                text, drawn = record(model, ids, new_tokens, sampling)
                texts.setdefault(file, []).append((len(ids), text, drawn))
        if kept:
            kept.write_text(json.dumps(texts))
    for rows in all_rows:
        report(texts, rows, sampling, length, tree=not chain, cold=cold)


Texts = dict[str, list[tuple[int, list[int], list[Choice]]]]


def read_record(path: Path) -> Texts:
    stored = json.loads(path.read_text())
    return {
        file: [(p, text, [Choice(*each) for each in drawn]) for p, text, drawn in all_] for file, all_ in stored.items()
    }


def report(texts: Texts, rows: int, sampling: Sampling, length: int, *, tree: bool, cold: bool) -> None:
    table = SuccessorTable()
    whole, parts = Count(), []
    for file, all_ in texts.items():
        own = Count()
        for prompt, text, drawn in all_:
            drafter = NgramDrafter(SuccessorTable() if cold else table, rows - 1, tree=tree)
            for proposal, done, sources in replay(text, prompt, drawn, drafter, sampling, rows - 1, length):
                for count in (own, whole):
                    add(count, proposal, done, sources)
            own.tokens += len(text) - prompt - 1
        whole.tokens += own.tokens
        parts.append(f"{file} {own.tokens / own.passes:.3f}")
    click.echo(f"{rows} rows: {whole.tokens / whole.passes:.3f} tokens a pass; {', '.join(parts)}")
    for key in sorted(whole.tried):
        source, depth = key
        click.echo(
            f"    {source:6} depth {depth}: {whole.right[key]:5} of {whole.tried[key]:5} right "
            f"({whole.right[key] / whole.tried[key]:.3f})"
        )


def add(count: Count, proposal: Proposal, done: Verification, sources: list[str]) -> None:
    count.passes += 1
    path = set(done.path)
    depths: list[int] = []
    for index, source in enumerate(sources):
        parent = index - 1 if proposal.parents is None else proposal.parents[index]
        depths.append(depths[parent] + 1 if parent >= 0 else 1)
        if parent + 1 in path:
            count.tried[source, depths[-1]] += 1
            count.right[source, depths[-1]] += index + 1 in path


if __name__ == "__main__":
    main()
