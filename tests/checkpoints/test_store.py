"""Checkpoints: whole or absent, bit by bit, and refused in one sentence where they do not fit."""

from __future__ import annotations

import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from research.checkpoints.store import Store
from research.errors import InputError

STATE = {"a": jnp.arange(6.0).reshape(2, 3), "nested": {"step": jnp.asarray(7, jnp.int32), "half": jnp.ones(3, jnp.bfloat16)}}


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "kept")
    yield opened
    opened.close()


def test_round_trip_and_keep(store):
    for step in (3, 8):
        store.save(step, STATE | {"a": STATE["a"] * step}, {"step": step})
    store.wait()
    assert store.steps() == [8]
    found, meta = store.restore(8, STATE)
    np.testing.assert_array_equal(found["a"], STATE["a"] * 8)
    assert found["nested"]["half"].dtype == jnp.bfloat16 and found["nested"]["step"] == 7
    assert meta == store.meta(8) == {"step": 8}


def test_dropping(tmp_path):
    store = Store(tmp_path / "kept", keep=3)
    for step in (1, 2, 3):
        store.save(step, STATE, {})
    store.wait()
    store.drop_after(2)
    assert store.steps() == [1, 2]
    store.save(3, STATE, {})  # made again after resuming
    store.wait()
    store.drop_but(2)
    assert store.steps() == [2]
    store.close()
    store.remove()
    assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    "like",
    [
        STATE | {"more": jnp.zeros(2)},
        {"a": STATE["a"]},
        STATE | {"a": jnp.zeros((2, 4))},
        STATE | {"nested": jnp.zeros(2)},
    ],
    ids=["more", "less", "shape", "leaf"],
)
def test_another_config(store, like):
    store.save(1, STATE, {})
    store.wait()
    with pytest.raises(InputError, match=r"kept/1 is the checkpoint of another config \(.*\)\.$") as error:
        store.restore(1, like)
    assert "\n" not in str(error.value)


def test_damaged(store):
    """A file of a checkpoint that is gone is told in one sentence, too."""
    store.save(1, STATE, {})
    store.wait()
    for file in (store.directory / "1/state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.raises(InputError, match="kept/1"):
        store.restore(1, STATE)


def test_no_room(store, monkeypatch):
    """Refused before anything is written; the last good one stays, and saving goes on when there is room again."""
    store.save(1, STATE, {})
    with monkeypatch.context() as full:
        full.setattr("shutil.disk_usage", lambda path: namedtuple("usage", "free")(10))
        with pytest.raises(InputError, match=r"step 2 could not be written to .* MB free; the last good one is step 1\.$"):
            store.save(2, STATE, {})
    assert store.steps() == [1]
    store.save(2, STATE, {})
    store.wait()
    assert store.steps() == [2]


WRITER = """
import resource, signal, sys, numpy as np
from research.checkpoints.store import Store
from research.errors import InputError
store = Store(sys.argv[1])
small, big = ({"a": np.random.default_rng(0).normal(size=n)} for n in (1000, 400_000))
store.save(1, small, {}); store.wait()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))
try:
    store.save(2, big, {}); store.wait()
except InputError as error:
    print("refused:", error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
store = Store(sys.argv[1])
print(store.steps(), np.array_equal(store.restore(1, small)[0]["a"], small["a"]))
store.save(2, big, {}); store.close()
print(max(Store(sys.argv[1]).steps()))
"""


def test_write_that_fails_midway(tmp_path):
    """The disk refuses in the background, after the check for room: one sentence, the last good one intact, and on it goes."""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", WRITER, str(tmp_path / "kept")], cwd=root, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr[-2000:]
    refused, *then = done.stdout.splitlines()
    reason = "File too large; the last good one is step 1."
    assert refused == f"refused: a checkpoint could not be written to {tmp_path / 'kept'}: {reason}"
    assert then == ["[1] True", "2"]
