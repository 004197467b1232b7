"""What wandb writes offline: metrics, and nothing of who was scanned, who trains, where, or on what machine."""

import getpass
import socket
import subprocess
from pathlib import Path

import pytest
from jobs import code_of, command, start
from test_privacy import NAMES, nifti, secrets_of, slices

from ssl_med.cli import main

USER, PLACE, HOST = "Clopin_Trouillefou", "court_of_miracles", "belfry-node-17"
REMOTE = "ssh://git@forge.example.org/quasimodo/bells.git"


def names_of_this_machine() -> list[bytes]:
    """Its host name, the user and the home folder, where they are longer than chance."""
    names = [socket.gethostname(), socket.getfqdn(), getpass.getuser(), str(Path.home()), str(Path.cwd())]
    return [name.encode() for name in names if len(name) > 5]


def found_in(folder: Path, words: list[bytes]) -> list[tuple[str, bytes]]:
    """Every byte of every file, whatever its kind, and the names of files and links."""
    paths = sorted(path for path in folder.rglob("*") if path.is_symlink() or path.is_file())
    assert paths
    hits = []
    for path in paths:
        name = str(path.relative_to(folder))
        content = name.encode() + (str(path.readlink()).encode() if path.is_symlink() else b"")
        content += path.read_bytes() if path.is_file() else b""
        hits += [(name, word) for word in words if word.lower() in content.lower()]
    return hits


def on_a_node() -> None:
    """The name of the machine that a program is told."""
    socket.gethostname = lambda: HOST


def test_the_search_reads_all_files(tmp_path: Path) -> None:
    (tmp_path / "run.wandb").write_bytes(b"\0\1" + REMOTE.encode() + b"\0")
    assert found_in(tmp_path, [b"forge.example"]) == [("run.wandb", b"forge.example")]


def test_an_offline_run_names_nobody_and_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scans = tmp_path / PLACE / "scans_of_patients"
    uids = slices(scans / "Quasimodo_Esmeralda" / "T1", 0)
    for number, name in enumerate(NAMES, 1):
        nifti(scans / name / f"{name}_T1.nii.gz", number)
    work = tmp_path / PLACE / "work"
    work.mkdir()
    for words in (["init", "-q"], ["remote", "add", "origin", REMOTE]):
        subprocess.run(["git", *words], cwd=work, check=True)
    monkeypatch.chdir(work)
    home = tmp_path / "homes" / USER
    home.mkdir(parents=True)
    assert main(["prepare", str(scans), "--out", "store"]) == 0
    names = {"HOME": str(home), "USER": USER, "LOGNAME": USER, "HOSTNAME": HOST}
    words = command(Path("store"), Path("run"), 3, "--watch.track", "[wandb]", "--watch.pictures", "1")
    log = tmp_path / "log"
    assert code_of(start(words, log, on_a_node, **names), 120) == 0, log.read_text()

    tracked = work / "run" / "wandb"
    assert list(tracked.rglob("*.wandb"))
    secrets = [*secrets_of(uids), *names_of_this_machine(), *(name.encode() for name in names.values())]
    secrets += [REMOTE.encode(), b"forge.example.org", PLACE.encode()]
    assert found_in(tracked, [*secrets, str(tmp_path).encode()]) == []
    hits = [hit for hit in found_in(work / "run", secrets) if hit != ("config.yaml", PLACE.encode())]
    assert hits == []  # where the store lies stands in config.yaml alone
