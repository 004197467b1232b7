"""The ``watch`` section of a config, and the callbacks it stands for."""

from dataclasses import dataclass, field
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger

from ssl_med.callbacks.checkpoint import Checkpoints
from ssl_med.callbacks.journal import JsonLines, Progress
from ssl_med.callbacks.waiting import Waiting
from ssl_med.callbacks.watch import Health, Pictures, Probes, Validate


@dataclass
class Watching:
    """How often to look at a run, how often to save it, and where to report it.

    Args:
        probes: kNN and linear probes during pretraining, where the store has labels.
        health: measurements of feature spread and rank.
        pictures: panels of what the task sees and makes.
        validate: scores on the validation split during fine-tuning.
        checkpoint_minutes: time between checkpoints.
        checkpoint_steps: save also every so many steps.
        track: further trackers, ``tensorboard`` and ``wandb``; both write into the run's folder.
        online: let wandb send the metrics to its server. Nothing is sent unless this is set.
    """

    probes: int = 5
    health: int = 10
    pictures: int = 4
    validate: int = 5
    checkpoint_minutes: float = 15.0
    checkpoint_steps: int | None = None
    track: list[str] = field(default_factory=list)
    online: bool = False

    def callbacks(self, kind: str) -> list[pl.Callback]:
        """Those of a pretraining or a fine-tuning; probes come after health, checkpoints last."""
        looks = [Validate(self.validate)] if kind == "finetune" else [Health(self.health), Probes(self.probes)]
        saves = Checkpoints(self.checkpoint_minutes, self.checkpoint_steps)
        return [Progress(), *looks, Pictures(self.pictures), Waiting(), saves]

    def loggers(self, folder: Path, resume_step: int) -> list[Logger]:
        """Always JSON lines, then what was asked for. No tracker is given the config: it holds local paths."""
        chosen: list[Logger] = [JsonLines(folder, resume_step)]
        for name in self.track:
            if name == "tensorboard":
                from pytorch_lightning.loggers import TensorBoardLogger

                chosen.append(TensorBoardLogger(folder, name="tensorboard", version=""))
            elif name == "wandb":
                chosen.append(self._wandb(folder))
            else:
                raise ValueError(f"watch.track: {name!r} is not known; valid: tensorboard, wandb")
        return chosen

    def _wandb(self, folder: Path) -> Logger:
        import wandb
        from pytorch_lightning.loggers import WandbLogger

        quiet = wandb.Settings(
            console="off",
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            disable_git=True,
            save_code=False,
            x_save_requirements=False,
        )
        return WandbLogger(project="ssl_med", save_dir=str(folder), offline=not self.online, settings=quiet)
