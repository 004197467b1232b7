"""What happens beside the steps of a run: checkpoints, metrics, progress, probes, health and pictures."""

from ssl_med.callbacks.checkpoint import AtomicCheckpointIO, Checkpoints, newest_whole, remove_leftovers
from ssl_med.callbacks.journal import JsonLines, Progress
from ssl_med.callbacks.waiting import Waiting
from ssl_med.callbacks.watch import Health, Pictures, Probes, Validate, Watch

__all__ = [
    "AtomicCheckpointIO",
    "Checkpoints",
    "Health",
    "JsonLines",
    "Pictures",
    "Probes",
    "Progress",
    "Validate",
    "Waiting",
    "Watch",
    "newest_whole",
    "remove_leftovers",
]
