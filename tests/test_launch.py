"""Batch files, torchrun lines and the supervisor: what they hold, and what they do when a job ends."""

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from stores import store_of, volumes

from ssl_med.cli import build_parser, main, parse_overrides
from ssl_med.errors import UserError
from ssl_med.launch import SlurmJob, Supervisor, command_line, torchrun_line, write_batch_file


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("launch ü")
    store_of(volumes(folder / "in", 6, masks=False), folder / "store")
    return folder / "store"


def test_the_command_line_means_what_the_call_meant(tmp_path):
    overrides = {"data.crop": [8, 16], "trainer.strategy": "ddp", "learner.clip": None, "data.intensity": "12"}
    options = {"config": "smoke/mae_3d", "data": "a b", "out": tmp_path / "ü", "resume": "auto", "overwrite": False}
    words = command_line("pretrain", {**options, "overrides": overrides, "init_from": None})
    arguments, rest = build_parser().parse_known_args(words)
    assert parse_overrides(rest, "pretrain") == overrides
    assert (arguments.config, arguments.data, arguments.out) == (
        "smoke/mae_3d",
        str(Path.cwd() / "a b"),
        str(tmp_path / "ü"),
    )
    assert not arguments.overwrite
    assert command_line("pretrain", {**options, "overwrite": True})[-1] == "--overwrite"


def test_torchrun_on_one_machine_and_on_several():
    words = ["pretrain", "mae_3d", "--out", "a b"]
    assert shlex.split(torchrun_line(words, 8)) == [
        *("torchrun", "--nnodes", "1", "--nproc-per-node", "8", "--standalone", "-m", "ssl_med.cli"),
        *words,
    ]
    assert '--node-rank "$NODE_RANK" --master-addr "$MASTER_ADDR"' in torchrun_line(words, 8, 4)


def test_what_a_job_asks_for():
    assert SlurmJob.of("nodes=2,gpus=8,time=1-12:00:00,partition=gpu") == SlurmJob(2, 8, "1-12:00:00", "gpu")
    for text, message in {
        "node=2": "did you mean 'nodes'",
        "gpus=many": "whole number",
        "gpus": "no NAME=VALUE",
        "partition=a\nrm": "no batch file takes",
    }.items():
        with pytest.raises(UserError, match=message):
            SlurmJob.of(text)


def test_the_batch_file_warns_requeues_and_is_a_shell_script(tmp_path):
    path = tmp_path / "a b" / "run.sbatch"
    text = write_batch_file(path, SlurmJob.of("nodes=2,gpus=8,account=lab"), ["pretrain", "mae_3d", "--out", "x y"])
    assert path.read_text() == text
    for line in ("--nodes=2", "--ntasks-per-node=8", "--signal=USR1@120", "--requeue", "--account=lab"):
        assert f"#SBATCH {line}\n" in text
    assert "partition" not in text
    program = tmp_path / "srun"
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@" > "$ASKED"\n')
    program.chmod(0o755)
    names = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "ASKED": str(tmp_path / "asked"), "SLURM_CPUS_PER_TASK": "8"}
    subprocess.run(["bash", str(path)], env=names, check=True)
    assert (tmp_path / "asked").read_text().splitlines() == [
        *("--kill-on-bad-exit=1", "ssl-med", "pretrain", "mae_3d", "--out", "x y"),
        *("--trainer.num_nodes", "2", "--trainer.devices", "8"),
    ]


def test_slurm_writes_beside_the_run_and_torchrun_prints(store, tmp_path, capsys):
    words = ["pretrain", "smoke/mae_3d", "--data", str(store), "--out", str(tmp_path / "run")]
    assert main([*words, "--slurm", "nodes=1,gpus=2"]) == 0
    assert "USR1@120" in capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ["run.sbatch"]
    assert main([*words, "--torchrun", "--trainer.devices", "2"]) == 0
    assert "--nproc-per-node 2 --standalone -m ssl_med.cli pretrain smoke/mae_3d" in capsys.readouterr().out
    for more, message in (
        (["--slurm", "nodes=1", "--overwrite"], "must resume"),
        (["--slurm", "nodes=1", "--supervise"], "give one"),
        (["--slurm", "nodes=1", "--data.cro", "8"], "did you mean 'crop'"),
    ):
        assert main([*words, *more]) == 2
        assert message in capsys.readouterr().err


JOB = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
out, plan = Path(sys.argv[1]), json.loads(sys.argv[2])
starts = out / "starts"
starts.write_text((starts.read_text() if starts.exists() else "") + sys.argv[3] + "\\n")
number = len(starts.read_text().splitlines()) - 1
with (out / "metrics.jsonl").open("a") as file:
    file.write("{}\\n")
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
(out / f"other{number}").write_text(str(other.pid))
if plan[number] == "wait":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    (out / "waiting").touch()
    time.sleep(60)
time.sleep(0.3)
if plan[number] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(plan[number])
"""


def supervised(out: Path, plan: list, most: int = 3) -> tuple[int, list[str], Supervisor]:
    supervisor = Supervisor(out, most, pause=0.01, program=[sys.executable, "-c", JOB])
    code = supervisor.run([str(out), json.dumps(plan), "again"], [str(out), json.dumps(plan), "first"])
    return code, (out / "starts").read_text().splitlines(), supervisor


def ends(number: str) -> bool:
    """The process ends soon; one that nobody waits for stays as a zombie where no init collects it."""
    stat = Path(f"/proc/{number}/stat")
    for _ in range(500):
        if not stat.exists() or stat.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return True
        time.sleep(0.01)
    return False


def test_a_crash_is_relaunched_and_nothing_of_the_old_job_is_left(tmp_path):
    code, starts, supervisor = supervised(tmp_path, ["kill", 1, 0])
    assert (code, starts) == (0, ["first", "again", "again"])
    assert len(supervisor.recoveries) == 2
    assert all(seconds > 0 for seconds in supervisor.recoveries)
    assert len((tmp_path / "restarts.jsonl").read_text().splitlines()) == 2
    assert all(ends(file.read_text()) for file in tmp_path.glob("other*"))


@pytest.mark.parametrize("code", [0, 2, 130, 143])
def test_an_end_that_is_meant_is_final(tmp_path, code):
    assert supervised(tmp_path, [code])[:2] == (code, ["first"])


def test_it_gives_up_after_so_many_relaunches(tmp_path, capfd):
    assert supervised(tmp_path, ["kill", 1, "kill", 0], most=2)[:2] == (137, ["first", "again", "again"])
    assert "relaunched 2 times; giving up" in capfd.readouterr().err


def test_a_signal_is_handed_on_and_ends_it(tmp_path):
    def ask() -> None:
        while not (tmp_path / "waiting").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    threading.Thread(target=ask).start()
    assert supervised(tmp_path, ["wait"])[:2] == (143, ["first"])
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_first_start_alone_overwrites(store, tmp_path, monkeypatch):
    """What the command line hands to the supervisor; the codes of the job are those of the command."""
    asked = []

    def noted(self, words, first=None):
        asked.append((self.out, self.most, words, first))
        return 143

    monkeypatch.setattr(Supervisor, "run", noted)
    out = tmp_path / "run"
    words = ["pretrain", "smoke/mae_3d", "--data", str(store), "--out", str(out)]
    setting = ["--learner.lr", "0.001"]
    assert main([*words, "--supervise", "--overwrite", *setting]) == 143
    assert main([*words, "--supervise", "3", "--resume", "must", *setting]) == 143
    again = parsed(asked[0][2])
    assert asked[0][:2] == (out, 10)
    assert (again[0].overwrite, again[0].resume, again[1]) == (False, "auto", {"learner.lr": 0.001})
    assert vars(parsed(asked[0][3])[0]) == {**vars(again[0]), "overwrite": True}
    assert parsed(asked[0][3])[1] == again[1]
    assert asked[1][:2] == (out, 3)
    assert [parsed(part)[0].resume for part in asked[1][2:]] == ["auto", "must"]
    assert not list(tmp_path.iterdir())  # the job makes its folder itself


def parsed(words: list[str]) -> tuple:
    arguments, rest = build_parser().parse_known_args(words)
    assert arguments.supervise is None  # the job is a plain one
    return arguments, parse_overrides(rest, "pretrain")
