"""A kill, a full disk or a flipped bit never takes the last whole checkpoint away."""

import errno
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ssl_med.callbacks import AtomicCheckpointIO, Saving, newest_whole, remove_leftovers
from ssl_med.callbacks.checkpoint_io import is_whole, point_to
from ssl_med.errors import UserError

IO = AtomicCheckpointIO()


def path_of(folder: Path, step: int) -> Path:
    return folder / f"step={step:07d}.ckpt"


def save(folder: Path, step: int) -> Path:
    path = path_of(folder, step)
    IO.save_checkpoint({"step": step, "weights": torch.full((2000,), float(step))}, path)
    return path


def test_what_is_saved_is_loaded(tmp_path):
    loaded = IO.load_checkpoint(save(tmp_path, 3))
    assert loaded["step"] == 3
    assert torch.equal(loaded["weights"], torch.full((2000,), 3.0))


def die(*arguments: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def half(checkpoint, file) -> None:
    file.write(b"x" * 3000)
    file.flush()
    die()


def dying(work: Callable, count: int, after: bool) -> Callable:
    """What does the work and dies at the given call, once it is done or just before."""
    calls = []

    def counted(*arguments):
        calls.append(arguments)
        if len(calls) < count or after:
            work(*arguments)
        if len(calls) == count:
            die()

    return counted


MOMENTS = {  # what is replaced so that the process dies there, and the step of the newest whole checkpoint afterwards
    "half written": ((torch, "save", half), 1),
    "written": ((os, "fsync", die), 1),
    "before the hash": ((Path, "replace", dying(Path.replace, 1, after=False)), 1),
    "after the hash": ((Path, "replace", dying(Path.replace, 1, after=True)), 1),
    "renamed": ((Path, "replace", dying(Path.replace, 2, after=True)), 2),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_at_any_moment_leaves_a_whole_checkpoint(tmp_path, moment):
    save(tmp_path, 1)
    replaced, expected = MOMENTS[moment]
    child = os.fork()
    if child == 0:
        setattr(*replaced)
        save(tmp_path, 2)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    found = newest_whole(tmp_path)
    assert found == path_of(tmp_path, expected)
    assert IO.load_checkpoint(found)["step"] == expected
    names = {f"step={step:07d}.ckpt{end}" for step in range(1, expected + 1) for end in ("", ".sha256")}
    remove_leftovers(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == names


def overwrite(folder: Path, step: int) -> Path:
    path = folder / "best-val.ckpt"
    IO.save_checkpoint({"step": step}, path)
    return path


def point(folder: Path, step: int) -> Path:
    point_to(save(folder, step))
    return folder / "last.ckpt"


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("call", [(Path, "replace"), (os, "fsync")])
@pytest.mark.parametrize("work", [overwrite, point])
def test_a_name_that_is_used_again_is_whole_at_any_moment(tmp_path, work, call, after):
    """Killed at each rename and each flush of a save, before it and behind it."""
    count, code = 0, -signal.SIGKILL
    while code:
        count += 1
        folder = tmp_path / str(count)
        path = work(folder, 1)
        child = os.fork()
        if child == 0:
            setattr(*call, dying(getattr(*call), count, after))
            work(folder, 2)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, -signal.SIGKILL)
        assert is_whole(path), f"call {count}"
        reached = IO.load_checkpoint(path)["step"]
        assert is_whole(work(folder, 3)), f"the save after call {count}"
        assert IO.load_checkpoint(path)["step"] == 3
        assert len(path.with_name(f"{path.name}.sha256").read_text().split()) == 1
    assert count > 3
    assert reached == 2


def test_the_hash_is_on_the_disk_before_its_file_has_its_name(tmp_path, monkeypatch):
    steps, real, rename = [], os.fsync, Path.replace

    def named(handle):
        steps.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        real(handle)

    monkeypatch.setattr(os, "fsync", named)
    monkeypatch.setattr(Path, "replace", lambda self, path: steps.append(f"> {path.name}") or rename(self, path))
    save(tmp_path, 1)
    name = path_of(tmp_path, 1).name
    assert steps[1:] == [f".{name}.sha256.tmp", f"> {name}.sha256", tmp_path.name, f"> {name}", tmp_path.name]
    assert name in steps[0]


def test_what_is_neither_the_old_nor_the_new_file_is_damaged(tmp_path):
    path = overwrite(tmp_path, 1)
    record = path.with_name(f"{path.name}.sha256")
    record.write_text(f"{'0' * 64}\n{record.read_text()}")
    assert is_whole(path)
    path.write_bytes(path.read_bytes()[:-1])
    assert not is_whole(path)


def test_the_pointer_is_a_copy_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    for step in (1, 2):
        assert IO.load_checkpoint(point(tmp_path, step))["step"] == step


@pytest.mark.parametrize("damage", ["cut", "flip", "no hash", "empty"])
def test_a_damaged_checkpoint_is_passed_over_and_never_loaded(tmp_path, damage):
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    path.write_bytes({"cut": content[:-100], "flip": content, "no hash": content, "empty": b""}[damage])
    if damage == "no hash":
        path.with_name(f"{path.name}.sha256").unlink()
    assert newest_whole(tmp_path) == path_of(tmp_path, 1)
    with pytest.raises(UserError, match="is damaged"):
        IO.load_checkpoint(path)


def test_nothing_whole_is_nothing(tmp_path):
    assert newest_whole(tmp_path) is None
    save(tmp_path, 1).write_bytes(b"x")
    assert newest_whole(tmp_path) is None


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("unexpected pos")])
def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch, error):
    """torch answers a write that fails with OSError or, from its zip writer, RuntimeError."""
    old = save(tmp_path, 1)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}

    def full(checkpoint, file):
        file.write(b"half")
        raise error

    monkeypatch.setattr(torch, "save", full)
    for step in (1, 2):
        with pytest.raises(type(error)):
            save(tmp_path, step)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    assert newest_whole(tmp_path) == old


class Evil:
    def __reduce__(self):
        return os.system, ("touch owned",)


def test_objects_are_never_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = path_of(tmp_path, 1)
    IO.save_checkpoint({"x": Evil()}, path)
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        IO.load_checkpoint(path)
    assert not Path("owned").exists()


def test_last_is_another_name_that_loads(tmp_path):
    for step in (1, 2):
        point_to(save(tmp_path, step))
    assert IO.load_checkpoint(tmp_path / "last.ckpt")["step"] == 2
    IO.remove_checkpoint(path_of(tmp_path, 1))
    assert {p.name for p in tmp_path.glob("step=*")} == {"step=0000002.ckpt", "step=0000002.ckpt.sha256"}
    assert is_whole(tmp_path / "last.ckpt")
    assert newest_whole(tmp_path) == path_of(tmp_path, 2)


def test_fewer_than_two_are_refused():
    with pytest.raises(ValueError, match="at least two"):
        Saving(keep=1)
