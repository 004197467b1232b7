"""Pretext tasks: one file each, read as their papers; a new one needs no line anywhere else."""

from ssl_med.tasks.barlow_twins import BarlowTwins
from ssl_med.tasks.base import Choice, Plan, PretextTask, Rates, SupervisedTask, Task
from ssl_med.tasks.byol import BYOL
from ssl_med.tasks.dino import DINO
from ssl_med.tasks.hybrid import Hybrid
from ssl_med.tasks.ijepa import IJEPA
from ssl_med.tasks.lejepa import LeJEPA
from ssl_med.tasks.mae import MAE
from ssl_med.tasks.masked_conv import MaskedConv
from ssl_med.tasks.moco_v3 import MoCoV3
from ssl_med.tasks.models_genesis import ModelsGenesis
from ssl_med.tasks.region import RegionContrast
from ssl_med.tasks.simclr import SimCLR
from ssl_med.tasks.simmim import SimMIM
from ssl_med.tasks.ssit import SSiT
from ssl_med.tasks.swav import SwAV
from ssl_med.tasks.swin_triple import SwinTriple
from ssl_med.tasks.vicreg import VICReg
from ssl_med.tasks.voco import VoCo
from ssl_med.tasks.volume_fusion import VolumeFusion

__all__ = [
    "BYOL",
    "DINO",
    "IJEPA",
    "MAE",
    "BarlowTwins",
    "Choice",
    "Hybrid",
    "LeJEPA",
    "MaskedConv",
    "MoCoV3",
    "ModelsGenesis",
    "Plan",
    "PretextTask",
    "Rates",
    "RegionContrast",
    "SSiT",
    "SimCLR",
    "SimMIM",
    "SupervisedTask",
    "SwAV",
    "SwinTriple",
    "Task",
    "VICReg",
    "VoCo",
    "VolumeFusion",
]
