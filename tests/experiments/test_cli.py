"""The `graft` command: exit codes, one sentence on standard error, and how fast it answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from experiments import cli, doctor
from experiments.pool import child_environment


def graft(capsys, *args: str) -> tuple[int, str, str]:
    code = cli.main(args)
    shown = capsys.readouterr()
    return code, shown.out, shown.err


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["finetun"], "there is no command 'finetun'. Did you mean 'finetune'?"),
        (["finetune", "--task", "trec", "--directry", "x"], "unknown option --directry. Did you mean '--directory'?"),
        (["finetune", "--task", "trec", "--tunig", "lora"], "unknown option --tunig. Did you mean '--tuning'?"),
        (["finetune", "no_such.yaml"], "CONFIG: there is no file no_such.yaml."),
        (["finetune", "--directory"], "graft finetune: argument --directory: expected one argument."),
        (["evaluate"], "graft evaluate: the following arguments are required: RUN."),
        (["evaluate", "x", "--splt", "dev"], "graft evaluate: unknown option --splt. Did you mean '--split'?"),
        (["evaluate", "x", "--split", "dev", "--data", "y.csv"], "give --split or --data, not both."),
        (["predict", "x", "--text", "a", "--file", "b"], "give --text or --file, not both."),
        (["predict", "x", "--file", "no_such.txt"], "no_such.txt cannot be read: No such file or directory."),
        (["sweep"], "which sweep? Give a YAML file, such as: graft sweep trec_strategies"),
        (["sweep", "trec_strategies", "--jobs", "0"], "--jobs must be at least 1, not 0."),
        (["sweep", "trec_strategies", "--jobs", "two"], "graft sweep: argument --jobs: invalid int value: 'two'."),
        (
            ["report", "--baseline", "full", "--", "tests"],
            "tests holds no run (no directory with a config.json or result.json).",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(capsys, tmp_path, monkeypatch, args, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").mkdir()
    assert graft(capsys, *args) == (2, "", f"graft: {sentence}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["tests"]  # and nothing is left behind


def test_missing_data_leaves_no_run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, told = graft(capsys, "finetune", "--task", "csv", "--task.data.train", "absent.csv")
    assert code == 2 and told.endswith("graft: absent.csv does not exist.\n") and list(tmp_path.iterdir()) == []


def test_debug_shows_where_an_error_comes_from(monkeypatch):
    monkeypatch.setenv("GRAFT_DEBUG", "1")
    with pytest.raises(cli.InputError):
        cli.main(["finetun"])


def test_ctrl_c_is_130_with_a_word_on_how_to_go_on(capsys, monkeypatch):
    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "main", interrupted)
    assert graft(capsys, "doctor") == (130, "", "graft: interrupted; the same command goes on where this one stopped.\n")


def test_help_names_every_command_and_imports_nothing_heavy():
    code = (
        "import sys; from experiments import cli; cli.main(['--help']); "
        "print({'jax', 'pydantic', 'rich', 'yaml', 'numpy'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=child_environment(1), check=True)
    *text, imported = ended.stdout.splitlines()
    assert imported == "set()" and all(any(line.startswith(f"  {name}") for line in text) for name in cli.COMMANDS)


def test_help_answers_at_once():
    command, environment = [sys.executable, "-m", "experiments.cli", "--help"], child_environment(1)
    times = []
    for _ in range(3):
        since = time.perf_counter()
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - since)
    assert min(times) < 0.3


def test_help_of_finetune_shows_the_options_of_the_chosen_strategy(capsys):
    code, out, _ = graft(capsys, "finetune", "--tuning", "lora", "--help")
    assert code == 0
    for part in ("--tuning.rank INT", "--optimizer.learning-rate FLOAT", "--tuning     adapter, bitfit", "graft finetune --t"):
        assert part in out
    assert "of the input of A" in out  # what lora.py says of its dropout
    assert "--tuning.rank INT" not in graft(capsys, "finetune", "--tuning", "head", "--help")[1]


def test_a_broken_pipe_is_quiet():
    code = "import sys; from experiments import cli, doctor; doctor.main = lambda a: print('x\\n' * 99999); "
    command = f"{sys.executable} -c \"{code} sys.exit(cli.main(['doctor']))\" | head -1"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=child_environment(1), check=False)
    assert (ended.stdout, ended.stderr) == ("x\n", "")


# ---- doctor -----------------------------------------------------------------------------------------------------------
GOOD = {"jax": "0.10.2", "jaxlib": "0.10.2", "flax": "0.12.8"}


@pytest.mark.parametrize(
    ("change", "python", "said"),
    [
        ({}, (3, 11), None),
        ({"jax": "0.12.0.1", "jaxlib": "0.12.0", "flax": "0.12.12"}, (3, 12), None),
        ({"jax": "0.11.2", "jaxlib": "0.11.2", "flax": "0.12.9"}, (3, 12), "pip install --upgrade 'jax>=0.12' 'flax>=0.12.12'"),
        ({"jax": "0.11.2", "jaxlib": "0.11.2", "flax": "0.12.10"}, (3, 12), None),
        ({"jax": "0.12.0", "jaxlib": "0.12.0", "flax": "0.12.12"}, (3, 11), "not made for Python 3.11"),
        ({"jaxlib": "0.9.0"}, (3, 11), "do not belong together"),
        ({"jax": "0.8.1", "jaxlib": "0.8.1"}, (3, 11), "is not supported"),
        ({"flax": None}, (3, 11), "flax is not installed"),
        ({}, (3, 10), "Python 3.10 is too old"),
    ],
)
def test_doctor_knows_the_pairs_that_do_not_work(change, python, said):
    problems = doctor.pairs(GOOD | change, python)
    assert problems == [] if said is None else any(said in problem for problem in problems)


def test_doctor_on_this_machine(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("GRAFT_CACHE", str(tmp_path / "not" / "there"))
    code, out, _ = graft(capsys, "doctor", "--json")
    found = json.loads(out)
    assert code == (1 if found["problems"] else 0) and found["devices"] and found["cores"] >= 1
    assert found["packages"]["jax"] and found["cache"] == str(tmp_path / "not/there") and found["cache_bytes"] == 0
    monkeypatch.setattr(doctor, "NEEDED_DISK", 2**80)
    code, out, _ = graft(capsys, "doctor")
    assert code == 1 and "WRONG: only" in out and "set GRAFT_CACHE" in out
    assert not os.path.exists(tmp_path / "not")
