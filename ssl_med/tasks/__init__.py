"""Pretext tasks: one file each, read as their papers; a new one needs no line anywhere else."""

from ssl_med.tasks.barlow_twins import BarlowTwins
from ssl_med.tasks.base import Choice, Plan, PretextTask, SupervisedTask, Task
from ssl_med.tasks.byol import BYOL
from ssl_med.tasks.lejepa import LeJEPA
from ssl_med.tasks.mae import MAE
from ssl_med.tasks.moco_v3 import MoCoV3
from ssl_med.tasks.region import RegionContrast
from ssl_med.tasks.simclr import SimCLR
from ssl_med.tasks.ssit import SSiT
from ssl_med.tasks.vicreg import VICReg

__all__ = [
    "BYOL",
    "MAE",
    "BarlowTwins",
    "Choice",
    "LeJEPA",
    "MoCoV3",
    "Plan",
    "PretextTask",
    "RegionContrast",
    "SSiT",
    "SimCLR",
    "SupervisedTask",
    "Task",
    "VICReg",
]
