"""The folder of a run: begun, resumed or refused, never mixed up with another."""

import json
import shutil
import time
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, TextIO

import yaml

from ssl_med.config import Config, difference
from ssl_med.errors import UserError

Resume = Literal["auto", "never", "must"]
_SAFE = ("watch", "data.num_workers", "trainer.devices", "trainer.num_nodes")
"""Settings that may differ when a run goes on: they do not change what is computed."""


class RunFolder:
    """One training's folder.

    Args:
        path: the folder.
        config: resolved; it must be the one the folder was begun with, apart from what changes nothing.
        resume: ``auto`` goes on with an unfinished run of the same config; ``must`` also asks that there be one;
            ``never`` refuses a folder that is not empty.
        overwrite: remove the run that is there and begin anew.

    Raises:
        UserError: the folder holds something else, a finished run, a run of another config, or is in use.
    """

    def __init__(self, path: str | Path, config: Config, resume: Resume = "auto", overwrite: bool = False) -> None:
        self.path, self.config = Path(path), config
        state = self.read_state()
        if overwrite and state:
            self._remove()
            state = {}
        self.resumes = bool(state)
        if resume == "must" and not state:
            raise UserError(f"{self.path} holds no run to resume")
        if state:
            self._refuse_if_other(state, resume)
        elif self.path.exists() and any(self.path.iterdir()):
            raise UserError(f"{self.path} is not empty and holds no run of ssl-med; give another --out")
        self.path.mkdir(parents=True, exist_ok=True)
        self._lock = self._take_lock()
        self.state: dict[str, Any] = state or {"started": time.strftime("%Y-%m-%dT%H:%M:%S"), "seconds": 0.0}
        (self.path / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        self._began = time.monotonic()

    def read_state(self) -> dict[str, Any]:
        """What ``run.json`` says; empty without one."""
        file = self.path / "run.json"
        return json.loads(file.read_text()) if file.is_file() else {}

    def write_state(self, **facts: Any) -> None:
        """Add to ``run.json``, whole or not at all; the seconds spent are kept up."""
        now = time.monotonic()
        self.state |= {**facts, "seconds": self.state["seconds"] + now - self._began}
        self._began = now
        temporary = self.path / ".run.json"
        temporary.write_text(json.dumps(self.state, indent=1))
        temporary.replace(self.path / "run.json")

    def _refuse_if_other(self, state: dict[str, Any], resume: Resume) -> None:
        ways = (
            "Three ways on: resume it by repeating the command it was started with, begin anew with --overwrite, "
            "or give another --out"
        )
        if resume == "never":
            raise UserError(f"{self.path} holds a run already. {ways}")
        saved = yaml.safe_load((self.path / "config.yaml").read_text())
        drift = [line for line in difference(saved, self.config) if not line.startswith(_SAFE)]
        if drift:
            raise UserError(f"{self.path} holds a run of another config ({'; '.join(drift[:5])}). {ways}")
        if state.get("status") == "finished":
            raise UserError(f"{self.path} holds a finished run of {state.get('steps')} steps. {ways}")

    def _remove(self) -> None:
        for item in self.path.iterdir():
            shutil.rmtree(item) if item.is_dir() else item.unlink()

    def _take_lock(self) -> TextIO:
        """Held while the process lives; the system gives it back after a crash."""
        file = (self.path / ".lock").open("w")
        try:
            import fcntl
        except ImportError:  # Windows: no lock
            return file
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{self.path} is in use by another process; wait for it or give another --out") from error
        return file

    def close(self) -> None:
        """Give the folder free."""
        self._lock.close()


def versions() -> dict[str, str]:
    """Versions of what computes."""
    return {name: metadata.version(name) for name in ("torch", "pytorch-lightning", "timm", "monai", "numpy")}


def is_finished(path: Path, config: Config) -> bool:
    """The folder holds a finished run whose settings are those of ``config`` wherever ``config`` names one."""
    state, saved = path / "run.json", path / "config.yaml"
    if not state.is_file() or json.loads(state.read_text()).get("status") != "finished":
        return False
    return _contains(yaml.safe_load(saved.read_text()), json.loads(json.dumps(config)))


def _contains(saved: Any, asked: Any) -> bool:
    if isinstance(asked, dict) and isinstance(saved, dict):
        return all(_contains(saved.get(name), value) for name, value in asked.items())
    return saved == asked or asked is None
