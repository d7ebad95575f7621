"""`speq hw` on the command line: tables, JSON, plots, and one clear line for every mistake."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from speq.cli import run
from speq.hardware.simulator.load import BUILTIN


@pytest.fixture
def hw(capsys):
    """Run a command of `speq hw`; returns (exit code, stdout, stderr)."""

    def call(*arguments):
        code = run(["hw", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def fails(hw):
    """Run a command that must fail with exit code 1 and one line; returns the line."""

    def call(*arguments):
        code, _, err = hw(*arguments)
        assert code == 1
        assert err.startswith("speq: ")
        assert err.count("\n") == 1
        return err

    return call


def test_simulate_writes_layers_passes_and_energy(hw, tmp_path):
    report, plots = tmp_path / "run.json", tmp_path / "plots"
    arguments = ("simulate", "speq", "smollm2-135m", "--task", "mt-bench", "--new-tokens", 40, "--json", report)
    code, out, _ = hw(*arguments, "--layers", "--plots", plots)
    assert code == 0
    for word in ("prefill", "draft", "verify", "40 tokens in", "attention", "head"):
        assert word in out
    data = json.loads(report.read_text())
    assert (data["prompt_tokens"], data["new_tokens"]) == (97, 40)
    plain = data["passes"].get("step", {"count": 0})["count"]  # a round with one token to go is a step
    counted = sum(one["count"] for one in data["passes"].values())
    assert counted == pytest.approx(1 + data["drafted"] + data["rounds"] + plain)
    assert sum(one["cycles"] for one in data["passes"].values()) == pytest.approx(data["total"]["cycles"])
    assert data["seconds"] == pytest.approx(data["total"]["cycles"] / 1e9)
    parts = sum(data["total"][f"{part}_energy"] for part in ("pe", "sram", "dram", "vector", "static"))
    assert data["total"]["energy"] == pytest.approx(parts) == pytest.approx(data["joules"] * 1e12)
    keys = {"cycles", "compute", "dram", "sram", "stall", "overlap", "bound", "utilisation", "dram_bytes", "energy"}
    for one in data["layers"]:
        assert all(keys <= set(layer) for layer in one["layers"])
    assert {path.suffix for path in plots.iterdir()} == {".png", ".svg"}
    again = tmp_path / "again.json"
    hw(*arguments[:-1], again)
    assert again.read_bytes() == report.read_bytes()


def test_simulate_replays_a_trace(hw, tmp_path):
    trace, report = tmp_path / "a.jsonl", tmp_path / "run.json"
    lines = [{"speq_trace": 1, "prompt_tokens": 9, "new_tokens": 6}, {"prefill": 9, "context": 0}]
    lines += [{"drafted": 4, "accepted": 2, "context": 9}, {"drafted": 1, "accepted": 1, "context": 12}]
    trace.write_text("\n".join(map(json.dumps, lines)))
    assert hw("simulate", "speq", "smollm2-135m", "--trace", trace, "--json", report)[0] == 0
    data = json.loads(report.read_text())
    assert (data["drafted"], data["accepted"], data["rounds"], data["new_tokens"]) == (5, 3, 2, 6)
    assert {kind: one["count"] for kind, one in data["passes"].items()} == {"prefill": 1, "draft": 5, "verify": 2}


def test_settings_change_one_run_also_of_a_file_of_ones_own(hw, tmp_path):
    seconds = []
    mine = tmp_path / "my.fp16.toml"
    mine.write_text((BUILTIN / "accelerators" / "fp16.toml").read_text())
    for setting in ("memory.peak_bandwidth=25.6", "memory.peak_bandwidth=12.8"):
        report = tmp_path / "run.json"
        assert hw("simulate", mine, "smollm2-135m", "--new-tokens", 8, "--set", setting, "--json", report)[0] == 0
        seconds.append(json.loads(report.read_text())["seconds"])
    assert 1.6 < seconds[1] / seconds[0] < 2.0


def test_compare_prints_the_published_ratios_beside_ours(hw, tmp_path):
    scenario = tmp_path / "tiny.toml"
    text = (BUILTIN / "scenarios" / "plain.toml").read_text()
    models = 'models = ["llama-2-7b", "llama-2-13b", "llama-3.1-8b", "mistral-7b", "qwen2.5-7b"]'
    assert models in text
    scenario.write_text(text.replace(models, 'models = ["smollm2-135m"]').split("[[knobs]]")[0])
    report = tmp_path / "compare.json"
    code, out, _ = hw("compare", scenario, "--json", report, "--sensitivity", tmp_path / "plots")
    assert code == 0
    for word in ("2.07", "1.53", "1.45", "geometric mean", "lossless", "lossy", "deviation", "Assumptions:"):
        assert word in out
    data = json.loads(report.read_text())
    assert len(data["pairs"]) == 3
    assert data["sensitivity"] == []
    assert (tmp_path / "plots" / "plain-speedup.svg").is_file()


def test_compare_draws_every_knob(hw, tmp_path):
    text = (BUILTIN / "scenarios" / "plain.toml").read_text()
    head, *knobs = text.split("[[knobs]]")[:3]
    models = 'models = ["llama-2-7b", "llama-2-13b", "llama-3.1-8b", "mistral-7b", "qwen2.5-7b"]'
    head = head.replace(models, 'models = ["smollm2-135m"]').replace('tasks = ["gsm8k", "humaneval", ', "tasks = [")
    scenario = tmp_path / "knobs.toml"
    scenario.write_text(head + "".join("[[knobs]]" + knob for knob in knobs))
    report = tmp_path / "compare.json"
    code, out, _ = hw("compare", scenario, "--sensitivity", tmp_path / "plots", "--json", report)
    assert code == 0
    assert "What would have to hold" in out
    data = json.loads(report.read_text())
    assert len(data["sensitivity"]) == len(knobs)
    for one in data["sensitivity"]:
        assert (tmp_path / "plots" / f"sensitivity-{one['knob']}.svg").is_file()


def tiny(path, name="plain", knobs=""):
    """A scenario of one small model and one task."""
    text = (BUILTIN / "scenarios" / "plain.toml").read_text().split("[[knobs]]")[0]
    models = 'models = ["llama-2-7b", "llama-2-13b", "llama-3.1-8b", "mistral-7b", "qwen2.5-7b"]'
    text = text.replace(models, 'models = ["smollm2-135m"]').replace('"gsm8k", "humaneval", ', "")
    path.write_text(text.replace('name = "plain"', f'name = "{name}"') + knobs)
    return path


def test_compare_shows_the_measured_and_the_published_acceptance(hw, tmp_path):
    report = tmp_path / "compare.json"
    code, out, _ = hw("compare", "--json", report)
    assert code == 0
    rows = [line for line in out.splitlines() if "plain " in line or "published" in line]
    assert any("plain" in row and "0.881" in row and "1.83" in row for row in rows)
    assert any("published-acceptance" in row and "0.976" in row and "2.49" in row for row in rows)
    assert "Acceptance of a drafted token 0.881: measured for e3m0" in out
    data = json.loads(report.read_text())
    assert data["scenario"]["name"] == "plain"
    assert [one["scenario"]["name"] for one in data["beside"]] == ["published-acceptance"]


def test_compare_holds_expectations_against_samples(hw, tmp_path):
    knob = '[[knobs]]\nname = "acceptance"\ntitle = "acceptance"\nunit = "1"\nkeys = ["workload.acceptance"]\n'
    report = tmp_path / "compare.json"
    scenario = tiny(tmp_path / "tiny.toml", knobs=knob + "values = [0.5, 0.976]\n")
    code, out, _ = hw("compare", scenario, "--check", "--json", report)
    assert code == 0
    assert "3 expectations: largest difference 0." in out
    for one in json.loads(report.read_text())["checks"]:
        assert one["expected"]["seconds"] == pytest.approx(one["sampled"]["seconds"], rel=5e-3)
        assert one["expected"]["joules"] == pytest.approx(one["sampled"]["joules"], rel=5e-3)


def test_traces_of_codes_that_the_array_cannot_compute_are_pointed_out(hw, tmp_path):
    lines = ['{"speq_trace": 1, "prompt_tokens": 4, "new_tokens": 9, "format": "nested"}']
    lines += ['{"prefill": 4, "context": 0}', '{"drafted": 7, "accepted": 7, "context": 4}']
    for task, form in (("mt-bench", "nested"), ("other", "e3m0")):
        (tmp_path / f"{task}-1.jsonl").write_text("\n".join(lines).replace("nested", form))
    remark = "Recorded with drafts of nested codes, which SPEQ cannot compute"
    code, out, _ = hw("compare", tiny(tmp_path / "tiny.toml"), "--traces", tmp_path)
    assert code == 0
    assert remark in out
    assert "Acceptance of a drafted token" not in out
    trace = tmp_path / "mt-bench-1.jsonl"
    assert remark in hw("simulate", "speq", "smollm2-135m", "--trace", trace)[2]
    assert hw("simulate", "fp16", "smollm2-135m", "--trace", trace)[2] == ""
    assert hw("simulate", "speq", "smollm2-135m", "--trace", tmp_path / "other-1.jsonl")[2] == ""


@pytest.mark.parametrize("command", [("simulate", "speq", "llama-2-7b"), ("compare",), ("sweep", "small"), ("synth",)])
def test_results_that_cannot_be_written_are_refused_before_anything_is_computed(fails, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    for module in ("simulator.load.tables", "synthesis.flow.installed_libraries"):
        monkeypatch.setattr(f"speq.hardware.{module}", lambda *_: pytest.fail("something was read"))
    (tmp_path / "file").write_text("kept")
    assert "it is a directory" in fails(*command, "--json", tmp_path)
    assert "there is no writable directory" in fails(*command, "--json", tmp_path / "missing" / "x.json")
    assert "there is no writable directory" in fails(*command, "--json", tmp_path / "file" / "x.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_results_go_through_links_and_into_pipes(hw, tmp_path):
    arguments = ("simulate", "fp16", "smollm2-135m", "--new-tokens", 2, "--json")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    assert hw(*arguments, tmp_path / "link")[0] == 0
    assert (tmp_path / "link").is_symlink()
    assert json.loads((tmp_path / "target").read_text())["new_tokens"] == 2
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(["cat", tmp_path / "pipe"], stdout=subprocess.PIPE) as reader:
        assert hw(*arguments, tmp_path / "pipe")[0] == 0
        assert json.loads(reader.communicate(timeout=60)[0])["new_tokens"] == 2
    assert (tmp_path / "pipe").is_fifo()


def test_sweep_continues_and_summarises(hw, tmp_path):
    text = (BUILTIN / "sweeps" / "small.toml").read_text().replace('"llama-2-7b"', '"smollm2-135m"')
    (tmp_path / "mine.toml").write_text(text)
    report, out_dir = tmp_path / "sweep.json", tmp_path / "out"
    arguments = ("sweep", tmp_path / "mine.toml", "--out", out_dir, "--workers", 1, "--json", report)
    for _ in range(2):
        code, out, _ = hw(*arguments)
        assert code == 0
        assert str(out_dir / "points.parquet") in out
    data = json.loads(report.read_text())
    assert data["points"] == 54
    assert max(one["speedup"] for one in data["pareto"]["energy_ratio"]) > 1


def test_the_group_lists_its_commands(hw):
    code, out, _ = hw("--help")
    assert code == 0
    for name in ("simulate", "compare", "sweep"):
        assert name in out


def test_mistakes_are_one_clear_line(fails, tmp_path):
    assert "there is no 'sepq' in accelerators" in fails("simulate", "sepq", "llama-2-7b")
    assert "there is no 'llama' in models: use a .toml file or one of llama-2-13b" in fails("simulate", "speq", "llama")
    assert "there is no 'x' in tasks" in fails("simulate", "speq", "llama-2-7b", "--task", "x")
    assert "there is no 'x' in scenarios" in fails("compare", "x")
    assert "there is no 'x' in sweeps" in fails("sweep", "x", "--out", tmp_path)
    small = ("simulate", "speq", "smollm2-135m", "--new-tokens", 2)
    assert "unknown" not in fails(*small, "--set", "array.rows=-4")
    assert "array.rows is -4; it must be greater than 0" in fails(*small, "--set", "array.rows=-4")
    assert "there is no key rowz; there is: area_budget" in fails(*small, "--set", "array.rowz=4")
    assert "its PEs do fp16: 16 bits; draft: 4 bits" in fails(*small, "--set", "passes.draft.linear.weight_bits=5")
    assert "cannot write" in fails(*small, "--json", tmp_path / "missing" / "run.json")
    assert "array.rows.value is inf; it should be a finite number" in fails(*small, "--set", "array.rows=inf")
    assert "array.rows.value is inf; it should be a finite number" in fails(*small, "--set", "array.rows=1e400")
    assert "memory.burst.value is nan; it should be a finite number" in fails(*small, "--set", "memory.burst=nan")
    assert "acceptance is nan; it should be a finite number" in fails(*small, "--acceptance", "nan")


def test_a_file_with_an_unknown_key_and_a_trace_of_another_version(fails, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text((BUILTIN / "accelerators" / "speq.toml").read_text().replace("[array]", "[array]\nspeed = 3"))
    line = fails("simulate", path, "smollm2-135m")
    assert f"{path}: unknown key array.speed; allowed there: area_budget, columns, dataflow" in line
    trace = tmp_path / "old.jsonl"
    trace.write_text('{"speq_trace": 99}\n')
    line = fails("simulate", "speq", "smollm2-135m", "--trace", trace)
    assert "is a trace of version 99; this speq reads versions 1 and 2: record it again" in line


def test_wrong_usage_is_exit_code_2(hw, tmp_path):
    for arguments in (
        ("simulate", "speq", "smollm2-135m", "--set", "array.rows"),
        ("simulate", "speq", "smollm2-135m", "--acceptance", "2"),
        ("simulate", "speq", "smollm2-135m", "--trace", tmp_path / "x", "--new-tokens", 3),
        ("compare", "--traces", tmp_path / "missing"),
    ):
        code, _, err = hw(*arguments)
        assert code == 2
        assert err.startswith("speq hw")


def test_without_the_extra_the_way_out_is_named():
    script = "import sys; sys.modules['pydantic'] = None\nfrom speq.cli import run\nsys.exit(run(sys.argv[1:]))"
    for arguments in (["simulate", "speq", "llama-2-7b"], ["compare"], ["sweep", "small"]):
        done = subprocess.run([sys.executable, "-c", script, "hw", *arguments], capture_output=True, text=True)
        assert done.returncode == 1
        assert done.stderr.startswith("speq: speq hw needs the hardware extra: pip install 'speq[hardware]'")
        assert done.stderr.count("\n") == 1


def test_importing_the_command_line_imports_none_of_it():
    script = "import sys, speq.cli, speq.cli.hw; print({'pydantic', 'pyarrow', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
