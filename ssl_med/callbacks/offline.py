"""wandb, asked to keep to the metrics: no machine, no person, no place, no code and no console."""

import logging
import shutil
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import WandbLogger


class QuietWandb(WandbLogger):
    """Metrics in the run's folder, ended with the training.

    wandb's own ``debug.log`` files say where everything lies, whatever the settings: they go when a training ends.

    Args:
        folder: of the run.
        name: the run's id, under which a resumed run goes on; None for a new one.
        online: send the metrics to wandb's server.
    """

    def __init__(self, folder: Path, name: str | None, online: bool = False) -> None:
        import wandb

        settings = wandb.Settings(
            console="off",
            silent=not online,  # it would print where its files lie
            host="",  # None would be the name of this machine
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            disable_git=True,
            disable_code=True,
            disable_job_creation=True,
            save_code=False,
            symlink=False,
            x_save_requirements=False,
        )
        logging.getLogger("wandb").setLevel(logging.WARNING)  # its notices hold paths
        place: Any = {"save_dir": str(folder), "offline": not online, "id": name, "resume": "allow"}
        super().__init__(project="ssl_med", settings=settings, **place)
        self._folder = folder

    def finalize(self, status: str) -> None:
        """End the run: all metrics are in its file, and what wandb noted for itself is gone."""
        super().finalize(status)
        if self._experiment is not None:
            self._experiment.finish()
            for notes in (self._folder / "wandb").glob("*run-*/logs"):
                shutil.rmtree(notes)
