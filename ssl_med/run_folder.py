"""The folder of a run: begun, resumed or refused, never mixed up with another."""

import json
import logging
import os
import re
import secrets
import shutil
import time
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TextIO

import yaml

from ssl_med import __version__
from ssl_med.config import Config, difference
from ssl_med.data.ledger import images_left_out
from ssl_med.errors import UserError
from ssl_med.files import write_json, write_whole

LOG = logging.getLogger("ssl_med")
Resume = Literal["auto", "never", "must", "force"]
_WATCHED = ("probes", "health", "pictures", "checkpoint_", "step_timeout", "collective_timeout", "track", "online")
_SAFE = (
    *(f"watch.{name}" for name in _WATCHED),  # not what skips a step, chooses weights or ends a run
    *("data.num_workers", "data.prefetch", "data.sample_timeout", "trainer.devices", "trainer.num_nodes"),
)
"""Settings, by how their names begin, that may differ when a run goes on: they do not change what is computed."""
_OF_A_START = {
    *(".lock", "config.yaml", ".config.yaml", ".run.json", "train.log", "manifest.lock", ".manifest.lock"),
    *("restarts.jsonl", "weights.json"),
}
"""What a start leaves that failed or was killed before ``run.json`` was written."""

_WAYS = (
    "Three ways on: resume it by repeating the command it was started with, begin anew with --overwrite, "
    "or give another --out"
)

LEDGER = ".quarantine.jsonl"
"""Where the loader processes note the images that a run leaves out."""


class RunFolder:
    """One training's folder.

    Args:
        path: the folder.
        config: resolved; it must be the one the folder was begun with, apart from what changes nothing.
        resume: ``auto`` goes on with an unfinished run of the same config; ``must`` also asks that there be one;
            ``never`` refuses a folder that is not empty; ``force`` goes on under another config or with other versions
            of the code, and notes in ``run.json`` what differs and since which step.
        overwrite: remove the run that is there and begin anew.

    Raises:
        UserError: the folder holds something else, a finished run, a run of another config, or is in use.
    """

    def __init__(self, path: str | Path, config: Config, resume: Resume = "auto", overwrite: bool = False) -> None:
        self.path, self.config = Path(path), config
        self.leads = is_leader()
        self.state: dict[str, Any] = {
            "run": secrets.token_hex(4),  # stays the same however often the run is resumed or requeued
            "started": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "seconds": 0.0,
        }
        self._began = time.monotonic()
        if self.leads:
            self._claim(resume, overwrite)
        self.resumes = not overwrite and bool(self.read_state())

    def _claim(self, resume: Resume, overwrite: bool) -> None:
        """Check, lock and, if asked, empty the folder: nothing is touched before the folder is known to be ours."""
        state = self.read_state()
        if not state and self._foreign():
            raise UserError(f"{self.path} is not empty and holds no run of ssl-med; give another --out")
        if resume == "must" and (overwrite or not state):
            raise UserError(f"{self.path} holds no run to resume")
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = self._take_lock()
        try:
            if overwrite:
                self._remove()
            elif state := self.read_state():  # read anew: another process may have finished the run meanwhile
                self._refuse_if_other(state, resume)
                self.state |= state
            write_whole(self.path / "config.yaml", yaml.safe_dump(self.config, sort_keys=False))
        except UserError:
            self._lock.close()
            raise

    def _foreign(self) -> bool:
        """Something lies here that is not left by a start that failed or was killed before the run began."""
        found = {item.name for item in self.path.iterdir()} if self.path.exists() else set()
        names = {re.sub(r"^(\.?manifest)\.\d+\.lock$", r"\1.lock", name) for name in found}  # one of each store
        return bool(names) and (".lock" not in names or not names <= _OF_A_START)

    def read_state(self) -> dict[str, Any]:
        """What ``run.json`` says; empty without one."""
        file = self.path / "run.json"
        return json.loads(file.read_text()) if file.is_file() else {}

    def write_state(self, **facts: Any) -> None:
        """Add to ``run.json``, whole or not at all; the seconds spent are kept up."""
        now = time.monotonic()
        self.state |= {**facts, "seconds": self.state["seconds"] + now - self._began}
        self._began = now
        if self.leads:
            write_json(self.path / "run.json", self.state)

    def note_stop(self, step: int) -> None:
        """The run was stopped at a step; where the disk is full it counts as one that was killed, and goes on alike."""
        try:
            self.write_state(status="stopped", step=step)
        except OSError as error:
            LOG.warning("run.json cannot be written: %s", error.strerror)

    def _refuse_if_other(self, state: dict[str, Any], resume: Resume) -> None:
        if resume == "never":
            raise UserError(f"{self.path} holds a run already. {_WAYS}")
        saved = self._saved_config()
        changed = difference(saved, self.config)
        drift = [*[line for line in changed if not _of_all_stores(line).startswith(_SAFE)], *_other_code(state)]
        if drift and resume != "force":
            said = "; ".join(drift[:5])
            raise UserError(
                f"{self.path} holds a run of another config ({said}). {_WAYS}; --resume force goes on with what differs"
            )
        if state.get("status") == "finished":
            raise UserError(f"{self.path} holds a finished run of {state.get('steps')} steps. {_WAYS}")

        self._note_changes(state, [*changed, *_other_code(state)])

    def _saved_config(self) -> Config:
        file = self.path / "config.yaml"
        if not file.is_file():
            raise UserError(f"{self.path} holds a run without its config.yaml; put that back, or use --overwrite")
        return yaml.safe_load(file.read_text())

    def _note_changes(self, state: dict[str, Any], changed: list[str]) -> None:
        """What is different from here on stays in ``run.json``; where the data lie is nobody's business."""
        told = [line for line in changed if not _of_all_stores(line).startswith("data.folder")]
        told = ["data.stores: other stores" if line.startswith("data.stores:") else line for line in told]
        if told:
            note = {"step": state.get("step", 0), "at": time.strftime("%Y-%m-%dT%H:%M:%S"), "changed": told}
            state["changes"] = [*state.get("changes", []), note]

    def _remove(self) -> None:
        for item in self.path.iterdir():
            if item.name != ".lock":  # held by this process: a new one would let another process in
                shutil.rmtree(item) if item.is_dir() else item.unlink()

    def _take_lock(self) -> TextIO:
        """Held while the process lives; the system gives it back after a crash."""
        file = (self.path / ".lock").open("w")
        try:
            import fcntl
        except ImportError:  # Windows: no lock
            return file
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock not kept alive by orphaned loader workers
        except OSError as error:
            file.close()
            raise UserError(f"{self.path} is in use by another process; wait for it or give another --out") from error
        return file

    def close(self) -> None:
        """Give the folder free."""
        if self.leads:
            self._lock.close()


def write_quarantine(folder: Path) -> None:
    """Write ``quarantine.parquet``: the images that this run had to leave out, by id and reason; often none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    reasons = images_left_out(folder / LEDGER)  # each loader process meets an image for itself
    table = pa.table(
        {"id": list(reasons), "reason": list(reasons.values())}, pa.schema([("id", "string"), ("reason", "string")])
    )
    pq.write_table(table, folder / "quarantine.parquet")


def _of_all_stores(line: str) -> str:
    """A line of :func:`~ssl_med.config.difference` about one of several stores, as it were about the only one."""
    return re.sub(r"^data\.stores\.\d+\.", "data.", line)


def is_leader() -> bool:
    """The one process of a run that writes; the launchers (Lightning, torchrun, SLURM) number processes so."""
    numbers = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
    return all(os.environ.get(name, "0") == "0" for name in numbers)


def _other_code(state: dict[str, Any]) -> list[str]:
    """Lines that say which versions are not those of the start; a patch release counts as the same."""
    then, now = state.get("versions") or {}, versions()
    return difference({name: _minor(then[name]) for name in then}, {name: _minor(now.get(name, "")) for name in then})


def _minor(version: str) -> str:
    return ".".join(version.split("+")[0].split(".")[:2])


def versions() -> dict[str, str]:
    """Versions of what computes."""
    others = {name: metadata.version(name) for name in ("torch", "pytorch-lightning", "timm", "monai", "numpy")}
    return {"ssl-med": __version__, **others}


def is_finished(path: Path, config: Config) -> bool:
    """The folder holds a finished run whose settings are those of ``config`` wherever ``config`` names one."""
    state, saved = path / "run.json", path / "config.yaml"
    if not (state.is_file() and saved.is_file()) or json.loads(state.read_text()).get("status") != "finished":
        return False
    return _contains(yaml.safe_load(saved.read_text()), json.loads(json.dumps(config)))


def _contains(saved: Any, asked: Any) -> bool:
    if isinstance(asked, dict) and isinstance(saved, dict):
        return all(_contains(saved.get(name), value) for name, value in asked.items())
    if isinstance(asked, list) and isinstance(saved, list) and len(asked) == len(saved):
        return all(_contains(a, b) for a, b in zip(saved, asked, strict=True))
    return saved == asked or asked is None
