"""`speq bench spec`: fair to every setting, right about what it counts, and whole or plainly partial."""

from __future__ import annotations

import itertools
import json
import math
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from heads import write_random_head

import speq
from speq.bench import spec
from speq.bench.pages import spec_page
from speq.bench.prompts import Prompt, builtin_prompts
from speq.bench.results import read_csv, rows_of
from speq.bench.settings import Setting, parse_setting
from speq.bench.spec_report import choose_prompts
from speq.cli import run
from speq.conversion.convert import convert
from speq.decoding.sequence import Pass, Round
from speq.decoding.stats import Statistics
from speq.decoding.verify import Verification
from speq.drafts import DRAFTS, FREE_DRAFTS
from speq.errors import SpeqError
from speq.serving.result import Result

TABLES = {"spec", "spec_prompts", "spec_stages", "spec_positions", "spec_time"}


@pytest.fixture
def speq_run(capsys, slow_memory):
    def call(*arguments):
        code = run(["bench", "spec", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def write_prompts(path, *texts, categories=("c",)):
    lines = [
        json.dumps({"id": f"{path.stem}/{at}", "category": categories[at % len(categories)], "turns": [text]})
        for at, text in enumerate(texts)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def two_files(tmp_path):
    one = write_prompts(tmp_path / "one.jsonl", "hi there", "and then", "what else")
    return one, write_prompts(tmp_path / "two.jsonl", "abc abc abc", "xyz", categories=("letters", "words"))


def options(*files):
    given = itertools.chain.from_iterable(("--prompts", file) for file in files)
    return (*given, "--new-tokens", 12, "--threads", 1)


def test_every_setting_is_compared_with_plain_decoding(speq_run, tiny_converted, two_files, tmp_path):
    kept = ("--json", tmp_path / "s.json", "--csv", tmp_path / "s.csv")
    drafts = ("--draft", "self:3", "--draft", "cascade", "--draft", "ngram")
    code, out, err = speq_run(tiny_converted, *options(*two_files), *drafts, *kept)
    assert code == 0
    assert "token ids are those of plain decoding" in out
    assert "note: two/1: plain " in err
    results = json.loads((tmp_path / "s.json").read_text())["results"]
    assert set(results) == TABLES
    groups = ["all", "one", "two", "two/letters", "two/words"]
    assert [(row["draft"], row["category"]) for row in results["spec"]] == [
        (draft, group) for draft in ("self:3", "cascade", "ngram") for group in groups
    ]
    assert [row["prompts"] for row in results["spec"]] == [5, 3, 2, 1, 1] * 3
    assert len(results["spec_prompts"]) == 15
    for row in results["spec"]:
        own = [
            each["speed_up"]
            for each in results["spec_prompts"]
            if each["draft"] == row["draft"] and (row["category"] == "all" or each["category"] == row["category"])
        ]
        if row["category"] != "two":
            assert row["speed_up"] == pytest.approx(math.prod(own) ** (1 / len(own)))
            assert row["least"] == min(own)
    found = read_csv(tmp_path / "s.csv")
    for table in TABLES:
        assert rows_of(found, table) == [
            {key: value for key, value in row.items() if value is not None} for row in results[table]
        ]


@pytest.mark.parametrize("helper", ["head", "model"])
def test_a_head_and_another_model_are_measured_beside_free_drafts(
    speq_run, tiny_converted, tiny_checkpoint, write_checkpoint, two_files, tmp_path, helper
):
    config = json.loads((tiny_checkpoint / "config.json").read_text())
    place = {
        "head": lambda: write_random_head(tmp_path / "helper", config),
        "model": lambda: convert(write_checkpoint(tmp_path / "raw", seed=5), tmp_path / "helper").path,
    }[helper]()
    drafts = [helper, f"{helper}-direct:4", "cascade", "auto"]
    given = itertools.chain.from_iterable(("--draft", draft) for draft in drafts)
    kept = ("--json", tmp_path / "s.json")
    code, out, _ = speq_run(tiny_converted, *options(*two_files), f"--draft-{helper}", place, *given, *kept)
    assert code == 0
    assert "token ids are those of plain decoding" in out
    report = json.loads((tmp_path / "s.json").read_text())
    assert report["settings"][f"draft_{helper}"] == "helper"
    assert [row["draft"] for row in report["results"]["spec"] if row["category"] == "all"] == drafts
    stages = {(row["draft"], row["level"]) for row in report["results"]["spec_stages"]}
    assert (helper, "draft") in stages
    assert (f"{helper}-direct:4", "draft") not in stages


def test_shares_of_the_time_are_the_whole(speq_run, tiny_converted, two_files, tmp_path):
    speq_run(tiny_converted, *options(*two_files), "--draft", "cascade", "--json", tmp_path / "s.json")
    rows = json.loads((tmp_path / "s.json").read_text())["results"]["spec_time"]
    own = [row for row in rows if row["category"] == "all"]
    assert [row["part"] for row in own] == ["drafters", "draft passes", "verify passes", "rest"]
    assert sum(row["share"] for row in own) == pytest.approx(1)
    *parts, rest = (row["seconds"] for row in own)
    assert min(parts) > 0
    assert rest >= 0


def test_ids_that_differ_are_counted_and_fail(speq_run, tiny_converted, two_files, monkeypatch, tmp_path):
    def credulous(drawn, proposal):
        tokens = [*proposal.tokens, drawn[-1]]
        return Verification(list(range(len(tokens))), tokens)

    monkeypatch.setattr("speq.decoding.sequence.verify", credulous)
    # A free stage proposes what a random model never wrote before: all of it is wrong.
    page = tmp_path / "s.html"
    code, out, _ = speq_run(tiny_converted, *options(*two_files), "--draft", "ngram", "--html", page)
    assert code == 1
    assert "token ids differ: this is a bug" in out
    assert "token ids differ from plain decoding" in page.read_text()


@pytest.mark.parametrize("passes", [30, 150])
def test_an_interruption_keeps_what_was_measured(speq_run, tiny_converted, two_files, monkeypatch, tmp_path, passes):
    from speq.runtime.engine import Engine

    whole, calls = Engine.run, []

    def interrupted(self, batch):
        calls.append(batch)
        if len(calls) == passes:
            raise KeyboardInterrupt
        return whole(self, batch)

    monkeypatch.setattr(Engine, "run", interrupted)
    kept = [tmp_path / f"s.{kind}" for kind in ("json", "csv", "html")]
    given = itertools.chain.from_iterable((f"--{path.suffix[1:]}", path) for path in kept)
    code, out, err = speq_run(tiny_converted, *options(*two_files), "--draft", "self:3", *given)
    assert code == 130
    if passes == 30:  # in the warm-up
        assert (out, err) == ("", "speq: interrupted\n")
        assert not any(path.exists() for path in kept)
        return
    content = json.loads(kept[0].read_text())
    measured = len(content["results"]["spec_prompts"])
    assert 0 < measured < 5
    assert f"interrupted: {measured} of 5 prompts were measured" in out
    assert content["settings"]["complete"] is False
    assert "Interrupted" in kept[2].read_text()


class Ids(HTMLParser):
    """What a page names, refers to and says."""

    def __init__(self):
        super().__init__()
        self.ids, self.references, self.tags, self.text, self.open = [], [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag not in ("meta", "link", "br", "img"):
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            elif name in ("src", "href", "xlink:href", "srcset", "action"):
                self.references.append(value)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_stands_alone_and_says_it_all(speq_run, tiny_converted, tmp_path):
    pytest.importorskip("matplotlib")
    odd = write_prompts(tmp_path / "odd & <b>.jsonl", "hi there", "what else")
    page = tmp_path / "s.html"
    drafts = ("--draft", "self:3", "--draft", "cascade")
    code, _, _ = speq_run(tiny_converted, *options(odd), *drafts, "--html", page, "--json", tmp_path / "s.json")
    assert code == 0
    html = page.read_text()
    parsed = Ids()
    parsed.feed(html)
    assert parsed.open == []
    assert parsed.tags.count("svg") == 3
    assert "script" not in parsed.tags
    assert len(set(parsed.ids)) == len(parsed.ids) > 0
    assert all(each == "data:," or each[1:] in parsed.ids for each in parsed.references)
    assert "@import" not in html
    assert all(part.split(")")[0].removeprefix("#") in parsed.ids for part in html.split("url(")[1:])
    assert "prefers-color-scheme: dark" in html
    assert 'name="viewport"' in html
    text = " ".join(parsed.text)
    report = json.loads((tmp_path / "s.json").read_text())
    assert "odd & <b>/0" in text
    for row in report["results"]["spec"]:
        assert f"{row['speed_up']:.2f}" in text
    for fact in (report["machine"]["processor"], report["versions"]["numpy"], "new tokens", "By stage"):
        assert str(fact) in text
    assert spec_page(report) == html


def test_prompts_come_once_and_never_warm_up(tmp_path, two_files):
    again = write_prompts(tmp_path / "again.jsonl", "xyz", "new", builtin_prompts()[0].text, "new")
    chosen = choose_prompts([*two_files, again, two_files[0]], None)
    texts = [question.prompt.text for question in chosen.questions]
    assert sorted(texts) == sorted(["hi there", "and then", "what else", "abc abc abc", "xyz", "new"])
    assert not {prompt.text for prompt in chosen.warm_up} & set(texts)
    assert chosen.notes == ["left out 3 prompts whose text came before: none is measured twice"]
    assert [question.groups for question in chosen.questions][:2] == [("all", "one"), ("all", "two", "two/letters")]
    builtin = choose_prompts([], 2)
    assert len(builtin.questions) == 2
    assert not {prompt.text for prompt in builtin.warm_up} & {each.prompt.text for each in builtin.questions}
    with pytest.raises(SpeqError, match="prompts come with speq to measure, not 9"):
        choose_prompts([], 9)


def test_the_prompts_to_copy_from_are_thirty_and_no_others_see_them():
    directory = Path(__file__).parents[2] / "benchmarks" / "prompts"
    chosen = choose_prompts([directory / "copy"], None)
    assert (len(chosen.questions), chosen.notes) == (30, [])
    assert len({question.prompt.id for question in chosen.questions}) == 30
    assert len({question.prompt.category for question in chosen.questions}) == 6
    assert sum(len(question.prompt.text) for question in chosen.questions) < 100_000
    others = {question.groups[1] for question in choose_prompts([directory], 1).questions}
    assert others == {"gsm8k_train_200", "humaneval", "mt_bench"}


def test_settings_share_nothing_that_they_learn_and_take_turns():
    made, calls = [], []

    class Learning:
        def __init__(self):
            self.texts = []
            made.append(self)

        def generate(self, text, *, sampling, draft, draft_length, on_round, **_):
            self.texts.append(text)
            calls.append((text, draft, draft_length, sampling.seed))
            on_round(Round(0, (), Pass("exact", 1, 0, 0.5), 0, 0))
            stats = Statistics(new_tokens=3, decode_seconds=1.0, rounds=2)
            return Result("", [1, 2, 3], stats, draft, "", "", 1)

    questions = spec.groups_of([("f", [Prompt(name, "c", name) for name in "abc"])])
    found = list(
        spec.measure(
            Learning,
            questions,
            [Prompt("w", "c", "warm")],
            [Setting("self", 3), Setting("ngram")],
            new_tokens=3,
            sampling=speq.Sampling(0.8, seed=7),
            rounds=2,
        )
    )
    assert len(made) == 2 * 3
    assert all(model.texts == ["warm", "a", "b", "c"] for model in made)
    assert [(run.setting, run.question.prompt.id) for runs in found for run in runs] == [
        (setting, text) for text in "abcabc" for setting in ("self:3", "ngram")
    ]
    measured = [call for call in calls if call[0] != "warm"]
    firsts = [measured[at][1] for at in range(0, len(measured), 3)]
    assert firsts == ["none", "self", "ngram", "self", "ngram", "none"]
    assert {seed for _, _, _, seed in measured} == {7}
    rows = spec.prompt_rows([run for runs in found for run in runs])
    assert [(row.draft, row.prompt, row.speed_up, row.differing) for row in rows[:2]] == [
        ("self:3", "a", 1.0, 0),
        ("ngram", "a", 1.0, 0),
    ]


def test_checks_are_counted_by_place():
    checks = spec.Checks()
    for tested, accepted in ((0, 0), (1, 0), (2, 2), (3, 2)):
        checks.add(Pass("exact", 4, 10, 0.5, tested, accepted))
    assert (checks.passes, checks.rows, checks.proposed, checks.accepted, checks.seconds) == (4, 16, 12, 4, 2.0)
    assert [(checks.tested_at[at], checks.accepted_at[at]) for at in (1, 2, 3, 4)] == [(3, 2), (2, 2), (1, 0), (0, 0)]


def test_intervals_are_those_of_all_samples():
    values = [0.8, 1.1, 1.5, 2.0, 4.0]
    means = [math.prod(drawn) ** 0.2 for drawn in itertools.product(values, repeat=5)]
    assert spec.interval(values) == pytest.approx(tuple(np.percentile(means, (2.5, 97.5))), rel=0.02)
    assert spec.interval([2.0]) == (None, None)


def test_settings_are_named_as_they_are_given():
    names = [*FREE_DRAFTS, "self:1", "auto:16"]
    assert [str(parse_setting(name)) for name in names] == names
    for name in ("", "eagle", "self:", "self:0", "self:17", "self:x", "self:²", "none:3", "self:3:4"):
        with pytest.raises(SpeqError, match="is no draft setting"):
            parse_setting(name)
    with pytest.raises(SpeqError, match="is no draft setting"):
        parse_setting("head:3")
    assert str(parse_setting("head:3", DRAFTS)) == "head:3"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--draft", "eagle"), 2, "'eagle' is no draft setting: give NAME[:K]"),
        (("--draft", "head"), 2, "the draft head needs a trained head: give its directory with --draft-head"),
        (("--draft-model", "x", "--draft", "self"), 2, "the draft self has no use for a draft model"),
        (("--draft-model", "x", "--draft-head", "y"), 2, "exclude each other"),
        (("--draft-head", "no-such-head"), 1, "no-such-head is no trained head"),
        (("--prompts", "no-such-file"), 1, "cannot read prompts from no-such-file"),
        (("--prompts", "EMPTY"), 1, "there are no prompts"),
        (("--html", "no/such/page.html"), 1, "cannot write no/such/page.html"),
        (("--temperature", "0.0001"), 1, "temperature 0.0001 is out of range"),
    ],
)
def test_errors_are_one_line(speq_run, tiny_converted, tmp_path, arguments, code, said):
    found, out, err = speq_run(tiny_converted, *(tmp_path if each == "EMPTY" else each for each in arguments))
    assert (found, out, err.count("\n")) == (code, "", 1)
    assert said in err


@pytest.mark.parametrize("command", ["spec", "record"])
def test_a_prompt_without_room_is_found_before_anything_is_measured(
    capsys, slow_memory, tiny_converted, tmp_path, command
):
    file = write_prompts(tmp_path / "long.jsonl", "short", "long" * 80)
    out = [str(tmp_path / "a.rec")] if command == "record" else []
    assert run(["bench", command, str(tiny_converted), *out, "--prompts", str(file), "--threads", "1"]) == 1
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert "the prompt long/1 has 3" in told.err
    assert list(tmp_path.iterdir()) == [file]


def test_a_page_needs_its_library_before_anything_is_measured(speq_run, tiny_converted, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    code, out, err = speq_run(tiny_converted, "--html", tmp_path / "s.html")
    assert (code, out) == (1, "")
    assert "plots need matplotlib" in err


def test_an_answer_of_one_token_has_no_speed_but_ids():
    plain = spec.Course(SimpleNamespace(token_ids=[5], stats=Statistics(new_tokens=1)), [])
    other = spec.Course(SimpleNamespace(token_ids=[6], stats=Statistics(new_tokens=1)), [])
    question = spec.Question(Prompt("p", "c", "t"), ("all", "f"))
    one = spec.Run("self", question, plain, other)
    assert (one.is_timed, one.differing) == (False, 1)
    assert spec.prompt_rows([one]) == []
    assert spec.group_rows([one]) == []
