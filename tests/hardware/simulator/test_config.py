"""The files that come with speq are right and say where every number comes from; wrong files are one clear line."""

from __future__ import annotations

import math

import pytest

from speq.errors import SpeqError
from speq.hardware.simulator.acceptance import Acceptance
from speq.hardware.simulator.config import Accelerator, Memory
from speq.hardware.simulator.load import BUILTIN, available, check, find, load, load_accelerator, read_toml, tables
from speq.hardware.simulator.passes import Simulator
from speq.hardware.simulator.run import Workload, simulate
from speq.hardware.simulator.scenario import load_scenario
from speq.hardware.simulator.shapes import Shape, Task
from speq.hardware.simulator.sweep import load_sweep

FILES = {"models": Shape, "tasks": Task, "memories": Memory}


def numbers_without_source(table, path=""):
    """Keys of numbers in no table that has a source, walking the file as it is."""
    if isinstance(table, dict):
        if len(str(table.get("source", ""))) >= 12:
            return []
        return [found for key, value in table.items() for found in numbers_without_source(value, f"{path}.{key}")]
    return [path] if isinstance(table, (int, float)) and not isinstance(table, bool) else []


def test_there_is_what_the_comparison_needs():
    assert {"fp16", "olive", "olive-w4a4", "tender", "tender-w4a4", "speq"} <= set(available("accelerators"))
    needed = "llama-2-7b llama-2-13b llama-3.1-8b vicuna-7b vicuna-13b mistral-7b qwen2.5-1.5b qwen2.5-7b opt-6.7b"
    assert set(needed.split()) <= set(available("models"))


@pytest.mark.parametrize("path", sorted(BUILTIN.glob("*/*.toml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_file_is_valid_and_every_number_has_a_source(path):
    folder, name = path.parent.name, path.stem
    if folder == "accelerators":
        assert load_accelerator(name).name == name
    elif folder == "scenarios":
        assert load_scenario(name).name == name
    elif folder == "sweeps":
        assert load_sweep(name).name == name
    else:
        assert load(FILES[folder], folder, name).name == name
    missing = [key for key in numbers_without_source(read_toml(path)) if ".axes" not in key and ".knobs" not in key]
    assert missing == []


def test_shapes_agree_with_themselves():
    for name in available("models"):
        one = load(Shape, "models", name)
        assert one.heads * one.head_size == one.hidden
        assert math.gcd(one.hidden, 64) == 64


def changed_file(tmp_path, old, new, name="fp16", folder="accelerators"):
    text = (BUILTIN / folder / f"{name}.toml").read_text()
    assert old in text
    path = tmp_path / f"{name}.toml"
    path.write_text(text.replace(old, new, 1))
    return path


WRONG = [
    ("lossless = true", "loseless = true", "unknown key loseless; allowed there: array, buffers, frequency, lossless"),
    (
        "[modes.fp16]",
        "[modes.fp16]\nbits = 3\n",
        "unknown key modes.fp16.bits; allowed there: cycles_per_step",
    ),
    ("value = 8, unit", "value = -8, unit", "array.rows is -8; it must be greater than 0"),
    ("value = 8, unit", "value = 0, unit", "array.rows is 0; it must be greater than 0"),
    ("value = 8, unit", "value = 2.5, unit", "array.rows is 2.5; it must be a whole number"),
    ("value = 8, unit", "value = true, unit", "array.rows.value is True; it should be a valid number"),
    ('unit = "PE"', 'unit = "rows"', "array.rows has the unit 'rows'; it must be 'PE'"),
    ("value = 0.1, unit", "value = 1.5, unit", "array.idle_energy is 1.5; it must be at least 0 and at most 1"),
    (
        '"streamed"',
        '"streaming"',
        "array.dataflow is 'streaming'; it must be 'streamed', 'broadcast'",
    ),
    (
        'sizing = "iso-area"',
        'sizing = "fixed"',
        "sizing 'fixed', which takes columns and neither area_budget nor",
    ),
    (
        'linear = { mode = "fp16", weight_bits = 16 }',
        'linear = { mode = "fp16", weight_bits = 3 }',
        "cannot do passes.exact.linear: mode 'fp16' with weight_bits 3; its PEs do fp16: 16 bits",
    ),
    ('attention_mode = "fp16"', 'attention_mode = "int8"', "cannot do passes.exact.attention_mode 'int8'"),
    ("kv_bits = 16\n", "", "passes.exact.kv_bits is missing"),
    ("kv_bits = 16", "kv_bits = -16", "passes.exact.kv_bits is -16; it should be greater than or equal to 1"),
    (
        'memory = "ddr4-3200"',
        'memory = "ddr9"',
        "there is no 'ddr9' in memories: use a .toml file or one of",
    ),
    ('source = "BitMoD, UNICORE and AxCore: 1 GHz in 28 nm"', 'source = ""', "frequency.source is ''; "),
]


@pytest.mark.parametrize(("old", "new", "message"), WRONG, ids=[message[:30] for _, _, message in WRONG])
def test_a_wrong_accelerator_is_one_clear_line(tmp_path, old, new, message):
    path = changed_file(tmp_path, old, new)
    with pytest.raises(SpeqError) as caught:
        load_accelerator(str(path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    if "memories" not in message:
        assert str(path) in str(caught.value)


NONSENSE = [math.inf, -math.inf, math.nan, 10**400, 10**5000, -1, 0, 1e-300, 1e300, 0.5, True]
NONSENSE += ["x", "", [1], [], None, {}]


def keys_of(table, path=""):
    """Keys of the values of a table, as --set takes them."""
    for key, value in table.items():
        if isinstance(value, dict) and "value" not in value:
            yield from keys_of(value, f"{path}{key}.")
        elif key != "source":
            yield path + key


@pytest.mark.parametrize("name", ["speq", "olive"])
def test_no_value_of_any_key_is_more_than_one_clear_line(name):
    """Every key set to every kind of nonsense: refused in a line, or a generation whose numbers are finite."""
    shape = load(Shape, "models", "smollm2-135m")
    data = tables("accelerators", name)[1] | {"memory": tables("memories", "ddr4-3200")[1]}
    lines = []
    for key in keys_of(data):
        for value in NONSENSE:
            try:
                simulator = Simulator(load_accelerator(name, {key: value}), shape)
                run = simulate(simulator, Workload(5, 3, Acceptance(0.5, 2)))
            except SpeqError as error:
                lines.append(str(error))
                continue
            assert not isinstance(value, float) or math.isfinite(value)
            for number in (run.seconds, run.joules, simulator.machine.area, run.total.dram_bytes):
                assert 0 < number < math.inf
    assert len(lines) > 400
    assert all("\n" not in line and len(line) < 500 for line in lines)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("array.rows", math.inf, "array.rows.value is inf; it should be a finite number"),
        ("memory.burst", math.nan, "memory.burst.value is nan; it should be a finite number"),
        ("memory.row", 16.0, "memory has rows of 16 bytes, which are not whole bursts of 64 bytes"),
        ("memory.refresh_loss", 1.0, "memory.refresh_loss is 1; it must be at least 0 and at most 0.99"),
        ("modes.draft.lanes", 1.0, "has modes.draft, which a streamed array cannot do: 1 lane of 16 bits or 4 lanes"),
        ("passes.draft.attention_mode", "draft", "multiplies keys and values of 16 bits, in a mode of 1 lane"),
        ("buffers.weights", 0.0, "buffers.weights is 0; it must be greater than 0"),
        ("frequency", 1e-300, "frequency is 1e-300; it must be at least 1e-15"),
        ("frequency", 10**400, "frequency.value is an integer of more than 60 digits; it should be a valid number"),
        ("title", "x" * 10_000, None),
        ("array.dataflow", "x" * 10_000, "array.dataflow is 'xxx"),
    ],
)
def test_what_cannot_be_is_refused_where_it_is_read(key, value, message):
    if message is None:
        assert load_accelerator("speq", {key: value}).title == value
        return
    with pytest.raises(SpeqError) as caught:
        load_accelerator("speq", {key: value})
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("text", ["a = " + "9" * 5000, "a = " + "[" * 100_000, 'a = "\\ud800"'])
def test_toml_that_cannot_be_read_is_one_line(tmp_path, text):
    bad = tmp_path / "bad.toml"
    bad.write_text(text)
    with pytest.raises(SpeqError, match="is not valid TOML") as caught:
        read_toml(bad)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("folder", "name", "old", "new", "message"),
    [
        ("models", "opt-6.7b", "layers = 32", "layers = 0", "layers is 0; it should be greater than 0"),
        ("models", "opt-6.7b", "kv_heads = 32", "kv_heads = 5", "has 32 heads, which 5 kv_heads do not divide"),
        (
            "tasks",
            "gsm8k",
            "prompt_tokens = 90",
            "prompt_tokens = -1",
            "prompt_tokens is -1; it should be",
        ),
        ("memories", "hbm2", "value = 256.0", "value = 0.0", "peak_bandwidth is 0; it must be greater than 0"),
    ],
)
def test_other_files_are_checked_as_well(tmp_path, folder, name, old, new, message):
    path = changed_file(tmp_path, old, new, name, folder)
    with pytest.raises(SpeqError, match=message):
        load(FILES[folder], folder, str(path))


def test_files_that_are_no_toml_or_not_there(tmp_path):
    bad = tmp_path / "bad.toml"
    bad.write_text("a = = 1")
    with pytest.raises(SpeqError, match="is not valid TOML"):
        read_toml(bad)
    with pytest.raises(SpeqError, match="there is no file"):
        find("models", str(tmp_path / "missing.toml"))
    with pytest.raises(SpeqError, match=r"use a \.toml file or one of .*speq"):
        find("accelerators", "spec")


def test_changes_by_key_are_checked_like_files():
    one = load_accelerator("speq", {"array.rows": 16, "passes.draft.linear.group_size": 64.0})
    assert (one.array.rows.value, one.passes.draft.linear.group_size) == (16, 64)
    assert one.array.rows.source == "changed from 8 for this run"
    for key, value, message in (
        ("array.row", 1, "array.row: there is no key row; there is: area_budget"),
        ("array.rows.value.x", 1, "value is no table"),
        ("array", 1, "array is a table: name one of its keys area_budget"),
        ("array.rows", -1, "array.rows is -1; it must be greater than 0"),
        ("array.rows", "many", "array.rows.value is 'many'"),
    ):
        with pytest.raises(SpeqError) as caught:
            load_accelerator("speq", {key: value})
        assert message in str(caught.value)


def test_a_streamed_array_takes_no_fused_modes():
    data = tables("accelerators", "speq")[1]
    modes = data["modes"] | {"draft": data["modes"]["draft"] | {"fused_rows": 2}}
    memory = tables("memories", "ddr4-3200")[1]
    with pytest.raises(SpeqError, match=r"modes\.draft, which a streamed array cannot do"):
        check(Accelerator, data | {"modes": modes, "memory": memory}, "test")
