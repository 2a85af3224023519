"""What is logged is what is on disk: valid lines, cut and repaired exactly, and the same in TensorBoard."""

import json
import math
import os
import signal
import struct
import subprocess
import sys
import types

import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import InputError
from research.training.tracking import Tracking, open_tracker, read, truncate_after


def log(tracker, steps):
    for step in steps:
        tracker.log(step, "train", {"loss": np.float32(1 / (step + 1)), "tokens": jnp.int32(step)})
        if step % 2 == 0:
            tracker.log(step, "dev", {"accuracy": step / 10})
    tracker.close()


def events(folder):
    """`[(tag, step, value)]` of all event files, from the records' own framing: length, its checksum, event, its checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.glob("events.*")):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + length])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            at += length + 16
    return found


def test_a_resumed_run_leaves_the_files_of_an_uninterrupted_one(tmp_path):
    log(open_tracker(tmp_path / "whole"), range(8))
    log(open_tracker(tmp_path / "cut"), range(6))
    next((tmp_path / "cut/tensorboard").iterdir()).rename(tmp_path / "cut/tensorboard/events.out.tfevents.1.earlier")
    log(open_tracker(tmp_path / "cut", after=3), range(4, 8))
    whole, cut = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "cut"))
    assert whole == cut
    assert events(tmp_path / "whole" / "tensorboard") == events(tmp_path / "cut" / "tensorboard")
    assert not list((tmp_path / "cut").glob("*.tmp"))


def test_lines_and_events_hold_what_was_logged(tmp_path):
    log(open_tracker(tmp_path), range(2))
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == [
        {"step": 0, "split": "train", "loss": 1.0, "tokens": 0},
        {"step": 0, "split": "dev", "accuracy": 0.0},
        {"step": 1, "split": "train", "loss": 0.5, "tokens": 1},
    ]
    assert events(tmp_path / "tensorboard") == [
        ("train/loss", 0, 1.0),
        ("train/tokens", 0, 0.0),
        ("dev/accuracy", 0, 0.0),
        ("train/loss", 1, 0.5),
        ("train/tokens", 1, 1.0),
    ]


def test_numbers_that_are_not_finite_are_valid_json_and_read_back(tmp_path):
    tracker = open_tracker(tmp_path)
    tracker.log(1, "train", {"a": math.nan, "b": jnp.float32(math.inf), "c": -np.inf})
    tracker.close()

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    record = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=refuse)
    assert (record["a"], record["b"], record["c"]) == ("NaN", "Infinity", "-Infinity")
    assert math.isnan(float(record["a"])) and float(record["b"]) == math.inf and float(record["c"]) == -math.inf
    open_tracker(tmp_path).close()
    assert [value for _, _, value in events(tmp_path / "tensorboard")][1:] == [math.inf, -math.inf]


@pytest.mark.parametrize("torn", [b'{"step": 3, "split": "tr', b'{"step": 3, "split": "train"}', b"\0\0\0", b"4\n"])
def test_a_torn_last_line_is_repaired(tmp_path, torn):
    log(open_tracker(tmp_path), range(3))
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert len(list(read(path))) == 5
    log(open_tracker(tmp_path), range(3, 5))
    log(open_tracker(tmp_path / "whole"), range(5))
    assert path.read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


def test_a_killed_process_has_left_every_line(tmp_path):
    program = (
        "import os, signal, sys\n"
        "from research.training.tracking import open_tracker\n"
        "tracker = open_tracker(sys.argv[1])\n"
        "for step in range(50): tracker.log(step, 'train', {'loss': step})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    path = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], env={**os.environ, "PYTHONPATH": path}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert [record["step"] for record in read(tmp_path / "metrics.jsonl")] == list(range(50))
    open_tracker(tmp_path, after=30).close()
    assert [step for _, step, _ in events(tmp_path / "tensorboard")] == list(range(31))


def test_truncation(tmp_path):
    path = tmp_path / "metrics.jsonl"
    truncate_after(path, 3)
    assert not path.exists() and list(read(path)) == []
    log(open_tracker(tmp_path), range(4))
    before = path.stat()
    truncate_after(path, 3)
    assert path.stat().st_mtime_ns == before.st_mtime_ns, "nothing to drop, nothing written"
    truncate_after(path, -1)
    assert path.read_bytes() == b""


def test_a_malformed_line_before_the_last_is_refused(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"stop": 2}\n{"step": 3}\n')
    with pytest.raises(InputError, match=r"metrics.jsonl, line 2: not a record with a step"):
        open_tracker(tmp_path, after=5)
    assert path.read_text().count("\n") == 3


def test_other_hosts_write_nothing(tmp_path):
    log(open_tracker(tmp_path / "run", Tracking(wandb="online"), writes=False), range(3))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("tracking", [Tracking(wandb="offline"), Tracking(trackio=True)])
def test_a_service_that_is_not_installed_is_refused_before_anything_is_written(tmp_path, tracking, monkeypatch):
    for service in ("wandb", "trackio"):
        monkeypatch.setitem(sys.modules, service, None)
    with pytest.raises(InputError, match=r"track\.(wandb|trackio) needs .* pip install 'graft-lm\[track\]'"):
        open_tracker(tmp_path / "run", tracking)
    assert not (tmp_path / "run").exists()


def test_services_are_given_every_number(tmp_path, monkeypatch):
    calls = []

    class Run:
        def log(self, values, step=None):
            calls.append((values, step))

        def define_metric(self, *args, **kwargs):
            pass

        def finish(self):
            calls.append("finish")

    def init(**options):
        calls.append(options)
        return Run()

    for service in ("wandb", "trackio"):
        module = types.SimpleNamespace(init=init, Settings=dict, Error=RuntimeError)
        monkeypatch.setitem(sys.modules, service, module)
    tracker = open_tracker(tmp_path, Tracking(wandb="offline", trackio=True), name="abc", settings={"seed": 1})
    tracker.log(3, "dev", {"loss": np.float32(0.5)})
    tracker.close()
    first, second, *rest = calls
    assert first["mode"] == "offline" and first["dir"] == str(tmp_path)
    for options in (first, second):
        expected = {"project": "graft", "name": "abc", "resume": "allow", "config": {"seed": 1}}
        assert expected.items() <= options.items()
    assert rest == [({"step": 3, "dev/loss": 0.5}, None), ({"dev/loss": 0.5}, 3), "finish", "finish"]
