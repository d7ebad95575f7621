"""Sweeps: points are single runs, interrupted ones continue, fronts are right, Ray is asked only by name."""

from __future__ import annotations

import itertools
import json
import sys
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speq.errors import SpeqError
from speq.hardware.simulator import pool, sweep
from speq.hardware.simulator.acceptance import Acceptance
from speq.hardware.simulator.experiment import run_once, workload_of
from speq.hardware.simulator.load import BUILTIN, load
from speq.hardware.simulator.plots import pareto_front
from speq.hardware.simulator.shapes import Task

pq = pytest.importorskip("pyarrow.parquet")


def quiet(_):
    """Nobody wants to know how far it is."""


@pytest.fixture(scope="module")
def small():
    """54 points of a small model and a short text."""
    short = sweep.Change(key="workload.new_tokens", value=8, source="made up for a test")
    return sweep.load_sweep("small").model_copy(update={"model": "smollm2-135m", "changes": [short]})


@pytest.fixture(autouse=True)
def _short_parts(monkeypatch):
    monkeypatch.setattr(sweep, "PART", 10)


def run(chosen, directory, workers=1):
    missing = sweep.prepare(chosen, directory)
    pool.run_here(chosen, missing, workers, quiet)
    return len(missing), sweep.finish(chosen, directory)[0]


def test_points_are_single_runs(small, tmp_path):
    assert run(small, tmp_path)[0] == 6
    rows = pq.read_table(tmp_path / "points.parquet").to_pylist()
    grid = list(itertools.product([3, 7, 11], [0.881, 0.93, 0.976], [12.8, 25.6, 51.2, 102.4, 204.8, 409.6]))
    assert [(row["draft_length"], row["acceptance"], row["bandwidth"]) for row in rows] == grid
    task = load(Task, "tasks", "gsm8k")
    for row, (length, rate, bandwidth) in list(zip(rows, grid, strict=True))[::11]:
        changes = {
            "workload.new_tokens": 8,
            "workload.draft_length": length,
            "workload.acceptance": rate,
            "all.memory.peak_bandwidth": bandwidth,
        }
        workload = workload_of(task, Acceptance(0.5, 1), changes)
        simulator, subject = run_once("speq", "smollm2-135m", workload, changes)
        reference = run_once("fp16", "smollm2-135m", workload, changes)[1]
        assert row["seconds"] == pytest.approx(subject.seconds)
        assert row["speedup"] == pytest.approx(reference.seconds / subject.seconds)
        assert row["energy_ratio"] == pytest.approx(reference.joules / subject.joules)
        assert row["area_mm2"] == pytest.approx(simulator.machine.area)


def test_an_interrupted_sweep_continues(small, tmp_path, monkeypatch):
    whole = tmp_path / "whole"
    run(small, whole)
    computed = []

    def stop_after_three(chosen, part, path, write=sweep.write_part):
        if len(computed) == 3:
            raise KeyboardInterrupt
        computed.append(part)
        write(chosen, part, path)

    monkeypatch.setattr(pool, "write_part", stop_after_three)
    partial = tmp_path / "partial"
    with pytest.raises(KeyboardInterrupt):
        run(small, partial)
    assert sorted(path.name for path in (partial / "parts").iterdir()) == [f"part-{i:05d}.parquet" for i in range(3)]
    monkeypatch.undo()
    monkeypatch.setattr(sweep, "PART", 10)
    assert run(small, partial)[0] == 3
    assert run(small, partial)[0] == 0
    assert (partial / "points.parquet").read_bytes() == (whole / "points.parquet").read_bytes()


def test_results_of_another_sweep_are_not_mixed_in(small, tmp_path):
    sweep.prepare(small, tmp_path)
    other = small.model_copy(update={"task": "humaneval"})
    with pytest.raises(SpeqError, match="holds another sweep"):
        sweep.prepare(other, tmp_path)
    (tmp_path / "sweep.json").write_text("[]")
    with pytest.raises(SpeqError, match="holds another sweep"):
        sweep.prepare(small, tmp_path)


def test_a_damaged_part_is_named(small, tmp_path):
    run(small, tmp_path)
    (tmp_path / "parts" / "part-00002.parquet").write_bytes(b"half")
    with pytest.raises(SpeqError, match=r"is damaged .*delete it and run again"):
        sweep.finish(small, tmp_path)


def test_an_impossible_point_is_named(small, tmp_path):
    axis = sweep.Axis(name="rows", unit="PE", keys=["speq.array.rows"], values=[8, 4000])
    chosen = small.model_copy(update={"axes": [axis]})
    with pytest.raises(SpeqError, match=r"sweep small at rows = 4000: .*speq\.toml: array\.rows is 4000; it must"):
        run(chosen, tmp_path)


def test_processes_give_the_same_bytes(small, tmp_path, monkeypatch):
    monkeypatch.undo()  # parts of the usual length, which the processes see as well
    rates = small.axes[1].model_copy(update={"values": [i / 100 for i in range(50, 70)]})
    chosen = small.model_copy(update={"axes": [small.axes[0], rates, small.axes[2]]})
    assert sweep.parts_of(chosen) == 2
    for name, workers in (("serial", 1), ("parallel", 2)):
        assert run(chosen, tmp_path / name, workers)[0] == 2
    for name in ("points.parquet", "parts/part-00001.parquet", "pareto-area.svg", "pareto-energy.png"):
        assert (tmp_path / "serial" / name).read_bytes() == (tmp_path / "parallel" / name).read_bytes()


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=30), st.booleans())
def test_fronts_are_the_points_that_nothing_beats(points, larger):
    x, y = zip(*points, strict=True)
    good = [(a if larger else -a, b) for a, b in points]

    def beaten(one):
        return any(p != one and p[0] >= one[0] and p[1] >= one[1] for p in good)

    front = pareto_front(x, y, larger=larger)
    assert {good[i] for i in front} == {one for one in good if not beaten(one)}
    assert len(front) == len({good[i] for i in front})


def test_ray_is_imported_when_named_and_missed_clearly(small, tmp_path, monkeypatch):
    run(small, tmp_path / "here")
    assert "ray" not in sys.modules
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(SpeqError, match=r"--ray needs the cluster extra: pip install 'speq\[hardware,cluster\]'"):
        pool.run_on_ray(small, [], "local", quiet)


def test_parts_from_a_cluster_are_those_of_this_machine(small, tmp_path, monkeypatch):
    """A stand-in for Ray that computes when asked, with arguments and results that went through JSON."""

    class Remote:
        def __init__(self, function):
            self.function = function

        def remote(self, *arguments):
            return json.dumps(self.function(*json.loads(json.dumps(arguments))))

    asked = []
    ray = types.SimpleNamespace(
        init=lambda address, **_: asked.append(address),
        remote=Remote,
        wait=lambda waiting: (waiting[-1:], waiting[:-1]),
        get=json.loads,
        shutdown=lambda: asked.append("shutdown"),
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    run(small, tmp_path / "here")
    pool.run_on_ray(small, sweep.prepare(small, tmp_path / "there"), "ray://somewhere", quiet)
    assert asked == ["ray://somewhere", "shutdown"]
    for path in (tmp_path / "here" / "parts").iterdir():
        assert path.read_bytes() == (tmp_path / "there" / "parts" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"workload.draft_length"', '"workload.length"', "unknown key workload.length; allowed: workload.acceptance"),
        ('"all.memory.peak_bandwidth"', '"olive.array.rows"', "must begin with one of speq, fp16, all, workload"),
        ("values = [3, 7, 11]", "values = []", "axes.0.values; it should|axes.0.values"),
        ('name = "bandwidth"', 'name = "seconds"', "each needs a name of its own"),
        ('name = "bandwidth"', 'name = "acceptance"', "each needs a name of its own"),
        ("values = [3, 7, 11]", "values = [inf]", "axes.0.values.0 is inf; it should be a finite number"),
        ("values = [3, 7, 11]", "values = [nan]", "axes.0.values.0 is nan; it should be a finite number"),
        ("values = [3, 7, 11]", "values = [1e400]", "axes.0.values.0 is inf; it should be a finite number"),
        ("values = [3, 7, 11]", "values = [true]", "axes.0.values.0 is True; it should be a valid number"),
        ("values = [3, 7, 11]", f"values = [{'9' * 400}]", "is an integer of more than 60 digits"),
        ("values = [3, 7, 11]", "values = [3, 7, 3]", "axes.0.values has 3.0 twice"),
        (
            "values = [3, 7, 11]",
            "values = [2.5]",
            "draft_length: draft_length is 2.5; it should be a valid integer",
        ),
        (
            "values = [3, 7, 11]",
            "values = [0]",
            "draft_length: draft_length is 0; it should be greater",
        ),
        (
            "values = [3, 7, 11]",
            "values = [65]",
            "draft_length: draft_length is 65; it should be less",
        ),
        (
            '["workload.draft_length"]',
            '["workload.acceptance"]',
            "has axes draft_length and acceptance, which both set workload.acceptance",
        ),
        (
            '["workload.draft_length"]',
            '["speq.memory.peak_bandwidth"]',
            "has axes draft_length and bandwidth, which both set memory.peak_bandwidth of speq",
        ),
        ('["workload.draft_length"]', '["workload.draft_length", "workload.draft_length"]', "axes.0.keys has .* twice"),
    ],
)
def test_a_wrong_sweep_is_one_clear_line(tmp_path, old, new, message):
    text = (BUILTIN / "sweeps" / "small.toml").read_text()
    assert old in text
    path = tmp_path / "wrong.toml"
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(SpeqError, match=message) as caught:
        sweep.load_sweep(str(path))
    assert "\n" not in str(caught.value)


def test_a_sweep_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(sweep, "MOST_POINTS", 53)
    with pytest.raises(SpeqError, match="sweep small has 54 points, more than 53: give axes fewer values"):
        sweep.load_sweep("small")


def test_the_design_space_has_ten_thousand_points():
    assert sweep.load_sweep("design-space").points == 10_000
