"""What happens beside the steps of a run: checkpoints, metrics, progress, probes, health and pictures."""

from ssl_med.callbacks.checkpoint import Checkpoints
from ssl_med.callbacks.checkpoint_io import AtomicCheckpointIO, newest_whole, remove_leftovers
from ssl_med.callbacks.guard import Guard
from ssl_med.callbacks.journal import JsonLines, Progress
from ssl_med.callbacks.saving import Saving
from ssl_med.callbacks.signals import Signals
from ssl_med.callbacks.validation import Validate
from ssl_med.callbacks.waiting import Waiting
from ssl_med.callbacks.watch import Health, Pictures, Probes, Watch
from ssl_med.callbacks.watchdog import Watchdog

__all__ = [
    "AtomicCheckpointIO",
    "Checkpoints",
    "Guard",
    "Health",
    "JsonLines",
    "Pictures",
    "Probes",
    "Progress",
    "Saving",
    "Signals",
    "Validate",
    "Waiting",
    "Watch",
    "Watchdog",
    "newest_whole",
    "remove_leftovers",
]
