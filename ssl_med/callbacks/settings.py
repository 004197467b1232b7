"""The ``watch`` section of a config, and the callbacks it stands for."""

from dataclasses import dataclass, field
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.loggers import Logger

from ssl_med.callbacks.checkpoint import Checkpoints
from ssl_med.callbacks.guard import Guard
from ssl_med.callbacks.journal import JsonLines, Progress
from ssl_med.callbacks.offline import QuietWandb
from ssl_med.callbacks.signals import Signals
from ssl_med.callbacks.validation import Validate
from ssl_med.callbacks.waiting import Waiting
from ssl_med.callbacks.watch import Health, Pictures, Probes
from ssl_med.callbacks.watchdog import Watchdog


@dataclass
class Watching:
    """How often to look at a run, how often to save it, and where to report it.

    Args:
        probes: kNN and linear probes during pretraining, where the store has labels.
        health: measurements of feature spread and rank.
        pictures: panels of what the task sees and makes.
        validate: scores on the validation split during fine-tuning; the best of these moments is what is exported.
        patience: looks in a row without a better validation score after which a fine-tuning ends early; None for never.
        checkpoint_minutes: time between checkpoints.
        checkpoint_steps: save also every so many steps.
        checkpoint_async: write checkpoints beside the steps, from a copy of the state in the memory of the CPU.
        step_timeout: seconds after which a step that has not ended ends the process, with the stacks of all threads in
            the run's folder; looks at the run count as part of a step. None to wait for ever.
        collective_timeout: seconds that a process waits for the others; None for torch's own (30 minutes; NCCL 10). The
            stacks of all threads are written before it is over.
        skip_patience: steps in a row that may be skipped, as a loss or a gradient is not finite, before the run ends.
        spike: spreads above the running median from which a loss is told to leap; 0 for never.
        skip_spikes: skip such steps like those that are not finite.
        track: further trackers, ``tensorboard`` and ``wandb``; both write into the run's folder.
        online: let wandb send the metrics to its server. Nothing is sent unless this is set.
    """

    probes: int = 5
    health: int = 10
    pictures: int = 4
    validate: int = 5
    patience: int | None = None
    checkpoint_minutes: float = 15.0
    checkpoint_steps: int | None = None
    checkpoint_async: bool = False
    step_timeout: float | None = None
    collective_timeout: float | None = None
    skip_patience: int = 10
    spike: float = 8.0
    skip_spikes: bool = False
    track: list[str] = field(default_factory=list)
    online: bool = False

    def callbacks(self, kind: str, signals: Signals | None = None) -> list[pl.Callback]:
        """Those of a pretraining or a fine-tuning; probes come after health, checkpoints last."""
        choose = Validate(self.validate, self.patience)
        looks = [choose] if kind == "finetune" else [Health(self.health), Probes(self.probes)]
        saves = Checkpoints(self.checkpoint_minutes, self.checkpoint_steps, signals=signals)
        watched = self.step_timeout or self.collective_timeout
        dogs = [Watchdog(self.step_timeout, self.collective_timeout)] if watched else []
        guard = Guard(self.skip_patience, self.spike, self.skip_spikes)
        return [Progress(), guard, *looks, Pictures(self.pictures), Waiting(), saves, *dogs]

    def loggers(self, folder: Path, resume_step: int, run: str = "", leads: bool = True) -> list[Logger]:
        """Always JSON lines, then what was asked for. No tracker is given the config: it holds local paths."""
        chosen: list[Logger] = [JsonLines(folder, resume_step, leads)]
        for name in self.track:
            if name == "tensorboard":
                from pytorch_lightning.loggers import TensorBoardLogger

                chosen.append(TensorBoardLogger(folder, name="tensorboard", version=""))
            elif name == "wandb":
                chosen.append(QuietWandb(folder, run or None, self.online))
            else:
                raise ValueError(f"watch.track: {name!r} is not known; valid: tensorboard, wandb")
        return chosen
