"""Pretext tasks: one file each, read as their papers; a new one needs no line anywhere else."""

from ssl_med.tasks.base import Choice, Plan, PretextTask, SupervisedTask, Task
from ssl_med.tasks.mae import MAE

__all__ = ["MAE", "Choice", "Plan", "PretextTask", "SupervisedTask", "Task"]
