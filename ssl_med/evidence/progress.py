"""How far a long analysis is."""

import sys
import time


class Progress:
    """Work done and the time left: often on a terminal, every half minute in a log, nothing where it is soon over.

    Args:
        title: of the work.
        total: amount of it, in any unit.
    """

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total, self.done = title, total, 0
        self._began = self._told = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._shown = False

    def step(self, amount: int) -> None:
        """So much more is done."""
        self.done += amount
        now = time.monotonic()
        if now - self._told < (1.0 if self._terminal else 30.0) or not self.done:
            return
        self._told, self._shown = now, True
        share = min(1.0, self.done / max(1, self.total))
        left = (now - self._began) * (1 - share) / max(share, 1e-9)
        words = f"{self.title}: {share:.0%}, about {_clock(left)} left"
        print(f"\r{words}\033[K" if self._terminal else words, end="" if self._terminal else "\n", file=sys.stderr)
        sys.stderr.flush()

    def close(self) -> None:
        """Clear the line of a terminal."""
        if self._terminal and self._shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    whole = max(1, round(seconds))
    return f"{whole} s" if whole < 90 else f"{round(whole / 60)} min"
