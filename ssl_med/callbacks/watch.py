"""Is it working? Probes beside random weights, signs of collapse, and pictures, at a few moments of a run."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor

from ssl_med.backbones import Backbone
from ssl_med.backbones.shared_vit import of_rank
from ssl_med.callbacks.checkpoint import in_parts
from ssl_med.data.module import StoreData
from ssl_med.data.record import BURNED_IN
from ssl_med.errors import UserError
from ssl_med.evaluate import probe, random_twin, to_device
from ssl_med.ops.collapse import effective_rank, feature_spread
from ssl_med.ops.ranks import alone
from ssl_med.tasks import PretextTask
from ssl_med.types import Batch

LOG = logging.getLogger("ssl_med")
_SEARCHED = 2000
"""Positions of the training order that are searched for images to draw."""
_JUDGED = 8
"""Images, at least, from which a task's own signs are taken: fewer are alike by chance."""


class Watch(pl.Callback):
    """Something that is done at the start, at equal distances, and at the end of a run.

    Args:
        times: how often, the end included and the start not counted; 0 for never.
    """

    def __init__(self, times: int = 10) -> None:
        self.times = times

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """The first look, unless the run was resumed."""
        if self.times and trainer.global_step == 0:
            self._look_aside(trainer, pl_module)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        """Look when the step is due."""
        if not self._is_due(trainer):
            return
        self._look_aside(trainer, pl_module)
        self.after_look(trainer)

    def _is_due(self, trainer: pl.Trainer) -> bool:
        """The same answer on every process."""
        if not self.times or trainer.fit_loop._should_accumulate():
            return False
        every, step = -(-trainer.max_steps // self.times), trainer.global_step
        return step == trainer.max_steps or (step % every == 0 and trainer.max_steps - step >= every)

    def _look_aside(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """A look must change nothing: random state and mode are put back."""
        task: Any = cast(Any, pl_module).whole()  # all processes gather it, the first one looks
        if task is None or not trainer.is_global_zero:
            return
        training = task.training
        task.eval()
        with torch.random.fork_rng(), torch.no_grad(), alone():
            self.look(trainer, task)
        task.train(training)

    def look(self, trainer: pl.Trainer, task: Any) -> None:
        """What is done at these moments, by the first process alone."""
        raise TypeError(f"{type(self).__name__} does not say what to look at")

    def after_look(self, trainer: pl.Trainer) -> None:
        """What all processes do together after a look. Nothing by default."""


def _fixed_batch(trainer: pl.Trainer, size: int) -> Batch:
    """The first crops of the training order: the same at every look."""
    data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
    dataset = data.crops()
    return to_device(dataset.collate([dataset[i] for i in range(size)]), trainer.strategy.root_device)


def _legible_batch(trainer: pl.Trainer, size: int) -> Batch | None:
    """The first crops of the training order from images without burned-in text; fewer or None if there are too few."""
    data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
    dataset, samples = data.crops(), []
    for position in range(_SEARCHED):
        row = dataset.rows[dataset.order(position)]
        if BURNED_IN in row.warnings:
            continue
        sample = dataset[position]
        if sample["id"] == row.id:  # a damaged image is replaced by one of which nothing is known here
            samples.append(sample)
        if len(samples) == size:
            break
    return to_device(dataset.collate(samples), trainer.strategy.root_device) if samples else None


def _first(batch: Batch, count: int) -> Batch:
    """The first samples of a batch."""
    return cast(Batch, {name: value[:count] for name, value in batch.items()})  # pyright: ignore[reportIndexIssue]


def judge_features(signs: Mapping[str, float]) -> str:
    """A sentence if the backbone's features have collapsed or are no numbers; empty if not."""
    if not all(math.isfinite(signs[name]) for name in ("feature_spread", "effective_rank")):
        return "the features are not finite: the training has diverged; lower the learning rate or clip gradients"
    if signs["feature_spread"] < 0.001:  # a sound MAE went down to 0.006: its features share a large mean
        return (
            f"the features are nearly the same for all images (spread {signs['feature_spread']:.4f}, 1 would be "
            "isotropic): the task has collapsed; lower the learning rate or lengthen the warm-up"
        )
    if signs["effective_rank"] < 1.5:
        return f"the features lie on a line (effective rank {signs['effective_rank']:.2f}): the task is collapsing"
    return ""


def _log(trainer: pl.Trainer, metrics: dict[str, float]) -> None:
    for logger in trainer.loggers:
        logger.log_metrics(metrics, trainer.global_step)


class Health(Watch):
    """Is the task alive? Spread and effective rank of the features, the task's own signs, and a verdict in words.

    Args:
        times: how often.
        samples: crops looked at.

    Raises:
        UserError: fewer than two samples.
    """

    def __init__(self, times: int = 10, samples: int = 32) -> None:
        super().__init__(times)
        if samples < 2:
            raise UserError(f"Health: samples must be 2 or more, got {samples}: one image is always like itself")
        self.samples = samples
        self._said = ""

    def look(self, trainer: pl.Trainer, task: PretextTask) -> None:
        """Log the signs; say what is wrong, once for each verdict."""
        batch, size = _fixed_batch(trainer, self.samples), trainer.datamodule.batch_size  # pyright: ignore
        parts = zip(batch["image"].split(size), batch["spacing"].split(size), strict=True)  # pyright: ignore
        features = torch.cat([task.exports()["backbone"](image, spacing).pooled for image, spacing in parts])
        own = task.vital_signs(_first(batch, min(max(size, _JUDGED), self.samples)))
        signs = {"feature_spread": feature_spread(features), "effective_rank": effective_rank(features), **own}
        numbers = {name: float(value) for name, value in signs.items()}
        _log(trainer, {f"health/{name}": value for name, value in numbers.items()})
        if trainer.global_step == 0:  # nothing can be said of what has not been trained
            return
        verdict = judge_features(numbers) or task.verdict(numbers)
        if verdict and verdict != self._said:
            LOG.warning("step %d: %s", trainer.global_step, verdict)
        self._said = verdict


class Pictures(Watch):
    """Panels of what the task sees and makes, in three planes for volumes.

    Images that may have a name burned into their voxels are not drawn.

    Args:
        times: how often.
        samples: images per panel.
    """

    def __init__(self, times: int = 4, samples: int = 2) -> None:
        super().__init__(times)
        self.samples = samples
        self._said = False

    def look(self, trainer: pl.Trainer, task: Any) -> None:
        """Write ``plots/pictures_step=NNNNNNN.png``."""
        batch = _legible_batch(trainer, self.samples)
        if batch is None:
            if not self._said:
                LOG.info("no pictures in this run: every image may have text burned in")
            self._said = True
            return
        pictures: dict[str, Tensor] = task.pictures(batch)
        if not pictures:
            return
        from ssl_med.reporting.panel import panel_png

        folder = Path(trainer.default_root_dir) / "plots"
        arrays = {name: value.float().cpu().numpy() for name, value in pictures.items()}
        try:
            folder.mkdir(exist_ok=True)
            panel_png(arrays, folder / f"pictures_step={trainer.global_step:07d}.png")
        except OSError as error:  # a full disk must not end the training
            LOG.warning("no picture of step %d: %s", trainer.global_step, error.strerror)


class Probes(Watch):
    """kNN and linear scores on the (first) store's labels, beside those of the same backbone with random weights.

    The state with the best kNN score so far stays as ``checkpoints/best-knn.ckpt``, but not that of a sharded run.

    Training patients are tested on validation patients; the test split stays untouched.

    Args:
        times: how often; a store without labels is not probed.
        crops: crops looked at where labels are masks.
    """

    def __init__(self, times: int = 5, crops: int = 48) -> None:
        super().__init__(times)
        self.crops = crops
        self._random: dict[str, float] = {}
        self._best, self._improved, self._impossible, self._said = -math.inf, False, False, False

    def state_dict(self) -> dict[str, Any]:
        """The best score so far, so that a resumed run does not give a worse state its name."""
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See :meth:`state_dict`."""
        self._best = state_dict["best"]

    def look(self, trainer: pl.Trainer, task: PretextTask) -> None:
        """Log ``probe/knn``, ``probe/linear`` and the same of random weights."""
        data = labelled_view(trainer.datamodule.parts[0])  # pyright: ignore[reportAttributeAccessIssue]
        if data is None or self._impossible:
            return
        backbone: Any = of_rank(cast(Backbone, task.exports()["backbone"]), data.store.spatial_dims)
        try:
            if not self._random:
                self._random = probe(random_twin(backbone), data, "val", self.crops)
            found = probe(backbone, data, "val", self.crops)
        except UserError as error:  # labels that cannot be probed must not end a training that needs none
            self._impossible = True  # not times = 0: the other processes would go on without this one
            LOG.warning("no%s probes in this run: %s", " more" if self._random else "", error)
            return
        scores = {f"probe/{name}": value for name, value in found.items()}
        _log(trainer, {**scores, **{f"probe/{name}_random": value for name, value in self._random.items()}})
        self._improved = trainer.global_step > 0 and scores["probe/knn"] > self._best
        self._best = max(self._best, scores["probe/knn"]) if trainer.global_step else self._best

    def after_look(self, trainer: pl.Trainer) -> None:
        """Keep the state of the best score, unless each process holds a part of it."""
        if not trainer.strategy.broadcast(self._improved):
            return
        self._improved = False
        if not in_parts(trainer):
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "checkpoints" / "best-knn.ckpt")
        elif trainer.is_global_zero and not self._said:
            self._said = True
            LOG.info("no best-knn.ckpt in this run: its weights are in shards, of which only the newest are kept")


def labelled_view(data: StoreData) -> StoreData | None:
    """The same store as labelled data, if it has labels in training and in validation."""
    for target in ("label", "mask"):
        rows = data.store.rows.where(has_mask=True) if target == "mask" else data.store.rows.where(labelled=True)
        if {"train", "val"} <= set(rows.distinct("split")):
            settings = {"targets": target, "seed": data.seed, "crop_mm": data.crop_mm}
            return StoreData(data.folder, data.crop, data.batch_size, data.intensity, **settings)
    return None
