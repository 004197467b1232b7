"""Relaunching a whole job after a crash: restarts inside a job proved unreliable, so every process starts anew."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FINAL = {0, 2, 130, 143}
"""Codes after which nothing is relaunched: finished, a mistake that a person must mend, asked to stop."""


class Supervisor:
    """Runs ``ssl-med ...`` in a process group of its own until it ends by itself.

    When the first process of the job ends, whatever else it started is killed, and the job is started anew: the run
    resumes from its last checkpoint. Signals are handed on, so that the job saves itself and stops.

    Args:
        out: folder of the run; ``restarts.jsonl`` in it lists what happened.
        most: relaunches, at most.
        pause: seconds before the first relaunch; doubled each time that no checkpoint was added in between.
        longest_pause: seconds.
        program: what is run with the words.
    """

    def __init__(
        self,
        out: Path,
        most: int = 10,
        pause: float = 1.0,
        longest_pause: float = 300.0,
        program: Sequence[str] = (sys.executable, "-m", "ssl_med.cli"),
    ) -> None:
        self.out, self.most, self.pause, self.longest_pause = out, most, pause, longest_pause
        self.program = program
        self.recoveries: list[float] = []
        """Seconds from each crash to the next line of metrics."""
        self._asked = False
        self._job: subprocess.Popen | None = None

    def run(self, words: list[str], first: list[str] | None = None) -> int:
        """Run until finished, stopped, refused, or crashed too often.

        Args:
            words: after ``ssl-med``; they resume.
            first: the same for the first start, where it differs (``--overwrite``).

        Returns:
            The exit code of the job.
        """
        before = {number: signal.signal(number, self._hand_on) for number in _handed_on()}
        try:
            return self._run(words, first or words)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _run(self, words: list[str], first: list[str]) -> int:
        crashed_at, barren = None, 0
        for number in range(self.most + 1):
            saved = self._newest()
            code = self._once(first if number == 0 else words, crashed_at)
            crashed_at = time.monotonic()
            if code in FINAL or self._asked:
                return code
            barren = 0 if self._newest() != saved else barren + 1
            if number < self.most:
                self._say(f"the job ended with code {code}; start {number + 2} of {self.most + 1} follows")
                self._sleep(min(self.longest_pause, self.pause * 2**barren))
            if self._asked:
                return code
        self._say(f"the job ended with code {code} and has been relaunched {self.most} times; giving up")
        return code

    def _once(self, words: list[str], crashed_at: float | None) -> int:
        """One start; returns when its first process has ended and the others are gone."""
        metrics = self._size()
        self._job = subprocess.Popen([*self.program, *words], start_new_session=True)
        while (code := self._job.poll()) is None:
            if crashed_at is not None and self._size() > metrics:
                self._recovered(time.monotonic() - crashed_at)
                crashed_at = None
            metrics = min(metrics, self._size())  # a resumed run first drops the lines of the steps it repeats
            time.sleep(0.1)
        _kill_group(self._job.pid)
        self._job = None
        return code if code >= 0 else 128 - code

    def _recovered(self, seconds: float) -> None:
        self.recoveries.append(seconds)
        self._say(f"training again {seconds:.1f} s after the crash")
        line: dict[str, Any] = {"at": time.strftime("%Y-%m-%dT%H:%M:%S"), "recovery_seconds": round(seconds, 2)}
        with (self.out / "restarts.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _say(self, text: str) -> None:
        print(f"supervisor: {text}", file=sys.stderr, flush=True)

    def _size(self) -> int:
        file = self.out / "metrics.jsonl"
        return file.stat().st_size if file.exists() else 0

    def _newest(self) -> str:
        return max((path.name for path in (self.out / "checkpoints").glob("step=*.ckpt")), default="")

    def _sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self._asked and time.monotonic() < end:
            time.sleep(min(0.1, seconds))

    def _hand_on(self, number: int, frame: Any) -> None:
        self._asked = True
        if self._job is not None and self._job.poll() is None:
            self._job.send_signal(number)


def _handed_on() -> list[int]:
    return [signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if hasattr(signal, "SIGUSR1") else [])]


def _kill_group(leader: int) -> None:
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return  # all of them had ended
